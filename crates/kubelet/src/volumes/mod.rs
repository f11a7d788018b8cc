//! A pod's volumes on the node: made before its containers, kept up to date while it runs, taken away after it.
//! Answers to upstream's volume manager and the plugins emptyDir, hostPath, configMap, secret, downwardAPI and
//! projected. Other kinds of volume are refused with a message that says so.

mod atomic_writer;
mod fs;
mod host_path;
mod payload;
mod subpath;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use orlop_api::Quantity;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use crate::env;
use crate::fields::FieldContext;
use crate::objects::ObjectStore;
use crate::pod::PodExt;

pub(crate) use fs::make_dir;
#[cfg(test)]
pub(crate) use fs::unmount_below;
pub(crate) use subpath::prepare as prepare_subpath;

/// A volume that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// Volumes that are ready: host path by volume name.
#[derive(Debug, Default, Clone)]
pub(crate) struct Volumes {
    pub paths: BTreeMap<String, PathBuf>,
    /// When [`VolumeManager::set_up`] has to be called again at the latest.
    pub again_at: Option<Timestamp>,
}

/// Where payloads come from.
pub(crate) struct Sources {
    pub config_maps: ObjectStore<ConfigMap>,
    pub secrets: ObjectStore<Secret>,
    pub tokens: tokens::TokenManager,
}

type Data = Vec<(String, Vec<u8>)>;

impl Sources {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            config_maps: ObjectStore::new(client.clone(), "configmap"),
            secrets: ObjectStore::new(client.clone(), "secret"),
            tokens: tokens::TokenManager::new(client),
        }
    }

    async fn config_map(&self, namespace: &str, name: &str, optional: Option<bool>) -> Result<Data, String> {
        let Some(map) = self.config_maps.get(namespace, name).await? else {
            return if optional == Some(true) {
                Ok(Vec::new())
            } else {
                Err(format!("configmap \"{name}\" not found"))
            };
        };
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        Ok(text.chain(binary).collect())
    }

    async fn secret(&self, namespace: &str, name: &str, optional: Option<bool>) -> Result<Data, String> {
        let Some(secret) = self.secrets.get(namespace, name).await? else {
            return if optional == Some(true) {
                Ok(Vec::new())
            } else {
                Err(format!("secret \"{name}\" not found"))
            };
        };
        Ok(secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect())
    }

    /// Watches what the pod needs, and wakes it on changes.
    pub(crate) fn register(&self, pod: &Pod, wake: &Arc<Notify>) {
        let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        let spec = pod.pod_spec();
        for volume in spec.volumes.iter().flatten() {
            payload::references(volume, &mut config_maps, &mut secrets);
        }
        let ephemeral = pod.ephemeral_containers();
        for container in pod.init_containers().iter().chain(&spec.containers).chain(&ephemeral) {
            let sources = env::sources(container);
            config_maps.extend(sources.config_maps);
            secrets.extend(sources.secrets);
        }
        secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
        self.config_maps.register(pod.uid(), pod.namespace(), &config_maps, wake);
        self.secrets.register(pod.uid(), pod.namespace(), &secrets, wake);
    }

    fn forget(&self, uid: &str) {
        self.config_maps.unregister(uid);
        self.secrets.unregister(uid);
        self.tokens.forget(uid);
    }
}

/// Makes, updates and removes volumes.
pub(crate) struct VolumeManager {
    root: PathBuf,
    pub sources: Sources,
    /// What was last written, by pod and volume, so that an unchanged payload costs no file system access.
    written: Mutex<HashMap<String, HashMap<String, u64>>>,
}

impl VolumeManager {
    pub(crate) fn new(root: PathBuf, client: kube::Client) -> Self {
        Self { root, sources: Sources::new(client), written: Mutex::default() }
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// Makes all volumes of the pod, or brings their content up to date.
    pub(crate) async fn set_up(&self, pod: &Pod, fields: &FieldContext) -> Result<Volumes, Vec<VolumeError>> {
        let mut out = Volumes::default();
        let mut errors = Vec::new();
        for volume in pod.pod_spec().volumes.iter().flatten() {
            match self.one(pod, volume, fields).await {
                Ok((path, again)) => {
                    out.paths.insert(volume.name.clone(), path);
                    out.again_at = [out.again_at, again].into_iter().flatten().min();
                }
                Err(message) => errors.push(VolumeError { volume: volume.name.clone(), message }),
            }
        }
        if errors.is_empty() { Ok(out) } else { Err(errors) }
    }

    async fn one(
        &self,
        pod: &Pod,
        volume: &Volume,
        fields: &FieldContext,
    ) -> Result<(PathBuf, Option<Timestamp>), String> {
        if let Some(host_path) = &volume.host_path {
            host_path::check(host_path)?;
            return Ok((PathBuf::from(&host_path.path), None));
        }
        let Some(plugin) = plugin(volume) else {
            return Err(format!(
                "volume {:?}: its type is not supported by this kubelet; use emptyDir, hostPath, configMap, secret, downwardAPI or projected",
                volume.name
            ));
        };
        let dir = self
            .pod_dir(pod.uid())
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(&volume.name);
        let made = payload::make(pod, volume, &self.sources, fields).await?;
        let known = self.written.lock().get(pod.uid()).and_then(|of_pod| of_pod.get(&volume.name)).copied();
        let digest = made.as_ref().map_or(0, |made| digest(&made.files));
        let again = made.as_ref().and_then(|made| made.again_at);
        if known != Some(digest) {
            let context = pod.pod_spec().security_context.clone().unwrap_or_default();
            let group = context.fs_group.and_then(|group| u32::try_from(group).ok());
            let on_mismatch = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
            let (volume, target) = (volume.clone(), dir.clone());
            let files = made.map(|made| made.files);
            let written =
                tokio::task::spawn_blocking(move || write(&volume, &target, files, group, on_mismatch)).await;
            written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.written.lock().entry(pod.uid().to_owned()).or_default().insert(volume_name(&dir), digest);
        }
        Ok((dir, again))
    }

    /// Unmounts and removes everything the pod had on the node.
    pub(crate) async fn tear_down(&self, uid: &str) -> std::io::Result<()> {
        self.written.lock().remove(uid);
        self.sources.forget(uid);
        let dir = self.pod_dir(uid);
        tokio::task::spawn_blocking(move || fs::remove_pod_dir(&dir)).await.map_err(std::io::Error::other)?
    }

    /// Uids of pods that have a directory.
    pub(crate) fn known_pods(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join("pods")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

fn volume_name(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn digest(files: &atomic_writer::Payload) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

/// The plugin's name in the directory layout.
fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.empty_dir.is_some() {
        Some("empty-dir")
    } else if volume.config_map.is_some() {
        Some("configmap")
    } else if volume.secret.is_some() {
        Some("secret")
    } else if volume.downward_api.is_some() {
        Some("downward-api")
    } else if volume.projected.is_some() {
        Some("projected")
    } else {
        None
    }
}

fn write(
    volume: &Volume,
    dir: &Path,
    files: Option<atomic_writer::Payload>,
    group: Option<u32>,
    on_mismatch: bool,
) -> std::io::Result<()> {
    if let Some(empty) = &volume.empty_dir {
        make_dir(dir, 0o777)?;
        match empty.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => {
                let limit =
                    empty.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.value());
                let limit = limit.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
                fs::mount_tmpfs(dir, limit, 0o777)?;
            }
            other => {
                return Err(std::io::Error::other(format!(
                    "emptyDir medium {other:?} is not supported by this kubelet"
                )));
            }
        }
        return group.map_or(Ok(()), |group| fs::own_by_group(dir, group, on_mismatch));
    }
    make_dir(dir, 0o755)?;
    // Secrets and tokens must not reach a disk.
    if (volume.secret.is_some() || volume.projected.is_some())
        && let Err(error) = fs::mount_tmpfs(dir, None, 0o755)
    {
        warn!(volume = %dir.display(), %error, "no tmpfs for secret data; it is written to disk");
    }
    atomic_writer::write(dir, &files.unwrap_or_default(), group)?;
    Ok(())
}
