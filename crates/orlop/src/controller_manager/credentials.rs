//! A service account for each controller (`--use-service-account-credentials`): its token is asked for with the component's
//! own credentials and renewed before it ends.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ObjectMeta, PostParams};
use orlop_client::Connection;
use tokio::task::JoinSet;
use tracing::warn;

const NAMESPACE: &str = "kube-system";
/// How long a token is asked for, in seconds, and how much of that it is used.
const LIFETIME: i64 = 3600;
const USED: f64 = 0.8;
const RETRY: Duration = Duration::from_secs(1);

/// Clients of service accounts.
pub struct ServiceAccounts {
    /// What those use that are no account of their own.
    own: kube::Client,
    clients: HashMap<&'static str, kube::Client>,
    /// Where the tokens are, for the process's owner alone.
    directory: PathBuf,
    /// Ended with this.
    _renewals: JoinSet<()>,
}

impl ServiceAccounts {
    /// Asks for a token of each account, and keeps them fresh.
    pub async fn open(connection: &Connection, own: kube::Client) -> anyhow::Result<ServiceAccounts> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = std::env::temp_dir().join(format!("orlop-controller-manager-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("directory for tokens {}", directory.display()))?;
        let (mut clients, mut renewals) = (HashMap::new(), JoinSet::new());
        for name in orlop_controllers::accounts() {
            let path = directory.join(name);
            let first = renew_until_done(&own, name, &path).await;
            clients.insert(name, connection.with_token_file(&path)?);
            renewals.spawn(keep(own.clone(), name, path, first));
        }
        Ok(ServiceAccounts { own, clients, directory, _renewals: renewals })
    }

    /// The client of an account of `kube-system`; who begins with `system:` gets the component's own.
    pub fn client(&self, name: &str) -> kube::Client {
        self.clients.get(name).unwrap_or(&self.own).clone()
    }
}

impl Drop for ServiceAccounts {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Keeps a fresh token of an account in a file.
async fn keep(client: kube::Client, name: &'static str, path: PathBuf, mut fresh_for: Duration) {
    loop {
        tokio::time::sleep(fresh_for).await;
        fresh_for = renew_until_done(&client, name, &path).await;
    }
}

/// Says for how long the new token is to be used.
async fn renew_until_done(client: &kube::Client, name: &str, path: &Path) -> Duration {
    loop {
        match renew(client, name, path).await {
            Ok(()) => return Duration::from_secs(LIFETIME.unsigned_abs()).mul_f64(USED),
            Err(error) => {
                warn!(account = name, error = format!("{error:#}"), "no token yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn renew(client: &kube::Client, name: &str, path: &Path) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    if accounts.get_opt(name).await?.is_none() {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        match accounts.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(LIFETIME), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
    let token = answer.status.and_then(|status| status.token).context("the answer has no token")?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, token)?;
    Ok(std::fs::rename(&fresh, path)?)
}
