//! Tainted devices, classes of volume attributes and the size of the cluster, against a real API server in memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use cluster::{Cluster, conditions, eventually, start};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_controllers::Options;
use serde_json::{Value, json};

async fn accounts(cluster: &Cluster) {
    eventually("pods can be made", || async {
        let account = cluster.get("api/v1/namespaces/default/serviceaccounts/default").await;
        if account.is_null() { Err(account) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_uses_a_tainted_device_goes() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    accounts(&cluster).await;
    let slices = Api::<ResourceSlice>::all(cluster.admin.clone());
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example.com", "nodeName": "n1",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "0"}, {"name": "1"}]}});
    slices.create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    let pods = cluster.api::<Pod>("default");
    // One that tolerates nothing, one that tolerates for a while, and one with the other device.
    for (name, device, tolerations) in [
        ("fragile", "0", json!([])),
        ("patient", "0", json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}])),
        ("lucky", "1", json!([])),
    ] {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "c", "tolerations": tolerations}});
        let claim = json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}});
        cluster.create::<ResourceClaim>("default", claim).await;
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "n1",
            "containers": [{"name": "c", "image": "x", "resources": {"claims": [{"name": "d"}]}}],
            "resourceClaims": [{"name": "d", "resourceClaimName": name}]}});
        let pod: Pod = cluster.create("default", pod).await;
        let mut result = json!({"request": "r", "driver": "d.example.com", "pool": "p", "device": device});
        if tolerations != json!([]) {
            result["tolerations"] = tolerations;
        }
        let status = json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}, "status": {
            "allocation": {"devices": {"results": [result]}},
            "reservedFor": [{"resource": "pods", "name": name, "uid": pod.metadata.uid}]}});
        let claims = cluster.api::<ResourceClaim>("default");
        claims.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let taint = json!({"spec": {"devices": [
        {"name": "0", "taints": [{"key": "broken", "effect": "NoExecute"}]}, {"name": "1"}]}});
    slices.patch("s", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    let gone = eventually("it is deleted", || async {
        let pod = cluster.get("api/v1/namespaces/default/pods/fragile").await;
        if pod["metadata"]["deletionTimestamp"].is_string() { Ok(pod) } else { Err(pod) }
    })
    .await;
    assert_eq!(conditions(&gone)["DisruptionTarget"], "True DeletionByDeviceTaintManager");
    for name in ["patient", "lucky"] {
        assert!(pods.get(name).await.unwrap().metadata.deletion_timestamp.is_none(), "{name}");
    }
    // The device is well again, and whoever waited hears of it.
    let well = json!({"spec": {"devices": [{"name": "0"}, {"name": "1"}]}});
    slices.patch("s", &PatchParams::default(), &Patch::Merge(well)).await.unwrap();
    eventually("the other one stays", || async {
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let told = |event: &Value| {
            event["reason"] == "DeviceTaintManagerEviction"
                && event["message"] == "Cancelling deletion"
                && event["involvedObject"]["name"] == "patient"
        };
        if events.iter().any(told) { Ok(()) } else { Err(json!(events)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_of_attributes_stays_while_it_is_named() {
    let cluster = start(Options::default()).await;
    let classes = Api::<VolumeAttributesClass>::all(cluster.admin.clone());
    for name in ["used", "idle"] {
        let class =
            json!({"metadata": {"name": name}, "driverName": "d.example.com", "parameters": {"iops": "1"}});
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    }
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "volumeAttributesClassName": "used", "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("default", claim).await;
    let path = |name: &str| format!("apis/storage.k8s.io/v1/volumeattributesclasses/{name}");
    // The controller's caches know the claim when it acts on a later one.
    let state = cluster.get("api/v1/namespaces/default/persistentvolumeclaims/c").await;
    assert_eq!(state["spec"]["volumeAttributesClassName"], "used");
    for name in ["used", "idle"] {
        classes.delete(name, &DeleteParams::default()).await.unwrap();
    }
    eventually("the idle one goes", || async {
        let seen = cluster.get(&path("idle")).await;
        if seen.is_null() { Ok(()) } else { Err(seen) }
    })
    .await;
    let kept = cluster.get(&path("used")).await;
    assert_eq!(kept["metadata"]["finalizers"], json!(["kubernetes.io/vac-protection"]), "{kept}");
    cluster.api::<PersistentVolumeClaim>("default").delete("c", &DeleteParams::default()).await.unwrap();
    eventually("the other one goes when nobody names it", || async {
        let seen = cluster.get(&path("used")).await;
        if seen.is_null() { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told_how_long_they_may_cache() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    eventually("the annotation is there", || async {
        let node = cluster.get("api/v1/nodes/n1").await;
        if node["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"] == "0" {
            Ok(())
        } else {
            Err(node)
        }
    })
    .await;
}
