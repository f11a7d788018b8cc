//! The workload controllers against a real API server in memory, each under its own identity and its own roles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, eventually, start};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
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

    // A DaemonSet has no scale: nobody can tell how many pods there should be.
    let budget = json!({"metadata": {"name": "agent"}, "spec": {"maxUnavailable": 1,
        "selector": {"matchLabels": {"app": "agent"}}}});
    cluster.create::<PodDisruptionBudget>("default", budget).await;
    let set = json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}}, "template": template("agent")}});
    cluster.create::<DaemonSet>("default", set).await;
    let path = "apis/policy/v1/namespaces/default/poddisruptionbudgets/agent";
    eventually("the failure is told", || async {
        let seen = cluster.get(path).await;
        let told = &seen["status"]["conditions"][0];
        let expected = "daemonsets.apps does not implement the scale subresource";
        if told["reason"] == "SyncFailed" && told["message"] == expected { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_made_by_hand_are_mirrored() {
    let cluster = cluster().await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    cluster.create::<Service>("default", service).await;
    let endpoints = json!({"metadata": {"name": "db"}, "subsets": [{"addresses": [{"ip": "192.0.2.7"}],
        "ports": [{"port": 5432}]}]});
    cluster.create::<Endpoints>("default", endpoints).await;
    let path = "apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slices = || async {
        let mut slices = cluster.list(path).await;
        slices.retain(|slice| slice["metadata"]["name"] != "kubernetes");
        slices
    };
    let slice = eventually("a slice", || async {
        let slices = slices().await;
        if slices.len() == 1 { Ok(slices[0].clone()) } else { Err(json!(slices)) }
    })
    .await;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
    idle(&cluster).await;
    let select = Patch::Merge(json!({"spec": {"selector": {"app": "db"}}}));
    cluster.api::<Service>("default").patch("db", &PatchParams::default(), &select).await.unwrap();
    eventually("the other controller takes over", || async {
        let slices = slices().await;
        let managers: Vec<_> = slices
            .iter()
            .map(|slice| slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].clone())
            .collect();
        if managers == ["endpointslice-controller.k8s.io"] { Ok(()) } else { Err(json!(slices)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_gets_back_what_is_deleted() {
    let cluster = cluster().await;
    cluster.create::<ConfigMap>("default", json!({"metadata": {"name": "before"}})).await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3", "pods": "2", "requests.cpu": "1",
        "count/deployments.apps": "1", "count/gadgets.example.com": "1"}}});
    cluster.create::<ResourceQuota>("default", quota).await;
    let path = "api/v1/namespaces/default/resourcequotas/q";
    let used = |name: &'static str, count: &'static str| {
        let cluster = &cluster;
        async move {
            eventually("the usage", || async {
                let seen = cluster.get(path).await;
                if seen["status"]["used"][name] == count { Ok(()) } else { Err(seen) }
            })
            .await;
        }
    };
    used("configmaps", "1").await;
    used("count/deployments.apps", "0").await;
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "web:1",
            "resources": {"requests": {"cpu": "300m"}}}]}})
    };
    cluster.create::<Pod>("default", pod("a")).await;
    cluster.create::<Pod>("default", pod("b")).await;
    let refused = serde_json::from_value(pod("c")).unwrap();
    let error = cluster.api::<Pod>("default").create(&PostParams::default(), &refused).await.unwrap_err();
    assert!(error.to_string().contains("exceeded quota: q"), "{error}");
    used("requests.cpu", "600m").await;
    cluster.api::<Pod>("default").delete("a", &DeleteParams::default()).await.unwrap();
    used("pods", "1").await;
    used("requests.cpu", "300m").await;
    cluster.api::<ConfigMap>("default").delete("before", &DeleteParams::default()).await.unwrap();
    used("configmaps", "0").await;

    let definition = json!({"metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com",
        "scope": "Namespaced", "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definition: CustomResourceDefinition = serde_json::from_value(definition).unwrap();
    kube::Api::all(cluster.admin.clone()).create(&PostParams::default(), &definition).await.unwrap();
    used("count/gadgets.example.com", "0").await;
    idle(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_accounts_get_tokens_that_work() {
    let cluster = cluster().await;
    cluster.create::<ServiceAccount>("default", json!({"metadata": {"name": "robot"}})).await;
    let secret = |name: &str, account: &str| {
        json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token"})
    };
    cluster.create::<Secret>("default", secret("robot-token", "robot")).await;
    cluster.create::<Secret>("default", secret("stray", "nobody")).await;
    let filled = eventually("a token", || async {
        let seen = cluster.get("api/v1/namespaces/default/secrets/robot-token").await;
        let stray = cluster.get("api/v1/namespaces/default/secrets/stray").await;
        if seen["data"]["token"].is_string() && stray.is_null() {
            Ok(seen)
        } else {
            Err(json!([seen, stray]))
        }
    })
    .await;
    assert!(filled["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string());
    let secret: Secret = serde_json::from_value(filled).unwrap();
    let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
    let review = json!({"metadata": {}, "spec": {"token": token}});
    let review: TokenReview = serde_json::from_value(review).unwrap();
    let seen = kube::Api::all(cluster.admin.clone()).create(&PostParams::default(), &review).await.unwrap();
    let user = seen.status.unwrap().user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:robot"));
    eventually("the use is noted", || async {
        let seen = cluster.get("api/v1/namespaces/default/secrets/robot-token").await;
        let noted = seen["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].is_string();
        if noted { Ok(()) } else { Err(seen) }
    })
    .await;
    idle(&cluster).await;
    let invalid = Patch::Merge(
        json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}}),
    );
    cluster.api::<Secret>("default").patch("robot-token", &PatchParams::default(), &invalid).await.unwrap();
    eventually("the token is refused", || async {
        let seen =
            kube::Api::all(cluster.admin.clone()).create(&PostParams::default(), &review).await.unwrap();
        let error = seen.status.and_then(|status| status.error).unwrap_or_default();
        if error.contains("has been marked invalid") { Ok(()) } else { Err(json!(error)) }
    })
    .await;
    cluster.api::<ServiceAccount>("default").delete("robot", &DeleteParams::default()).await.unwrap();
    eventually("the token goes with its account", || async {
        let seen = cluster.get("api/v1/namespaces/default/secrets/robot-token").await;
        if seen.is_null() { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_tokens_sign_and_expire() {
    let cluster = cluster().await;
    let info = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "config"}});
    cluster.create::<ConfigMap>("kube-public", info).await;
    let token = |name: &str, expiration: &str| {
        json!({"metadata": {"name": format!("bootstrap-token-{name}")}, "type": "bootstrap.kubernetes.io/token",
            "stringData": {"token-id": name, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true",
                "expiration": expiration}})
    };
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3)).to_string();
    cluster.create::<Secret>("kube-system", token("aaaaaa", "2100-01-01T00:00:00Z")).await;
    cluster.create::<Secret>("kube-system", token("bbbbbb", &soon)).await;
    let signers = |expected: &'static [&'static str]| {
        let cluster = &cluster;
        eventually("the signatures", move || async move {
            let seen = cluster.get("api/v1/namespaces/kube-public/configmaps/cluster-info").await;
            let keys: Vec<_> = seen["data"].as_object().unwrap().keys().cloned().collect();
            if keys == expected { Ok(()) } else { Err(seen) }
        })
    };
    signers(&["jws-kubeconfig-aaaaaa", "jws-kubeconfig-bbbbbb", "kubeconfig"]).await;
    signers(&["jws-kubeconfig-aaaaaa", "kubeconfig"]).await;
    assert!(cluster.get("api/v1/namespaces/kube-system/secrets/bootstrap-token-bbbbbb").await.is_null());
}

/// The controller adds up from caches that may be behind; what it writes must never let in more than the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_never_exceeded() {
    let cluster = cluster().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}});
    cluster.create::<ResourceQuota>("default", quota).await;
    let told = |count: &'static str| {
        let cluster = &cluster;
        eventually("the usage", move || async move {
            let seen = cluster.get("api/v1/namespaces/default/resourcequotas/q").await;
            if seen["status"]["used"]["configmaps"] == count { Ok(()) } else { Err(seen) }
        })
    };
    told("0").await;
    let until = tokio::time::Instant::now() + Duration::from_secs(4);
    let user = |number: usize| {
        let api = cluster.api::<ConfigMap>("default");
        async move {
            let name = |turn: usize| format!("m{number}-{}", turn % 3);
            for turn in number.. {
                if tokio::time::Instant::now() > until {
                    break;
                }
                let map = serde_json::from_value(json!({"metadata": {"name": name(turn)}})).unwrap();
                let created = api.create(&PostParams::default(), &map).await;
                if created.is_err() || turn % 2 == 0 {
                    let _ = api.delete(&name(turn + 1), &DeleteParams::default()).await;
                }
            }
        }
    };
    let watch = async {
        let mut most = 0;
        while tokio::time::Instant::now() < until {
            let count = cluster.list("api/v1/namespaces/default/configmaps").await.len();
            assert!(count <= 5, "{count} of 5");
            most = most.max(count);
        }
        assert_eq!(most, 5, "what is given back can be used again");
    };
    tokio::join!(user(0), user(1), user(2), user(3), watch);
    let all = cluster.list("api/v1/namespaces/default/configmaps").await;
    for map in all {
        let name = map["metadata"]["name"].as_str().unwrap();
        cluster.api::<ConfigMap>("default").delete(name, &DeleteParams::default()).await.unwrap();
    }
    told("0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_pods_that_are_scaled_away_go_and_come_back_new() {
    let cluster = cluster().await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
        "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}}, "template": template("db"),
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    cluster.create::<StatefulSet>("default", set).await;
    let path = "apis/apps/v1/namespaces/default/statefulsets/db";
    status(&cluster, path, json!({"readyReplicas": 2})).await;
    let claim_path = "api/v1/namespaces/default/persistentvolumeclaims/data-db-1";
    let first = cluster.get(claim_path).await;
    assert!(first["metadata"].get("ownerReferences").is_none(), "{first}");
    let scale = |replicas: i32| {
        let api = cluster.api::<StatefulSet>("default");
        let scale = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        async move { api.patch("db", &PatchParams::default(), &scale).await.unwrap() }
    };
    scale(1).await;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    eventually("the claim goes with its pod", || async {
        let claim = cluster.get(claim_path).await;
        if claim["metadata"].get("deletionTimestamp").is_some() {
            assert_eq!(claim["metadata"]["ownerReferences"][0]["kind"], "Pod");
            // In place of the controller that protects claims in use.
            let api = cluster.api::<PersistentVolumeClaim>("default");
            let _ = api.patch("data-db-1", &PatchParams::default(), &free).await;
        }
        if claim.is_null() { Ok(()) } else { Err(claim) }
    })
    .await;
    scale(2).await;
    status(&cluster, path, json!({"readyReplicas": 2, "replicas": 2})).await;
    let second = cluster.get(claim_path).await;
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert!(!cluster.get("api/v1/namespaces/default/persistentvolumeclaims/data-db-0").await.is_null());
    idle(&cluster).await;
}
