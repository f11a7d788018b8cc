//! Pulls from OCI registries.

use std::path::PathBuf;
use std::sync::{Arc, Once};

use futures::StreamExt;
use futures::TryStreamExt;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use orlop_cri::AuthConfig;

use super::{ImageStore, digest_of, reference, sha256_hex};
use crate::error::{Context, Result, RuntimeError};

/// Layers that download at the same time.
const PARALLEL: usize = 3;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct PullOptions {
    /// Registries spoken to over plain HTTP, besides those on this machine.
    pub insecure_registries: Vec<String>,
    /// Registry to the mirrors that are asked before it.
    pub mirrors: std::collections::BTreeMap<String, Vec<String>>,
}

impl ImageStore {
    /// Pulls an image; returns its id.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        name: &str,
        auth: Option<AuthConfig>,
        options: &PullOptions,
    ) -> Result<String> {
        let wanted = reference::parse(name)?;
        let shown = wanted.whole();
        let auth = registry_auth(auth);
        let mut sources: Vec<Reference> = Vec::new();
        for mirror in options.mirrors.get(wanted.registry()).into_iter().flatten() {
            sources.push(relocated(&wanted, mirror));
        }
        sources.push(wanted.clone());
        let mut failure = None;
        for source in sources {
            match self.pull_from(&source, &wanted, &auth, options).await {
                Ok(id) => return Ok(id),
                Err(error) => {
                    tracing::debug!(image = %shown, source = %source, %error, "pull failed");
                    failure = Some(error);
                }
            }
        }
        let cause = failure.map(|error| error.to_string()).unwrap_or_default();
        Err(RuntimeError::Pull(format!("failed to pull and unpack image \"{shown}\": {cause}")))
    }

    async fn pull_from(
        self: &Arc<Self>,
        source: &Reference,
        wanted: &Reference,
        auth: &RegistryAuth,
        options: &PullOptions,
    ) -> Result<String> {
        let _adding = self.adding.read().await;
        let client = client(source, options);
        let unresolved = |error: OciDistributionError| {
            RuntimeError::Pull(format!(
                "failed to resolve reference \"{}\": {}",
                source.whole(),
                explain(&error)
            ))
        };
        let (manifest, digest, config, list_digest) =
            client.pull_manifest_and_config_and_list_digest(source, auth).await.map_err(unresolved)?;
        let config = config.into_bytes();
        if digest_of(&config) != manifest.config.digest {
            return Err(RuntimeError::Pull(format!(
                "the registry sent a configuration that is not {}: try again, or ask its operator",
                manifest.config.digest
            )));
        }
        let staging = self.staging()?;
        let mut downloads = Vec::new();
        for (index, layer) in manifest.layers.into_iter().enumerate() {
            let path = staging.0.join(format!("blob-{index}"));
            downloads.push(download(client.clone(), source.clone(), layer, path));
        }
        let layers: Vec<PathBuf> = futures::stream::iter(downloads).buffered(PARALLEL).try_collect().await?;
        let tags: Vec<String> = if wanted.digest().is_some() {
            Vec::new()
        } else {
            reference::tagged(wanted).into_iter().collect()
        };
        let target = wanted.digest().map(str::to_owned).or(list_digest).unwrap_or(digest);
        let digests = vec![format!("{}@{target}", reference::repository(wanted))];
        let store = Arc::clone(self);
        let work =
            tokio::task::spawn_blocking(move || store.assemble(&config, &layers, &staging, &tags, &digests));
        work.await.map_err(|error| RuntimeError::Pull(format!("unpacking was cut short: {error}")))?
    }
}

async fn download(client: Client, source: Reference, layer: OciDescriptor, path: PathBuf) -> Result<PathBuf> {
    sha256_hex(&layer.digest)?;
    let mut file = tokio::fs::File::create(&path).await.context("create", &path)?;
    // The client checks the digest of what it hands on.
    client.pull_blob(&source, &layer, &mut file).await.map_err(|error| {
        RuntimeError::Pull(format!("failed to copy layer {}: {}", layer.digest, explain(&error)))
    })?;
    tokio::io::AsyncWriteExt::flush(&mut file).await.context("write", &path)?;
    Ok(path)
}

fn registry_auth(auth: Option<AuthConfig>) -> RegistryAuth {
    match auth {
        Some(auth) if !auth.registry_token.is_empty() => RegistryAuth::Bearer(auth.registry_token),
        Some(auth) if !auth.username.is_empty() => RegistryAuth::Basic(auth.username, auth.password),
        _ => RegistryAuth::Anonymous,
    }
}

fn client(source: &Reference, options: &PullOptions) -> Client {
    static PROVIDER: Once = Once::new();
    // An error means that the binary has chosen one already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let registry = source.resolve_registry().to_owned();
    let host = registry.split(':').next().unwrap_or_default();
    let local = host == "localhost" || host.starts_with("127.") || registry.starts_with("[::1]");
    let protocol = if local || options.insecure_registries.contains(&registry) {
        ClientProtocol::HttpsExcept(vec![registry])
    } else {
        ClientProtocol::Https
    };
    let connect_timeout = Some(std::time::Duration::from_secs(30));
    let read_timeout = Some(std::time::Duration::from_secs(300));
    Client::new(ClientConfig {
        protocol,
        connect_timeout,
        read_timeout,
        user_agent: "orlop",
        ..ClientConfig::default()
    })
}

fn relocated(wanted: &Reference, registry: &str) -> Reference {
    match (wanted.digest(), wanted.tag()) {
        (Some(digest), _) => {
            Reference::with_digest(registry.to_owned(), wanted.repository().to_owned(), digest.to_owned())
        }
        (None, tag) => Reference::with_tag(
            registry.to_owned(),
            wanted.repository().to_owned(),
            tag.unwrap_or("latest").to_owned(),
        ),
    }
}

/// What kubelets and people look for in the text: `not found`, `pull access denied`.
fn explain(error: &OciDistributionError) -> String {
    use std::error::Error;
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => "not found".to_owned(),
        OciDistributionError::RegistryError { envelope, .. }
            if envelope
                .errors
                .iter()
                .any(|error| matches!(error.code, oci_client::errors::OciErrorCode::ManifestUnknown)) =>
        {
            "not found".to_owned()
        }
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            format!("pull access denied, repository does not exist or may require authorization: {error}")
        }
        other => {
            let mut text = other.to_string();
            let mut source = other.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            text
        }
    }
}
