//! `orlop simulate`: a cluster of hollow nodes, for trying what a large one does on a small machine.

pub mod hollow;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use orlop_apiserver::components::Running;
use orlop_apiserver::{ApiServer, Options, UserInfo};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::hollow::HollowNodes;
use crate::control_plane::{Tasks, client, informers, open_store, start_controllers, start_scheduler};
use crate::server::{STOP, listen, until_told, write_kubeconfig};

/// `orlop simulate`.
#[derive(Debug, Args)]
pub struct SimulateArguments {
    /// How many nodes there are.
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,
    /// Where the state is kept; in a directory that is removed in the end when absent.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Port of the API server on the loopback address.
    #[arg(long, default_value_t = 6443)]
    pub https_listen_port: u16,
    /// Where to write the administrator's kubeconfig.
    #[arg(long, default_value = "./simulate.kubeconfig")]
    pub write_kubeconfig: PathBuf,
}

/// Simulates until a signal.
pub async fn run(arguments: SimulateArguments) -> anyhow::Result<()> {
    let temporary = std::env::temp_dir().join(format!("orlop-simulate-{}", std::process::id()));
    let directory = arguments.data_dir.clone().unwrap_or_else(|| temporary.clone());
    let result = simulate(&arguments, &directory).await;
    if arguments.data_dir.is_none() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

async fn simulate(arguments: &SimulateArguments, directory: &std::path::Path) -> anyhow::Result<()> {
    let (shutdown, mut tasks) = (CancellationToken::new(), Tasks::new());
    let options = Options {
        bind_address: SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), arguments.https_listen_port),
        cert_dir: Some(directory.join("pki")),
        ..Options::default()
    };
    let server = ApiServer::new(options, open_store(&directory.join("store")).await?).await?;
    listen(&server, &shutdown, &mut tasks).await?;
    write_kubeconfig(&server, &arguments.write_kubeconfig, arguments.https_listen_port)?;
    let informers = informers(&server, &shutdown);
    start_controllers(&server, &informers, Default::default(), Running::default(), &shutdown, &mut tasks);
    start_scheduler(&server, &informers, Running::default(), &shutdown, &mut tasks);
    let user = UserInfo::new("hollow-nodes", &["system:masters"]);
    let nodes = HollowNodes::register(client(&server, user, "hollow-kubelet"), arguments.nodes).await?;
    nodes.run(&shutdown, &mut tasks);
    let kubeconfig = arguments.write_kubeconfig.display();
    info!(nodes = arguments.nodes, "simulating; try: kubectl --kubeconfig {kubeconfig} get nodes");
    until_told(tasks, shutdown, STOP).await
}
