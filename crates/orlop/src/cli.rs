//! What can be said on the command line. Every flag of a subcommand is also a key of its configuration file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArguments;

/// Kubernetes in one binary: a whole cluster on one machine.
#[derive(Debug, Parser)]
#[command(
    name = "orlop",
    version,
    args_override_self = true,
    after_help = "Start here:\n  orlop server                       a whole cluster, ready in about a second\n  \
                  export KUBECONFIG=/etc/orlop/kubeconfig\n  kubectl get nodes"
)]
pub struct Cli {
    /// How much is logged: error, warn, info, debug or trace, or a filter such as `info,orlop_kubelet=debug`.
    #[arg(long, global = true, default_value = "info")]
    pub log_level: String,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process: API server, controllers, scheduler and a node.
    Server(Box<ServerArguments>),
    /// Run the API server alone, with upstream kube-apiserver's flag names.
    Apiserver(crate::apiserver::Flags),
    /// Run the controllers alone, against any API server, with upstream kube-controller-manager's flag names.
    ControllerManager(crate::controller_manager::Flags),
    /// Run the scheduler alone, against any API server, with upstream kube-scheduler's flag names.
    Scheduler(crate::scheduler::Flags),
    /// Look at, import, pull and remove this node's container images.
    Image(ImageArguments),
    /// Run a cluster of hollow nodes: the control plane is real, the nodes and their pods only look so.
    Simulate(crate::simulate::SimulateArguments),
    /// Measure an API server or a cluster.
    Bench(BenchArguments),
    /// Say what this host lacks for running a cluster.
    Check(CheckArguments),
    /// Stop all containers and remove everything a server left on this host, its data included.
    Uninstall(UninstallArguments),
}

/// Where a cluster keeps its things on this host, and what tells it apart from others there.
#[derive(Debug, Clone, Args)]
pub struct LocationArguments {
    /// Where all data lives: state, images, volumes, certificates.
    #[arg(long, default_value = "/var/lib/orlop")]
    pub data_dir: PathBuf,
    /// Tells several clusters on one host apart: names the bridge, the nftables table and the cgroup. Derived from the
    /// data directory when absent, and kept there.
    #[arg(long)]
    pub instance: Option<String>,
}

/// `orlop server`.
#[derive(Debug, Args)]
pub struct ServerArguments {
    #[command(flatten)]
    pub location: LocationArguments,
    /// Read flags from this YAML file first (default /etc/orlop/config.yaml when it exists).
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Port of the API server on all addresses.
    #[arg(long, default_value_t = 6443)]
    pub https_listen_port: u16,
    /// Further names and addresses the API server's certificate is valid for; repeat for several.
    #[arg(long)]
    pub tls_san: Vec<String>,
    /// Where to write the administrator's kubeconfig.
    #[arg(long, default_value = "/etc/orlop/kubeconfig")]
    pub write_kubeconfig: PathBuf,
    /// Run the control plane without a node on this machine.
    #[arg(long)]
    pub disable_agent: bool,
    /// Addresses of Services.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cidr: ipnet::Ipv4Net,
    /// Addresses of pods; each node gets a /24 of it.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: ipnet::Ipv4Net,
    /// Address of the cluster's DNS; the tenth of the Service range when absent.
    #[arg(long)]
    pub cluster_dns: Option<Ipv4Addr>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Users of the API by static token: a file of lines `token,user,uid,"group,group"`.
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// Do not serve metrics.k8s.io, which `kubectl top` and HorizontalPodAutoscalers read.
    #[arg(long)]
    pub disable_metrics_server: bool,
    /// How often the kubelets are asked what nodes and containers use, such as `15s`.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = resolution)]
    pub metrics_resolution: Duration,
    #[command(flatten)]
    pub node: NodeArguments,
}

/// A duration that a rate can be told of.
fn resolution(text: &str) -> Result<Duration, String> {
    let nanoseconds = orlop_api::decode::scalar::parse_duration(text)?;
    let found = u64::try_from(nanoseconds).map(Duration::from_nanos).unwrap_or_default();
    if found < Duration::from_secs(1) { Err("must be at least 1s".to_owned()) } else { Ok(found) }
}

/// The node's part of `orlop server`.
#[derive(Debug, Clone, Args)]
pub struct NodeArguments {
    /// Name of the node; the host's name when absent.
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of the node; that of the default route when absent.
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// Port of the kubelet's HTTPS server.
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Labels for the node, `key=value`; repeat for several.
    #[arg(long)]
    pub node_label: Vec<String>,
    /// Where volumes of the StorageClass `local-path` are kept; `storage` below the data directory when absent.
    #[arg(long)]
    pub local_storage_dir: Option<PathBuf>,
    /// Pods the node takes.
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// When the node counts as short of memory or disk and takes no new pods.
    #[arg(long, default_value = "memory.available<100Mi,nodefs.available<10%")]
    pub eviction_hard: String,
}

/// `orlop image`.
#[derive(Debug, Args)]
pub struct ImageArguments {
    /// What to do with images.
    #[command(subcommand)]
    pub action: ImageAction,
}

/// The actions of `orlop image`.
#[derive(Debug, Subcommand)]
pub enum ImageAction {
    /// List the images.
    Ls {
        #[command(flatten)]
        node: NodeSocketArguments,
    },
    /// Import OCI or Docker archives (tar, also compressed).
    Import {
        #[command(flatten)]
        node: NodeSocketArguments,
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Pull images from their registries.
    Pull {
        #[command(flatten)]
        node: NodeSocketArguments,
        /// Image names.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images.
    Rm {
        #[command(flatten)]
        node: NodeSocketArguments,
        /// Image names or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Which node's server to talk to.
#[derive(Debug, Clone, Args)]
pub struct NodeSocketArguments {
    /// Data directory of the running server.
    #[arg(long, default_value = "/var/lib/orlop")]
    pub data_dir: PathBuf,
}

/// `orlop check`.
#[derive(Debug, Args)]
pub struct CheckArguments {}

/// `orlop uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArguments {
    #[command(flatten)]
    pub location: LocationArguments,
    /// Keep the data directory; stop and remove all else.
    #[arg(long)]
    pub keep_data: bool,
}

impl ServerArguments {
    /// Address of cluster DNS.
    pub fn dns_address(&self) -> anyhow::Result<Ipv4Addr> {
        let address = self.cluster_dns.or_else(|| self.service_cidr.hosts().nth(9));
        address.ok_or_else(|| {
            anyhow::anyhow!(
                "--service-cidr {} is too small for cluster DNS: at least a /28 is needed",
                self.service_cidr
            )
        })
    }

    /// Where the API server listens.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(Ipv4Addr::UNSPECIFIED), self.https_listen_port)
    }
}
