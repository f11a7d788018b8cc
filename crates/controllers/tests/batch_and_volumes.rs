//! Jobs, CronJobs, autoscalers and volumes against a real API server in memory, each controller under its own roles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, conditions, eventually, start, web};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_controllers::Options;
use serde_json::{Value, json};

const JOB: &str = "apis/batch/v1/namespaces/default/jobs/work";
const PODS: &str = "api/v1/namespaces/default/pods";

fn work(spec: Value) -> Value {
    let mut all = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"metadata": {"name": "work"}, "spec": all})
}

/// Ends every running pod as `phase` says.
fn end_pods(cluster: &Cluster, phase: fn(&Value) -> &'static str) {
    let (admin, stop) = (cluster.admin.clone(), cluster.stop.clone());
    tokio::spawn(async move {
        let api = Api::<Pod>::namespaced(admin, "default");
        while !stop.is_cancelled() {
            for pod in api.list(&Default::default()).await.map(|list| list.items).unwrap_or_default() {
                let value = serde_json::to_value(&pod).unwrap();
                if value["status"]["phase"] == "Running" {
                    let body = json!({"status": {"phase": phase(&value), "conditions": [{"type": "Ready", "status": "False",
                        "lastTransitionTime": jiff::Timestamp::now().to_string()}]}});
                    let name = pod.metadata.name.unwrap();
                    let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

async fn ended(cluster: &Cluster, kind: &str) -> Value {
    eventually(&format!("the Job is {kind}"), || async {
        let job = cluster.get(JOB).await;
        if conditions(&job).get(kind).is_some_and(|text| text.starts_with("True")) {
            Ok(job)
        } else {
            Err(job)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_complete_fail_and_go() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    end_pods(&cluster, |pod| match pod["metadata"]["labels"]["app"].as_str() {
        Some("bad") => "Failed",
        _ => "Succeeded",
    });
    let indexed = json!({"completions": 5, "parallelism": 2, "completionMode": "Indexed"});
    cluster.create::<Job>("default", work(indexed)).await;
    let done = ended(&cluster, "Complete").await;
    let status = &done["status"];
    assert_eq!((&status["succeeded"], &status["completedIndexes"]), (&json!(5), &json!("0-4")));
    assert_eq!(conditions(&done)["SuccessCriteriaMet"], "True CompletionsReached");
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    let pods = cluster.list(PODS).await;
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|pod| pod["metadata"].get("finalizers").is_none()), "{pods:#?}");
    let api = cluster.api::<Job>("default");
    api.delete("work", &DeleteParams::background()).await.unwrap();
    eventually("its pods go with it", || async {
        let left = cluster.list(PODS).await;
        if left.is_empty() && cluster.get(JOB).await.is_null() { Ok(()) } else { Err(json!(left)) }
    })
    .await;

    let mut bad = work(json!({"backoffLimit": 0, "ttlSecondsAfterFinished": 1}));
    bad["spec"]["template"]["metadata"] = json!({"labels": {"app": "bad"}});
    cluster.create::<Job>("default", bad).await;
    let failed = ended(&cluster, "Failed").await;
    assert_eq!(conditions(&failed)["Failed"], "True BackoffLimitExceeded");
    assert_eq!(failed["status"]["failed"], 1);
    eventually("its time to live ends", || async {
        let job = cluster.get(JOB).await;
        if job.is_null() { Ok(()) } else { Err(job) }
    })
    .await;

    cluster.create::<Job>("default", work(json!({"suspend": true}))).await;
    eventually("it is suspended", || async {
        let job = cluster.get(JOB).await;
        let told = conditions(&job).get("Suspended").is_some_and(|text| text == "True JobSuspended");
        if told && job["status"].get("startTime").is_none() { Ok(()) } else { Err(job) }
    })
    .await;
    api.patch("work", &PatchParams::default(), &Patch::Merge(json!({"spec": {"suspend": false}})))
        .await
        .unwrap();
    ended(&cluster, "Complete").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_fires() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    end_pods(&cluster, |_| "Succeeded");
    let mut cron = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1}});
    cron["spec"]["jobTemplate"] = json!({"spec": work(json!({}))["spec"]});
    cluster.create::<CronJob>("default", cron).await;
    eventually("Jobs come and go", || async {
        let cron = cluster.get("apis/batch/v1/namespaces/default/cronjobs/tick").await;
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let has = |reason: &str| events.iter().any(|event| event["reason"] == reason);
        let done = cron["status"].get("lastSuccessfulTime").is_some();
        if done && has("SuccessfulCreate") && has("SawCompletedJob") {
            Ok(())
        } else {
            Err(json!([cron, events]))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_bound_protected_and_released() {
    let cluster = start(Options::default()).await;
    let volumes = Api::<PersistentVolume>::all(cluster.admin.clone());
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "manual", "hostPath": {"path": "/data"}}});
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("default", claim).await;
    eventually("both are bound", || async {
        let claim = cluster.get("api/v1/namespaces/default/persistentvolumeclaims/data").await;
        let volume = cluster.get("api/v1/persistentvolumes/disk").await;
        let bound = claim["status"]["phase"] == "Bound" && volume["status"]["phase"] == "Bound";
        let known = claim["spec"]["volumeName"] == "disk" && claim["status"]["capacity"]["storage"] == "2Gi";
        if bound && known { Ok(()) } else { Err(json!([claim, volume])) }
    })
    .await;
    volumes.delete("disk", &DeleteParams::default()).await.unwrap();
    assert!(!cluster.get("api/v1/persistentvolumes/disk").await.is_null(), "protected while it is bound");
    let claims = cluster.api::<PersistentVolumeClaim>("default");
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    eventually("both go", || async {
        let left = [
            cluster.get("api/v1/namespaces/default/persistentvolumeclaims/data").await,
            cluster.get("api/v1/persistentvolumes/disk").await,
        ];
        if left.iter().all(Value::is_null) { Ok(()) } else { Err(json!(left)) }
    })
    .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}], "volumes": [{"name": "d",
        "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}]}});
    cluster.create::<Pod>("default", pod).await;
    eventually("the pod's own claim", || async {
        let claim = cluster.get("api/v1/namespaces/default/persistentvolumeclaims/p-d").await;
        if claim["metadata"]["ownerReferences"][0]["kind"] == "Pod" { Ok(()) } else { Err(claim) }
    })
    .await;
}

/// A claim `data` bound to the volume `disk` of a CSI driver.
async fn csi_volume(cluster: &Cluster, modes: Value) {
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": modes,
        "storageClassName": "manual", "csi": {"driver": "d.example.com", "volumeHandle": "h"}}});
    let volumes = Api::<PersistentVolume>::all(cluster.admin.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": modes, "storageClassName": "manual",
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("default", claim).await;
}

/// Creates a pod of the claim `data` on a node.
async fn csi_pod(cluster: &Cluster, name: &str, node: &str) {
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}],
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}});
    cluster.create::<Pod>("default", pod).await;
}

const ATTACHMENTS: &str = "apis/storage.k8s.io/v1/volumeattachments";
const UNIQUE: &str = "kubernetes.io/csi/d.example.com^h";

/// Waits until exactly these nodes have an attachment; returns the names.
async fn attached_to(cluster: &Cluster, nodes: &[&str]) -> Vec<String> {
    eventually(&format!("attachments on {nodes:?}"), || async {
        let all = cluster.list(ATTACHMENTS).await;
        let mut on: Vec<_> = all.iter().map(|one| one["spec"]["nodeName"].as_str().unwrap()).collect();
        on.sort_unstable();
        let names = || all.iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        if on == nodes { Ok(names()) } else { Err(json!(all)) }
    })
    .await
}

async fn told(cluster: &Cluster, pod: &str, reason: &str, message: &str) {
    eventually(&format!("{pod} is told {message}"), || async {
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let found = events.iter().any(|event| {
            event["involvedObject"]["name"] == pod && event["reason"] == reason && event["message"] == message
        });
        if found { Ok(()) } else { Err(json!(events)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_drivers_are_attached_and_move() {
    let cluster = start(Options::default()).await;
    let nodes = Api::<Node>::all(cluster.admin.clone());
    for name in ["n1", "n2"] {
        let managed = json!({"metadata": {"name": name, "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(managed).unwrap()).await.unwrap();
        cluster.heartbeat(name, "True").await;
    }
    csi_volume(&cluster, json!(["ReadWriteOnce"])).await;
    csi_pod(&cluster, "first", "n1").await;
    let names = attached_to(&cluster, &["n1"]).await;
    let api = Api::<VolumeAttachment>::all(cluster.admin.clone());
    let attacher = |status: Value| Patch::Merge(json!({"status": status}));
    let failure = json!({"attached": false, "attachError": {"message": "disk is on fire", "time": "2026-01-01T00:00:00Z"}});
    api.patch_status(&names[0], &PatchParams::default(), &attacher(failure)).await.unwrap();
    let text = "AttachVolume.Attach failed for volume \"disk\" : disk is on fire";
    told(&cluster, "first", "FailedAttachVolume", text).await;
    let success = || attacher(json!({"attached": true, "attachError": null}));
    api.patch_status(&names[0], &PatchParams::default(), &success()).await.unwrap();
    told(&cluster, "first", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"disk\" ")
        .await;
    let reported = |node: &'static str, expected: Value| {
        let cluster = &cluster;
        async move {
            eventually(&format!("{node} has {expected}"), || async {
                let node = cluster.get(&format!("api/v1/nodes/{node}")).await;
                if node["status"]["volumesAttached"] == expected { Ok(()) } else { Err(node) }
            })
            .await;
        }
    };
    reported("n1", json!([{"name": UNIQUE, "devicePath": ""}])).await;

    // Another node wants it: its pod waits, until the first node has let go of it.
    let in_use = |list: Value| Patch::Merge(json!({"status": {"volumesInUse": list}}));
    nodes.patch_status("n1", &PatchParams::default(), &in_use(json!([UNIQUE]))).await.unwrap();
    csi_pod(&cluster, "second", "n2").await;
    let text = "Multi-Attach error for volume \"disk\" Volume is already used by pod(s) first";
    told(&cluster, "second", "FailedAttachVolume", text).await;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.api::<Pod>("default").delete("first", &at_once).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    attached_to(&cluster, &["n1"]).await;
    nodes.patch_status("n1", &PatchParams::default(), &in_use(json!([]))).await.unwrap();
    let names = attached_to(&cluster, &["n2"]).await;
    reported("n1", Value::Null).await;
    api.patch_status(&names[0], &PatchParams::default(), &success()).await.unwrap();
    reported("n2", json!([{"name": UNIQUE, "devicePath": ""}])).await;

    // A node out of service is not asked.
    nodes.patch_status("n2", &PatchParams::default(), &in_use(json!([UNIQUE]))).await.unwrap();
    cluster.api::<Pod>("default").delete("second", &at_once).await.unwrap();
    let taint =
        json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    attached_to(&cluster, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_that_are_shared_or_need_no_attaching() {
    let cluster = start(Options::default()).await;
    let nodes = Api::<Node>::all(cluster.admin.clone());
    for name in ["n1", "n2"] {
        let managed = json!({"metadata": {"name": name, "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(managed).unwrap()).await.unwrap();
    }
    csi_volume(&cluster, json!(["ReadWriteMany"])).await;
    csi_pod(&cluster, "first", "n1").await;
    csi_pod(&cluster, "second", "n2").await;
    csi_pod(&cluster, "stranger", "n3").await;
    attached_to(&cluster, &["n1", "n2"]).await;

    // A claim that asks for more waits for somebody to give it.
    let class =
        json!({"metadata": {"name": "manual"}, "provisioner": "d.example.com", "allowVolumeExpansion": true});
    let classes = Api::<k8s_openapi::api::storage::v1::StorageClass>::all(cluster.admin.clone());
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    let more = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    let claims = cluster.api::<PersistentVolumeClaim>("default");
    eventually("the class lets it grow", || async {
        let patched = claims.patch("data", &PatchParams::default(), &more).await;
        patched.map(drop).map_err(|error| json!(error.to_string()))
    })
    .await;
    told(&cluster, "data", "ExternalExpanding", "waiting for an external controller to expand this PVC")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_keeps_the_bounds_and_says_what_it_lacks() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    cluster.create::<Deployment>("default", web("web", 1)).await;
    let hpa = json!({"metadata": {"name": "web"}, "spec": {"minReplicas": 2, "maxReplicas": 4,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    cluster.create::<HorizontalPodAutoscaler>("default", hpa).await;
    let path = "apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/web";
    eventually("the least number", || async {
        let seen = cluster.get("apis/apps/v1/namespaces/default/deployments/web").await;
        if seen["spec"]["replicas"] == 2 { Ok(()) } else { Err(json!([seen, cluster.get(path).await])) }
    })
    .await;
    // The specification changes, so that it looks again at once.
    let more = Patch::Merge(json!({"spec": {"maxReplicas": 5}}));
    cluster
        .api::<HorizontalPodAutoscaler>("default")
        .patch("web", &PatchParams::default(), &more)
        .await
        .unwrap();
    eventually("no metrics", || async {
        let seen = cluster.get(path).await;
        let told = conditions(&seen);
        let lacks = told.get("ScalingActive").is_some_and(|text| text == "False FailedGetResourceMetric");
        if lacks && told["AbleToScale"] == "True SucceededGetScale" { Ok(()) } else { Err(seen) }
    })
    .await;
}
