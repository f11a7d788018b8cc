//! Pods with claims.

use super::*;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use std::path::Path;

impl Cluster {
    /// A claim of this name, bound to a volume with this source.
    async fn bound(&self, name: &str, source: Value) {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.admin.clone(), "default");
        let size = json!({"requests": {"storage": "1Gi"}});
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": size,
            "storageClassName": "", "volumeName": name}});
        let claim =
            claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
        let reference = json!({"namespace": "default", "name": name, "uid": claim.metadata.uid});
        let mut spec =
            json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "claimRef": reference});
        spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let volume = json!({"metadata": {"name": name}, "spec": spec});
        let volumes = Api::<PersistentVolume>::all(self.admin.clone());
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
        claims.patch_status(name, &PatchParams::default(), &bound).await.unwrap();
    }
}

fn local(path: &Path) -> Value {
    let here = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]);
    json!({"local": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": here}}})
}

fn with_claim(claim: &str, more: Value) -> Value {
    let mut source = json!({"claimName": claim});
    source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"terminationGracePeriodSeconds": 0, "securityContext": {"fsGroup": 4321},
        "volumes": [{"name": "data", "persistentVolumeClaim": source}],
        "containers": [{"name": format!("c-{claim}"), "image": "web:1", "volumeMounts": [
            {"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/sub", "subPath": "a/b"}]}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_mounted() {
    use std::os::unix::fs::MetadataExt;
    let cluster = cluster().await;
    let disk = cluster.dir.path().canonicalize().unwrap().join("disk");
    std::fs::create_dir(&disk).unwrap();
    cluster.bound("disk", local(&disk)).await;
    cluster.create("writer", with_claim("disk", json!({}))).await;
    cluster.until("writer", "ran", |pod| pod["status"]["phase"] == "Running").await;
    let (config, _) = cluster.runtime.container("c-disk").unwrap();
    let mount = |at: &str| config.mounts.iter().find(|mount| mount.container_path == Path::new(at)).unwrap();
    assert_eq!((&mount("/data").host_path, mount("/data").readonly), (&disk, false));
    assert_eq!(std::fs::metadata(&disk).unwrap().gid(), 4321);
    assert!(disk.join("a/b").is_dir());
    // What is behind a claim outlives the pod.
    std::fs::write(disk.join("a/b/kept"), "x").unwrap();
    cluster.pods().delete("writer", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("writer").await;
    assert_eq!(std::fs::read_to_string(disk.join("a/b/kept")).unwrap(), "x");

    let shared = cluster.dir.path().join("shared");
    cluster.bound("shared", json!({"hostPath": {"path": shared, "type": "DirectoryOrCreate"}})).await;
    cluster.create("reader", with_claim("shared", json!({"readOnly": true}))).await;
    cluster.until("reader", "ran", |pod| pod["status"]["phase"] == "Running").await;
    let (config, _) = cluster.runtime.container("c-shared").unwrap();
    let mount = config.mounts.iter().find(|mount| mount.container_path == Path::new("/data")).unwrap();
    assert_eq!((&mount.host_path, mount.readonly), (&shared, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_cannot_be_mounted_say_why() {
    let cluster = cluster().await;
    cluster.create("none", with_claim("nothing", json!({}))).await;
    let failed = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]:";
    cluster
        .until_event(
            "none",
            &format!(
                "{failed} error processing PVC default/nothing: failed to fetch PVC from API server: \
                 persistentvolumeclaims \"nothing\" not found"
            ),
        )
        .await;
    cluster.bound("lost", local(Path::new("/nowhere/at/all"))).await;
    cluster.create("lost", with_claim("lost", json!({}))).await;
    let missing = "FailedMount: MountVolume.NewMounter initialization failed for volume \"lost\" : path \"/nowhere/at/all\" does not exist";
    cluster.until_event("lost", missing).await;
    let claims = Api::<PersistentVolumeClaim>::namespaced(cluster.admin.clone(), "default");
    let pending = Patch::Merge(json!({"status": {"phase": "Pending"}}));
    cluster.bound("early", local(cluster.dir.path())).await;
    claims.patch_status("early", &PatchParams::default(), &pending).await.unwrap();
    cluster.create("early", with_claim("early", json!({}))).await;
    cluster
        .until_event("early", &format!("{failed} error processing PVC default/early: PVC is not bound"))
        .await;
    // A volume that no container uses is not missed.
    let unused = json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "nothing"}}],
        "containers": [{"name": "idle", "image": "web:1"}]});
    cluster.create("unused", unused).await;
    cluster.until("unused", "ran", |pod| pod["status"]["phase"] == "Running").await;
}
