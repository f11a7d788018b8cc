//! Admission webhooks, asked over real TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use orlop_apiserver::pki::{CertificateAuthority, Subject, server_config};
use orlop_json::{Value, json};
use parking_lot::Mutex;

use crate::support::{Answer, Client, admin, config_map, server};

type Respond = dyn Fn(&Value) -> (u16, Value) + Send + Sync;

/// A webhook server and what it was asked.
pub struct Hook {
    pub url: String,
    pub bundle: String,
    pub reviews: Arc<Mutex<Vec<Value>>>,
    connections: Arc<AtomicUsize>,
}

impl Hook {
    /// A server that answers each review's request with `respond`'s response (the uid is filled in).
    async fn start(respond: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
        Hook::start_raw(move |review: &Value| {
            let mut response = respond(&review["request"]);
            response["uid"] = review["request"]["uid"].clone();
            (
                200,
                json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response}),
            )
        })
        .await
    }

    pub async fn start_raw(respond: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) -> Hook {
        let ca = CertificateAuthority::generate("hooks").unwrap();
        let leaf =
            ca.issue(&Subject::server("hook", vec!["127.0.0.1".into(), "s.default.svc".into()]), 1).unwrap();
        let acceptor =
            tokio_rustls::TlsAcceptor::from(Arc::new(server_config(&leaf, &Default::default()).unwrap()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hook", listener.local_addr().unwrap());
        let respond: Arc<Respond> = Arc::new(respond);
        let hook = Hook {
            url,
            bundle: base64::engine::general_purpose::STANDARD.encode(ca.cert_pem()),
            reviews: Arc::default(),
            connections: Arc::default(),
        };
        let (reviews, connections) = (hook.reviews.clone(), hook.connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, respond, reviews) = (acceptor.clone(), respond.clone(), reviews.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service =
                        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                            let (respond, reviews) = (respond.clone(), reviews.clone());
                            async move {
                                let query = request.uri().query().unwrap_or("").to_string();
                                let authorization = request.headers().get("authorization").cloned();
                                let body = request.into_body().collect().await.unwrap().to_bytes();
                                let mut review: Value = orlop_json::from_slice(&body).unwrap();
                                if let Some(value) = authorization {
                                    review["authorization"] = json!(value.to_str().unwrap());
                                }
                                let (code, answer) = respond(&review);
                                review["query"] = json!(query);
                                reviews.lock().push(review);
                                let body = Full::new(Bytes::from(answer.to_string()));
                                Ok::<_, std::convert::Infallible>(
                                    http::Response::builder().status(code).body(body).unwrap(),
                                )
                            }
                        });
                    let server =
                        hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        hook
    }

    /// A configuration of one webhook for ConfigMaps of the namespace `default`.
    fn configure(&self, changes: Value) -> Value {
        let mut hook = json!({
            "name": "w.example.com",
            "clientConfig": {"url": self.url, "caBundle": self.bundle},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "sideEffects": "None", "timeoutSeconds": 5, "admissionReviewVersions": ["v1"],
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        hook
    }

    fn asked(&self) -> usize {
        self.reviews.lock().len()
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Installs a configuration of these webhooks and waits until it is in force: configurations are compiled beside the
/// requests.
async fn install(client: &Client, sort: &str, name: &str, hooks: Vec<Value>) {
    let (kind, plural) = match sort {
        "mutating" => ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        _ => ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    };
    let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "webhooks": hooks});
    client.post(&path, object).await.ok();
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn allow(_: &Value) -> Value {
    json!({"allowed": true})
}

fn patch(operations: Value) -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patch": text, "patchType": "JSONPatch"})
}

async fn create(client: &Client, name: &str) -> Answer {
    client.post(MAPS, config_map(name, json!({"k": "v"}))).await
}

#[tokio::test]
async fn a_validating_webhook_sees_every_operation() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(allow).await;
    install(&client, "validating", "v", vec![hook.configure(json!({}))]).await;
    create(&client, "a").await.ok();
    client.patch("merge", &format!("{MAPS}/a"), json!({"data": {"k": "w"}})).await.ok();
    client.delete(&format!("{MAPS}/a?gracePeriodSeconds=5"), Value::Null).await.ok();
    create(&client, "b").await.ok();
    client.delete(MAPS, Value::Null).await.ok();
    client.post("/api/v1/namespaces/kube-system/configmaps", config_map("c", json!({}))).await.ok();
    let reviews = hook.reviews.lock().clone();
    let told: Vec<String> = reviews
        .iter()
        .map(|r| {
            let r = &r["request"];
            format!(
                "{} {} {} object={} old={} {}",
                r["operation"].as_str().unwrap(),
                r["name"].as_str().unwrap_or("-"),
                r["namespace"].as_str().unwrap(),
                r["object"]["data"]["k"].as_str().unwrap_or("-"),
                r["oldObject"]["data"]["k"].as_str().unwrap_or("-"),
                r["options"]["kind"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "CREATE a default object=v old=- CreateOptions",
            "UPDATE a default object=w old=v UpdateOptions",
            "DELETE a default object=- old=w DeleteOptions",
            "CREATE b default object=v old=- CreateOptions",
            // As upstream: the items of a collection have no name. The bootstrap object of the namespace goes too.
            "DELETE - default object=- old=v DeleteOptions",
        ]
    );
    let first = &reviews[0];
    assert_eq!(first["query"], "timeout=5s");
    assert_eq!(first["apiVersion"], "admission.k8s.io/v1");
    let request = &first["request"];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(request["requestKind"], request["kind"]);
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["dryRun"], false);
    assert_eq!(request["oldObject"], Value::Null);
    assert_eq!(reviews[2]["request"]["options"]["gracePeriodSeconds"], 5);
    assert_eq!(hook.connections.load(Ordering::SeqCst), 1, "connections are used again");
}

#[tokio::test]
async fn refusals_and_warnings_reach_the_client() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(|request| {
        let mut response = json!({"allowed": false, "warnings": ["look out"]});
        if request["name"] == "b" {
            response["status"] = json!({"code": 403, "reason": "Forbidden", "message": "not b"});
        }
        response
    })
    .await;
    install(&client, "validating", "v", vec![hook.configure(json!({}))]).await;
    let answer = create(&client, "a").await;
    assert_eq!(answer.warnings, ["299 - \"look out\""]);
    answer.refused(400, "", "admission webhook \"w.example.com\" denied the request without explanation");
    let answer = create(&client, "b").await;
    answer.refused(403, "Forbidden", "admission webhook \"w.example.com\" denied the request: not b");
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let server = server().await;
    let client = admin(&server);
    let dead = Hook::start(allow).await.configure(json!({"clientConfig": {"url": "https://127.0.0.1:1/x"}}));
    let set = |policy: &str| {
        let mut hook = dead.clone();
        hook["failurePolicy"] = json!(policy);
        hook
    };
    install(&client, "mutating", "ignored", vec![set("Ignore")]).await;
    create(&client, "a").await.ok();
    install(&client, "validating", "failing", vec![set("Fail")]).await;
    create(&client, "b").await.refused(
        500,
        "InternalError",
        "Internal error occurred: failed calling webhook \"w.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=5s\": dial tcp 127.0.0.1:1: connect: connection refused",
    );
}

#[tokio::test]
async fn answers_that_make_no_sense() {
    let server = server().await;
    let client = admin(&server);
    let check = |at: usize, answer: (u16, Value), expected: &'static str| {
        let client = client.clone();
        async move {
            let hook = Hook::start_raw(move |_| answer.clone()).await;
            let name = format!("h{at}");
            install(&client, "validating", &name, vec![hook.configure(json!({}))]).await;
            create(&client, &format!("m{at}")).await.refused(
                500,
                "InternalError",
                &format!("Internal error occurred: failed calling webhook \"w.example.com\": {expected}"),
            );
            let path =
                format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{name}");
            client.delete(&path, Value::Null).await.ok();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    check(
        0,
        (404, json!("gone")),
        "failed to call webhook: the server could not find the requested resource",
    )
    .await;
    check(
        1,
        (500, json!("boom")),
        "failed to call webhook: an error on the server (\"\\\"boom\\\"\") has prevented the request from succeeding",
    )
    .await;
    check(2, (200, json!({"a": 1})), "received invalid webhook response: webhook response was absent").await;
    let other =
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "response": {"uid": ""}});
    let hook = Hook::start_raw(move |_| (200, other.clone())).await;
    install(&client, "validating", "uid", vec![hook.configure(json!({}))]).await;
    let message = create(&client, "m").await.body["message"].as_str().unwrap().to_string();
    assert!(message.contains("received invalid webhook response: expected response.uid=\""), "{message}");
}

#[tokio::test]
async fn strangers_are_not_trusted() {
    let server = server().await;
    let client = admin(&server);
    let (hook, other) = (Hook::start(allow).await, Hook::start(allow).await);
    let config = json!({"clientConfig": {"url": hook.url, "caBundle": other.bundle}});
    install(&client, "validating", "v", vec![hook.configure(config)]).await;
    let message = create(&client, "a").await.body["message"].as_str().unwrap().to_string();
    assert!(
        message.ends_with("tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        "{message}"
    );
    assert_eq!(hook.asked(), 0);
}

#[tokio::test]
async fn mutating_webhooks_run_in_the_order_of_names_and_again() {
    let server = server().await;
    let client = admin(&server);
    // "a" adds a label and sees, in the second round, what "b" has added.
    let first = Hook::start(|request| match request["object"]["metadata"]["labels"]["a"].as_str() {
        None => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}])),
        Some(_) => patch(json!([{"op": "add", "path": "/metadata/labels/seen",
            "value": request["object"]["metadata"]["labels"]["b"].as_str().unwrap_or("no")}])),
    })
    .await;
    let second =
        Hook::start(|_| patch(json!([{"op": "add", "path": "/metadata/labels/b", "value": "2"}]))).await;
    let rename = |hook: &Hook, name: &str, policy: &str| {
        hook.configure(json!({"name": name, "reinvocationPolicy": policy}))
    };
    install(&client, "mutating", "z", vec![rename(&second, "b.example.com", "Never")]).await;
    install(&client, "mutating", "a", vec![rename(&first, "a.example.com", "IfNeeded")]).await;
    let object = create(&client, "m").await.ok();
    assert_eq!(object["metadata"]["labels"], json!({"a": "1", "b": "2", "seen": "2"}));
    assert_eq!((first.asked(), second.asked()), (2, 1));
}

#[tokio::test]
async fn managed_fields_that_a_webhook_breaks_are_put_back() {
    const BROKEN: &str = "299 - \".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: ";
    let server = server().await;
    let client = admin(&server);
    let check = |at: usize, change: Value, expected: Option<&'static str>| {
        let client = client.clone();
        async move {
            let hook = Hook::start(move |_| {
                patch(json!([change, {"op": "add", "path": "/data/added", "value": "by webhook"}]))
            })
            .await;
            let (name, webhook) = (format!("m{at}"), format!("h{at}"));
            install(&client, "mutating", &webhook, vec![hook.configure(json!({}))]).await;
            let answer = create(&client, &name).await;
            let warning = expected.map(|problem| format!("{BROKEN}{problem}\""));
            assert_eq!(answer.warnings, Vec::from_iter(warning));
            let object = answer.ok();
            assert_eq!(object["data"]["added"], "by webhook");
            let entries = object["metadata"]["managedFields"].as_array().unwrap();
            assert_eq!(entries.len(), 1, "{entries:?}");
            assert_eq!(entries[0]["operation"], "Update");
            // What webhooks add to a new object, nobody owns.
            assert_eq!(entries[0]["fieldsV1"]["f:data"], json!({".": {}, "f:k": {}}));
            // What comes after it stands on sound ground.
            let path = format!("{MAPS}/{name}");
            let applied = config_map(&name, json!({"added": "by webhook"}));
            client.patch("apply", &format!("{path}?fieldManager=a"), applied).await.ok();
            let configuration =
                format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{webhook}");
            client.delete(&configuration, Value::Null).await.ok();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let entry = "/metadata/managedFields/0";
    let replace = |field: &str, value: Value| json!({"op": "replace", "path": format!("{entry}/{field}"), "value": value});
    check(0, replace("manager", json!("it")), None).await;
    check(1, replace("operation", json!("Patch")), Some("operation must be `Apply` or `Update`")).await;
    check(2, replace("apiVersion", json!("")), Some("apiVersion must not be empty")).await;
    check(3, replace("fieldsType", json!("")), Some("missing fieldsType in managed fields entry 0")).await;
    check(
        4,
        replace("fieldsType", json!("FieldsV2")),
        Some("invalid fieldsType \\\"FieldsV2\\\" in managed fields entry 0"),
    )
    .await;
}

#[tokio::test]
async fn patches_that_do_not_fit() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(|_| patch(json!([{"op": "replace", "path": "/nope/x", "value": 1}]))).await;
    install(&client, "mutating", "m", vec![hook.configure(json!({}))]).await;
    create(&client, "a").await.refused(
        500,
        "InternalError",
        "Internal error occurred: replace operation does not apply: doc is missing path: /nope/x: missing value",
    );
    client.post("/api/v1/namespaces/kube-system/configmaps", config_map("c", json!({}))).await.ok();
}

#[tokio::test]
async fn dry_runs_need_webhooks_without_side_effects() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(allow).await;
    install(&client, "validating", "v", vec![hook.configure(json!({"sideEffects": "NoneOnDryRun"}))]).await;
    client.post(&format!("{MAPS}?dryRun=All"), config_map("a", json!({}))).await.ok();
    let request = hook.reviews.lock()[0]["request"].clone();
    assert_eq!((&request["dryRun"], &request["options"]["dryRun"]), (&json!(true), &json!(["All"])));
}

#[tokio::test]
async fn configurations_are_never_intercepted() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(|_| json!({"allowed": false})).await;
    let everything = json!({"rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}],
        "namespaceSelector": {}});
    install(&client, "validating", "v", vec![hook.configure(everything.clone())]).await;
    assert_eq!(create(&client, "a").await.code, 400);
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/v";
    client.delete(path, Value::Null).await.ok();
    let of_the_group =
        |review: &Value| review["request"]["resource"]["group"] == "admissionregistration.k8s.io";
    assert!(hook.asked() > 0 && !hook.reviews.lock().iter().any(of_the_group));
}

#[tokio::test]
async fn subresources_have_kinds_of_their_own() {
    let server = server().await;
    let client = admin(&server);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    client.post(deployments, object).await.ok();
    let hook = Hook::start(|request| {
        if request["subResource"] == "scale" {
            return patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]));
        }
        json!({"allowed": true})
    })
    .await;
    let rules = json!({"rules": [
        {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/*"]},
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "CONNECT"], "resources": ["serviceaccounts/token", "pods/eviction"]}]});
    install(&client, "mutating", "m", vec![hook.configure(rules)]).await;
    let scale =
        client.patch("merge", &format!("{deployments}/d/scale"), json!({"spec": {"replicas": 2}})).await.ok();
    assert_eq!(scale["spec"]["replicas"], 3);
    client
        .patch("merge", &format!("{deployments}/d/status"), json!({"status": {"observedGeneration": 1}}))
        .await
        .ok();
    client
        .post(
            "/api/v1/namespaces/kube-system/serviceaccounts/x/token",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
        )
        .await;
    let kinds: Vec<String> = hook
        .reviews
        .lock()
        .iter()
        .map(|r| format!("{} {}", r["request"]["subResource"], r["request"]["kind"]["kind"]))
        .collect();
    assert_eq!(kinds, ["\"scale\" \"Scale\"", "\"status\" \"Deployment\""]);
}

#[tokio::test]
async fn an_equivalent_resource_is_shown_in_the_version_that_was_asked_for() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(|_| patch(json!([{"op": "add", "path": "/note", "value": "changed"}]))).await;
    let rules = json!({"rules": [
        {"apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["events"]}]});
    install(&client, "mutating", "m", vec![hook.configure(rules)]).await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "as sent",
        "involvedObject": {"namespace": "default", "kind": "Pod", "name": "p"}});
    let stored = client.post("/api/v1/namespaces/default/events", event).await.ok();
    assert_eq!(stored["message"], "changed");
    let request = hook.reviews.lock()[0]["request"].clone();
    assert_eq!(request["kind"]["group"], "events.k8s.io");
    assert_eq!(request["requestKind"]["group"], "");
    assert_eq!(request["object"]["note"], "as sent");
}

#[tokio::test]
async fn services_are_reached_at_their_cluster_address() {
    let server = server().await;
    let client = admin(&server);
    let hook = Hook::start(allow).await;
    let service =
        json!({"service": {"namespace": "default", "name": "s", "port": 443}, "caBundle": hook.bundle});
    install(&client, "validating", "v", vec![hook.configure(json!({"clientConfig": service}))]).await;
    let message = create(&client, "a").await.body["message"].as_str().unwrap().to_string();
    assert!(
        message.ends_with(
            "failed to call webhook: Post \"https://s.default.svc:443/?timeout=5s\": service \"s\" not found"
        ),
        "{message}"
    );
}
