//! Controllers that start anew on a cluster of thousands of objects: they write what is wrong, and nothing else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::{Cluster, eventually, start_server, web};
use futures::StreamExt;
use http::Method;
use orlop_controllers::Options;
use serde_json::{Value, json};

const NODES: usize = 5;
const NAMESPACES: usize = 100;
const DEPLOYMENTS: usize = 60;
const REPLICAS: usize = 10;
const SETS: usize = 20;
const DAEMONS: usize = 10;
const JOBS: usize = 40;
const VOLUMES: usize = 100;
const OWNED: usize = 1000;

const CORE: &str = "api/v1/namespaces/default";
const APPS: &str = "apis/apps/v1/namespaces/default";
const BATCH: &str = "apis/batch/v1/namespaces/default";

async fn send(cluster: &Cluster, method: Method, path: &str, content: &str, body: &Value) -> Value {
    let request = http::Request::builder().method(method.clone()).uri(format!("/{path}"));
    let request = request.header("content-type", content).body(body.to_string().into_bytes()).unwrap();
    let answer = cluster.admin.request(request).await;
    answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

async fn create(cluster: &Cluster, path: &str, body: Value) -> Value {
    send(cluster, Method::POST, path, "application/json", &body).await
}

async fn patch(cluster: &Cluster, path: &str, body: Value) {
    send(cluster, Method::PATCH, path, "application/merge-patch+json", &body).await;
}

/// At once, as a kubelet confirms it.
async fn delete(cluster: &Cluster, path: &str) {
    send(cluster, Method::DELETE, &format!("{path}?gracePeriodSeconds=0"), "application/json", &Value::Null)
        .await;
}

async fn create_all(cluster: &Cluster, count: usize, path: &str, object: impl Fn(usize) -> Value) {
    let made = (0..count).map(|number| create(cluster, path, object(number)));
    futures::stream::iter(made).buffer_unordered(16).for_each(|_| async {}).await;
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}})
}

fn selecting(app: &str, more: Value) -> Value {
    let mut object = json!({"metadata": {"name": app, "labels": {"app": app}},
        "spec": {"selector": {"matchLabels": {"app": app}}, "template": template(app)}});
    object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

fn job(name: &str) -> Value {
    let mut template = template(name);
    template["spec"]["restartPolicy"] = json!("Never");
    json!({"metadata": {"name": name}, "spec": {"completions": 2, "parallelism": 2, "template": template}})
}

fn volume(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "", "hostPath": {"path": "/x"}, "claimRef": {"namespace": "default", "name": name}}})
}

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}})
}

fn owned(name: &str, owner: &Value) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment",
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]}})
}

/// Some of everything.
async fn populate(cluster: &Cluster) {
    for number in 0..NODES {
        cluster.add_node(&format!("n{number}")).await;
    }
    let namespace = |number: usize| json!({"metadata": {"name": format!("team-{number}")}});
    create_all(cluster, NAMESPACES, "api/v1/namespaces", namespace).await;
    let deployment = |number: usize| web(&format!("web-{number}"), REPLICAS.try_into().unwrap());
    create_all(cluster, DEPLOYMENTS, &format!("{APPS}/deployments"), deployment).await;
    let service = |number: usize| {
        let name = format!("web-{number}");
        json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
    };
    create_all(cluster, DEPLOYMENTS * 2, &format!("{CORE}/services"), service).await;
    let set = |number: usize| {
        let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}]);
        let more = json!({"serviceName": "db", "replicas": 2, "volumeClaimTemplates": claims,
            "podManagementPolicy": "Parallel"});
        selecting(&format!("db-{number}"), more)
    };
    // A claim without a volume would be told so by each start.
    let sets = |number: usize| volume(&format!("data-db-{}-{}", number / 2, number % 2));
    create_all(cluster, SETS * 2, "api/v1/persistentvolumes", sets).await;
    create_all(cluster, SETS, &format!("{APPS}/statefulsets"), set).await;
    let daemons = |number: usize| selecting(&format!("agent-{number}"), json!({}));
    create_all(cluster, DAEMONS, &format!("{APPS}/daemonsets"), daemons).await;
    create_all(cluster, JOBS, &format!("{BATCH}/jobs"), |number| job(&format!("job-{number}"))).await;
    let cron = |number: usize| {
        let spec = json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job("x")["spec"]}});
        json!({"metadata": {"name": format!("yearly-{number}")}, "spec": spec})
    };
    create_all(cluster, JOBS, &format!("{BATCH}/cronjobs"), cron).await;
    let named = |number: usize| format!("pair-{number}");
    create_all(cluster, VOLUMES, "api/v1/persistentvolumes", |number| volume(&named(number))).await;
    create_all(cluster, VOLUMES, &format!("{CORE}/persistentvolumeclaims"), |number| claim(&named(number)))
        .await;
    let budget = |number: usize| {
        let app = format!("web-{number}");
        json!({"metadata": {"name": app}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}})
    };
    create_all(cluster, 20, "apis/policy/v1/namespaces/default/poddisruptionbudgets", budget).await;
    let quota =
        json!({"metadata": {"name": "all"}, "spec": {"hard": {"pods": "5000", "configmaps": "5000"}}});
    create(cluster, &format!("{CORE}/resourcequotas"), quota).await;
    let owner = cluster.get(&format!("{APPS}/deployments/web-0")).await;
    let map = |number: usize| owned(&format!("owned-{number}"), &owner);
    create_all(cluster, OWNED, &format!("{CORE}/configmaps"), map).await;
}

/// Every object of every kind but Events, by kind, namespace and name, with its version.
async fn snapshot(cluster: &Cluster) -> BTreeMap<String, (Value, Value)> {
    let groups = cluster.get("apis").await;
    let mut versions = vec!["api/v1".to_owned()];
    for group in groups["groups"].as_array().unwrap() {
        versions.push(format!("apis/{}", group["preferredVersion"]["groupVersion"].as_str().unwrap()));
    }
    let mut all = BTreeMap::new();
    for version in versions {
        let resources = cluster.get(&version).await;
        for resource in resources["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let verbs = resource["verbs"].as_array().unwrap();
            if name.contains('/') || name == "events" || !verbs.contains(&json!("list")) {
                continue;
            }
            for object in cluster.list(&format!("{version}/{name}")).await {
                let metadata = &object["metadata"];
                let labels = &metadata["labels"];
                // What has a name of the server's choice is known by what it belongs to.
                let known = [&labels["app"], &labels["kubernetes.io/service-name"], &metadata["name"]];
                let known = known.into_iter().find_map(Value::as_str).unwrap();
                let namespace = metadata["namespace"].as_str().unwrap_or_default();
                let key = format!("{name} {namespace}/{}", metadata["name"].as_str().unwrap());
                all.insert(
                    key,
                    (metadata["resourceVersion"].clone(), json!(format!("{name} {namespace}/{known}"))),
                );
            }
        }
    }
    all
}

/// The Events: reason, kind and object, and how often it was said.
async fn events(cluster: &Cluster) -> BTreeSet<(String, u64)> {
    let mut all = BTreeMap::new();
    for event in cluster.list("api/v1/events").await {
        let about = &event["involvedObject"];
        let parts = [&event["reason"], &about["kind"], &about["name"]];
        let text = parts.map(|part| part.as_str().unwrap_or_default()).join(" ");
        *all.entry(text).or_insert(0) += event["count"].as_u64().unwrap_or(1);
    }
    all.into_iter().collect()
}

/// How often a node has been told after the second start.
fn registered(node: usize) -> (String, u64) {
    (format!("RegisteredNode Node n{node}"), 2)
}

async fn revision(cluster: &Cluster) -> u64 {
    cluster.revision().await.parse().unwrap()
}

/// What differs between two snapshots.
fn changed(
    before: &BTreeMap<String, (Value, Value)>,
    after: &BTreeMap<String, (Value, Value)>,
) -> BTreeSet<String> {
    let keys = before.keys().chain(after.keys());
    let differs = keys.filter(|key| before.get(*key).map(|one| &one.0) != after.get(*key).map(|one| &one.0));
    let known =
        |key: &String| after.get(key).or_else(|| before.get(key)).unwrap().1.as_str().unwrap().to_owned();
    differs.map(known).collect()
}

/// Waits until nothing was written for a while.
async fn rest(cluster: &Cluster) {
    eventually("the cluster comes to rest", || async {
        let before = cluster.revision().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = cluster.revision().await;
        if before == after { Ok(()) } else { Err(json!([before, after])) }
    })
    .await;
}

async fn pod_of(cluster: &Cluster, app: &str) -> String {
    let pods = cluster.list(&format!("{CORE}/pods?labelSelector=app={app}")).await;
    format!("{CORE}/pods/{}", pods[0]["metadata"]["name"].as_str().unwrap())
}

async fn succeed(cluster: &Cluster, app: &str) {
    for pod in cluster.list(&format!("{CORE}/pods?labelSelector=app={app}")).await {
        let path = format!("{CORE}/pods/{}/status", pod["metadata"]["name"].as_str().unwrap());
        patch(cluster, &path, json!({"status": {"phase": "Succeeded"}})).await;
    }
}

/// What is to be written.
#[derive(Default)]
struct Expected {
    certainly: BTreeSet<String>,
    /// Statuses that may be right again before anybody has looked.
    perhaps: BTreeSet<String>,
}

/// What goes wrong while no controller looks, and what is to be written for it.
async fn spoil(cluster: &Cluster) -> Expected {
    let mut expected = Expected::default();
    let mut expect = |texts: &[&str]| expected.certainly.extend(texts.iter().map(|text| (*text).to_owned()));

    delete(cluster, &pod_of(cluster, "web-0").await).await;
    patch(cluster, &format!("{APPS}/deployments/web-1"), json!({"spec": {"replicas": REPLICAS + 2}})).await;
    for app in ["web-0", "web-1"] {
        for kind in ["pods", "endpoints", "endpointslices"] {
            expect(&[&format!("{kind} default/{app}")]);
        }
    }
    expect(&["replicasets default/web-1", "deployments default/web-1", "poddisruptionbudgets default/web-1"]);
    delete(cluster, &pod_of(cluster, "db-0").await).await;
    delete(cluster, &pod_of(cluster, "agent-0").await).await;
    expect(&["pods default/db-0", "pods default/agent-0"]);
    succeed(cluster, "job-1").await;
    expect(&["pods default/job-1", "jobs default/job-1"]);
    // Three pods come back, and two are new; two are done.
    expect(&["resourcequotas default/all"]);

    let slices = "apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = cluster.list(&format!("{slices}?labelSelector=kubernetes.io/service-name=web-5")).await;
    delete(cluster, &format!("{slices}/{}", slice[0]["metadata"]["name"].as_str().unwrap())).await;
    expect(&["endpointslices default/web-5"]);
    delete(cluster, "api/v1/namespaces/team-7/configmaps/kube-root-ca.crt").await;
    expect(&["configmaps team-7/kube-root-ca.crt"]);
    delete(cluster, "api/v1/namespaces/team-8/serviceaccounts/default").await;
    expect(&["serviceaccounts team-8/default"]);
    delete(cluster, "api/v1/namespaces/team-9").await;
    expect(&["namespaces /team-9", "configmaps team-9/kube-root-ca.crt", "serviceaccounts team-9/default"]);
    let nobody = json!({"metadata": {"name": "nobody", "uid": "11111111-2222-3333-4444-555555555555"}});
    create(cluster, &format!("{CORE}/configmaps"), owned("orphan", &nobody)).await;
    expect(&["configmaps default/orphan"]);
    create(cluster, "api/v1/persistentvolumes", volume("late")).await;
    create(cluster, &format!("{CORE}/persistentvolumeclaims"), claim("late")).await;
    expect(&["persistentvolumes /late", "persistentvolumeclaims default/late"]);
    let perhaps = [
        "replicasets default/web-0",
        "deployments default/web-0",
        "poddisruptionbudgets default/web-0",
        "statefulsets default/db-0",
        "daemonsets default/agent-0",
    ];
    expected.perhaps = perhaps.map(str::to_owned).into();
    expected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_start_again_write_only_what_is_wrong() {
    let options = Options {
        root_ca_pem: Some("CA".to_owned()),
        // No node has a kubelet that would say it is alive.
        node_monitor_grace_period: Duration::from_secs(3600),
        ..Options::default()
    };
    let cluster = start_server(options).await;
    let controllers = cluster.start_controllers();
    cluster.run_pods("n0");
    populate(&cluster).await;
    let pods = DEPLOYMENTS * REPLICAS + SETS * 2 + DAEMONS * NODES + JOBS * 2;
    eventually("all pods run", || async {
        let running = cluster.list("api/v1/pods?fieldSelector=status.phase=Running").await.len();
        if running == pods { Ok(()) } else { Err(json!(running)) }
    })
    .await;
    for number in JOBS / 2..JOBS {
        succeed(&cluster, &format!("job-{number}")).await;
    }
    rest(&cluster).await;
    controllers.end().await;

    let before = snapshot(&cluster).await;
    assert!(before.len() > 3000, "{}", before.len());
    let (since, told) = (revision(&cluster).await, events(&cluster).await);
    let controllers = cluster.start_controllers();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = snapshot(&cluster).await;
    assert_eq!(changed(&before, &after), BTreeSet::new(), "nothing was wrong");
    // As upstream's, each start tells the nodes that it knows them.
    let told: BTreeSet<_> = events(&cluster).await.difference(&told).cloned().collect();
    assert_eq!(told, (0..NODES).map(registered).collect());
    assert_eq!(revision(&cluster).await, since + NODES as u64);
    controllers.end().await;

    let expected = spoil(&cluster).await;
    let before = snapshot(&cluster).await;
    let told = events(&cluster).await;
    let controllers = cluster.start_controllers();
    eventually("the namespace, the last of it, is gone", || async {
        let namespace = cluster.get("api/v1/namespaces/team-9").await;
        if namespace.is_null() { Ok(()) } else { Err(namespace) }
    })
    .await;
    rest(&cluster).await;
    let after = snapshot(&cluster).await;
    let changed = changed(&before, &after);
    pretty_assertions::assert_eq!(&changed - &expected.perhaps, expected.certainly);
    let told = events(&cluster).await.difference(&told).cloned().collect::<BTreeSet<_>>();
    let reason = |(event, _): &(String, u64)| event.split(' ').next().unwrap().to_owned();
    let mut reasons: BTreeSet<String> = told.iter().map(reason).collect();
    // Upstream's controllers tell of conflicts, too, after which they try again.
    reasons.retain(|reason| !reason.starts_with("FailedToUpdateEndpoint"));
    let expected = ["Completed", "RegisteredNode", "ScalingReplicaSet", "SuccessfulCreate"];
    assert_eq!(reasons, expected.map(str::to_owned).into(), "{told:#?}");
    controllers.end().await;
}
