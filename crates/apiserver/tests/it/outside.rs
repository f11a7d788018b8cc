//! Services that the server asks or tells over real TLS, named by kubeconfig files or by definitions: token and
//! authorization webhooks, audit receivers, conversion of custom resources.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_apiserver::options::{
    AuditBatch, AuditLogOptions, AuditMode, AuditOptions, AuditWebhookOptions, WebhookOptions,
};
use orlop_apiserver::{ApiServer, Options, UserInfo};
use orlop_json::{Value, json};
use orlop_store::memory::MemoryStore;

use crate::custom::{CRDS, established, until};
use crate::support::{Client, admin, config_map, server};
use crate::webhooks::Hook;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn start(options: Options) -> Arc<ApiServer> {
    ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap()
}

/// A kubeconfig file that names the hook.
fn kubeconfig(dir: &Path, hook: &Hook) -> PathBuf {
    let path = dir.join("kubeconfig");
    let config = json!({
        "clusters": [{"name": "c", "cluster": {"server": hook.url, "certificate-authority-data": hook.bundle}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn asked(config_file: PathBuf) -> WebhookOptions {
    let ttl = Duration::from_secs(60);
    WebhookOptions { config_file, version: "v1".into(), authorized_ttl: ttl, unauthorized_ttl: ttl }
}

#[tokio::test]
async fn a_service_knows_tokens() {
    let hook = Hook::start_raw(|review| {
        let status = match review["spec"]["token"].as_str().unwrap() {
            "good" => json!({"authenticated": true, "user": {"username": "jane", "uid": "7", "groups": ["g"], "extra": {"k": ["v"]}}}),
            "broken" => return (200, json!("no review")),
            _ => json!({"authenticated": false, "error": "never heard of it"}),
        };
        (200, json!({"kind": "TokenReview", "apiVersion": review["apiVersion"], "status": status}))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { token_webhook: Some(asked(kubeconfig(dir.path(), &hook))), ..Options::default() };
    let client = admin(&start(options).await);
    let review = async |token: &str| {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        client.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.ok()["status"].clone()
    };
    let status = review("good").await;
    assert_eq!((&status["authenticated"], &status["user"]["username"]), (&json!(true), &json!("jane")));
    assert_eq!(status["user"]["groups"], json!(["g", "system:authenticated"]));
    assert_eq!(status["user"]["extra"], json!({"k": ["v"]}));
    assert_eq!(review("good").await, status);
    let status = review("bad").await;
    assert_eq!(status["authenticated"], Value::Null);
    assert!(status["error"].as_str().unwrap().contains("never heard of it"), "{status}");
    let reviews = hook.reviews.lock().clone();
    assert_eq!(reviews.len(), 2, "answers are remembered");
    assert_eq!(reviews[0]["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(reviews[0]["spec"]["token"], "good");
    assert!(!reviews[0]["spec"]["audiences"].as_array().unwrap().is_empty());
}

/// A server whose authorizers are this webhook and then RBAC.
async fn authorized_by(hook: &Hook, dir: &Path, policy: &str, conditions: &[&str]) -> Arc<ApiServer> {
    let webhook = json!({
        "timeout": "2s", "subjectAccessReviewVersion": "v1", "failurePolicy": policy,
        "matchConditionSubjectAccessReviewVersion": "v1",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig(dir, hook).to_str()},
        "matchConditions": conditions.iter().map(|text| json!({"expression": text})).collect::<Vec<_>>(),
    });
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [{"type": "Webhook", "name": "hook", "webhook": webhook}, {"type": "RBAC", "name": "rbac"}],
    });
    let path = dir.join("authorization.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    start(Options { authorization_config: Some(path), ..Options::default() }).await
}

fn access(status: Value) -> impl Fn(&Value) -> (u16, Value) {
    move |review| {
        (200, json!({"kind": "SubjectAccessReview", "apiVersion": review["apiVersion"], "status": status}))
    }
}

#[tokio::test]
async fn a_service_decides_about_what_its_conditions_name() {
    let hook = Hook::start_raw(access(json!({"allowed": true, "reason": "because"}))).await;
    let dir = tempfile::tempdir().unwrap();
    let conditions = ["has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'default'"];
    let server = authorized_by(&hook, dir.path(), "Deny", &conditions).await;
    let jane = Client::new(&server, UserInfo::new("jane", &["g"]));
    jane.get(MAPS).await.ok();
    jane.get("/api/v1/namespaces/other/configmaps").await.refused(
        403,
        "Forbidden",
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"other\"",
    );
    let reviews = hook.reviews.lock().clone();
    assert_eq!(reviews.len(), 1, "only what the conditions name is asked");
    assert_eq!(reviews[0]["spec"]["user"], "jane");
    assert_eq!(
        reviews[0]["spec"]["resourceAttributes"],
        json!({"namespace": "default", "verb": "list", "version": "v1", "resource": "configmaps"})
    );
}

#[tokio::test]
async fn a_condition_that_fails_decides_as_the_policy_says() {
    let hook = Hook::start_raw(access(json!({"allowed": true}))).await;
    // Of a request for a resource there is no path.
    let conditions = ["request.nonResourceAttributes.path == '/x'"];
    let text = "cel evaluation error: expression 'request.nonResourceAttributes.path == '/x'' resulted in error: no such key: nonResourceAttributes";
    for policy in ["Deny", "NoOpinion"] {
        let dir = tempfile::tempdir().unwrap();
        let server = authorized_by(&hook, dir.path(), policy, &conditions).await;
        let jane = Client::new(&server, UserInfo::new("jane", &[]));
        let answer = jane.get(MAPS).await;
        assert_eq!(answer.code, 500);
        assert_eq!(answer.body, json!(format!("Internal Server Error: \"{MAPS}\": {text}\n")));
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "jane", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let status = admin(&server).post(path, review).await.ok()["status"].clone();
        let mut expected = json!({"allowed": false, "evaluationError": text});
        if policy == "Deny" {
            expected["denied"] = json!(true);
        }
        assert_eq!(status, expected);
    }
    assert!(hook.reviews.lock().is_empty());
}

#[tokio::test]
async fn a_service_refuses_for_all() {
    let hook =
        Hook::start_raw(access(json!({"allowed": false, "denied": true, "reason": "not today"}))).await;
    let dir = tempfile::tempdir().unwrap();
    let server = authorized_by(&hook, dir.path(), "NoOpinion", &[]).await;
    Client::new(&server, UserInfo::new("jane", &[])).get(MAPS).await.refused(
        403,
        "Forbidden",
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\": not today",
    );
}

#[tokio::test]
async fn what_is_done_is_recorded() {
    let hook = Hook::start_raw(|_| (200, json!({}))).await;
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: RequestResponse\n  resources: [{group: '', resources: [configmaps]}]\n- level: None\n",
    )
    .unwrap();
    let batch =
        AuditBatch { buffer_size: 100, max_size: 10, max_wait: Duration::from_millis(20), throttle: None };
    let log = dir.path().join("audit.log");
    let audit = AuditOptions {
        policy_file: Some(policy),
        log: Some(AuditLogOptions {
            path: log.clone(),
            max_age: 0,
            max_backup: 0,
            max_size: 0,
            compress: false,
            legacy_format: false,
            mode: AuditMode::Blocking,
            batch: batch.clone(),
            truncate: None,
        }),
        webhook: Some(AuditWebhookOptions {
            config_file: kubeconfig(dir.path(), &hook),
            initial_backoff: Duration::from_millis(10),
            mode: AuditMode::Batch,
            batch,
            truncate: None,
        }),
    };
    let server = start(Options { audit, ..Options::default() }).await;
    let client = admin(&server);
    client.post(MAPS, config_map("a", json!({"k": "v"}))).await.ok();
    client.get("/api/v1/namespaces/default").await.ok();
    Client::new(&server, UserInfo::new("jane", &[])).get(MAPS).await;
    let lines: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| orlop_json::from_str(line).unwrap())
        .collect();
    let check = |events: &[Value]| {
        assert_eq!(events.len(), 2, "{events:?}");
        let [made, refused] = events else { return };
        assert_eq!(
            (&made["verb"], &made["level"], &made["stage"]),
            (&json!("create"), &json!("RequestResponse"), &json!("ResponseComplete"))
        );
        assert_eq!(made["requestObject"]["data"], json!({"k": "v"}));
        assert_eq!(made["responseObject"]["metadata"]["name"], "a");
        assert_eq!(made["annotations"]["authorization.k8s.io/decision"], "allow");
        assert_eq!(made["responseStatus"]["code"], 201);
        assert_eq!(refused["user"]["username"], "jane");
        assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
        assert_eq!(refused["responseStatus"]["code"], 403);
    };
    check(&lines);
    let received = async || loop {
        let lists = hook.reviews.lock().clone();
        let events: Vec<Value> =
            lists.iter().flat_map(|list| list["items"].as_array().cloned().unwrap_or_default()).collect();
        if events.len() >= 2 {
            assert!(
                lists
                    .iter()
                    .all(|list| list["kind"] == "EventList" && list["apiVersion"] == "audit.k8s.io/v1")
            );
            return events;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    check(&tokio::time::timeout(Duration::from_secs(5), received()).await.unwrap());
}

/// Converts `v1` (`spec.host`, `spec.port`) to `v2` (`spec.address`) and back.
fn convert(review: &Value) -> (u16, Value) {
    let request = &review["request"];
    let desired = request["desiredAPIVersion"].as_str().unwrap();
    let mut failure = None;
    let converted: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let spec = object["spec"].clone();
            if object["metadata"]["name"] == "bad" {
                failure = Some("bad cannot be converted");
            }
            object["spec"] = match desired {
                "example.com/v2" => {
                    json!({"address": format!("{}:{}", spec["host"].as_str().unwrap_or(""), spec["port"])})
                }
                _ => {
                    let (host, port) =
                        spec["address"].as_str().unwrap_or("").split_once(':').unwrap_or(("", "0"));
                    json!({"host": host, "port": port.parse::<i64>().unwrap_or(0)})
                }
            };
            object["apiVersion"] = json!(desired);
            object["metadata"]["annotations"] = json!({"converted": "yes"});
            object["metadata"]["finalizers"] = json!(["x/y"]);
            object
        })
        .collect();
    let result = match failure {
        Some(message) => json!({"status": "Failure", "message": message}),
        None => json!({"status": "Success"}),
    };
    let response = json!({"uid": request["uid"], "convertedObjects": converted, "result": result});
    (200, json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response}))
}

fn gates(hook: &Hook) -> Value {
    let version = |name: &str, storage: bool, properties: Value| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": properties}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "gates.example.com"},
    "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gates", "kind": "Gate"},
        "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
            "clientConfig": {"url": hook.url, "caBundle": hook.bundle}}},
        "versions": [
            version("v1", true, json!({"host": {"type": "string"}, "port": {"type": "integer"}})),
            version("v2", false, json!({"address": {"type": "string"}})),
        ]}})
}

#[tokio::test]
async fn custom_resources_are_converted() {
    let hook = Hook::start_raw(convert).await;
    let client = admin(&server().await);
    client.post(CRDS, gates(&hook)).await.ok();
    until(&client, &format!("{CRDS}/gates.example.com"), established).await;
    let (v1, v2) =
        ("/apis/example.com/v1/namespaces/default/gates", "/apis/example.com/v2/namespaces/default/gates");
    until(&client, v2, |code, _| code == 200).await;
    let gate = |name: &str, version: &str, spec: Value| json!({"apiVersion": format!("example.com/{version}"), "kind": "Gate", "metadata": {"name": name}, "spec": spec});
    let mut events = client.watch(&format!("{v2}?watch=true")).await;

    let made = client.post(v1, gate("a", "v1", json!({"host": "h", "port": 80}))).await.ok();
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("example.com/v1"), &json!({"host": "h", "port": 80}))
    );
    let read = client.get(&format!("{v2}/a")).await.ok();
    assert_eq!((&read["apiVersion"], &read["spec"]), (&json!("example.com/v2"), &json!({"address": "h:80"})));
    // Of the metadata a conversion may change labels and annotations only.
    assert_eq!(read["metadata"]["annotations"], json!({"converted": "yes"}));
    assert_eq!(read["metadata"]["finalizers"], Value::Null);
    assert_eq!(read["metadata"]["uid"], made["metadata"]["uid"]);
    let event = events.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["spec"]), (&json!("ADDED"), &json!({"address": "h:80"})));

    let merged = client.patch("merge", &format!("{v2}/a"), json!({"spec": {"address": "h:81"}})).await.ok();
    assert_eq!(
        (&merged["apiVersion"], &merged["spec"]),
        (&json!("example.com/v2"), &json!({"address": "h:81"}))
    );
    assert_eq!(client.get(&format!("{v1}/a")).await.ok()["spec"], json!({"host": "h", "port": 81}));
    assert_eq!(events.next().await.unwrap()["object"]["spec"], json!({"address": "h:81"}));

    let applied = client
        .patch("apply", &format!("{v2}/b?fieldManager=me"), gate("b", "v2", json!({"address": "x:1"})))
        .await
        .ok();
    assert_eq!(applied["spec"], json!({"address": "x:1"}));
    let items = client.get(v1).await.ok()["items"].clone();
    let specs: Vec<&Value> = items.as_array().unwrap().iter().map(|item| &item["spec"]).collect();
    assert_eq!(specs, [&json!({"host": "h", "port": 81}), &json!({"host": "x", "port": 1})]);
    let list = client.get(v2).await.ok();
    assert_eq!(list["apiVersion"], "example.com/v2");
    assert_eq!(list["items"][1]["spec"], json!({"address": "x:1"}));

    client.post(v1, gate("bad", "v1", json!({"host": "h", "port": 2}))).await.ok();
    let failed = "Internal error occurred: conversion webhook for example.com/v1, Kind=Gate failed: bad cannot be converted";
    for path in [format!("{v2}/bad"), v2.to_string()] {
        let answer = client.get(&path).await;
        assert_eq!((answer.code, &answer.body["message"]), (500, &json!(failed)), "{path}");
    }
    client.get(&format!("{v1}/bad")).await.ok();
    let reviews = hook.reviews.lock();
    assert!(
        reviews.iter().all(|review| review["kind"] == "ConversionReview" && review["query"] == "timeout=30s")
    );
}

/// An `AdmissionConfiguration` file with one plugin's configuration.
fn admission(dir: &Path, plugin: &str, configuration: Value) -> PathBuf {
    let path = dir.join("admission.yaml");
    let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
        "plugins": [{"name": plugin, "configuration": configuration}]});
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

#[tokio::test]
async fn a_service_knows_images() {
    let hook = Hook::start_raw(|review| {
        let images: Vec<&str> = review["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["image"].as_str().unwrap())
            .collect();
        let status = match images.as_slice() {
            ["good"] => json!({"allowed": true, "auditAnnotations": {"k": "v"}}),
            ["silent"] => json!({"allowed": false}),
            ["broken"] => return (400, json!("broken")),
            _ => json!({"allowed": false, "reason": format!("{} is bad", images.join(" and "))}),
        };
        (200, json!({"kind": "ImageReview", "apiVersion": review["apiVersion"], "status": status}))
    })
    .await;
    let server = |default_allow: bool| {
        let dir = tempfile::tempdir().unwrap();
        let policy = json!({"imagePolicy": {"kubeConfigFile": kubeconfig(dir.path(), &hook).to_str(),
            "denyTTL": -1, "retryBackoff": 1, "defaultAllow": default_allow}});
        let file = admission(dir.path(), "ImagePolicyWebhook", policy);
        async move {
            let _dir = dir;
            let options = Options {
                admission_control_config_file: Some(file),
                enable_admission_plugins: vec!["ImagePolicyWebhook".into()],
                ..Options::default()
            };
            admin(&start(options).await)
        }
    };
    let client = server(false).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let pod = |name: &str, images: &[&str]| {
        let containers: Vec<Value> = images
            .iter()
            .enumerate()
            .map(|(at, image)| json!({"name": format!("c{at}"), "image": image}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name,
            "annotations": {"a.image-policy.k8s.io/b": "c", "other": "d"}}, "spec": {"containers": containers}})
    };
    let pods = "/api/v1/namespaces/default/pods";
    client.post(pods, pod("a", &["good"])).await.ok();
    client.post(pods, pod("b", &["good"])).await.ok();
    {
        let reviews = hook.reviews.lock();
        assert_eq!(reviews.len(), 1, "a yes is remembered");
        assert_eq!(
            reviews[0]["spec"],
            json!({"containers": [{"image": "good"}], "annotations": {"a.image-policy.k8s.io/b": "c"}, "namespace": "default"})
        );
    }
    let refused = async |images: &[&str], message: &str| {
        let expected = format!("pods \"p\" is forbidden: {message}");
        client.post(pods, pod("p", images)).await.refused(403, "Forbidden", &expected);
    };
    refused(&["x", "y"], "image policy webhook backend denied one or more images: x and y is bad").await;
    refused(&["silent"], "one or more images rejected by webhook backend").await;
    refused(&["broken"], "the server answered 400: \"broken\"").await;
    let lenient = server(true).await;
    lenient
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await;
    lenient.post(pods, pod("p", &["broken"])).await.ok();
}

#[tokio::test]
async fn webhooks_know_who_asks() {
    let hook = Hook::start_raw(|review| {
        let response = json!({"allowed": true, "uid": review["request"]["uid"],
            "warnings": [review["authorization"].as_str().unwrap_or("nobody")]});
        (200, json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response}))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    let host = hook.url.trim_start_matches("https://").trim_end_matches("/hook");
    let config = json!({"users": [{"name": host, "user": {"username": "me", "password": "secret"}}]});
    std::fs::write(&users, config.to_string()).unwrap();
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": users.to_str()});
    let file = admission(dir.path(), "ValidatingAdmissionWebhook", configuration);
    let client =
        admin(&start(Options { admission_control_config_file: Some(file), ..Options::default() }).await);
    let mut warned = Vec::new();
    for sort in ["Mutating", "Validating"] {
        let name = format!("{}.example.com", sort.to_lowercase());
        let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{sort}WebhookConfiguration"),
            "metadata": {"name": name}, "webhooks": [{"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": hook.url, "caBundle": hook.bundle},
                "matchConditions": [{"name": "c", "expression": "object.metadata.name != 'left-out'"}],
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]});
        let plural = format!("{}webhookconfigurations", sort.to_lowercase());
        client.post(&format!("/apis/admissionregistration.k8s.io/v1/{plural}"), object).await.ok();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in ["a", "left-out"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        warned.push(client.post("/api/v1/namespaces/default/configmaps", map).await.warnings);
    }
    // Only the validating plugin was told who this server is there.
    assert_eq!(warned, [vec!["299 - \"nobody\"", "299 - \"Basic bWU6c2VjcmV0\""], vec![]]);
    let metrics = client.get("/metrics").await.ok();
    for line in [
        "apiserver_admission_match_condition_exclusions_total{kind=\"webhook\",name=\"validating.example.com\",operation=\"CREATE\",type=\"validating\"} 1",
        "apiserver_admission_match_condition_evaluation_seconds_count{kind=\"webhook\",name=\"mutating.example.com\",operation=\"CREATE\",type=\"admit\"} 2",
    ] {
        assert!(metrics.as_str().unwrap().lines().any(|have| have == line), "{line}");
    }
}
