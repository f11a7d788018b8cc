//! An API server behind the API server: a real one over TLS, found through a Service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_apiserver::aggregation::{InProcess, Priority};
use orlop_apiserver::http::body;
use orlop_apiserver::{ApiServer, Options, UserInfo, pki};
use orlop_json::{Value, json};
use orlop_store::memory::MemoryStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, admin, server};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
const GROUP: &str = "/apis/things.example.com/v1";

/// The other server: answers discovery and OpenAPI, shows what it was asked, and echoes upgraded connections.
struct Extension {
    port: u16,
    ca: pki::CertificateAuthority,
    broken: Arc<AtomicBool>,
}

impl Extension {
    async fn start(client_ca: &str) -> Extension {
        let ca = pki::CertificateAuthority::generate("extension-ca").unwrap();
        let names = vec!["things.default.svc".to_string()];
        let leaf = ca.issue(&pki::Subject::server("things", names), 1).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pki::certificates(client_ca).unwrap().remove(0)).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                pki::certificates(&leaf.cert_pem).unwrap(),
                pki::private_key(&leaf.key_pem).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let broken = Arc::new(AtomicBool::new(false));
        let state = broken.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (tokio_rustls::TlsAcceptor::from(tls.clone()), state.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let proved = stream.get_ref().1.peer_certificates().is_some();
                    let service = hyper::service::service_fn(move |request| {
                        let broken = state.load(Ordering::SeqCst);
                        async move { Ok::<_, std::convert::Infallible>(answer(request, proved, broken).await) }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Extension { port, ca, broken }
    }

    fn bundle(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.ca.cert_pem())
    }
}

type Reply = http::Response<Full<Bytes>>;

fn reply(code: u16, content_type: &str, value: &Value) -> Reply {
    http::Response::builder()
        .status(code)
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(value.to_string())))
        .unwrap()
}

async fn answer(mut request: http::Request<hyper::body::Incoming>, proved: bool, broken: bool) -> Reply {
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    if !proved {
        return reply(401, "application/json", &json!("no certificate"));
    }
    if broken {
        return reply(500, "application/json", &json!("out of order"));
    }
    if request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count].to_ascii_uppercase()).await.unwrap();
            }
        });
        return http::Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Full::default())
            .unwrap();
    }
    let kind = json!({"group": "things.example.com", "version": "v1", "kind": "Thing"});
    match request.uri().path() {
        "/apis" => reply(
            200,
            AGGREGATED,
            &json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "things.example.com"}, "versions": [
                {"version": "v1", "resources": [{"resource": "things", "responseKind": kind, "scope": "Cluster", "singularResource": "thing", "verbs": ["get"]}]},
            ]}]}),
        ),
        GROUP => reply(
            200,
            "application/json",
            &json!({"kind": "APIResourceList", "groupVersion": "things.example.com/v1", "resources": []}),
        ),
        "/openapi/v3" => reply(
            200,
            "application/json",
            &json!({"paths": {"apis/things.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/things.example.com/v1?hash=A"}}}),
        ),
        "/openapi/v3/apis/things.example.com/v1" => {
            reply(200, "application/json", &json!({"openapi": "3.0.0", "info": {"title": "things"}}))
        }
        "/openapi/v2" => reply(
            200,
            "application/json",
            &json!({
                "paths": {"/apis/things.example.com/v1/things": {"get": {}}, "/version": {}},
                "definitions": {"com.example.Thing": {"type": "object"}},
            }),
        ),
        _ => {
            let headers: orlop_json::Map = request
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().into(), json!(value.to_str().unwrap_or(""))))
                .collect();
            let groups: Vec<&str> =
                request.headers().get_all("x-remote-group").iter().map(|v| v.to_str().unwrap()).collect();
            let (method, target, groups) =
                (request.method().to_string(), request.uri().to_string(), json!(groups));
            let version = format!("{:?}", request.version());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            reply(
                201,
                "application/json",
                &json!({
                    "method": method, "target": target, "headers": headers, "groups": groups, "body": body, "version": version,
                }),
            )
        }
    }
}

fn api_service(bundle: Option<&str>, port: u16) -> Value {
    let mut spec = json!({
        "group": "things.example.com", "version": "v1", "groupPriorityMinimum": 17900, "versionPriority": 10,
        "service": {"namespace": "default", "name": "things", "port": port},
    });
    match bundle {
        Some(bundle) => spec["caBundle"] = json!(bundle),
        None => spec["insecureSkipTLSVerify"] = json!(true),
    }
    json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.things.example.com"}, "spec": spec})
}

fn external_name() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "things"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}})
}

/// Waits for the condition `Available` to have this reason; its message.
async fn reason(client: &Client, expected: &str) -> String {
    let mut last = Value::Null;
    for _ in 0..200 {
        let object = client.get(&format!("{SERVICES}/v1.things.example.com")).await.ok();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        last = conditions.into_iter().find(|c| c["type"] == "Available").unwrap_or_default();
        if last["reason"] == expected {
            return last["message"].as_str().unwrap().to_string();
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{expected} expected, is {last}");
}

async fn client_ca(client: &Client) -> String {
    let config = client.get(CONFIG).await.ok();
    assert_eq!(config["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    config["data"]["requestheader-client-ca-file"].as_str().unwrap().to_string()
}

async fn served(server: &Arc<ApiServer>) -> (Client, Extension) {
    let client = admin(server);
    let extension = Extension::start(&client_ca(&client).await).await;
    client.post("/api/v1/namespaces/default/services", external_name()).await.ok();
    client.post(SERVICES, api_service(Some(&extension.bundle()), extension.port)).await.ok();
    assert_eq!(reason(&client, "Passed").await, "all checks passed");
    (client, extension)
}

#[tokio::test]
async fn requests_are_passed_on_with_the_callers_identity() {
    let server = server().await;
    let (_client, _extension) = served(&server).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    admin(&server).post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await.ok();
    let mut user = UserInfo::new("alice", &["team-a"]);
    user.extra.insert("scopes".into(), vec!["x".into()]);
    let alice = Client::new(&server, user);
    let headers =
        [("x-remote-user", "root"), ("authorization", "Bearer secret"), ("content-type", "application/json")];
    let answer = alice.call("POST", &format!("{GROUP}/things?dryRun=All"), &headers, &json!({"a": 1})).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let seen = &answer.body;
    assert_eq!((seen["method"].as_str(), seen["body"].as_str()), (Some("POST"), Some("{\"a\":1}")));
    assert!(seen["target"].as_str().unwrap().ends_with("/apis/things.example.com/v1/things?dryRun=All"));
    assert_eq!(seen["version"], "HTTP/2.0");
    assert_eq!(seen["headers"]["x-remote-user"], "alice");
    assert_eq!(seen["headers"]["x-remote-extra-scopes"], "x");
    assert_eq!(seen["groups"], json!(["team-a", "system:authenticated"]));
    assert!(seen["headers"].get("authorization").is_none());
    // Who may not, may not there either.
    let bob = Client::new(&server, UserInfo::new("bob", &[]));
    assert_eq!(bob.get(&format!("{GROUP}/things")).await.code, 403);
}

#[tokio::test]
async fn documents_are_merged() {
    let server = server().await;
    let (client, _extension) = served(&server).await;
    let groups = client.get("/apis").await.ok();
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    // Its priority puts it before apps.
    assert_eq!(names.iter().position(|n| *n == "things.example.com"), Some(1), "{names:?}");
    let group = client.get("/apis/things.example.com").await.ok();
    assert_eq!(group["preferredVersion"]["groupVersion"], "things.example.com/v1");
    assert_eq!(client.get(GROUP).await.ok()["kind"], "APIResourceList");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let version = |all: Value| {
        let items = all["items"].as_array().unwrap().clone();
        items.into_iter().find(|g| g["metadata"]["name"] == "things.example.com").unwrap()["versions"][0]
            .clone()
    };
    let found = version(client.call("GET", "/apis", &accept, &Value::Null).await.ok());
    assert_eq!(
        (found["freshness"].as_str(), found["resources"][0]["resource"].as_str()),
        (Some("Current"), Some("things"))
    );
    let index = client.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/things.example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(client.get(url).await.ok()["info"]["title"], "things");
    let v2 = client.get("/openapi/v2").await.ok();
    assert!(v2["paths"].get("/apis/things.example.com/v1/things").is_some());
    assert!(v2["definitions"].get("com.example.Thing").is_some());
    // A server that is gone: its resources are still shown, as what they are.
    client.delete("/api/v1/namespaces/default/services/things", Value::Null).await.ok();
    assert_eq!(reason(&client, "ServiceNotFound").await, "service/things in \"default\" is not present");
    let found = version(client.call("GET", "/apis", &accept, &Value::Null).await.ok());
    assert_eq!(
        (found["freshness"].as_str(), found["resources"][0]["resource"].as_str()),
        (Some("Stale"), Some("things"))
    );
    let answer = client.get(&format!("{GROUP}/things")).await;
    assert_eq!((answer.code, answer.body), (503, json!("service unavailable\n")));
    client.delete(&format!("{SERVICES}/v1.things.example.com"), Value::Null).await.ok();
    for _ in 0..100 {
        if client.get(GROUP).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the group is still there");
}

#[tokio::test]
async fn connections_are_passed_on() {
    let server = server().await;
    let (client, _extension) = served(&server).await;
    let headers = [("connection", "upgrade"), ("upgrade", "echo")];
    let mut response = client.send("GET", &format!("{GROUP}/things/a/attach"), &headers, Bytes::new()).await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HELLO");
}

#[tokio::test]
async fn conditions_say_what_is_wrong() {
    let server = server().await;
    let client = admin(&server);
    let local = client.get(&format!("{SERVICES}/v1.apps")).await;
    if local.code == 200 {
        assert_eq!(
            local.body["status"]["conditions"][0]["message"],
            "Local APIServices are always available"
        );
    }
    let extension = Extension::start(&client_ca(&client).await).await;
    client.post(SERVICES, api_service(None, extension.port)).await.ok();
    reason(&client, "ServiceNotFound").await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "things"},
        "spec": {"ports": [{"name": "https", "port": 1}]}});
    client.post(services, service).await.ok();
    let port = extension.port;
    assert_eq!(
        reason(&client, "ServicePortError").await,
        format!("service/things in \"default\" is not listening on port {port}")
    );
    let ports = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": port}]);
    client.patch("json", &format!("{services}/things"), ports).await.ok();
    assert_eq!(
        reason(&client, "EndpointsNotFound").await,
        "cannot find endpointslices for service/things in \"default\""
    );
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "things-1", "labels": {"kubernetes.io/service-name": "things"}},
        "addressType": "IPv4", "ports": [{"name": "other", "port": 8443}],
        "endpoints": [{"addresses": ["10.0.0.1"]}]});
    client.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await.ok();
    assert_eq!(
        reason(&client, "MissingEndpoints").await,
        "endpointslices for service/things in \"default\" have no addresses with port name \"https\""
    );
    client.delete(&format!("{services}/things"), Value::Null).await.ok();
    client.post(services, external_name()).await.ok();
    reason(&client, "Passed").await;
    extension.broken.store(true, Ordering::SeqCst);
    // Any change makes it look again.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    client.patch("merge", &format!("{services}/things"), label).await.ok();
    let message = reason(&client, "FailedDiscoveryCheck").await;
    assert!(message.starts_with("failing or missing response from https://localhost:"), "{message}");
    assert!(message.ends_with("/apis/things.example.com/v1: 500"), "{message}");
    // It comes back without being told.
    extension.broken.store(false, Ordering::SeqCst);
    reason(&client, "Passed").await;
}

#[tokio::test]
async fn the_wrong_authority_is_not_believed() {
    let server = server().await;
    let client = admin(&server);
    let extension = Extension::start(&client_ca(&client).await).await;
    let other = Extension::start(&client_ca(&client).await).await;
    client.post("/api/v1/namespaces/default/services", external_name()).await.ok();
    client.post(SERVICES, api_service(Some(&other.bundle()), extension.port)).await.ok();
    let message = reason(&client, "FailedDiscoveryCheck").await;
    assert!(message.contains("certificate"), "{message}");
    assert_eq!(client.get(&format!("{GROUP}/things")).await.code, 503);
}

#[tokio::test]
async fn the_configuration_of_extension_servers_is_kept() {
    let client = admin(&server().await);
    let before = client_ca(&client).await;
    client.patch("merge", CONFIG, json!({"data": {"requestheader-client-ca-file": "tampered"}})).await.ok();
    for _ in 0..100 {
        let now = client.get(CONFIG).await.ok();
        if now["data"]["requestheader-client-ca-file"] == json!(before) {
            client.delete(CONFIG, Value::Null).await.ok();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(client_ca(&client).await, before);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it was not put right");
}

/// A server of the same process: tells who asked for what.
fn in_process() -> InProcess {
    let priority = Priority { group: 100, version: 100 };
    InProcess::new("things.example.com", "v1", priority, |request| async move {
        let resource = json!({"name": "things", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": ["get"]});
        let value = match request.uri().path() {
            GROUP => {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "things.example.com/v1",
                "resources": [resource]})
            }
            "/apis" | "/openapi/v2" | "/openapi/v3" => return body::text(404, "not found"),
            path => json!({"path": path, "user": request.headers()["x-remote-user"].to_str().unwrap()}),
        };
        body::json(200, &value)
    })
}

#[tokio::test]
async fn a_server_of_this_process_answers_until_somebody_else_does() {
    let options = Options { in_process: vec![in_process()], ..Options::default() };
    let server = ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap();
    let client = admin(&server);
    let name = format!("{SERVICES}/v1.things.example.com");
    let things = format!("{GROUP}/namespaces/n/things/a");
    until_answered(&client, &things).await;
    assert_eq!(reason(&client, "Local").await, "Local APIServices are always available");
    let made = client.get(&name).await.ok();
    assert_eq!(made["spec"]["versionPriority"], 100);
    let asked = client.get(&things).await.ok();
    assert_eq!((&asked["path"], &asked["user"]), (&json!(things), &json!("admin")));
    assert_eq!(client.get(GROUP).await.ok()["resources"][0]["kind"], "Thing");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let all = client.call("GET", "/apis", &accept, &Value::Null).await.ok();
    let groups = all["items"].as_array().unwrap();
    let group = groups.iter().find(|g| g["metadata"]["name"] == "things.example.com").unwrap();
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "things");
    let bob = Client::new(&server, UserInfo::new("bob", &[]));
    assert_eq!(bob.get(&things).await.code, 403);
    assert!(!server.is_served_elsewhere("things.example.com", "v1"));

    // Somebody applies an APIService with a Service over it: the labels of the old one stay, and it wins all the same.
    let spec = json!({"spec": {"service": {"namespace": "default", "name": "things"}, "insecureSkipTLSVerify": true,
        "groupPriorityMinimum": 200}});
    client.patch("merge", &name, spec).await.ok();
    reason(&client, "ServiceNotFound").await;
    assert!(server.is_served_elsewhere("things.example.com", "v1"));
    assert_eq!(client.get(&things).await.code, 503);
    assert_eq!(client.get(&name).await.ok()["spec"]["groupPriorityMinimum"], 200);
    client.delete(&name, Value::Null).await.ok();
    until_answered(&client, &things).await;
    assert_eq!(reason(&client, "Local").await, "Local APIServices are always available");
}

async fn until_answered(client: &Client, path: &str) {
    for _ in 0..200 {
        if client.get(path).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nobody answers for {path}");
}
