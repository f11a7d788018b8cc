//! What stands behind a pod's claims: the claim, the volume it is bound to, and what of it this node can mount. A kubelet
//! may only get the two, not watch them (Node authorizer): they are read when a pod starts. Answers to upstream's
//! `desired_state_of_world_populator.go` and the plugins `local-volume` and `host-path`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::Api;
use serde_json::Value;

use super::{Failure, Uses, host_path};
use crate::admission::selects_node;
use crate::pod::PodExt;

/// How often, and how far apart, claim and volume are read before the pod is told: what the controllers write about a
/// binding reaches the API server a moment after the pod that waited for it.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// What containers get of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Where a volume's data is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub mounted: Mounted,
    /// Whether it may be given to the pod's group (`fsGroup`).
    pub managed: bool,
}

/// The claim of a pod's volume: named, or made for the pod alone. `None` for other kinds of volume.
pub(super) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    }
}

/// The volume that the pod's claim `name` is bound to. The error is upstream's for volumes that cannot be processed.
pub(super) async fn resolve(
    client: &kube::Client,
    pod: &Pod,
    volume: &Volume,
    name: &str,
    uses: &Uses<'_>,
) -> Result<PersistentVolume, String> {
    let mut attempt = 1;
    loop {
        match look(client, pod, volume, name, uses).await {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(
    client: &kube::Client,
    pod: &Pod,
    volume: &Volume,
    name: &str,
    uses: &Uses<'_>,
) -> Result<PersistentVolume, String> {
    let namespace = pod.namespace();
    let failed = |text: String| format!("error processing PVC {namespace}/{name}: {text}");
    let claim = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace).get(name).await;
    let claim =
        claim.map_err(|error| failed(format!("failed to fetch PVC from API server: {}", message(&error))))?;
    let bound = bound_to(&claim).map_err(|text| failed(text.to_owned()))?;
    if volume.ephemeral.is_some() && !is_for(pod, &claim) {
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name()
        ));
    }
    let found = Api::<PersistentVolume>::all(client.clone()).get(bound).await.map_err(|error| {
        failed(format!("failed to fetch PV {bound} from API server: {}", message(&error)))
    })?;
    refers_to(&found, &claim).map_err(failed)?;
    fits_use(&found, volume, uses)?;
    Ok(found)
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The name of the volume a claim is bound to.
fn bound_to(claim: &PersistentVolumeClaim) -> Result<&str, &'static str> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted");
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound");
    }
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    name.filter(|name| !name.is_empty()).ok_or("PVC has empty pvc.Spec.VolumeName")
}

/// Whether a claim was made for this very pod.
fn is_for(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid())
}

/// The volume has to agree that it is the claim's.
fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let (theirs, ours) = (reference.uid.as_deref(), claim.metadata.uid.as_deref());
    if theirs != ours {
        return Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
            theirs.unwrap_or_default(),
            ours.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Files are mounted, devices are not.
fn fits_use(found: &PersistentVolume, volume: &Volume, uses: &Uses<'_>) -> Result<(), String> {
    let mode = found.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    let name = volume.name.as_str();
    let wrong =
        |field: &str| Err(format!("volume {name} has volumeMode {mode}, but is specified in {field}"));
    if uses.mounts.contains(name) && mode != "Filesystem" {
        return wrong("volumeMounts");
    }
    if uses.devices.contains(name) {
        if mode != "Block" {
            return wrong("volumeDevices");
        }
        return Err(format!(
            "volume {name} has volumeMode Block, which this kubelet does not support; use a claim with volumeMode Filesystem"
        ));
    }
    Ok(())
}

/// The kinds of volume that need a driver which is not here.
const FOREIGN: [&str; 19] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Mount options that say nothing but how a container sees the files.
const PLAIN_OPTIONS: [&str; 4] = ["bind", "defaults", "ro", "rw"];

/// Finds a volume's data on this node. `read_only` is what the pod asks for.
pub(super) fn locate(
    volume: &PersistentVolume,
    node: Option<&Node>,
    read_only: bool,
) -> Result<Located, Failure> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let failed = |step, message: String| Err(Failure::Step { step, name: name.clone(), message });
    let Some(spec) = &volume.spec else { return failed("MountVolume.SetUp", "it has no spec".to_owned()) };
    if let (Some(node), Some(required)) =
        (node, spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref()))
        && !selects_node(required, node)
    {
        return failed("MountVolume.NodeAffinity check", "no matching NodeSelectorTerms".to_owned());
    }
    let options = spec.mount_options.as_deref().unwrap_or_default();
    if let Some(option) = options.iter().find(|option| !PLAIN_OPTIONS.contains(&option.as_str())) {
        let text =
            format!("mount option {option:?} is not supported by this kubelet; remove it from the volume");
        return failed("MountVolume.SetUp", text);
    }
    let read_only = read_only || options.iter().any(|option| option == "ro");
    if let Some(source) = &spec.host_path {
        return match host_path::check(source) {
            Ok(()) => {
                let mounted = Mounted { path: PathBuf::from(&source.path), read_only };
                Ok(Located { mounted, managed: false })
            }
            Err(text) => failed("MountVolume.SetUp", text),
        };
    }
    if let Some(source) = &spec.local {
        // Never made here: an empty directory in place of a lost disk would look like lost data.
        let Ok(path) = Path::new(&source.path).canonicalize() else {
            return failed(
                "MountVolume.NewMounter initialization",
                format!("path {:?} does not exist", source.path),
            );
        };
        if !path.is_dir() {
            let text = format!("{}: only directories are supported by this kubelet", source.path);
            return failed("MountVolume.MountDevice", text);
        }
        return Ok(Located { mounted: Mounted { path, read_only }, managed: !read_only });
    }
    if let Some(source) = &spec.csi {
        return failed(
            "MountVolume.MountDevice",
            format!(
                "kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name {} not found in \
                 the list of registered CSI drivers",
                source.driver
            ),
        );
    }
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let kind = FOREIGN.into_iter().find(|kind| fields.get(kind).is_some_and(Value::is_object));
    Err(Failure::Processing(format!(
        "failed to get Plugin from volumeSpec for volume {name:?} err=no volume plugin matched: {} is not supported by this \
         kubelet; use local or hostPath",
        kind.unwrap_or("its source")
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::serde::de::DeserializeOwned;
    use serde_json::json;

    fn object<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn claims_that_are_not_ready_say_why() {
        let check = |metadata: Value, volume: Value, phase: &str, expected: Result<&str, &str>| {
            let claim: PersistentVolumeClaim = object(
                json!({"metadata": metadata, "spec": {"volumeName": volume}, "status": {"phase": phase}}),
            );
            assert_eq!(bound_to(&claim), expected, "{claim:?}");
        };
        check(json!({}), json!("v"), "Bound", Ok("v"));
        check(json!({}), json!("v"), "Pending", Err("PVC is not bound"));
        check(json!({}), json!("v"), "Lost", Err("PVC is not bound"));
        check(json!({}), json!(""), "Bound", Err("PVC has empty pvc.Spec.VolumeName"));
        check(json!({}), json!(null), "Bound", Err("PVC has empty pvc.Spec.VolumeName"));
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        check(deleted, json!("v"), "Bound", Err("PVC is being deleted"));
    }

    #[test]
    fn volumes_must_be_the_claims() {
        let check = |reference: Value, expected: Result<(), &str>| {
            let volume: PersistentVolume =
                object(json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}}));
            let claim: PersistentVolumeClaim = object(json!({"metadata": {"name": "c", "uid": "1"}}));
            assert_eq!(refers_to(&volume, &claim), expected.map_err(str::to_owned), "{volume:?}");
        };
        check(json!({"uid": "1"}), Ok(()));
        let nil =
            "found PV object v but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim";
        check(json!(null), Err(nil));
        let other = "found PV object v but its pv.Spec.ClaimRef.UID 2 does not point to claim.UID 1";
        check(json!({"uid": "2"}), Err(other));
    }

    #[test]
    fn files_and_devices_are_told_apart() {
        let check = |mode: Value,
                     mounts: &[&'static str],
                     devices: &[&'static str],
                     expected: Result<(), &str>| {
            let volume: PersistentVolume =
                object(json!({"metadata": {"name": "v"}, "spec": {"volumeMode": mode}}));
            let uses =
                Uses { mounts: mounts.iter().copied().collect(), devices: devices.iter().copied().collect() };
            let own: Volume = object(json!({"name": "d"}));
            assert_eq!(fits_use(&volume, &own, &uses), expected.map_err(str::to_owned), "{mode}");
        };
        check(json!(null), &["d"], &[], Ok(()));
        check(json!("Filesystem"), &["d"], &[], Ok(()));
        check(
            json!("Block"),
            &["d"],
            &[],
            Err("volume d has volumeMode Block, but is specified in volumeMounts"),
        );
        check(
            json!(null),
            &[],
            &["d"],
            Err("volume d has volumeMode Filesystem, but is specified in volumeDevices"),
        );
        check(
            json!("Block"),
            &[],
            &["d"],
            Err(
                "volume d has volumeMode Block, which this kubelet does not support; use a claim with volumeMode Filesystem",
            ),
        );
    }

    #[test]
    fn sources() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let file = real.join("file");
        std::fs::write(&file, "").unwrap();
        let here = |spec: Value, read_only: bool| {
            let volume: PersistentVolume = object(json!({"metadata": {"name": "v"}, "spec": spec}));
            let node: Node =
                object(json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}}}));
            locate(&volume, Some(&node), read_only)
        };
        let at =
            |read_only, managed| Ok(Located { mounted: Mounted { path: real.clone(), read_only }, managed });
        let failed = |step, message: &str| {
            Err(Failure::Step { step, name: "v".to_owned(), message: message.to_owned() })
        };
        let local = json!({"path": real});
        assert_eq!(here(json!({"local": local}), false), at(false, true));
        assert_eq!(here(json!({"local": local}), true), at(true, false));
        assert_eq!(here(json!({"local": local, "mountOptions": ["ro"]}), false), at(true, false));
        assert_eq!(here(json!({"hostPath": local}), false), at(false, false));
        assert_eq!(
            here(json!({"local": {"path": "/nowhere"}}), false),
            failed("MountVolume.NewMounter initialization", "path \"/nowhere\" does not exist")
        );
        assert!(matches!(here(json!({"local": {"path": file}}), false), Err(Failure::Step { .. })));
        assert!(here(json!({"local": local, "mountOptions": ["nosuid"]}), false).is_err());
        let on = |name: &str| {
            let expressions = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]);
            json!({"local": local, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}})
        };
        assert_eq!(here(on("n"), false), at(false, true));
        assert_eq!(
            here(on("m"), false),
            failed("MountVolume.NodeAffinity check", "no matching NodeSelectorTerms")
        );
        let foreign = here(json!({"nfs": {"server": "s", "path": "/"}}), false);
        let Err(Failure::Processing(text)) = foreign else { panic!("{foreign:?}") };
        assert!(text.ends_with("nfs is not supported by this kubelet; use local or hostPath"), "{text}");
        let csi = here(json!({"csi": {"driver": "d.example.com", "volumeHandle": "h"}}), false);
        assert!(matches!(csi, Err(Failure::Step { step: "MountVolume.MountDevice", .. })), "{csi:?}");
    }
}
