//! Registration and status of the node object: written when it changes, and every five minutes otherwise.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_client::EventType;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::info::{architecture, filesystem};
use crate::context::Context;

/// Images listed in the status (`nodeStatusMaxImages`).
const MAX_IMAGES: usize = 50;
/// Names listed per image.
const MAX_NAMES: usize = 5;
/// Processes that must remain possible.
const MIN_PIDS: u64 = 100;

/// Keeps the node object.
pub(crate) struct NodeReporter {
    context: Arc<Context>,
    port: u16,
    /// Notified when the status may have changed.
    wake: Arc<Notify>,
}

/// What the conditions are made of.
#[derive(Debug, Clone)]
struct Health {
    runtime: Result<(), String>,
    network: Result<(), String>,
    memory_pressure: bool,
    disk_pressure: bool,
    pid_pressure: bool,
}

impl NodeReporter {
    pub(crate) fn new(context: Arc<Context>, port: u16, wake: Arc<Notify>) -> Self {
        Self { context, port, wake }
    }

    /// Registers the node and reports until `shutdown`. `network_changed` is called when the network becomes ready.
    pub(crate) async fn run(self, shutdown: CancellationToken, network_changed: impl Fn()) {
        let mut delay = Duration::from_millis(100);
        while let Err(error) = self.register().await {
            warn!(node = self.context.options.node_name, %error, "node not registered; trying again");
            if shutdown.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                return;
            }
            delay = (delay * 2).min(Duration::from_secs(7));
        }
        let mut reported: Option<Instant> = None;
        loop {
            let health = self.health().await;
            let was_ready = self.context.network.borrow().is_ok();
            if self.context.network.send_if_modified(|known| {
                let changed = *known != health.network;
                *known = health.network.clone();
                changed
            }) && !was_ready
            {
                network_changed();
            }
            let due =
                reported.is_none_or(|at| at.elapsed() >= self.context.options.node_status_report_frequency);
            match self.report(&health, due).await {
                Ok(true) => reported = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => {
                    warn!(node = self.context.options.node_name, %error, "node status not written; trying again")
                }
            }
            // While the network is not ready there is no event to wait for but the runtime's own readiness.
            let pause = if health.network.is_ok() && health.runtime.is_ok() {
                self.context.options.node_status_update_frequency
            } else {
                Duration::from_millis(200)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn health(&self) -> Health {
        let runtime = self.context.runtime.status().await;
        let (runtime, network) = match runtime {
            Ok(status) => (status.runtime_ready, status.network_ready),
            Err(error) => (Err(error.to_string()), Err("runtime status is unknown".to_owned())),
        };
        let free = filesystem(&self.context.options.root_dir);
        let bounds = self.context.options.eviction_hard;
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Health {
            runtime,
            network,
            memory_pressure: memory(&meminfo)
                .is_some_and(|(total, free)| bounds.memory_available.is_crossed(total, free)),
            disk_pressure: free.is_some_and(|(total, free)| bounds.nodefs_available.is_crossed(total, free)),
            pid_pressure: pids_left(Path::new("/proc")).is_some_and(|left| left < MIN_PIDS),
        }
    }

    async fn register(&self) -> Result<(), kube::Error> {
        let options = &self.context.options;
        let api = Api::<Node>::all(self.context.client.clone());
        let labels = self.labels();
        match api.get_opt(&options.node_name).await? {
            None if !options.register_node => {
                debug!(node = options.node_name, "waiting for somebody to create the node object");
                Ok(())
            }
            None => {
                let health = self.health().await;
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(options.node_name.clone()),
                        labels: Some(labels),
                        annotations: Some(
                            [(
                                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                                "true".to_owned(),
                            )]
                            .into(),
                        ),
                        ..ObjectMeta::default()
                    },
                    spec: Some(NodeSpec {
                        provider_id: options.provider_id.clone(),
                        taints: Some(options.register_with_taints.clone()).filter(|t| !t.is_empty()),
                        ..NodeSpec::default()
                    }),
                    status: Some(self.status(None, &health).await),
                };
                match api.create(&PostParams::default(), &node).await {
                    Ok(node) => {
                        info!(node = options.node_name, "node registered");
                        self.context.recorder.event(
                            &node,
                            EventType::Normal,
                            "Starting",
                            "Starting kubelet.",
                        );
                        Ok(())
                    }
                    // Somebody else was faster; the next status report fills it.
                    Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Some(node) => {
                let known = node.metadata.labels.clone().unwrap_or_default();
                let missing: BTreeMap<_, _> =
                    labels.into_iter().filter(|(key, value)| known.get(key) != Some(value)).collect();
                if !missing.is_empty() {
                    let patch = json!({"metadata": {"labels": missing}});
                    api.patch(&options.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
                }
                Ok(())
            }
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.context.options.node_labels.clone();
        for (key, value) in [
            ("kubernetes.io/hostname", self.context.options.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture()),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    /// Writes the status when it changed, or when a report is due. `Ok(true)` when it was written.
    async fn report(&self, health: &Health, due: bool) -> Result<bool, kube::Error> {
        let options = &self.context.options;
        let api = Api::<Node>::all(self.context.client.clone());
        let cached = self.context.nodes.get("", &options.node_name);
        let old = match (&cached, due) {
            (Some(node), false) => (**node).clone(),
            _ => match api.get_opt(&options.node_name).await? {
                Some(node) => node,
                None => {
                    // Deleted under a running kubelet: it comes back.
                    self.register().await?;
                    return Ok(true);
                }
            },
        };
        let new = self.status(old.status.as_ref(), health).await;
        let Some(patch) = node_patch(old.status.as_ref(), &new, due) else { return Ok(false) };
        let patch = Patch::Strategic(json!({"status": patch}));
        let written = api.patch_status(&options.node_name, &PatchParams::default(), &patch).await?;
        self.announce(old.status.as_ref(), &written);
        Ok(true)
    }

    /// Tells in events which way the conditions went.
    fn announce(&self, old: Option<&NodeStatus>, node: &Node) {
        let find = |status: Option<&NodeStatus>, kind: &str| {
            status
                .and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == kind))
                .map(|c| c.status.clone())
        };
        let name = &self.context.options.node_name;
        for (kind, on, off) in [
            ("Ready", "NodeReady", "NodeNotReady"),
            ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ] {
            let (before, after) = (find(old, kind), find(node.status.as_ref(), kind));
            if before != after && (before.is_some() || kind == "Ready") {
                let reason = if after.as_deref() == Some("True") { on } else { off };
                self.context.recorder.event(
                    node,
                    EventType::Normal,
                    reason,
                    format!("Node {name} status is now: {reason}"),
                );
            }
        }
    }

    async fn status(&self, old: Option<&NodeStatus>, health: &Health) -> NodeStatus {
        let (context, options) = (&self.context, &self.context.options);
        let mut addresses: Vec<NodeAddress> = options
            .node_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: options.node_name.clone() });
        let runtime = format!("{}://{}", context.runtime_name, context.runtime_version);
        NodeStatus {
            capacity: Some(context.machine.capacity(options)),
            allocatable: Some(context.machine.allocatable(options)),
            addresses: Some(addresses),
            conditions: Some(conditions(old, health, Timestamp::now())),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.port) }),
            }),
            node_info: Some(context.machine.system_info(&runtime)),
            images: self.images().await,
            ..NodeStatus::default()
        }
    }

    async fn images(&self) -> Option<Vec<ContainerImage>> {
        let mut images = match self.context.runtime.list_images(None).await {
            Ok(images) => images,
            Err(error) => {
                debug!(%error, "images not listed");
                return None;
            }
        };
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        let listed = images.into_iter().take(MAX_IMAGES).map(|image| {
            let names = image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES).collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        });
        Some(listed.collect::<Vec<_>>()).filter(|images| !images.is_empty())
    }
}

/// The four conditions, in upstream's order; transition times are kept while the status stays.
fn conditions(old: Option<&NodeStatus>, health: &Health, now: Timestamp) -> Vec<NodeCondition> {
    let mut problems = Vec::new();
    if let Err(why) = &health.runtime {
        problems.push(format!("container runtime is down: {why}"));
    }
    if let Err(why) = &health.network {
        problems.push(format!("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"));
    }
    let ready = if problems.is_empty() {
        (true, "KubeletReady", "kubelet is posting ready status".to_owned())
    } else if problems.len() == 1 {
        (false, "KubeletNotReady", problems.remove(0))
    } else {
        (false, "KubeletNotReady", format!("[{}]", problems.join(", ")))
    };
    let pressure = |on: bool, yes: (&'static str, &str), no: (&'static str, &str)| {
        let (reason, message) = if on { yes } else { no };
        (on, reason, message.to_owned())
    };
    let all = [
        (
            "MemoryPressure",
            pressure(
                health.memory_pressure,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            pressure(
                health.disk_pressure,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pressure(
                health.pid_pressure,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", ready),
    ];
    let known = |kind: &str| old.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == kind));
    all.into_iter()
        .map(|(kind, (on, reason, message))| {
            let status = if on { "True" } else { "False" };
            let since =
                known(kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

/// The `status` of a strategic merge patch; `None` when nothing but heartbeats changed and no report is due.
fn node_patch(old: Option<&NodeStatus>, new: &NodeStatus, due: bool) -> Option<Value> {
    let (Ok(old), Ok(mut new)) = (serde_json::to_value(old), serde_json::to_value(new)) else { return None };
    let bare = |value: &Value| {
        let mut value = value.clone();
        for condition in value.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastHeartbeatTime");
            }
        }
        value
    };
    let (was, is) = (bare(&old), bare(&new));
    let known: Vec<Value> = was.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut changed = false;
    let fields = new.as_object_mut()?;
    fields.retain(|name, value| {
        let same = if name == "conditions" {
            // Others own conditions of the node, too (NetworkUnavailable): only ours are compared.
            is.get("conditions")
                .and_then(Value::as_array)
                .is_some_and(|ours| ours.iter().all(|c| known.contains(c)))
        } else {
            was.get(name.as_str()) == is.get(name.as_str())
        };
        changed |= !same;
        if !same && name == "addresses" {
            // An address that is gone must go from the merged list, too.
            if let Some(list) = value.as_array_mut() {
                list.push(json!({"$patch": "replace"}));
            }
        }
        !same || (name == "conditions" && due)
    });
    (changed || due).then_some(new)
}

/// `MemTotal` and `MemAvailable` in bytes.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((bytes("MemTotal:")?, bytes("MemAvailable:")?))
}

/// Processes and threads that can still be made.
fn pids_left(proc: &Path) -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(proc.join(path)).ok()?.trim().parse::<u64>().ok();
    let max = number("sys/kernel/pid_max")?.min(number("sys/kernel/threads-max")?);
    let load = std::fs::read_to_string(proc.join("loadavg")).ok()?;
    let running = load.split(' ').nth(3)?.split('/').nth(1)?.parse::<u64>().ok()?;
    Some(max.saturating_sub(running))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn healthy() -> Health {
        Health {
            runtime: Ok(()),
            network: Ok(()),
            memory_pressure: false,
            disk_pressure: false,
            pid_pressure: false,
        }
    }

    #[test]
    fn readiness_says_why() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ready =
            |health: &Health, old: Option<&NodeStatus>| conditions(old, health, at(100)).pop().unwrap();
        let first = ready(&healthy(), None);
        assert_eq!((first.status.as_str(), first.reason.as_deref()), ("True", Some("KubeletReady")));
        let down = Health { network: Err("no pod CIDR".to_owned()), ..healthy() };
        let second = ready(&down, None);
        assert_eq!(
            second.message.as_deref(),
            Some(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no pod CIDR"
            )
        );
        let old =
            NodeStatus { conditions: Some(conditions(None, &healthy(), at(50))), ..NodeStatus::default() };
        assert_eq!(ready(&healthy(), Some(&old)).last_transition_time, Some(Time(at(50))));
        assert_eq!(ready(&down, Some(&old)).last_transition_time, Some(Time(at(100))));
    }

    #[test]
    fn heartbeats_alone_are_no_reason_to_write() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let status = |second, health: &Health, old: Option<&NodeStatus>| NodeStatus {
            conditions: Some(conditions(old, health, at(second))),
            ..NodeStatus::default()
        };
        let old = status(1, &healthy(), None);
        let same = status(9, &healthy(), Some(&old));
        assert_eq!(node_patch(Some(&old), &same, false), None);
        assert!(node_patch(Some(&old), &same, true).unwrap().get("conditions").is_some());
        let pressed = Health { memory_pressure: true, ..healthy() };
        assert!(node_patch(Some(&old), &status(9, &pressed, Some(&old)), false).is_some());
    }
}
