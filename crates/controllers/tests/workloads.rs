//! The workload controllers against a real API server in memory, each under its own identity and its own roles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, eventually, start};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams};
use orlop_controllers::Options;
use serde_json::{Value, json};

async fn cluster() -> Cluster {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    cluster
}

/// Waits until fields of an object's status have these values.
async fn status(cluster: &Cluster, path: &str, expected: Value) -> Value {
    eventually("the status", || async {
        let seen = cluster.get(path).await;
        let fields = expected.as_object().unwrap();
        let done = fields.iter().all(|(field, value)| seen["status"].get(field) == Some(value));
        if done { Ok(seen) } else { Err(seen) }
    })
    .await
}

async fn idle(cluster: &Cluster) {
    eventually("an idle cluster writes nothing", || async {
        let before = cluster.revision().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = cluster.revision().await;
        if before == after { Ok(()) } else { Err(json!([before, after])) }
    })
    .await;
}

async fn messages(cluster: &Cluster, reason: &str) -> Vec<String> {
    let events = cluster.list("api/v1/namespaces/default/events").await;
    let of_reason = events.iter().filter(|event| event["reason"] == reason);
    let mut texts: Vec<_> =
        of_reason.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect();
    texts.sort();
    texts
}

fn template(name: &str) -> Value {
    json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}})
}

fn image(image: &str) -> Patch<Value> {
    Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_names_storage_and_history() {
    let cluster = cluster().await;
    let path = "apis/apps/v1/namespaces/default/statefulsets/db";
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("db"),
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    cluster.create::<StatefulSet>("default", set).await;
    let all = json!({"replicas": 3, "readyReplicas": 3, "availableReplicas": 3, "currentReplicas": 3,
        "updatedReplicas": 3, "observedGeneration": 1, "collisionCount": 0});
    let first = status(&cluster, path, all).await;
    let revision = first["status"]["currentRevision"].as_str().unwrap().to_owned();
    assert_eq!(first["status"]["updateRevision"], json!(revision));
    let pods = cluster.list("api/v1/namespaces/default/pods").await;
    let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    assert_eq!(pods[1]["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(pods[1]["metadata"]["labels"]["controller-revision-hash"], json!(revision));
    assert_eq!(pods[1]["spec"]["hostname"], "db-1");
    let claims = cluster.list("api/v1/namespaces/default/persistentvolumeclaims").await;
    let owners: Vec<_> =
        claims.iter().map(|claim| claim["metadata"]["ownerReferences"][0]["kind"].clone()).collect();
    assert_eq!(owners, ["StatefulSet", "StatefulSet", "StatefulSet"]);
    eventually("events", || async {
        let told = messages(&cluster, "SuccessfulCreate").await;
        let expected = [
            "create Claim data-db-0 Pod db-0 in StatefulSet db success",
            "create Pod db-0 in StatefulSet db successful",
        ];
        if expected.iter().all(|text| told.iter().any(|told| told == text)) {
            Ok(())
        } else {
            Err(json!(told))
        }
    })
    .await;
    idle(&cluster).await;

    let api = cluster.api::<StatefulSet>("default");
    api.patch("db", &PatchParams::default(), &image("web:2")).await.unwrap();
    let updated =
        json!({"updatedReplicas": 3, "readyReplicas": 3, "currentReplicas": 3, "observedGeneration": 2});
    let second = status(&cluster, path, updated).await;
    assert_ne!(second["status"]["currentRevision"], json!(revision));
    let pods = cluster.list("api/v1/namespaces/default/pods").await;
    assert!(pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "web:2"));
    let revisions = cluster.list("apis/apps/v1/namespaces/default/controllerrevisions").await;
    let old = revisions.iter().find(|old| old["metadata"]["name"] == json!(revision)).unwrap();
    assert_eq!(old["data"]["spec"]["template"]["$patch"], "replace");

    // What `kubectl rollout undo` does: the stored patch, applied as it is.
    api.patch("db", &PatchParams::default(), &Patch::Strategic(old["data"].clone())).await.unwrap();
    let back = json!({"currentRevision": revision, "updateRevision": revision, "readyReplicas": 3, "updatedReplicas": 3});
    status(&cluster, path, back).await;
    let revisions = cluster.list("apis/apps/v1/namespaces/default/controllerrevisions").await;
    assert_eq!(revisions.len(), 2);
    assert!(revisions.iter().any(|old| old["metadata"]["name"] == json!(revision) && old["revision"] == 3));

    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    api.patch("db", &PatchParams::default(), &scale).await.unwrap();
    status(&cluster, path, json!({"replicas": 1, "readyReplicas": 1})).await;
    assert_eq!(
        cluster.list("api/v1/namespaces/default/persistentvolumeclaims").await.len(),
        3,
        "claims stay"
    );
    cluster.api::<Pod>("default").delete("db-0", &DeleteParams::default()).await.unwrap();
    eventually("the pod comes back under its name", || async {
        let pod = cluster.get("api/v1/namespaces/default/pods/db-0").await;
        let fresh = pod["status"]["phase"] == "Running" && pod["metadata"].get("deletionTimestamp").is_none();
        if fresh { Ok(()) } else { Err(pod) }
    })
    .await;
    api.delete("db", &DeleteParams::background()).await.unwrap();
    eventually("all is collected", || async {
        let left = [
            cluster.list("api/v1/namespaces/default/pods").await,
            cluster.list("apis/apps/v1/namespaces/default/controllerrevisions").await,
        ];
        let claims = cluster.list("api/v1/namespaces/default/persistentvolumeclaims").await;
        // The protection of claims is another controller's business.
        let going = claims.iter().all(|claim| claim["metadata"].get("deletionTimestamp").is_some());
        if left.iter().all(Vec::is_empty) && going { Ok(()) } else { Err(json!([left, claims])) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_nodes_and_templates() {
    let cluster = cluster().await;
    let path = "apis/apps/v1/namespaces/default/daemonsets/agent";
    let set = json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}}, "template": template("agent")}});
    cluster.create::<DaemonSet>("default", set).await;
    let all = json!({"desiredNumberScheduled": 1, "currentNumberScheduled": 1, "numberReady": 1, "numberAvailable": 1,
        "updatedNumberScheduled": 1, "numberMisscheduled": 0, "observedGeneration": 1});
    status(&cluster, path, all).await;
    let pods = cluster.list("api/v1/namespaces/default/pods").await;
    let labels = &pods[0]["metadata"]["labels"];
    assert_eq!(labels["pod-template-generation"], "1");
    let revisions = cluster.list("apis/apps/v1/namespaces/default/controllerrevisions").await;
    assert_eq!(
        labels["controller-revision-hash"],
        revisions[0]["metadata"]["labels"]["controller-revision-hash"]
    );
    idle(&cluster).await;

    let api = cluster.api::<DaemonSet>("default");
    api.patch("agent", &PatchParams::default(), &image("web:2")).await.unwrap();
    let updated = json!({"observedGeneration": 2, "updatedNumberScheduled": 1, "numberAvailable": 1});
    status(&cluster, path, updated).await;
    let pods = cluster.list("api/v1/namespaces/default/pods").await;
    assert_eq!((pods.len(), &pods[0]["spec"]["containers"][0]["image"]), (1, &json!("web:2")));
    assert_eq!(cluster.list("apis/apps/v1/namespaces/default/controllerrevisions").await.len(), 2);

    let failed = Patch::Strategic(json!({"status": {"phase": "Failed"}}));
    let name = pods[0]["metadata"]["name"].as_str().unwrap();
    cluster.api::<Pod>("default").patch_status(name, &PatchParams::default(), &failed).await.unwrap();
    eventually("a failed pod is replaced", || async {
        let pods = cluster.list("api/v1/namespaces/default/pods").await;
        let told = messages(&cluster, "FailedDaemonPod").await;
        let replaced = pods.len() == 1 && pods[0]["metadata"]["name"] != name;
        if replaced && !told.is_empty() { Ok(()) } else { Err(json!([pods, told])) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_count() {
    let cluster = cluster().await;
    let path = "api/v1/namespaces/default/replicationcontrollers/old";
    let controller = json!({"metadata": {"name": "old"}, "spec": {"replicas": 2, "selector": {"app": "old"},
        "template": template("old")}});
    cluster.create::<ReplicationController>("default", controller).await;
    let all = |count: i32| json!({"replicas": count, "fullyLabeledReplicas": count, "readyReplicas": count, "availableReplicas": count});
    status(&cluster, path, all(2)).await;
    let api = cluster.api::<ReplicationController>("default");
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    api.patch("old", &PatchParams::default(), &scale).await.unwrap();
    status(&cluster, path, all(3)).await;
    idle(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_counts_by_the_scale_of_the_owners() {
    let cluster = cluster().await;
    let path = "apis/policy/v1/namespaces/default/poddisruptionbudgets/web";
    let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 1,
        "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create::<PodDisruptionBudget>("default", budget).await;
    cluster.create::<Deployment>("default", cluster::web("web", 3)).await;
    let all = json!({"currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3, "disruptionsAllowed": 1,
        "observedGeneration": 1});
    let seen = status(&cluster, path, all).await;
    assert_eq!(cluster::conditions(&seen)["DisruptionAllowed"], "True SufficientPods");
    idle(&cluster).await;

    // The eviction is the API server's work; the budget follows.
    let pods = cluster.list("api/v1/namespaces/default/pods").await;
    let evict = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let api = cluster.api::<Pod>("default");
        async move { api.evict(&name, &kube::api::EvictParams::default()).await }
    };
    evict(&pods[0]).await.unwrap();
    status(&cluster, path, json!({"currentHealthy": 3, "disruptionsAllowed": 1})).await;

    // A Job has no scale: nobody can tell how many pods there should be.
    let pod = json!({"metadata": {"name": "lone", "labels": {"app": "web"}, "ownerReferences": [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "web:1"}]}});
    cluster.create::<Pod>("default", pod).await;
    let failed = eventually("the failure is told", || async {
        let seen = cluster.get(path).await;
        let told = cluster::conditions(&seen).get("DisruptionAllowed").cloned().unwrap_or_default();
        let gone = cluster.get("api/v1/namespaces/default/pods/lone").await.is_null();
        if told == "False SyncFailed" || gone { Ok(seen) } else { Err(seen) }
    })
    .await;
    let message = failed["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(
        message.is_empty() || message == "jobs.batch does not implement the scale subresource",
        "{message}"
    );
}
