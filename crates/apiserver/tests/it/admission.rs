//! The built-in admission plugins as a client meets them.

use orlop_json::{Value, json};

use crate::support::{Client, admin, server};

/// A namespace with its default account.
async fn namespace(client: &Client, name: &str, labels: Value) {
    let namespace = json!({"metadata": {"name": name, "labels": labels}});
    client.post("/api/v1/namespaces", namespace).await.ok();
    let account = json!({"metadata": {"name": "default"}});
    client.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await.ok();
}

fn pod(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    container["image"] = json!("x");
    json!({"metadata": {"name": name}, "spec": {"containers": [container]}})
}

/// A quota whose status is as its controller would have written it.
async fn quota(client: &Client, namespace: &str, spec: Value, used: Value) {
    let path = format!("/api/v1/namespaces/{namespace}/resourcequotas");
    client.post(&path, json!({"metadata": {"name": "q"}, "spec": spec})).await.ok();
    let status = json!({"status": {"hard": spec["hard"], "used": used}});
    client.patch("merge", &format!("{path}/q/status"), status).await.ok();
}

async fn used(client: &Client, namespace: &str) -> Value {
    client.get(&format!("/api/v1/namespaces/{namespace}/resourcequotas/q")).await.ok()["status"]["used"]
        .clone()
}

#[tokio::test]
async fn quota_is_never_exceeded_by_many_at_once() {
    let server = server().await;
    let client = admin(&server);
    namespace(&client, "n", json!({})).await;
    quota(
        &client,
        "n",
        json!({"hard": {"count/configmaps": "7", "secrets": "2"}}),
        json!({"count/configmaps": "0", "secrets": "0"}),
    )
    .await;
    let mut tasks = Vec::new();
    for index in 0..20 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            let object = json!({"metadata": {"name": format!("c{index}")}});
            client.post("/api/v1/namespaces/n/configmaps", object).await.code
        }));
    }
    let mut created = 0;
    for task in tasks {
        match task.await.unwrap() {
            201 => created += 1,
            403 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(created, 7);
    assert_eq!(used(&client, "n").await, json!({"count/configmaps": "7", "secrets": "0"}));
    client.post("/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "more"}})).await.refused(
        403,
        "Forbidden",
        "configmaps \"more\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=7, limited: count/configmaps=7",
    );
}

#[tokio::test]
async fn quota_of_updates_and_dry_runs() {
    let server = server().await;
    let client = admin(&server);
    namespace(&client, "n", json!({})).await;
    let hard = json!({"hard": {"services": "1", "services.nodeports": "2"}});
    quota(&client, "n", hard, json!({"services": "0", "services.nodeports": "0"})).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    client.post("/api/v1/namespaces/n/services?dryRun=All", service.clone()).await.ok();
    assert_eq!(used(&client, "n").await["services"], "0");
    client.post("/api/v1/namespaces/n/services", service).await.ok();
    let patch = |kind: &str| json!({"spec": {"type": kind}});
    client.patch("merge", "/api/v1/namespaces/n/services/s", patch("NodePort")).await.ok();
    assert_eq!(used(&client, "n").await, json!({"services": "1", "services.nodeports": "2"}));
    // Nothing is given back here: that is the quota controller's work.
    client.patch("merge", "/api/v1/namespaces/n/services/s", patch("ClusterIP")).await.ok();
    assert_eq!(used(&client, "n").await["services.nodeports"], "2");
}

#[tokio::test]
async fn limit_ranges_default_and_bound() {
    let server = server().await;
    let client = admin(&server);
    namespace(&client, "n", json!({})).await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "2"}}]}});
    client.post("/api/v1/namespaces/n/limitranges", range).await.ok();
    let made = client.post("/api/v1/namespaces/n/pods", pod("p", json!({}))).await.ok();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})
    );
    let big = pod("q", json!({"resources": {"limits": {"cpu": "3"}}}));
    client.post("/api/v1/namespaces/n/pods", big).await.refused(
        403,
        "Forbidden",
        "pods \"q\" is forbidden: maximum cpu usage per Container is 2, but limit is 3",
    );
}

#[tokio::test]
async fn pod_security_of_namespaces() {
    let server = server().await;
    let client = admin(&server);
    let refused =
        json!({"metadata": {"name": "x", "labels": {"pod-security.kubernetes.io/enforce": "strict"}}});
    client.post("/api/v1/namespaces", refused).await.refused(
        422,
        "Invalid",
        "Namespace \"x\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
    );
    namespace(&client, "n", json!({})).await;
    for name in ["a", "b"] {
        let privileged = pod(name, json!({"securityContext": {"privileged": true}}));
        client.post("/api/v1/namespaces/n/pods", privileged).await.ok();
    }
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let answer = client.patch("merge", "/api/v1/namespaces/n", label("baseline")).await;
    assert_eq!(
        answer.warnings,
        [
            "299 - \"existing pods in namespace \\\"n\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"a (and 1 other pod): privileged\"",
        ]
    );
    let privileged = pod("c", json!({"securityContext": {"privileged": true}}));
    client.post("/api/v1/namespaces/n/pods", privileged).await.refused(
        403,
        "Forbidden",
        "pods \"c\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)",
    );
    // What is there may be changed where the checks do not look.
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    client.patch("merge", "/api/v1/namespaces/n/pods/a", labels).await.ok();
}

/// A pod that runs and is ready, or not.
async fn running(client: &Client, name: &str, ready: &str) {
    let mut object = pod(name, json!({}));
    object["metadata"]["labels"] = json!({"app": "x"});
    client.post("/api/v1/namespaces/n/pods", object).await.ok();
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    client.patch("strategic-merge", &format!("/api/v1/namespaces/n/pods/{name}/status"), status).await.ok();
}

async fn budget(client: &Client, name: &str, status: Value) {
    let path = "/apis/policy/v1/namespaces/n/poddisruptionbudgets";
    let object = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "x"}}, "minAvailable": 1}});
    client.post(path, object).await.ok();
    client.patch("merge", &format!("{path}/{name}/status"), json!({"status": status})).await.ok();
}

async fn evict(client: &Client, pod: &str) -> crate::support::Answer {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    client.post(&format!("/api/v1/namespaces/n/pods/{pod}/eviction"), eviction).await
}

#[tokio::test]
async fn evictions_ask_the_budget() {
    let server = server().await;
    let client = admin(&server);
    namespace(&client, "n", json!({})).await;
    for name in ["a", "b"] {
        running(&client, name, "True").await;
    }
    running(&client, "sick", "False").await;
    let counts = |allowed: i64| json!({"observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 1, "currentHealthy": 2});
    budget(&client, "one", counts(1)).await;
    evict(&client, "a").await.ok();
    let denied = evict(&client, "b").await;
    assert_eq!((denied.code, &denied.body["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(
        denied.body["details"]["causes"][0]["message"],
        "The disruption budget one needs 1 healthy pods and has 2 currently"
    );
    // Who is not healthy is no loss while enough others are.
    evict(&client, "sick").await.ok();
    client.get("/api/v1/namespaces/n/pods/sick").await.refused(404, "NotFound", "pods \"sick\" not found");
    // Two budgets over one pod: the answer says so, under a success's code.
    budget(&client, "two", counts(1)).await;
    let several = evict(&client, "b").await;
    assert_eq!(
        (several.code, &several.body["status"], &several.body["code"]),
        (201, &json!("Failure"), &json!(500))
    );
    let unnamed = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {}});
    client.post("/api/v1/namespaces/n/pods/b/eviction", unnamed).await.refused(
        400,
        "BadRequest",
        "name in URL does not match name in Eviction object",
    );
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let server = server().await;
    let client = admin(&server);
    let kubelet = Client::new(&server, orlop_apiserver::UserInfo::node("n1"));
    let labelled =
        json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": ""}}});
    kubelet.post("/api/v1/nodes", labelled).await.refused(
        403,
        "Forbidden",
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: node-role.kubernetes.io/control-plane",
    );
    let plain = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}});
    kubelet.post("/api/v1/nodes", plain).await.ok();
    kubelet.post("/api/v1/nodes", json!({"metadata": {"name": "n2"}})).await.refused(
        403,
        "Forbidden",
        "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"",
    );
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    kubelet.patch("merge", "/api/v1/nodes/n1", taint).await.refused(
        403,
        "Forbidden",
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to modify taints",
    );
    namespace(&client, "n", json!({})).await;
    kubelet.post("/api/v1/namespaces/n/pods", pod("p", json!({}))).await.refused(
        403,
        "Forbidden",
        "pods \"p\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
    );
}
