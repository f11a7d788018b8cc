//! `orlop apiserver`: the API server alone, under kube-apiserver's flag names.

mod features;
mod flags;
mod settings;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use orlop_apiserver::ApiServer;
use orlop_store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use flags::{Flags, normalize};

use crate::server::{listen, open_store, until_told, write_kubeconfig};

/// Serves until a signal.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let options = settings::options(&flags)?;
    let storage = Storage::of(&flags)?;
    let kubeconfig = flags.path("write-kubeconfig");
    flags.settle()?;
    let port = options.bind_address.port();
    let store = storage.open().await?;
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let server = ApiServer::new(options, store).await?;
    listen(&server, &shutdown, &mut tasks).await?;
    if let Some(path) = &kubeconfig {
        write_kubeconfig(&server, path, port)?;
    }
    info!(port, "API server is ready");
    until_told(tasks, shutdown).await
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
        use anyhow::Context as _;
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
