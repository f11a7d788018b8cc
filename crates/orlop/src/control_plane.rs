//! Controllers and scheduler as tasks beside an API server of the same process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use orlop_apiserver::components::Running;
use orlop_apiserver::{ApiServer, UserInfo};
use orlop_client::SharedInformerFactory;
use orlop_controllers::{Signing, TokenSigner};
use orlop_store::Store;
use orlop_store::embedded::EmbeddedStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Upstream's `--cluster-signing-duration`.
pub const CERTIFICATE_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// The tasks of a process; one that fails ends it.
pub type Tasks = JoinSet<anyhow::Result<()>>;

/// Opens the state in a directory.
pub async fn open_store(path: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let owned = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(owned, Default::default())).await?;
    Ok(Arc::new(opened.with_context(|| format!("state in {}", path.display()))?))
}

/// A client under one identity, through memory.
pub fn client(server: &Arc<ApiServer>, user: UserInfo, component: &'static str) -> kube::Client {
    orlop_client::in_memory(server.in_memory(user.authenticated()), component)
}

/// The informers that the components of one process share: each object is watched, decoded and kept once. They read as
/// upstream's controller manager does, which may read everything.
pub fn informers(server: &Arc<ApiServer>, shutdown: &CancellationToken) -> SharedInformerFactory {
    let reader = client(server, UserInfo::new(orlop_controllers::READER, &[]), "kube-controller-manager");
    SharedInformerFactory::new(reader, shutdown.clone())
}

/// Runs every controller, each under its own identity. `options` says what an administrator chose; what only the server
/// knows (its CA, its key for tokens) is added here.
pub fn start_controllers(
    server: &Arc<ApiServer>,
    informers: &SharedInformerFactory,
    options: orlop_controllers::Options,
    running: Running,
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
) {
    let (for_controllers, for_tokens) = (server.clone(), server.clone());
    let context = orlop_controllers::Context {
        client_for: Arc::new(move |name: &str| {
            let user = match name.starts_with("system:") {
                true => UserInfo::new(name, &[]),
                false => UserInfo::service_account("kube-system", name),
            };
            client(&for_controllers, user, "kube-controller-manager")
        }),
        options: orlop_controllers::Options {
            root_ca_pem: Some(server.ca().cert_pem().to_owned()),
            signing: Some(Signing {
                cert_pem: server.ca().cert_pem().to_owned(),
                key_pem: server.ca().key_pem().to_owned(),
                duration: CERTIFICATE_DURATION,
            }),
            token_signer: Some(TokenSigner::new(move |token| {
                let account = (token.account, token.account_uid);
                let signed = for_tokens.secret_token(token.namespace, account, token.secret);
                signed.map_err(|error| error.to_string())
            })),
            ..options
        },
        informers: Some(informers.clone()),
        shutdown: shutdown.clone(),
    };
    tasks.spawn(async move {
        let _running = running.begin();
        orlop_controllers::run(context).await;
        Ok(())
    });
}

/// Runs the scheduler with upstream's default profile.
pub fn start_scheduler(
    server: &Arc<ApiServer>,
    informers: &SharedInformerFactory,
    running: Running,
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
) {
    let client = client(server, UserInfo::new("system:kube-scheduler", &[]), "kube-scheduler");
    let (informers, shutdown) = (informers.with_client(client), shutdown.clone());
    tasks.spawn(async move {
        let _running = running.begin();
        Ok(orlop_scheduler::run(informers, orlop_scheduler::Options::default(), shutdown).await?)
    });
}
