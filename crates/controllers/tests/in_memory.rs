//! The controllers against a real API server in memory, each under its own identity and its own roles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::time::Duration;

use cluster::{conditions, eventually, start, web};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use orlop_controllers::Options;
use serde_json::{Value, json};

const WEB: &str = "apis/apps/v1/namespaces/default/deployments/web";

fn options() -> Options {
    Options { root_ca_pem: Some("CA".to_owned()), ..Options::default() }
}

async fn complete(cluster: &cluster::Cluster, generation: i64, replicas: i64) -> Value {
    eventually("the rollout completes", || async {
        let seen = cluster.get(WEB).await;
        let status = &seen["status"];
        let done = status["observedGeneration"] == generation
            && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
                .iter()
                .all(|field| status[*field] == replicas)
            && conditions(&seen)
                .get("Progressing")
                .is_some_and(|reason| reason == "True NewReplicaSetAvailable");
        if done { Ok(seen) } else { Err(seen) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_from_creation_to_collection() {
    let cluster = start(options()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    cluster
        .create::<Service>(
            "default",
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}}),
        )
        .await;
    eventually("a placeholder slice", || async {
        let slices = cluster.list("apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=web").await;
        if slices.len() == 1 { Ok(()) } else { Err(json!(slices)) }
    }).await;
    cluster.create::<Deployment>("default", web("web", 3)).await;
    let first = complete(&cluster, 1, 3).await;
    assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(first["status"]["terminatingReplicas"], 0);

    eventually("endpoints of three pods", || async {
        let slices = cluster.list("apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=web").await;
        let ready = slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
        let endpoints = cluster.get("api/v1/namespaces/default/endpoints/web").await;
        let addresses = endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
        if slices.len() == 1 && ready == 3 && addresses == 3 && endpoints["subsets"][0]["ports"][0]["port"] == 8080 {
            Ok(())
        } else {
            Err(json!([slices, endpoints]))
        }
    }).await;

    let api = cluster.api::<Deployment>("default");
    let image = |image: &str| {
        Patch::Strategic(
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}),
        )
    };
    api.patch("web", &PatchParams::default(), &image("web:2")).await.unwrap();
    let second = complete(&cluster, 2, 3).await;
    assert_eq!(second["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    api.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 5}}))).await.unwrap();
    complete(&cluster, 3, 5).await;
    api.patch("web", &PatchParams::default(), &image("web:1")).await.unwrap();
    let back = complete(&cluster, 4, 5).await;
    assert_eq!(back["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let sets = cluster.list("apis/apps/v1/namespaces/default/replicasets").await;
    assert_eq!(sets.len(), 2, "the old set came back");

    let told = eventually("events", || async {
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let of = |reason: &str| {
            events.iter().filter(|event| event["reason"] == reason).cloned().collect::<Vec<_>>()
        };
        let (scaled, created) = (of("ScalingReplicaSet"), of("SuccessfulCreate"));
        if scaled.len() >= 5 && created.len() >= 5 { Ok(scaled) } else { Err(json!(events)) }
    })
    .await;
    assert_eq!(told[0]["source"]["component"], "deployment-controller");
    assert!(told.iter().any(|event| event["message"].as_str().unwrap().ends_with("from 0 to 3")));

    // Pods of the old template may still be going, with their events.
    eventually("an idle cluster writes nothing", || async {
        let before = cluster.revision().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = cluster.revision().await;
        if before == after { Ok(()) } else { Err(json!([before, after])) }
    })
    .await;

    api.delete("web", &DeleteParams::background()).await.unwrap();
    eventually("all is collected", || async {
        let left = [
            cluster.list("apis/apps/v1/namespaces/default/replicasets").await,
            cluster.list("api/v1/namespaces/default/pods").await,
        ];
        if left.iter().all(Vec::is_empty) { Ok(()) } else { Err(json!(left)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_and_orphan_deletion() {
    let cluster = start(options()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    let api = cluster.api::<Deployment>("default");
    cluster.create::<Deployment>("default", web("web", 2)).await;
    complete(&cluster, 1, 2).await;
    let how = |policy| DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
    api.delete("web", &how(PropagationPolicy::Foreground)).await.unwrap();
    eventually("the owner goes last", || async {
        let owner = cluster.get(WEB).await;
        let pods = cluster.list("api/v1/namespaces/default/pods").await;
        assert!(!owner.is_null() || pods.is_empty(), "pods outlive their owner");
        if owner.is_null() { Ok(()) } else { Err(json!([owner, pods])) }
    })
    .await;

    cluster.create::<Deployment>("default", web("web", 2)).await;
    complete(&cluster, 1, 2).await;
    api.delete("web", &how(PropagationPolicy::Orphan)).await.unwrap();
    eventually("the set is set free", || async {
        let sets = cluster.list("apis/apps/v1/namespaces/default/replicasets").await;
        let free = sets.len() == 1 && sets[0]["metadata"].get("ownerReferences").is_none();
        if free && cluster.get(WEB).await.is_null() { Ok(()) } else { Err(json!(sets)) }
    })
    .await;
    assert_eq!(cluster.list("api/v1/namespaces/default/pods").await.len(), 2);
    cluster.create::<Deployment>("default", web("web", 2)).await;
    complete(&cluster, 1, 2).await;
    let sets = cluster.list("apis/apps/v1/namespaces/default/replicasets").await;
    assert_eq!(
        (sets.len(), &sets[0]["metadata"]["ownerReferences"][0]["kind"]),
        (1, &json!("Deployment")),
        "adopted"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_gets_its_furniture_and_is_emptied() {
    let cluster = start(options()).await;
    cluster.add_node("n1").await;
    cluster.run_pods("n1");
    let namespaces = Api::<Namespace>::all(cluster.admin.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    eventually("service account and CA", || async {
        let account = cluster.get("api/v1/namespaces/team/serviceaccounts/default").await;
        let ca = cluster.get("api/v1/namespaces/team/configmaps/kube-root-ca.crt").await;
        if !account.is_null() && ca["data"]["ca.crt"] == "CA" { Ok(()) } else { Err(json!([account, ca])) }
    })
    .await;
    cluster.api::<ConfigMap>("team").delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    eventually("the CA comes back", || async {
        let ca = cluster.get("api/v1/namespaces/team/configmaps/kube-root-ca.crt").await;
        if ca["data"]["ca.crt"] == "CA" { Ok(()) } else { Err(ca) }
    })
    .await;
    cluster.create::<Deployment>("team", web("web", 3)).await;
    cluster
        .create::<ConfigMap>(
            "team",
            json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}),
        )
        .await;
    eventually("pods", || async {
        let pods = cluster.list("api/v1/namespaces/team/pods").await;
        if pods.len() == 3 { Ok(()) } else { Err(json!(pods)) }
    })
    .await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the condition names the finalizer", || async {
        let seen = cluster.get("api/v1/namespaces/team").await;
        let told = seen["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
        if told.iter().any(|condition| condition["message"] == text) { Ok(()) } else { Err(seen) }
    }).await;
    assert!(cluster.list("api/v1/namespaces/team/pods").await.is_empty());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.api::<ConfigMap>("team").patch("held", &PatchParams::default(), &free).await.unwrap();
    eventually("the namespace is gone", || async {
        let seen = cluster.get("api/v1/namespaces/team").await;
        if seen.is_null() { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_loses_its_pods() {
    let grace = Duration::from_secs(2);
    let cluster = start(Options { node_monitor_grace_period: grace, ..options() }).await;
    cluster.add_node("n1").await;
    cluster.add_node("n2").await;
    let ranges = eventually("pod ranges", || async {
        let nodes = cluster.list("api/v1/nodes").await;
        let ranges: Vec<_> =
            nodes.iter().filter_map(|node| node["spec"]["podCIDR"].as_str().map(str::to_owned)).collect();
        if ranges.len() == 2 { Ok(ranges) } else { Err(json!(nodes)) }
    })
    .await;
    assert_ne!(ranges[0], ranges[1]);
    cluster.run_pods("n1");
    let mut deployment = web("web", 1);
    deployment["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    cluster.create::<Deployment>("default", deployment).await;
    let first = eventually("a pod", || async {
        let pods = cluster.list("api/v1/namespaces/default/pods").await;
        match &pods[..] {
            [pod] if pod["status"]["phase"] == "Running" => Ok(pod["metadata"]["name"].clone()),
            _ => Err(json!(pods)),
        }
    })
    .await;
    // Only the second node is heard of from now on.
    eventually("n1 is given up and its pod evicted", || async {
        cluster.heartbeat("n2", "True").await;
        let node = cluster.get("api/v1/nodes/n1").await;
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let evicts = taints
            .iter()
            .any(|taint| taint["key"] == "node.kubernetes.io/unreachable" && taint["effect"] == "NoExecute");
        let pods = cluster.list("api/v1/namespaces/default/pods").await;
        let evicted = pods.iter().all(|pod| pod["metadata"]["name"] != first);
        if evicts && evicted && conditions(&node)["Ready"] == "Unknown NodeStatusUnknown" {
            Ok(())
        } else {
            Err(json!([node, pods]))
        }
    })
    .await;
    cluster.heartbeat("n1", "True").await;
    eventually("the taints go", || async {
        cluster.heartbeat("n1", "True").await;
        let node = cluster.get("api/v1/nodes/n1").await;
        if node["spec"].get("taints").is_none() { Ok(()) } else { Err(node) }
    })
    .await;
}
