//! `orlop apiserver`: the API server alone, under kube-apiserver's flag names.

mod features;
mod flags;
mod settings;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

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

/// Where the state is kept.
#[derive(Debug, Clone)]
pub struct Storage {
    data_dir: PathBuf,
    /// etcd servers; the data directory when there are none.
    servers: Vec<String>,
}

impl Storage {
    fn of(flags: &Flags) -> anyhow::Result<Storage> {
        let servers = flags.list("etcd-servers");
        let prefix = flags.text("etcd-prefix");
        let tls = ["etcd-cafile", "etcd-certfile", "etcd-keyfile"].map(|name| (name, flags.optional(name)));
        if servers.is_empty() {
            if let Some((name, _)) = tls.iter().find(|(_, value)| value.is_some()) {
                bail!("--{name} needs --etcd-servers");
            }
        }
        if prefix.trim_matches('/') != "registry" {
            bail!("--etcd-prefix {prefix}: keys begin with /registry; another prefix is not built");
        }
        let data_dir = PathBuf::from(flags.text("data-dir"));
        Ok(Storage { data_dir, servers })
    }

    async fn open(&self) -> anyhow::Result<Arc<dyn Store>> {
        if !self.servers.is_empty() {
            bail!(
                "--etcd-servers {}: keeping the state in etcd is not built; leave it out and the state is kept in --data-dir",
                self.servers.join(",")
            );
        }
        open_store(&self.data_dir.join("store")).await
    }
}
