//! `/stats/summary`, `/metrics` and `/metrics/resource`: real readings, nothing estimated.

use std::collections::BTreeMap;
use std::fmt::Write;

use http::{Response, StatusCode};
use orlop_cri::{Container, ContainerFilter, ContainerState, ContainerStats, CriError};
use serde_json::{Value, json};

use super::{Body, error, whole};
use crate::context::Context;
use crate::node::info::filesystem;
use crate::runtime_status::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, time};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Readings of running containers with what they belong to; with the sizes of their writable layers when those are
/// wanted too.
async fn readings(
    context: &Context,
    with_layers: bool,
) -> Result<Vec<(Container, ContainerStats)>, CriError> {
    let filter = ContainerFilter { state: Some(ContainerState::Running), ..Default::default() };
    let containers = context.runtime.list_containers(&filter).await?;
    let stats = match with_layers {
        true => context.runtime.list_container_stats(&filter).await?,
        false => context.runtime.list_container_usage(&filter).await?,
    };
    let mut by_id: BTreeMap<String, ContainerStats> = stats.into_iter().map(|s| (s.id.clone(), s)).collect();
    Ok(containers.into_iter().filter_map(|c| by_id.remove(&c.id).map(|stats| (c, stats))).collect())
}

fn label<'a>(container: &'a Container, key: &str) -> &'a str {
    container.labels.get(key).map(String::as_str).unwrap_or_default()
}

/// The node's own use, from the kernel.
struct NodeUse {
    cpu_nanos: u64,
    memory_used: u64,
    memory_available: u64,
    swap_used: u64,
}

fn node_use() -> NodeUse {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal: in hundredths of a second.
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let (total, available) = (field("MemTotal:"), field("MemAvailable:"));
    NodeUse {
        cpu_nanos: busy * 10_000_000,
        memory_used: total.saturating_sub(available),
        memory_available: available,
        swap_used: field("SwapTotal:").saturating_sub(field("SwapFree:")),
    }
}

pub(super) async fn summary(context: &Context) -> Response<Body> {
    let readings = match readings(context, true).await {
        Ok(readings) => readings,
        Err(failure) => {
            return error(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {failure}"));
        }
    };
    let mut pods: BTreeMap<String, (Value, Vec<Value>, u64, u64)> = BTreeMap::new();
    for (container, stats) in &readings {
        let at = time(stats.timestamp).to_string();
        let reference = json!({"name": label(container, POD_NAME), "namespace": label(container, POD_NAMESPACE), "uid": label(container, POD_UID)});
        let entry = pods.entry(label(container, POD_UID).to_owned()).or_insert((reference, Vec::new(), 0, 0));
        entry.1.push(json!({
            "name": label(container, CONTAINER_NAME),
            "startTime": time(container.created_at).to_string(),
            "cpu": {"time": at, "usageCoreNanoSeconds": stats.cpu_usage_nanos},
            "memory": {
                "time": at, "usageBytes": stats.memory_usage_bytes,
                "workingSetBytes": stats.memory_working_set_bytes, "rssBytes": stats.memory_rss_bytes,
            },
            "rootfs": {"time": at, "usedBytes": stats.writable_layer_bytes, "inodesUsed": stats.writable_layer_inodes},
        }));
        entry.2 += stats.cpu_usage_nanos;
        entry.3 += stats.memory_working_set_bytes;
    }
    let now = jiff::Timestamp::now().to_string();
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers, cpu, memory)| {
            json!({
                "podRef": reference, "containers": containers,
                "cpu": {"time": now, "usageCoreNanoSeconds": cpu}, "memory": {"time": now, "workingSetBytes": memory},
            })
        })
        .collect();
    let node = node_use();
    let (total, free) = filesystem(&context.options.root_dir).unwrap_or((0, 0));
    let answer = json!({
        "node": {
            "nodeName": context.options.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": node.cpu_nanos},
            "memory": {"time": now, "availableBytes": node.memory_available, "workingSetBytes": node.memory_used},
            "fs": {"time": now, "availableBytes": free, "capacityBytes": total, "usedBytes": total.saturating_sub(free)},
        },
        "pods": pods,
    });
    whole(StatusCode::OK, "application/json", answer.to_string())
}

pub(super) async fn metrics(context: &Context) -> Response<Body> {
    let readings = match readings(context, false).await {
        Ok(readings) => readings,
        Err(failure) => return error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    };
    let name = &context.options.node_name;
    let text = format!(
        "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"{name}\"}} 1\n\
         # HELP kubelet_desired_pods Pods the API server has bound to the node.\n# TYPE kubelet_desired_pods gauge\n\
         kubelet_desired_pods {}\n\
         # HELP kubelet_running_containers Number of containers currently running\n# TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {}\n",
        context.pods.len(),
        readings.len(),
    );
    whole(StatusCode::OK, TEXT, text)
}

/// What metrics-server reads.
pub(super) async fn resource_metrics(context: &Context) -> Response<Body> {
    let readings = readings(context, false).await.inspect_err(|failure| {
        tracing::warn!(%failure, "the runtime told no use of its containers");
    });
    let now = jiff::Timestamp::now().as_millisecond();
    whole(StatusCode::OK, TEXT, resource_text(&node_use(), now, readings.as_deref().ok()))
}

/// One series of [`resource_text`]: its labels, its value, and when it was read.
type Row = (String, String, Option<i64>);

/// The families in alphabetical order, as upstream's registry writes them; without readings only that there are none.
/// `now` is in milliseconds since the Unix epoch.
fn resource_text(node: &NodeUse, now: i64, readings: Option<&[(Container, ContainerStats)]>) -> String {
    const CONTAINER_CPU: usize = 0;
    const CONTAINER_MEMORY: usize = 1;
    const CONTAINER_START: usize = 2;
    const POD_CPU: usize = 6;
    const POD_MEMORY: usize = 7;
    let mut rows: [Vec<Row>; RESOURCE_FAMILIES.len()] = Default::default();
    if let Some(readings) = readings {
        // Of each pod: CPU, memory, and the time of its latest reading.
        let mut pods: BTreeMap<(&str, &str), (u64, u64, i64)> = BTreeMap::new();
        for (container, stats) in readings {
            let (namespace, pod) = (label(container, POD_NAMESPACE), label(container, POD_NAME));
            let name = label(container, CONTAINER_NAME);
            let labels = format!("{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
            let at = stats.timestamp / 1_000_000;
            rows[CONTAINER_CPU].push((labels.clone(), seconds(stats.cpu_usage_nanos), Some(at)));
            rows[CONTAINER_MEMORY].push((
                labels.clone(),
                stats.memory_working_set_bytes.to_string(),
                Some(at),
            ));
            if let Ok(created) = u64::try_from(container.created_at)
                && created > 0
            {
                rows[CONTAINER_START].push((labels, seconds(created), None));
            }
            let sum = pods.entry((namespace, pod)).or_default();
            sum.0 += stats.cpu_usage_nanos;
            sum.1 += stats.memory_working_set_bytes;
            sum.2 = sum.2.max(at);
        }
        for ((namespace, pod), (cpu, memory, at)) in pods {
            let labels = format!("{{namespace=\"{namespace}\",pod=\"{pod}\"}}");
            rows[POD_CPU].push((labels.clone(), seconds(cpu), Some(at)));
            rows[POD_MEMORY].push((labels, memory.to_string(), Some(at)));
        }
        let of_node = [seconds(node.cpu_nanos), node.memory_used.to_string(), node.swap_used.to_string()];
        for (family, value) in rows[CONTAINER_START + 1..POD_CPU].iter_mut().zip(of_node) {
            family.push((String::new(), value, Some(now)));
        }
    }
    let error = if readings.is_some() { "0" } else { "1" };
    rows[POD_MEMORY + 1].push((String::new(), error.to_owned(), None));
    let mut text = String::new();
    for ((name, kind, help), rows) in RESOURCE_FAMILIES.iter().zip(rows).filter(|(_, rows)| !rows.is_empty())
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value, at) in rows {
            let _ = match at {
                Some(at) => writeln!(text, "{name}{labels} {value} {at}"),
                None => writeln!(text, "{name}{labels} {value}"),
            };
        }
    }
    text
}

/// Name, type and help of the families of `/metrics/resource`.
const RESOURCE_FAMILIES: [(&str, &str, &str); 9] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    ),
    ("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes"),
    (
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
    ),
    (
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    ),
    ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes"),
    (
        "node_swap_usage_bytes",
        "gauge",
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
    ),
    (
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    ),
    ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes"),
    (
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    ),
];

fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_cri::ContainerMetadata;

    fn reading(pod: &str, name: &str, cpu: u64, at: i64) -> (Container, ContainerStats) {
        let labels = [(POD_NAMESPACE, "default"), (POD_NAME, pod), (CONTAINER_NAME, name)];
        let container = Container {
            id: name.to_owned(),
            pod_sandbox_id: String::new(),
            metadata: ContainerMetadata { name: name.to_owned(), attempt: 0 },
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running,
            created_at: 1_500_000_000,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            annotations: Default::default(),
        };
        let stats = ContainerStats {
            id: name.to_owned(),
            timestamp: at * 1_000_000,
            cpu_usage_nanos: cpu,
            memory_working_set_bytes: 4096,
            memory_usage_bytes: 0,
            memory_rss_bytes: 0,
            writable_layer_bytes: 0,
            writable_layer_inodes: 0,
            process_count: 0,
        };
        (container, stats)
    }

    #[test]
    fn resources() {
        let node = NodeUse { cpu_nanos: 2_500_000_000, memory_used: 8192, memory_available: 1, swap_used: 0 };
        let check = |readings: Option<&[(Container, ContainerStats)]>, expected: &[&str]| {
            let text = resource_text(&node, 99, readings);
            let got: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(got, expected);
            assert!(text.ends_with('\n'));
        };
        let of_node = [
            "node_cpu_usage_seconds_total 2.500000000 99",
            "node_memory_working_set_bytes 8192 99",
            "node_swap_usage_bytes 0 99",
        ];
        check(None, &["resource_scrape_error 1"]);
        check(Some(&[]), &[of_node[0], of_node[1], of_node[2], "resource_scrape_error 0"]);
        check(
            Some(&[reading("p", "a", 1, 50), reading("p", "b", 2_000_000_000, 60)]),
            &[
                "container_cpu_usage_seconds_total{container=\"a\",namespace=\"default\",pod=\"p\"} 0.000000001 50",
                "container_cpu_usage_seconds_total{container=\"b\",namespace=\"default\",pod=\"p\"} 2.000000000 60",
                "container_memory_working_set_bytes{container=\"a\",namespace=\"default\",pod=\"p\"} 4096 50",
                "container_memory_working_set_bytes{container=\"b\",namespace=\"default\",pod=\"p\"} 4096 60",
                "container_start_time_seconds{container=\"a\",namespace=\"default\",pod=\"p\"} 1.500000000",
                "container_start_time_seconds{container=\"b\",namespace=\"default\",pod=\"p\"} 1.500000000",
                of_node[0],
                of_node[1],
                of_node[2],
                "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"p\"} 2.000000001 60",
                "pod_memory_working_set_bytes{namespace=\"default\",pod=\"p\"} 8192 60",
                "resource_scrape_error 0",
            ],
        );
    }
}
