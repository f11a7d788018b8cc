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

/// Readings of running containers with what they belong to.
async fn readings(context: &Context) -> Result<Vec<(Container, ContainerStats)>, CriError> {
    let filter = ContainerFilter { state: Some(ContainerState::Running), ..Default::default() };
    let containers = context.runtime.list_containers(&filter).await?;
    let stats = context.runtime.list_container_stats(&filter).await?;
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
    }
}

pub(super) async fn summary(context: &Context) -> Response<Body> {
    let readings = match readings(context).await {
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
    let readings = match readings(context).await {
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
    let readings = match readings(context).await {
        Ok(readings) => readings,
        Err(failure) => return error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    };
    let node = node_use();
    let now = jiff::Timestamp::now().as_millisecond();
    let mut text = format!(
        "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {} {now}\n\
         # TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {} {now}\n",
        seconds(node.cpu_nanos),
        node.memory_used,
    );
    let mut cpu = "# TYPE container_cpu_usage_seconds_total counter\n".to_owned();
    let mut memory = "# TYPE container_memory_working_set_bytes gauge\n".to_owned();
    let mut started = "# TYPE container_start_time_seconds gauge\n".to_owned();
    for (container, stats) in &readings {
        let labels = format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
            label(container, CONTAINER_NAME),
            label(container, POD_NAMESPACE),
            label(container, POD_NAME)
        );
        let at = stats.timestamp / 1_000_000;
        // Writing to a string cannot fail.
        let _ = writeln!(
            cpu,
            "container_cpu_usage_seconds_total{{{labels}}} {} {at}",
            seconds(stats.cpu_usage_nanos)
        );
        let _ = writeln!(
            memory,
            "container_memory_working_set_bytes{{{labels}}} {} {at}",
            stats.memory_working_set_bytes
        );
        let _ = writeln!(
            started,
            "container_start_time_seconds{{{labels}}} {}",
            time(container.created_at).as_second()
        );
    }
    text.push_str(&cpu);
    text.push_str(&memory);
    text.push_str(&started);
    text.push_str("# TYPE scrape_error gauge\nscrape_error 0\n");
    whole(StatusCode::OK, TEXT, text)
}

fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}
