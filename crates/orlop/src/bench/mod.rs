//! `orlop bench`: a load generator for any Kubernetes API server, and a stopwatch for pods.

mod api;
mod connection;
mod pods;
mod process;
mod sample;
mod scheduler;

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `orlop bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// What to measure.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Requests against an API server: create, get, update, list, delete ConfigMaps of 1 KiB, and watch fan-out.
    ///
    /// Any server will do: compare two by running this against both in turn. Objects live in a namespace of their own,
    /// which is deleted afterwards.
    Api(ApiArguments),
    /// Time from the creation of pods to their readiness, one by one and all at once.
    Pods(PodsArguments),
    /// Pods placed a second: upstream's scheduler_perf workloads by name, on hollow nodes.
    ///
    /// API server, store (on disk, durable) and scheduler run in this process, as upstream's benchmark runs them; no
    /// cluster is needed and none is touched.
    Scheduler(SchedulerArguments),
    /// Time from the creation of many Deployments until all of their pods are bound, and until they run, on hollow nodes;
    /// what is written at rest; and what controllers write that start again on all of it.
    Deployments(DeploymentsArguments),
}

/// `orlop bench api`.
#[derive(Debug, Args)]
pub struct ApiArguments {
    /// The cluster to measure.
    #[arg(long, env = "KUBECONFIG", default_value = "/etc/orlop/kubeconfig")]
    pub kubeconfig: PathBuf,
    /// Numbers of clients to measure with, each with a connection of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub clients: Vec<usize>,
    /// Operations per kind of request and number of clients.
    #[arg(long, default_value_t = 4000)]
    pub operations: usize,
    /// Objects in the lists that are fetched.
    #[arg(long, default_value_t = 5000)]
    pub list_size: usize,
    /// Watchers of the fan-out.
    #[arg(long, default_value_t = 50)]
    pub watchers: usize,
    /// Server processes whose CPU time and memory are reported; repeat for several (API server, etcd).
    #[arg(long)]
    pub pid: Vec<u32>,
}

/// `orlop bench pods`.
#[derive(Debug, Args)]
pub struct PodsArguments {
    /// The cluster to measure.
    #[arg(long, env = "KUBECONFIG", default_value = "/etc/orlop/kubeconfig")]
    pub kubeconfig: PathBuf,
    /// Image of the pods; it must be on the node already.
    #[arg(long, default_value = "localhost/web:1")]
    pub image: String,
    /// Pods created one after the other.
    #[arg(long, default_value_t = 20)]
    pub single: usize,
    /// Pods created at once.
    #[arg(long, default_value_t = 50)]
    pub burst: usize,
    /// Server processes whose CPU time and memory are reported.
    #[arg(long)]
    pub pid: Vec<u32>,
}

/// `orlop bench scheduler`.
#[derive(Debug, Args)]
pub struct SchedulerArguments {
    /// Workloads by name; all when none is given.
    pub workloads: Vec<String>,
    /// Name the workloads and their sizes, and measure nothing.
    #[arg(long)]
    pub list: bool,
    /// Part of each workload's nodes and pods that is played: 0.1 is a tenth.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Run the controllers as well.
    #[arg(long)]
    pub controllers: bool,
    /// Play one workload in this process, with the state in this directory.
    #[arg(long, hide = true)]
    pub directory: Option<PathBuf>,
}

/// `orlop bench deployments`.
#[derive(Debug, Args)]
pub struct DeploymentsArguments {
    /// Hollow nodes; at least 100, and one for 30 pods, when not given.
    #[arg(long)]
    pub nodes: Option<usize>,
    /// Deployments.
    #[arg(long, default_value_t = 100)]
    pub deployments: usize,
    /// Pods of each.
    #[arg(long, default_value_t = 10)]
    pub replicas: usize,
    /// Give each a Service, so that endpoints follow the pods.
    #[arg(long)]
    pub services: bool,
    /// Pods that go while the controllers are away.
    #[arg(long, default_value_t = 10)]
    pub lost: usize,
}

/// Runs one benchmark.
pub async fn run(arguments: BenchArguments) -> anyhow::Result<()> {
    match arguments.what {
        BenchCommand::Api(arguments) => api::run(arguments).await,
        BenchCommand::Pods(arguments) => pods::run(arguments).await,
        BenchCommand::Scheduler(arguments) => scheduler::run(arguments).await,
        BenchCommand::Deployments(arguments) => scheduler::deployments::run(arguments).await,
    }
}

/// A name that no other run uses.
fn run_name() -> String {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    format!("bench-{:x}", nanos & 0xffff_ffff_ffff)
}
