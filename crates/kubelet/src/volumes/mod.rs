//! A pod's volumes on the node: made before its containers, kept up to date while it runs, taken away after it.
//! Answers to upstream's volume manager and the plugins emptyDir, hostPath, local, configMap, secret, downwardAPI and
//! projected. Other kinds of volume are refused with a message that says so.

mod atomic_writer;
mod claims;
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
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Volume};
use orlop_api::Quantity;
use orlop_client::Informer;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use crate::env;
use crate::fields::FieldContext;
use crate::objects::ObjectStore;
use crate::pod::PodExt;

pub(crate) use claims::Mounted;
pub(crate) use fs::make_dir;
#[cfg(test)]
pub(crate) use fs::unmount_below;
pub(crate) use subpath::prepare as prepare_subpath;

/// A volume that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeError {
    pub volume: String,
    pub failure: Failure,
}

/// Why, which upstream tells in two ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is not known what to mount.
    Processing(String),
    /// A step of mounting (`MountVolume.SetUp`) failed for the volume `name`.
    Step { step: &'static str, name: String, message: String },
}

impl Failure {
    fn set_up(volume: &Volume, message: String) -> Self {
        Self::Step { step: "MountVolume.SetUp", name: volume.name.clone(), message }
    }
}

/// The messages of the `FailedMount` events that errors are told with.
pub(crate) fn messages(errors: &[VolumeError]) -> Vec<String> {
    let mut told = Vec::new();
    let (mut unprocessed, mut reasons) = (Vec::new(), Vec::new());
    for error in errors {
        match &error.failure {
            Failure::Step { step, name, message } => {
                told.push(format!("{step} failed for volume \"{name}\" : {message}"));
            }
            Failure::Processing(reason) => {
                unprocessed.push(error.volume.as_str());
                reasons.push(reason.as_str());
            }
        }
    }
    if !unprocessed.is_empty() {
        let unmounted: Vec<&str> = errors.iter().map(|error| error.volume.as_str()).collect();
        told.push(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[{}]: \
             {}",
            unmounted.join(" "),
            unprocessed.join(" "),
            reasons.join("; ")
        ));
    }
    told
}

/// The volumes that a pod's containers use, by name. One that none uses is not made.
#[derive(Debug, Default)]
pub(crate) struct Uses<'a> {
    mounts: BTreeSet<&'a str>,
    devices: BTreeSet<&'a str>,
}

impl<'a> Uses<'a> {
    fn of(pod: &'a Pod) -> Self {
        let spec = pod.pod_spec();
        let regular = pod.init_containers().iter().chain(&spec.containers);
        let regular = regular.map(|one| (&one.volume_mounts, &one.volume_devices));
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral = ephemeral.map(|one| (&one.volume_mounts, &one.volume_devices));
        let mut uses = Self::default();
        for (mounts, devices) in regular.chain(ephemeral) {
            uses.mounts.extend(mounts.iter().flatten().map(|mount| mount.name.as_str()));
            uses.devices.extend(devices.iter().flatten().map(|device| device.name.as_str()));
        }
        uses
    }

    fn contains(&self, volume: &Volume) -> bool {
        self.mounts.contains(volume.name.as_str()) || self.devices.contains(volume.name.as_str())
    }
}

/// Volumes that are ready, by name.
#[derive(Debug, Default, Clone)]
pub(crate) struct Volumes {
    pub ready: BTreeMap<String, Mounted>,
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

/// What a pod has mounted through a claim.
struct Claimed {
    /// Name of the PersistentVolume.
    volume: String,
    mounted: Mounted,
}

/// Makes, updates and removes volumes.
pub(crate) struct VolumeManager {
    root: PathBuf,
    client: kube::Client,
    /// This node alone.
    node: Informer<Node>,
    pub sources: Sources,
    /// What was last written, by pod and volume, so that an unchanged payload costs no file system access.
    written: Mutex<HashMap<String, HashMap<String, u64>>>,
    /// What came of claims, by pod and volume: looked up once in a pod's life.
    claimed: Mutex<HashMap<String, HashMap<String, Claimed>>>,
}

impl VolumeManager {
    /// `node` holds the kubelet's own node.
    pub(crate) fn new(root: PathBuf, client: kube::Client, node: Informer<Node>) -> Self {
        Self {
            root,
            sources: Sources::new(client.clone()),
            client,
            node,
            written: Mutex::default(),
            claimed: Mutex::default(),
        }
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// Makes all volumes of the pod, or brings their content up to date.
    pub(crate) async fn set_up(&self, pod: &Pod, fields: &FieldContext) -> Result<Volumes, Vec<VolumeError>> {
        let mut out = Volumes::default();
        let mut errors = Vec::new();
        let uses = Uses::of(pod);
        for volume in pod.pod_spec().volumes.iter().flatten().filter(|volume| uses.contains(volume)) {
            let made = match claims::claim_name(pod, volume) {
                Some(claim) => self.claimed(pod, volume, &claim, &uses).await.map(|mounted| (mounted, None)),
                None => self.own(pod, volume, fields).await,
            };
            match made {
                Ok((mounted, again)) => {
                    out.ready.insert(volume.name.clone(), mounted);
                    out.again_at = [out.again_at, again].into_iter().flatten().min();
                }
                Err(failure) => errors.push(VolumeError { volume: volume.name.clone(), failure }),
            }
        }
        if errors.is_empty() { Ok(out) } else { Err(errors) }
    }

    /// A volume behind a claim.
    async fn claimed(
        &self,
        pod: &Pod,
        volume: &Volume,
        claim: &str,
        uses: &Uses<'_>,
    ) -> Result<Mounted, Failure> {
        if let Some(known) = self.claimed.lock().get(pod.uid()).and_then(|of_pod| of_pod.get(&volume.name)) {
            return Ok(known.mounted.clone());
        }
        let found = claims::resolve(&self.client, pod, volume, claim, uses).await;
        let found = found.map_err(Failure::Processing)?;
        let name = found.metadata.name.clone().unwrap_or_default();
        let read_only =
            volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
        let node = self.node.list().pop();
        // Disks may be slow, and a volume may hold many files.
        let (first, ownership) = (self.is_unused(&name), Ownership::of(pod));
        let located = tokio::task::spawn_blocking(move || {
            let located = claims::locate(&found, node.as_deref(), read_only)?;
            if located.managed && first {
                let name = found.metadata.name.clone().unwrap_or_default();
                ownership.give(&located.mounted.path).map_err(|error| Failure::Step {
                    step: "MountVolume.SetUp",
                    name,
                    message: format!(
                        "applyFSGroup failed for vol {}: {error}",
                        located.mounted.path.display()
                    ),
                })?;
            }
            Ok(located)
        });
        let mounted = located.await.map_err(|error| Failure::set_up(volume, error.to_string()))??.mounted;
        let known = Claimed { volume: name, mounted: mounted.clone() };
        self.claimed.lock().entry(pod.uid().to_owned()).or_default().insert(volume.name.clone(), known);
        Ok(mounted)
    }

    /// Whether no pod here has the volume: only the first gives it to its group, others would take it away again.
    fn is_unused(&self, name: &str) -> bool {
        self.claimed.lock().values().flat_map(HashMap::values).all(|known| known.volume != name)
    }

    /// A volume of the pod's own, or a path of the host.
    async fn own(
        &self,
        pod: &Pod,
        volume: &Volume,
        fields: &FieldContext,
    ) -> Result<(Mounted, Option<Timestamp>), Failure> {
        let failed = |message| Failure::set_up(volume, message);
        if let Some(host_path) = &volume.host_path {
            host_path::check(host_path).map_err(failed)?;
            return Ok((Mounted { path: PathBuf::from(&host_path.path), read_only: false }, None));
        }
        let Some(plugin) = plugin(volume) else {
            return Err(failed(format!(
                "volume {:?}: its type is not supported by this kubelet; use persistentVolumeClaim, ephemeral, emptyDir, \
                 hostPath, configMap, secret, downwardAPI or projected",
                volume.name
            )));
        };
        let dir = self
            .pod_dir(pod.uid())
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(&volume.name);
        let made = payload::make(pod, volume, &self.sources, fields).await.map_err(failed)?;
        let known = self.written.lock().get(pod.uid()).and_then(|of_pod| of_pod.get(&volume.name)).copied();
        let digest = made.as_ref().map_or(0, |made| digest(&made.files));
        let again = made.as_ref().and_then(|made| made.again_at);
        // Files that come from the API are not the container's to change.
        let mounted = Mounted { path: dir.clone(), read_only: made.is_some() };
        if known != Some(digest) {
            let ownership = Ownership::of(pod);
            let (source, target) = (volume.clone(), dir.clone());
            let files = made.map(|made| made.files);
            let written =
                tokio::task::spawn_blocking(move || write(&source, &target, files, ownership)).await;
            let written = written.map_err(|error| failed(error.to_string()))?;
            written.map_err(|error| failed(error.to_string()))?;
            self.written.lock().entry(pod.uid().to_owned()).or_default().insert(volume_name(&dir), digest);
        }
        Ok((mounted, again))
    }

    /// Unmounts and removes everything the pod had on the node.
    pub(crate) async fn tear_down(&self, uid: &str) -> std::io::Result<()> {
        self.written.lock().remove(uid);
        self.claimed.lock().remove(uid);
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

/// Whose a volume is to be (`fsGroup`, `fsGroupChangePolicy`).
#[derive(Debug, Clone, Copy)]
struct Ownership {
    group: Option<u32>,
    on_mismatch: bool,
}

impl Ownership {
    fn of(pod: &Pod) -> Self {
        let context = pod.pod_spec().security_context.as_ref();
        let group = context.and_then(|context| context.fs_group);
        let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
        Self {
            group: group.and_then(|group| u32::try_from(group).ok()),
            on_mismatch: policy == Some("OnRootMismatch"),
        }
    }

    fn give(self, dir: &Path) -> std::io::Result<()> {
        self.group.map_or(Ok(()), |group| fs::own_by_group(dir, group, self.on_mismatch))
    }
}

fn write(
    volume: &Volume,
    dir: &Path,
    files: Option<atomic_writer::Payload>,
    ownership: Ownership,
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
        return ownership.give(dir);
    }
    make_dir(dir, 0o755)?;
    // Secrets and tokens must not reach a disk.
    if (volume.secret.is_some() || volume.projected.is_some())
        && let Err(error) = fs::mount_tmpfs(dir, None, 0o755)
    {
        warn!(volume = %dir.display(), %error, "no tmpfs for secret data; it is written to disk");
    }
    atomic_writer::write(dir, &files.unwrap_or_default(), ownership.group)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_as_upstream_tells_them() {
        let step = |volume: &str| VolumeError {
            volume: volume.to_owned(),
            failure: Failure::Step {
                step: "MountVolume.SetUp",
                name: "pv".to_owned(),
                message: "no".to_owned(),
            },
        };
        let unknown = |volume: &str, why: &str| VolumeError {
            volume: volume.to_owned(),
            failure: Failure::Processing(why.to_owned()),
        };
        let check = |errors: &[VolumeError], expected: &[&str]| assert_eq!(messages(errors), expected);
        check(&[], &[]);
        check(&[step("a")], &["MountVolume.SetUp failed for volume \"pv\" : no"]);
        let both = "Unable to attach or mount volumes: unmounted volumes=[a b c], unattached volumes=[], failed to process volumes=[b c]: x; y";
        check(
            &[step("a"), unknown("b", "x"), unknown("c", "y")],
            &["MountVolume.SetUp failed for volume \"pv\" : no", both],
        );
    }
}
