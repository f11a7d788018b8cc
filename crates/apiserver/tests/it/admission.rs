//! The built-in admission plugins as a client meets them.

use serde_json::{Value, json};

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
