//! The resource metrics API, `metrics.k8s.io/v1beta1`: what nodes and containers use, as their kubelets say.
//!
//! Every so often each ready node's kubelet is asked for `/metrics/resource`; of two readings comes a rate. Nothing is
//! kept but the last two readings, and nothing is stored. It answers to metrics-server, in whose place it serves `kubectl
//! top` and the HorizontalPodAutoscaler until a metrics-server from outside is installed.
//!
//! The crate is a client of the API like metrics-server itself: which pods and nodes there are it asks there. It must
//! never know how requests reach it, nor whether the kubelets are in the same process.

#![forbid(unsafe_code)]

mod documents;
mod exposition;
mod kubelet;
mod samples;
mod scrape;
mod serve;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use orlop_client::Informer;
use parking_lot::RwLock;

use samples::Samples;

/// The API group.
pub const GROUP: &str = "metrics.k8s.io";
/// The version that is served.
pub const VERSION: &str = "v1beta1";

/// What an administrator can set.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often the kubelets are asked.
    pub resolution: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { resolution: Duration::from_secs(15) }
    }
}

/// Where nodes and pods are looked up.
struct Source {
    client: kube::Client,
    nodes: Informer<Node>,
}

struct Shared {
    options: Options,
    samples: RwLock<Samples>,
    /// Empty until [`MetricsServer::run`]: requests are answered with 503.
    source: OnceLock<Source>,
}

/// The server: [`answer`](Self::answer) serves requests, [`run`](Self::run) fills it. Cheap to clone; clones share all.
#[derive(Clone)]
pub struct MetricsServer(Arc<Shared>);

impl MetricsServer {
    /// A server that knows nothing yet.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Shared { options, samples: RwLock::default(), source: OnceLock::new() }))
    }
}
