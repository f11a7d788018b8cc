//! Hollow nodes: Node objects that are ready and stay so, and whose pods run as soon as they are bound. Nothing is started.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_client::{Informer, ObjectKey, SharedInformerFactory, WorkQueue, run_workers};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::control_plane::Tasks;

/// How often a kubelet renews its Lease.
const RENEWAL: Duration = Duration::from_secs(10);
/// Requests under way at once.
const WORKERS: usize = 16;

/// The nodes of one simulation.
pub struct HollowNodes {
    client: kube::Client,
    count: usize,
}

fn name(number: usize) -> String {
    format!("hollow-{number}")
}

/// A node with the size of those in upstream's benchmarks.
fn node(number: usize) -> serde_json::Value {
    let (name, now) = (name(number), Timestamp::now().to_string());
    let size = json!({"cpu": "4", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let address =
        Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + u32::try_from(number).unwrap_or(0));
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64", "orlop.io/hollow": "true",
            "topology.kubernetes.io/zone": format!("zone{}", number % 3 + 1)}},
        "status": {"capacity": size, "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status", "lastHeartbeatTime": now, "lastTransitionTime": now}],
            "nodeInfo": {"kubeletVersion": "v1.36.0-hollow", "operatingSystem": "linux", "architecture": "amd64",
                "osImage": "none", "kernelVersion": "none", "containerRuntimeVersion": "hollow://0",
                "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": ""}},
    })
}

impl HollowNodes {
    /// Registers the nodes.
    pub async fn register(client: kube::Client, count: usize) -> anyhow::Result<HollowNodes> {
        let nodes: Api<Node> = Api::all(client.clone());
        let made = futures::stream::iter(0..count).map(|number| {
            let nodes = nodes.clone();
            async move {
                let object = serde_json::from_value(node(number))?;
                match nodes.create(&PostParams::default(), &object).await {
                    // Of an earlier run on the same state.
                    Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                    created => created.map(drop).map_err(anyhow::Error::from),
                }
            }
        });
        made.buffer_unordered(WORKERS).try_collect::<()>().await?;
        Ok(HollowNodes { client, count })
    }

    /// Keeps the nodes ready and their pods running, as tasks.
    pub fn run(self, shutdown: &CancellationToken, tasks: &mut Tasks) {
        let (client, count, stop) = (self.client.clone(), self.count, shutdown.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(renew_leases(client, count)).await;
            Ok(())
        });
        let (client, stop) = (self.client, shutdown.clone());
        tasks.spawn(async move {
            run_pods(client, stop).await;
            Ok(())
        });
    }
}

/// Renews every Lease once in [`RENEWAL`], evenly spread.
async fn renew_leases(client: kube::Client, count: usize) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut ticks = tokio::time::interval(RENEWAL / u32::try_from(count.max(1)).unwrap_or(u32::MAX));
    for number in (0..count.max(1)).cycle() {
        ticks.tick().await;
        let name = name(number);
        let now = Timestamp::now();
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}")}});
        if let Err(error) =
            leases.patch(&name, &PatchParams::apply("hollow-kubelet").force(), &Patch::Apply(lease)).await
        {
            warn!(node = name, %error, "lease not renewed");
        }
    }
}

async fn run_pods(client: kube::Client, shutdown: CancellationToken) {
    let factory = SharedInformerFactory::new(client.clone(), shutdown.clone());
    let pods: Informer<Pod> = factory.selected("spec.nodeName!=", "");
    let queue = WorkQueue::new();
    let own = queue.clone();
    pods.subscribe(move |event| {
        let pod = event.object();
        let hollow = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if hollow.is_some_and(|node| node.starts_with("hollow-")) && next_step(pod).is_some() {
            own.add(ObjectKey::of(&pod.metadata));
        }
    });
    let addresses = AtomicU32::new(u32::from(Ipv4Addr::new(10, 244, 0, 1)));
    let (pods, client, addresses) = (&pods, &client, &addresses);
    run_workers("hollow-kubelet", queue, WORKERS, shutdown, |key: ObjectKey| async move {
        let Some(pod) = pods.get_key(&key) else { return Ok(None) };
        let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        match next_step(&pod) {
            Some(Step::Run) => {
                let address = Ipv4Addr::from(addresses.fetch_add(1, Ordering::Relaxed));
                let status = running(&pod, address);
                ignore_gone(
                    api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(status)).await,
                )?;
            }
            Some(Step::Remove) => {
                let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                ignore_gone(api.delete(&key.name, &at_once).await)?;
            }
            None => {}
        }
        Ok::<_, kube::Error>(None::<Duration>)
    })
    .await;
}

fn ignore_gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// What a hollow kubelet does with a pod.
enum Step {
    Run,
    Remove,
}

fn next_step(pod: &Pod) -> Option<Step> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() {
        Some(Step::Remove)
    } else if matches!(phase, None | Some("Pending")) {
        Some(Step::Run)
    } else {
        None
    }
}

fn running(pod: &Pod, address: Ipv4Addr) -> serde_json::Value {
    let now = Timestamp::now().to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
        json!({"name": container.name, "image": container.image, "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "containerID": format!("hollow://{}", container.name),
            "state": {"running": {"startedAt": now}}})
    });
    json!({"status": {"phase": "Running", "startTime": now, "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [condition("Initialized"), condition("ContainersReady"), condition("Ready")],
        "containerStatuses": containers.collect::<Vec<_>>()}})
}
