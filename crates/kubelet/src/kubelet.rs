//! The kubelet as a whole: wiring, the main loop's event sources, and housekeeping.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use orlop_client::{EventRecorder, Informer, InformerEvent, SharedInformerFactory};
use orlop_cri::{ContainerEvent, CriError, PodSandboxFilter, Runtime};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Context;
use crate::images::ImageManager;
use crate::logs;
use crate::node::info::Machine;
use crate::node::{self, NodeReporter};
use crate::options::Options;
use crate::pod::PodExt;
use crate::probes::ProbeManager;
use crate::runtime_status::POD_UID;
use crate::server;
use crate::status::StatusManager;
use crate::volumes::VolumeManager;
use crate::worker::{PodWorkers, kill_orphan};

/// How often logs are looked at for rotation.
const LOG_ROTATION_PERIOD: Duration = Duration::from_secs(10);

/// Why a kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The runtime does not answer at start.
    #[error("container runtime: {0}; check that the runtime is up and its endpoint is right")]
    Runtime(#[source] CriError),
    /// The HTTPS server cannot listen.
    #[error("kubelet server on {address}: {source}; free the port or choose another")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The server's certificates are not usable.
    #[error("kubelet server certificates: {0}; give PEM files of a chain, its key and the client CA")]
    Tls(String),
}

/// A node agent. Made by [`Kubelet::new`], lives in [`Kubelet::run`].
pub struct Kubelet {
    options: Options,
    client: kube::Client,
    factory: SharedInformerFactory,
    runtime: Arc<dyn Runtime>,
}

impl Kubelet {
    /// A kubelet for one node. `client` acts as `system:node:<name>`; `factory` provides its informers (pods of the
    /// node, the node, Services); `runtime` runs its containers.
    pub fn new(
        options: Options,
        client: kube::Client,
        factory: SharedInformerFactory,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self { options, client, factory, runtime }
    }

    /// Registers the node and runs its pods until `shutdown`. Containers keep running after that; the next kubelet
    /// adopts them.
    ///
    /// # Errors
    /// [`KubeletError`] when it cannot begin. Later errors are logged and retried.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), KubeletError>> {
        Box::pin(self.work_until(shutdown))
    }

    async fn work_until(self, shutdown: CancellationToken) -> Result<(), KubeletError> {
        let version = self.runtime.version().await.map_err(KubeletError::Runtime)?;
        // Known before the first pod is looked at, so that none is told of a network that is ready all along.
        let network = self.runtime.status().await.map_err(KubeletError::Runtime)?.network_ready;
        let name = &self.options.node_name;
        let pods = self.factory.selected::<Pod>(&format!("spec.nodeName={name}"), "");
        let nodes = self.factory.selected::<Node>(&format!("metadata.name={name}"), "");
        let services = self.factory.informer::<Service>();
        let recorder = EventRecorder::new(self.client.clone(), "kubelet", name);
        let context = Arc::new(Context {
            machine: Machine::read(&self.options.root_dir),
            runtime_name: version.runtime_name,
            runtime_version: version.runtime_version,
            status: StatusManager::new(self.client.clone()),
            volumes: VolumeManager::new(self.options.root_dir.clone(), self.client.clone(), nodes.clone()),
            probes: ProbeManager::new(self.runtime.clone(), recorder.clone()),
            images: ImageManager::new(self.runtime.clone(), recorder.clone()),
            recorder,
            pods,
            services,
            nodes,
            client: self.client,
            runtime: self.runtime,
            network: watch::Sender::new(network),
            options: self.options,
        });
        let bound = server::start(context.clone(), shutdown.clone()).await?;
        let port = context.options.advertised_port.or(bound).unwrap_or(context.options.listen.port());
        run(context, port, shutdown).await;
        Ok(())
    }
}

async fn run(context: Arc<Context>, port: u16, shutdown: CancellationToken) {
    let workers = PodWorkers::new(context.clone(), shutdown.clone());
    let node_wake = Arc::new(Notify::new());
    let reporter = NodeReporter::new(context.clone(), port, node_wake.clone());
    let woken = workers.clone();
    let tasks = [
        tokio::spawn(reporter.run(shutdown.clone(), move || woken.wake_all())),
        tokio::spawn(context.status.clone().run(shutdown.clone())),
        tokio::spawn(lease(context.clone(), shutdown.clone())),
        tokio::spawn(rotate_logs(context.clone(), shutdown.clone())),
        tokio::spawn(serve_pods(context.clone(), workers, shutdown.clone())),
    ];
    info!(node = context.options.node_name, "kubelet started");
    for task in tasks {
        if let Err(error) = task.await {
            warn!(%error, "a part of the kubelet ended unexpectedly");
        }
    }
}

async fn lease(context: Arc<Context>, shutdown: CancellationToken) {
    node::renew(&context, shutdown).await;
}

async fn rotate_logs(context: Arc<Context>, shutdown: CancellationToken) {
    let options = &context.options;
    while shutdown.run_until_cancelled(tokio::time::sleep(LOG_ROTATION_PERIOD)).await.is_some() {
        let done = logs::rotate_all(
            &*context.runtime,
            options.container_log_max_size,
            options.container_log_max_files,
        )
        .await;
        if let Err(error) = done {
            warn!(%error, "logs not looked at for rotation");
        }
    }
}

/// Hands pods and events to the workers.
async fn serve_pods(context: Arc<Context>, workers: Arc<PodWorkers>, shutdown: CancellationToken) {
    let mut events = context.runtime.container_events();
    let ready = async {
        context.pods.synced().await;
        context.nodes.synced().await;
    };
    if shutdown.run_until_cancelled(ready).await.is_none() {
        return;
    }
    let dispatched = workers.clone();
    context.pods.subscribe(move |event| match event {
        InformerEvent::Added(pod) => dispatched.update(pod),
        InformerEvent::Updated { old, new } => {
            if old.uid() != new.uid() {
                dispatched.remove(old);
            }
            dispatched.update(new);
        }
        InformerEvent::Deleted(pod) => dispatched.remove(pod),
    });
    clean_up_orphans(&context, &workers).await;
    let mut relist = tokio::time::interval(context.options.relist_period);
    relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    relist.tick().await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(ContainerEvent::Container { pod_uid, .. } | ContainerEvent::Sandbox { pod_uid, .. }) => workers.wake(&pod_uid),
                Some(ContainerEvent::Lagged) => workers.wake_all(),
                None => {
                    warn!("the runtime's event stream ended; opening another");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = context.runtime.container_events();
                    workers.wake_all();
                }
            },
            _ = relist.tick() => {
                context.pods.list().iter().filter(|pod| !workers.knows(pod.uid())).for_each(|pod| workers.update(pod));
                workers.wake_all();
                clean_up_orphans(&context, &workers).await;
            }
        }
    }
}

/// Ends what runs for pods that the API does not know any more, and removes their files.
async fn clean_up_orphans(context: &Arc<Context>, workers: &PodWorkers) {
    let wanted: HashSet<String> = uids(&context.pods);
    let is_orphan = |uid: &str| !wanted.contains(uid) && !workers.knows(uid);
    let sandboxes = match context.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await {
        Ok(sandboxes) => sandboxes,
        Err(error) => {
            warn!(%error, "sandboxes not listed; orphans are looked for again later");
            return;
        }
    };
    let mut orphans: HashSet<String> =
        sandboxes.iter().filter_map(|s| s.labels.get(POD_UID).cloned()).collect();
    orphans.extend(context.volumes.known_pods());
    orphans.extend(log_dirs(context));
    for uid in orphans.into_iter().filter(|uid| is_orphan(uid)) {
        let context = context.clone();
        tokio::spawn(async move {
            info!(uid, "removing what is left of a pod that is gone");
            if let Err(error) = kill_orphan(&context, &uid).await {
                warn!(uid, %error, "orphaned containers not removed; trying again later");
                return;
            }
            if let Err(error) = context.volumes.tear_down(&uid).await {
                warn!(uid, %error, "orphaned volumes not removed; trying again later");
            }
            remove_log_dirs(&context, &uid);
        });
    }
}

fn uids(pods: &Informer<Pod>) -> HashSet<String> {
    pods.list().iter().map(|pod| pod.uid().to_owned()).collect()
}

/// Uids of pods that have a log directory.
fn log_dirs(context: &Context) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(&context.options.log_dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.rsplit_once('_').map(|(_, uid)| uid.to_owned())).collect()
}

fn remove_log_dirs(context: &Context, uid: &str) {
    let Ok(entries) = std::fs::read_dir(&context.options.log_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.rsplit_once('_')).is_some_and(|(_, known)| known == uid)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            warn!(dir = %entry.path().display(), %error, "orphaned log directory not removed");
        }
    }
}
