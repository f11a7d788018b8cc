//! What operators see: health, metrics, limits, priority and fairness, the end of a server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_apiserver::{ApiServer, Options, pki};
use orlop_json::{Value, json};
use orlop_store::memory::MemoryStore;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, admin, config_map, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn text(client: &Client, path: &str) -> (u16, String) {
    let answer = client.get(path).await;
    (answer.code, answer.body.as_str().unwrap_or_default().to_string())
}

#[tokio::test]
async fn health_checks_tell_by_name() {
    let client = admin(&server().await);
    assert_eq!(text(&client, "/readyz").await, (200, "ok".into()));
    assert_eq!(text(&client, "/livez/ping").await, (200, "ok".into()));
    assert_eq!(text(&client, "/livez/nothing").await.0, 404);
    let (code, body) = text(&client, "/readyz?verbose").await;
    assert_eq!(code, 200);
    assert!(body.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n"), "{body}");
    assert!(body.ends_with("[+]shutdown ok\nreadyz check passed\n"), "{body}");
    let (_, body) = text(&client, "/livez?verbose&exclude=etcd&exclude=nothing").await;
    assert!(body.contains("[+]etcd excluded: ok\n"), "{body}");
    assert!(body.ends_with(
        "warn: some health checks cannot be excluded: no matches for \"nothing\"\nlivez check passed\n"
    ));
    assert_eq!(client.get("/debug/pprof/heap").await.code, 501);
    let paths = client.get("/").await.ok();
    for path in ["/apis/apps/v1", "/readyz/ping", "/metrics", "/statusz"] {
        assert!(paths["paths"].as_array().unwrap().contains(&json!(path)), "{path}");
    }
    let (code, body) = text(&client, "/debug/api_priority_and_fairness/dump_priority_levels").await;
    assert_eq!((code, body.starts_with("PriorityLevelName, ")), (200, true), "{body}");
}

#[tokio::test]
async fn pages_for_people_are_objects_for_programs() {
    let options = Options { flags: vec![("v".into(), "2".into())], ..Default::default() };
    let store = Arc::new(MemoryStore::new());
    let client = admin(&ApiServer::new(options, store).await.unwrap());
    let get =
        async |path: &str, accept: &str| client.call("GET", path, &[("accept", accept)], &Value::Null).await;
    let page = get("/statusz", "*/*").await.ok();
    assert!(page.as_str().unwrap().starts_with("\nkube-apiserver statusz\nWarning: "), "{page}");
    let beta = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz";
    let status = get("/statusz", beta).await;
    assert_eq!(status.warnings, [""; 0]);
    let status = status.ok();
    assert_eq!(
        (&status["kind"], &status["apiVersion"], &status["metadata"]["name"], &status["emulationVersion"]),
        (&json!("Statusz"), &json!("config.k8s.io/v1beta1"), &json!("kube-apiserver"), &json!("1.36"))
    );
    assert!(status["paths"].as_array().unwrap().contains(&json!("/readyz")), "{status}");
    let flags = get("/flagz", "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz").await;
    assert_eq!(
        flags.warnings,
        ["299 - \"This version of the flagz endpoint is deprecated. Please use a newer version.\""]
    );
    assert_eq!(flags.ok()["flags"], json!({"v": "2"}));
    get("/flagz", "application/json").await.refused(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf, text/plain",
    );
}

#[tokio::test]
async fn metrics_have_upstreams_names() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("a", json!({"k": "v"}))).await.ok();
    client.get(MAPS).await.ok();
    client.get("/api/v1/nothings").await;
    let mut events = client.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(events.next_name().await, "ADDED a");
    let (_, body) = text(&client, "/metrics").await;
    // The server itself watches one ConfigMap.
    for line in [
        "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1",
        "apiserver_request_total{code=\"404\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"\"} 1",
        "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"} 1",
        "apiserver_response_sizes_count{component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"} 1",
        "apiserver_cache_list_total{group=\"\",index=\"\",resource=\"configmaps\"} 1",
        "apiserver_watch_events_total{group=\"\",resource=\"configmaps\",version=\"v1\"} 1",
        "apiserver_registered_watchers{group=\"\",kind=\"ConfigMap\",version=\"v1\"} 2",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
    ] {
        assert!(body.contains(&format!("{line}\n")), "{line} is missing in\n{body}");
    }
    for name in [
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_request_sli_duration_seconds_bucket{",
        "apiserver_storage_objects{resource=\"configmaps\"}",
        "apiserver_resource_objects{group=\"apps\",resource=\"deployments\"} 0",
        "apiserver_admission_step_admission_duration_seconds_count{operation=\"CREATE\"",
        "apiserver_admission_controller_admission_duration_seconds_count{name=\"",
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"}",
        "apiserver_flowcontrol_nominal_limit_seats{",
        "authentication_attempts{result=\"success\"}",
        "authorization_attempts_total{result=\"allowed\"}",
        "etcd_request_duration_seconds_count{operation=\"put\"}",
        "kubernetes_build_info{",
        "kubernetes_feature_enabled{",
        "process_resident_memory_bytes ",
    ] {
        assert!(body.contains(name), "{name} is missing in\n{body}");
    }
    drop(events);
    let (_, body) = text(&client, "/metrics").await;
    assert!(body.contains(
        "resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"} 0\n"
    ));
}

#[tokio::test]
async fn a_bad_time_limit_is_refused() {
    let client = admin(&server().await);
    client.get(&format!("{MAPS}?timeout=5")).await.refused(
        400,
        "BadRequest",
        "invalid timeout specified in the request URL - time: missing unit in duration \"5\"",
    );
    client.get(&format!("{MAPS}?timeout=5s")).await.ok();
}

/// A server with a socket, and a connection to it.
struct Socket {
    server: Arc<ApiServer>,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Socket {
    async fn start(options: Options) -> Socket {
        let server = ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (serving, tls, stop) = (server.clone(), server.tls_config().unwrap(), shutdown.clone());
        let ended = tokio::spawn(async move { serving.serve(listener, tls, stop).await });
        Socket { server, address, shutdown, ended }
    }

    async fn connect(&self) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
        let ca = self.server.ca();
        let leaf = ca.issue(&pki::Subject::client("admin", &["system:masters"]), 1).unwrap();
        let mut tls = pki::client_config(ca.cert_pem(), Some(&leaf)).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn get(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::builder().uri(format!("https://localhost{path}")).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_server_goes_in_order() {
    let options = Options {
        shutdown_delay: Duration::from_millis(300),
        shutdown_send_retry_after: true,
        ..Options::default()
    };
    let socket = Socket::start(options).await;
    let mut client = socket.connect().await;
    let watch = client.send_request(get(&format!("{MAPS}?watch=1"))).await.unwrap();
    assert_eq!(client.send_request(get("/readyz")).await.unwrap().status(), 200);
    socket.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // It says that it goes, sends new work elsewhere, and goes on serving what it serves.
    assert_eq!(client.send_request(get("/readyz")).await.unwrap().status(), 500);
    assert_eq!(client.send_request(get("/livez")).await.unwrap().status(), 200);
    let refused = client.send_request(get(MAPS)).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (429, &b"5"[..]));
    // The watch ends cleanly, and then the server.
    let ended = tokio::time::timeout(Duration::from_secs(5), watch.into_body().collect()).await;
    assert!(ended.unwrap().is_ok(), "the stream ends without an error");
    tokio::time::timeout(Duration::from_secs(5), socket.ended).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(socket.address).await.is_err());
}

#[tokio::test]
async fn connections_are_asked_to_end_by_chance() {
    let socket = Socket::start(Options { goaway_chance: 1.0, ..Options::default() }).await;
    let mut client = socket.connect().await;
    assert_eq!(client.send_request(get("/livez")).await.unwrap().status(), 200);
    for _ in 0..100 {
        if client.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection is still open");
}

#[tokio::test]
async fn plain_limits_without_priority_and_fairness() {
    let options = Options { priority_and_fairness: false, ..Options::default() };
    let server = ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap();
    let client = admin(&server);
    client.get(MAPS).await.ok();
    assert_eq!(client.get("/debug/api_priority_and_fairness/dump_queues").await.code, 404);
}

#[tokio::test]
async fn a_watcher_that_stalls_is_cut_and_writers_do_not_wait() {
    let server = server().await;
    let client = admin(&server);
    let mut stalled = client.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    client.post(MAPS, config_map("big", json!({"k": ""}))).await.ok();
    let half = "x".repeat(512 * 1024);
    let began = std::time::Instant::now();
    for n in 0..80 {
        let data = json!({"data": {"k": format!("{half}{n}")}});
        client.patch("merge", &format!("{MAPS}/big"), data).await.ok();
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    let (_, body) = text(&client, "/metrics").await;
    assert!(body.contains("apiserver_terminated_watchers_total{group=\"\",resource=\"configmaps\"} 1\n"));
    let mut seen = 0;
    while stalled.next().await.is_some() {
        seen += 1;
    }
    assert!(seen < 20, "what waited is gone: {seen}");
}
