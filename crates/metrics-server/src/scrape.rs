//! The shell: asks every ready node's kubelet, round by round.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use orlop_client::SharedInformerFactory;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::exposition::{self, Reading};
use crate::kubelet::Kubelets;
use crate::{MetricsServer, Source};

/// How many kubelets are asked at a time.
const AT_ONCE: usize = 64;
/// Longest patience with a kubelet.
const TIMEOUT: Duration = Duration::from_secs(10);

impl MetricsServer {
    /// Asks the kubelets until `shutdown`. `informers` gives the nodes and the client that knows the pods; `tls` is what
    /// kubelets are shown and asked for; as long as `wanted` says no, nobody is asked.
    pub fn run(
        self,
        informers: &SharedInformerFactory,
        tls: rustls::ClientConfig,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.ask(informers.clone(), tls, Box::new(wanted), shutdown))
    }

    async fn ask(
        self,
        informers: SharedInformerFactory,
        tls: rustls::ClientConfig,
        wanted: Box<dyn Fn() -> bool + Send + Sync>,
        shutdown: CancellationToken,
    ) {
        let (nodes, kubelets) = (informers.informer::<Node>(), Kubelets::new(tls));
        // A second run would share the first one's.
        let source = Source { client: informers.client().clone(), nodes: nodes.clone() };
        let _ = self.0.source.set(source);
        let work = async {
            nodes.synced().await;
            let resolution = self.0.options.resolution;
            let mut ticks = tokio::time::interval(resolution);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let round =
                    if wanted() { round(&nodes.list(), &kubelets, resolution).await } else { Vec::new() };
                self.0.samples.write().advance(round, resolution);
            }
        };
        shutdown.run_until_cancelled(work).await;
    }
}

/// One round. A kubelet that does not answer in time is left out, and keeps nobody else waiting.
async fn round(nodes: &[Arc<Node>], kubelets: &Kubelets, resolution: Duration) -> Vec<(String, Reading)> {
    let patience = TIMEOUT.min(resolution.mul_f64(0.9));
    let ready = nodes.iter().filter(|node| is_ready(node));
    let all: Vec<_> = ready.map(|node| read(node.clone(), kubelets.clone(), patience)).collect();
    futures::stream::iter(all).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// What one kubelet says.
async fn read(node: Arc<Node>, kubelets: Kubelets, patience: Duration) -> Option<(String, Reading)> {
    let name = node.metadata.name.clone()?;
    let answer = tokio::time::timeout(patience, kubelets.read(&node)).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")));
    match answer.and_then(|text| exposition::parse(&text, Timestamp::now().as_millisecond())) {
        Ok(reading) => {
            debug!(node = name, pods = reading.pods.len(), "kubelet read");
            Some((name, reading))
        }
        Err(error) => {
            warn!(node = name, error, "the kubelet gave no metrics; trying again");
            None
        }
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
