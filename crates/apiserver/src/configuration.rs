//! The server's own configuration files: read at the start, and again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::ApiServer;
use crate::authn::Configured;
use crate::authn::config::{AuthenticationConfiguration, JwtConfig};
use crate::authn::jwt::JwtIssuer;
use crate::options::Options;

/// How often files are looked at; upstream: once a minute.
const INTERVAL: Duration = Duration::from_secs(10);

/// The authenticators that files and `--oidc-*` flags ask for.
pub fn authentication(options: &Options) -> Result<Configured, String> {
    if let Some(path) = &options.authentication_config {
        return from_file(options, path);
    }
    let Some(oidc) = &options.oidc else { return Ok(Configured::default()) };
    let issuer = JwtIssuer::new(JwtConfig::of_flags(oidc)?, &oidc.signing_algs)?;
    Ok(Configured { issuers: vec![issuer], anonymous: None })
}

fn from_file(options: &Options, path: &Path) -> Result<Configured, String> {
    let mut own = vec![options.service_account_issuer.clone()];
    own.extend(options.further_service_account_issuers.iter().cloned());
    Configured::of(AuthenticationConfiguration::load(path, &own)?)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Takes in changes of the files. A file that is wrong leaves things as they are.
pub fn follow(server: &Arc<ApiServer>) {
    let authentication = server.options.authentication_config.clone();
    if let Some(path) = authentication {
        on_change(server, path, |server, path| {
            let configured = from_file(&server.options, path)?;
            server.authenticator.configured.store(Arc::new(configured));
            Ok(())
        });
    }
    if let Some(path) = server.options.encryption_provider_config.clone()
        && server.options.encryption_automatic_reload
    {
        on_change(server, path, |server, path| match &server.registry.encryption {
            Some(encryption) => encryption.reload(path),
            None => Ok(()),
        });
    }
    if let Some(path) = server.options.authorization_config.clone() {
        on_change(server, path, |server, path| {
            let chain = crate::authz::config::load(path)?;
            server.authorizer.chain.store(Arc::new(chain));
            Ok(())
        });
    }
}

/// Calls `take_in` when the file's content has changed, as long as the server runs.
pub fn on_change(
    server: &Arc<ApiServer>,
    path: PathBuf,
    take_in: impl Fn(&ApiServer, &Path) -> Result<(), String> + Send + 'static,
) {
    let (server, stop) = (Arc::downgrade(server), server.stopped());
    tokio::spawn(async move {
        let mut last = tokio::fs::read(&path).await.unwrap_or_default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let Ok(now) = tokio::fs::read(&path).await else { continue };
            if now == last {
                continue;
            }
            last = now;
            let Some(server) = server.upgrade() else { return };
            match take_in(&server, &path) {
                Ok(()) => tracing::info!(path = %path.display(), "configuration file taken in"),
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "configuration file is wrong; the former one goes on");
                }
            }
        }
    });
}
