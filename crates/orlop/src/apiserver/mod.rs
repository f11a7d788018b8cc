//! `orlop apiserver`: the API server alone, under kube-apiserver's flag names.

mod audit;
mod features;
mod flags;
mod operations;
mod settings;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use orlop_apiserver::ApiServer;
use orlop_store::Store;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use flags::Flags;

use crate::control_plane::{Tasks, open_store};
use crate::server::{STOP, serve, until_told, write_kubeconfig};

/// Serves until a signal.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let options = settings::options(&flags)?;
    let share_port = sharing(&flags)?;
    let storage = Storage::of(&flags)?;
    let kubeconfig = flags.path("write-kubeconfig");
    flags.settle()?;
    let port = options.bind_address.port();
    let store = storage.open().await?;
    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new();
    let server = ApiServer::new(options, store).await?;
    let listener = bind(server.options.bind_address, share_port)?;
    // Who is asked to stop goes on serving for a while, and lets requests finish.
    let options = &server.options;
    let patience = options.shutdown_delay + options.shutdown_watch_grace + options.request_timeout + STOP;
    serve(&server, listener, &shutdown, &mut tasks).await?;
    if let Some(path) = &kubeconfig {
        write_kubeconfig(&server, path, port)?;
    }
    info!(port, "API server is ready");
    until_told(tasks, shutdown, patience).await
}

/// Connections that wait to be accepted; as Go's.
const BACKLOG: u32 = 4096;

/// Whether another process may listen at the same port. The address alone is always shared with connections that a
/// server which has just ended left behind, as Go's listeners do.
fn sharing(flags: &Flags) -> anyhow::Result<bool> {
    flags.bool("permit-address-sharing")?;
    flags.bool("permit-port-sharing")
}

fn bind(address: SocketAddr, share_port: bool) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(share_port)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| {
        format!("failed to create listener: failed to listen on {address} (--bind-address, --secure-port)")
    })
}

/// Pause between attempts to reach etcd at the start.
#[cfg(feature = "etcd")]
const RETRY: Duration = Duration::from_millis(250);

/// Where the state is kept.
struct Storage {
    data_dir: PathBuf,
    /// etcd's address and credentials instead of the data directory.
    etcd: Option<Etcd>,
}

/// `--etcd-*`
#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
struct Etcd {
    servers: Vec<String>,
    prefix: String,
    ca_pem: Option<String>,
    identity: Option<(String, String)>,
    /// How long etcd may take to answer for the first time.
    patience: Duration,
}

impl Storage {
    fn of(flags: &Flags) -> anyhow::Result<Storage> {
        let servers = flags.list("etcd-servers");
        let prefix = flags.text("etcd-prefix");
        let ca_pem = flags.file("etcd-cafile")?;
        let identity = match (flags.file("etcd-certfile")?, flags.file("etcd-keyfile")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("--etcd-certfile and --etcd-keyfile go together"),
        };
        if servers.is_empty() && (ca_pem.is_some() || identity.is_some() || flags.has("etcd-prefix")) {
            bail!("--etcd-prefix, --etcd-cafile, --etcd-certfile and --etcd-keyfile need --etcd-servers");
        }
        let patience = flags.duration("storage-initialization-timeout")?;
        let etcd = (!servers.is_empty()).then_some(Etcd { servers, prefix, ca_pem, identity, patience });
        Ok(Storage { data_dir: PathBuf::from(flags.text("data-dir")), etcd })
    }

    async fn open(self) -> anyhow::Result<Arc<dyn Store>> {
        match self.etcd {
            None => open_store(&self.data_dir.join("store")).await,
            Some(etcd) => etcd.open().await,
        }
    }
}

impl Etcd {
    #[cfg(feature = "etcd")]
    async fn open(self) -> anyhow::Result<Arc<dyn Store>> {
        let servers = self.servers.join(",");
        let options = orlop_store::etcd::Options {
            endpoints: self.servers,
            prefix: self.prefix,
            ca_pem: self.ca_pem,
            identity: self.identity,
            ..Default::default()
        };
        // Both are often started together; who comes first does not matter.
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            match orlop_store::etcd::EtcdStore::connect(options.clone()).await {
                Ok(store) => return Ok(Arc::new(store)),
                Err(error) if error.is_retriable() && tokio::time::Instant::now() < deadline => {
                    info!(%error, "waiting for etcd");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error).with_context(|| format!("--etcd-servers {servers}")),
            }
        }
    }

    #[cfg(not(feature = "etcd"))]
    async fn open(self) -> anyhow::Result<Arc<dyn Store>> {
        bail!(
            "--etcd-servers {}: this binary was built without the feature `etcd`; leave the flag out and the state is kept in --data-dir",
            self.servers.join(",")
        )
    }
}
