//! A scheduler from its start to its end, against a server that takes notes.
#![allow(clippy::unwrap_used)]

use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use orlop_client::SharedInformerFactory;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// Has one node and one pod that waits for it, whatever happens; what is written comes out of the channel.
fn client(written: mpsc::Sender<(String, Value)>) -> kube::Client {
    let answer = move |request| answer(request, written.clone());
    kube::Client::new(tower::service_fn(answer), "default")
}

async fn answer(
    request: Request<Body>,
    written: mpsc::Sender<(String, Value)>,
) -> Result<Answer, std::io::Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if head.method == Method::GET {
        let lines = watched(path.rsplit('/').next().unwrap());
        let frames =
            lines.into_iter().map(|line| Ok(http_body::Frame::data(Bytes::from(format!("{line}\n")))));
        return Ok(Response::new(
            StreamBody::new(stream::iter(frames).chain(stream::pending())).boxed_unsync(),
        ));
    }
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    // The test may have seen enough.
    let _ = written.send((format!("{} {path}", head.method), serde_json::from_slice(&body).unwrap()));
    let answer =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let body = http_body_util::Full::from(answer.to_string()).map_err(|never| match never {});
    Ok(Response::builder().status(201).body(body.boxed_unsync()).unwrap())
}

/// The objects of a resource as a watch sends them, and the mark after them.
fn watched(resource: &str) -> Vec<Value> {
    let object = match resource {
        "nodes" => json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n", "uid": "1"},
            "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"}}}),
        "pods" => json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "namespace": "default", "uid": "2"},
            "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending"}}),
        _ => Value::Null,
    };
    let end = json!({"kind": "Any", "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}}});
    let mut events = vec![json!({"type": "BOOKMARK", "object": end})];
    if !object.is_null() {
        events.insert(0, json!({"type": "ADDED", "object": object}));
    }
    events
}

/// Starts a scheduler on a runtime of its own and waits for its first binding.
fn started() -> (tokio::runtime::Runtime, tokio::task::JoinHandle<()>, (String, Value), CancellationToken) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (sender, written) = mpsc::channel();
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let scheduler = runtime.spawn(async move {
        let factory = SharedInformerFactory::new(client(sender), token.clone());
        orlop_scheduler::run(factory, orlop_scheduler::Options::default(), token).await.unwrap();
    });
    let first = written.recv_timeout(PATIENCE).unwrap();
    (runtime, scheduler, first, shutdown)
}

/// Whether the runtime ends: it waits for its threads.
fn ends(runtime: tokio::runtime::Runtime) -> bool {
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        sender.send(())
    });
    ended.recv_timeout(PATIENCE).is_ok()
}

#[test]
fn a_pod_is_bound_by_name_and_uid() {
    let (runtime, _scheduler, (request, binding), shutdown) = started();
    assert_eq!(request, "POST /api/v1/namespaces/default/pods/p/binding");
    let expected = json!({"kind": "Binding", "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "uid": "2"},
        "target": {"kind": "Node", "apiVersion": "v1", "name": "n"}});
    assert_eq!(binding, expected);
    shutdown.cancel();
    assert!(ends(runtime), "the scheduling thread goes on after the shutdown");
}

#[test]
fn the_scheduling_thread_ends_with_whoever_waits_for_it() {
    let (runtime, scheduler, _, _shutdown) = started();
    scheduler.abort();
    assert!(ends(runtime), "the scheduling thread goes on when nobody waits for it");
}
