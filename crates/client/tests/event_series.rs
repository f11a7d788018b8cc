//! The recorder of `events.k8s.io/v1` against a server that only takes notes, on a paused clock.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use orlop_client::{EventType, Occurrence, SeriesRecorder, object_reference};
use parking_lot::Mutex;
use serde_json::{Value, json};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// The requests that came, and the status codes to answer the next ones with; 0 = no answer.
#[derive(Clone, Default)]
struct Server {
    requests: Arc<Mutex<Vec<(Method, String, Value)>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

impl Server {
    fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| server.clone().answer(request));
        kube::Client::new(service, "default")
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let body = serde_json::from_slice(&body).unwrap();
        self.requests.lock().push((head.method, head.uri.path().to_owned(), body));
        let status = self.answers.lock().pop_front().unwrap_or(200);
        if status == 0 {
            return Err(std::io::Error::other("nobody there"));
        }
        let answer = json!({"kind": "Status", "status": "", "reason": "", "message": "", "code": status});
        Ok(Response::builder().status(status).body(answer.to_string().into_bytes().into()).unwrap())
    }

    /// What came until nothing more comes within `after`.
    async fn seen(&self, after: Duration) -> Vec<(Method, String, Value)> {
        tokio::time::sleep(after).await;
        std::mem::take(&mut *self.requests.lock())
    }
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "resourceVersion": "7"}}))
    .unwrap()
}

fn failed(note: &str) -> Occurrence<'_> {
    Occurrence { kind: EventType::Warning, reason: "FailedScheduling", action: "Scheduling", note }
}

const MOMENT: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn recorder(server: &Server) -> SeriesRecorder {
    SeriesRecorder::new(server.client(), "default-scheduler", "default-scheduler-host")
}

#[tokio::test(start_paused = true)]
async fn a_first_event_says_all() {
    let server = Server::default();
    let related = object_reference(&pod("preemptor"));
    let happened =
        Occurrence { kind: EventType::Normal, reason: "Preempted", action: "Preempting", note: "made room" };
    recorder(&server).event(&pod("victim"), Some(related), happened);
    let [(method, path, event)] = &server.seen(MOMENT).await[..] else { panic!("one request") };
    assert_eq!((method, path.as_str()), (&Method::POST, EVENTS));
    let name = event["metadata"]["name"].as_str().unwrap();
    assert!(name.strip_prefix("victim.").is_some_and(|id| u64::from_str_radix(id, 16).is_ok()), "{name}");
    assert!(event["eventTime"].as_str().unwrap().ends_with('Z'));
    let reference = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": "default",
            "uid": format!("uid-of-{name}"), "resourceVersion": "7"})
    };
    let mut rest = event.clone();
    rest.as_object_mut().unwrap().retain(|field, _| field != "metadata" && field != "eventTime");
    assert_eq!(
        rest,
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "type": "Normal", "reason": "Preempted",
            "action": "Preempting", "note": "made room", "reportingController": "default-scheduler",
            "reportingInstance": "default-scheduler-host", "regarding": reference("victim"),
            "related": reference("preemptor")})
    );
}

#[tokio::test(start_paused = true)]
async fn a_series_is_written_at_its_second_event_and_at_its_end() {
    let server = Server::default();
    let recorder = recorder(&server);
    for note in ["0/1 nodes", "0/2 nodes", "0/3 nodes", "0/4 nodes"] {
        recorder.event(&pod("stuck"), None, failed(note));
    }
    recorder.event(&pod("other"), None, failed("0/1 nodes"));
    let seen = server.seen(MOMENT).await;
    let methods: Vec<&Method> = seen.iter().map(|(method, ..)| method).collect();
    assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
    let created = format!("{EVENTS}/{}", seen[0].2["metadata"]["name"].as_str().unwrap());
    assert_eq!((seen[1].1.as_str(), &seen[1].2["series"]["count"]), (created.as_str(), &json!(2)));
    assert_eq!(seen[1].2.as_object().unwrap().len(), 1, "nothing but the series is patched");

    let [(method, path, patch)] = &server.seen(13 * MINUTE).await[..] else {
        panic!("the end of one series")
    };
    assert_eq!((method, path), (&Method::PATCH, &created));
    assert_eq!(patch["series"]["count"], 4);

    // What comes after that begins anew.
    recorder.event(&pod("stuck"), None, failed("0/1 nodes"));
    let [(method, ..)] = &server.seen(13 * MINUTE).await[..] else { panic!("one event") };
    assert_eq!(method, Method::POST);
}

#[tokio::test(start_paused = true)]
async fn a_lasting_series_is_kept_from_expiring() {
    let server = Server::default();
    let recorder = recorder(&server);
    for _ in 0..80 {
        recorder.event(&pod("stuck"), None, failed("0/1 nodes"));
        tokio::time::sleep(MINUTE).await;
    }
    let seen = server.seen(MOMENT).await;
    let counts: Vec<&Value> = seen.iter().map(|(.., body)| &body["series"]["count"]).collect();
    let [Value::Null, second, refreshed @ ..] = &counts[..] else { panic!("{counts:?}") };
    assert_eq!((*second, refreshed.len()), (&json!(2), 2), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_event_is_made_anew_with_its_series() {
    let server = Server::default();
    server.answers.lock().extend([200, 404]);
    let recorder = recorder(&server);
    recorder.event(&pod("stuck"), None, failed("first"));
    recorder.event(&pod("stuck"), None, failed("second"));
    let seen = server.seen(MOMENT).await;
    let methods: Vec<&Method> = seen.iter().map(|(method, ..)| method).collect();
    assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
    assert_eq!(seen[2].2["series"]["count"], 2);
    assert_eq!(seen[2].2["note"], "first");
}

#[tokio::test(start_paused = true)]
async fn only_silence_is_tried_again() {
    let cases: [(&[u16], usize); 4] = [(&[0, 0], 3), (&[403], 1), (&[409], 1), (&[0; 20], 12)];
    for (answers, requests) in cases {
        let server = Server::default();
        server.answers.lock().extend(answers);
        recorder(&server).event(&pod("p"), None, failed("x"));
        assert_eq!(server.seen(5 * MINUTE).await.len(), requests, "{answers:?}");
    }
}
