//! The audit log: who did what, by a policy, in a file and at a receiver outside. Nothing of it runs without a policy.

mod event;
mod log;
mod policy;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http_body_util::BodyExt as _;
use orlop_api::decode::Media;
use orlop_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::authn::UserInfo;
use crate::authz::Decision;
use crate::http::Response;
use crate::http::body;
use crate::options::{AuditBatch, AuditMode, AuditOptions, AuditWebhookOptions};
use crate::outbound::Webhook;
use crate::request_info::RequestInfo;
use event::Facts;
use log::LogFile;
use policy::Policy;
pub use policy::{Level, Stage};

/// Events that wait for a blocking backend.
const QUEUE: usize = 1024;
/// How long a receiver may take for a batch.
const RECEIVER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a batch is sent, in all.
const RECEIVER_ATTEMPTS: u32 = 5;

/// One event on its way to a backend, and who waits for it to be written.
struct Item {
    event: Arc<Value>,
    written: Option<oneshot::Sender<bool>>,
}

/// A backend as requests see it.
struct Backend {
    queue: mpsc::Sender<Item>,
    mode: AuditMode,
    truncate: Option<usize>,
}

/// The policy and the backends.
pub struct Audit {
    policy: Policy,
    backends: Vec<Backend>,
}

impl Audit {
    /// Reads the policy and starts the backends; `None` when nothing would be recorded.
    pub fn start(options: &AuditOptions) -> Result<Option<Arc<Audit>>, String> {
        let Some(path) = &options.policy_file else { return Ok(None) };
        let fail = |error: &dyn std::fmt::Display| format!("--audit-policy-file {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
        let policy = Policy::parse(&text).map_err(|error| fail(&error))?;
        let mut backends = Vec::new();
        if let Some(options) = &options.log {
            let file = LogFile::open(options)
                .map_err(|error| format!("--audit-log-path {}: {error}", options.path.display()))?;
            let (queue, items) = mpsc::channel(capacity(options.mode, &options.batch));
            let legacy = options.legacy_format;
            // A thread of its own: a slow disk must not hold up those that serve requests.
            std::thread::Builder::new()
                .name("audit-log".to_string())
                .spawn(move || write_log(file, items, legacy))
                .map_err(|error| error.to_string())?;
            backends.push(Backend { queue, mode: options.mode, truncate: options.truncate });
        }
        if let Some(options) = &options.webhook {
            let receiver = Webhook::load(&options.config_file).map_err(|error| error.to_string())?;
            let (queue, items) = mpsc::channel(capacity(options.mode, &options.batch));
            tokio::spawn(send(receiver, items, options.clone()));
            backends.push(Backend { queue, mode: options.mode, truncate: options.truncate });
        }
        if backends.is_empty() {
            tracing::warn!(
                "an audit policy without --audit-log-path and --audit-webhook-config-file records nothing"
            );
            return Ok(None);
        }
        Ok(Some(Arc::new(Audit { policy, backends })))
    }

    /// Hands an event to every backend and waits for those that block. False: a strict backend has failed.
    async fn record(&self, facts: &Facts, stage: Stage) -> bool {
        if !facts.records(stage) {
            return true;
        }
        let mut good = true;
        for backend in &self.backends {
            let event = Arc::new(facts.event(stage, backend.truncate));
            if backend.mode == AuditMode::Batch {
                backend.offer(event);
                continue;
            }
            let (written, done) = oneshot::channel();
            let sent = backend.queue.send(Item { event, written: Some(written) }).await.is_ok();
            let written = sent && done.await.unwrap_or(false);
            good &= written || backend.mode != AuditMode::BlockingStrict;
        }
        good
    }

    /// The same where nobody can wait.
    fn offer(&self, facts: &Facts, stage: Stage) {
        if facts.records(stage) {
            for backend in &self.backends {
                backend.offer(Arc::new(facts.event(stage, backend.truncate)));
            }
        }
    }
}

impl Backend {
    fn offer(&self, event: Arc<Value>) {
        if self.queue.try_send(Item { event, written: None }).is_err() {
            tracing::warn!("audit event dropped: the backend's buffer is full");
        }
    }
}

fn capacity(mode: AuditMode, batch: &AuditBatch) -> usize {
    if mode == AuditMode::Batch { batch.buffer_size } else { QUEUE }
}

/// Writes events as they come, as many at once as there are.
fn write_log(mut file: LogFile, mut items: mpsc::Receiver<Item>, legacy: bool) {
    let mut batch = Vec::new();
    while items.blocking_recv_many(&mut batch, QUEUE) > 0 {
        let mut lines = Vec::new();
        for item in &batch {
            if legacy {
                lines.extend_from_slice(event::legacy_line(&item.event).as_bytes());
            } else if let Err(error) = orlop_json::to_writer(&mut lines, item.event.as_ref()) {
                tracing::error!(%error, "audit event cannot be encoded");
            }
            lines.push(b'\n');
        }
        let written = file.write(&lines);
        if let Err(error) = &written {
            tracing::error!(%error, events = batch.len(), "audit events could not be written");
        }
        for item in batch.drain(..) {
            if let Some(waiting) = item.written {
                let _ = waiting.send(written.is_ok());
            }
        }
    }
}

/// Sends events in batches, not more often than the throttle allows.
async fn send(receiver: Webhook, mut items: mpsc::Receiver<Item>, options: AuditWebhookOptions) {
    let limit = if options.mode == AuditMode::Batch { options.batch.max_size } else { 1 };
    let mut tokens = options.batch.throttle.map(|(_, burst)| f64::from(burst));
    let mut refilled = tokio::time::Instant::now();
    while let Some(first) = items.recv().await {
        let mut batch = vec![first];
        let until = tokio::time::Instant::now() + options.batch.max_wait;
        while batch.len() < limit {
            match tokio::time::timeout_at(until, items.recv()).await {
                Ok(Some(item)) => batch.push(item),
                _ => break,
            }
        }
        if let (Some(left), Some((qps, burst))) = (&mut tokens, options.batch.throttle) {
            *left = (*left + refilled.elapsed().as_secs_f64() * qps).min(f64::from(burst));
            refilled = tokio::time::Instant::now();
            if *left < 1.0 {
                tokio::time::sleep(Duration::from_secs_f64((1.0 - *left) / qps)).await;
                refilled = tokio::time::Instant::now();
                *left = 1.0;
            }
            *left -= 1.0;
        }
        let events: Vec<&Value> = batch.iter().map(|item| item.event.as_ref()).collect();
        let list =
            json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": events});
        let body = Bytes::from(list.to_string());
        let mut pause = options.initial_backoff;
        let mut sent = false;
        for attempt in 1..=RECEIVER_ATTEMPTS {
            match receiver.post(body.clone(), RECEIVER_TIMEOUT).await {
                Ok(()) => {
                    sent = true;
                    break;
                }
                Err(error) if attempt == RECEIVER_ATTEMPTS || !error.is_temporary() => {
                    tracing::error!(%error, events = batch.len(), "audit events could not be sent");
                    break;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = pause * 3 / 2;
                }
            }
        }
        for item in batch {
            if let Some(waiting) = item.written {
                let _ = waiting.send(sent);
            }
        }
    }
}

/// What is recorded about one request. Dropped before its end, it records a panic when there is one.
pub struct Trail {
    audit: Arc<Audit>,
    facts: Facts,
    /// Whether the answer goes on after its head: a watch, a log that is followed.
    long_running: bool,
    complete: bool,
}

impl Audit {
    /// Begins to record a request.
    pub fn trail(
        self: &Arc<Self>,
        parts: &Parts,
        info: &RequestInfo,
        id: &str,
        address: Option<std::net::IpAddr>,
    ) -> Trail {
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        let mut source_ips: Vec<String> = text("x-forwarded-for")
            .split(',')
            .chain([text("x-real-ip")])
            .filter_map(|ip| ip.trim().parse::<std::net::IpAddr>().ok())
            .chain(address)
            .map(|ip| ip.to_string())
            .collect();
        source_ips.dedup();
        let long_running = info.verb == "watch"
            || matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log");
        Trail {
            audit: self.clone(),
            long_running,
            complete: false,
            facts: Facts {
                id: id.to_string(),
                uri: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
                info: info.clone(),
                source_ips,
                user_agent: text("user-agent").to_string(),
                received: jiff::Timestamp::now(),
                verdict: self.policy.verdict(None, info),
                user: UserInfo::default(),
                impersonated: None,
                constraint: String::new(),
                request: None,
                response: None,
                status: None,
                annotations: Vec::new(),
            },
        }
    }
}

impl Trail {
    /// Who asks is known. False: the request must not go on, because a strict backend could not record it.
    pub async fn authenticated(&mut self, user: &UserInfo) -> bool {
        self.facts.user = user.clone();
        self.facts.verdict = self.audit.policy.verdict(Some(user), &self.facts.info);
        self.audit.record(&self.facts, Stage::RequestReceived).await
    }

    /// The user acts as somebody else.
    pub fn impersonated(&mut self, user: &UserInfo, constraint: &str) {
        self.facts.impersonated = Some(user.clone());
        self.facts.constraint = constraint.to_string();
    }

    /// Adds an annotation; the first value of a key stays.
    pub fn annotate(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.facts.annotations.push((key.into(), value.into()));
    }

    /// What the authorizers said.
    pub fn authorized(&mut self, decision: &Decision) {
        let word = match decision {
            Decision::Failed(_) => return self.annotate("authorization.k8s.io/reason", "internal error"),
            Decision::Allow(_) => "allow",
            Decision::NoOpinion(_) | Decision::Deny(_) => "forbid",
        };
        self.annotate("authorization.k8s.io/decision", word);
        self.annotate("authorization.k8s.io/reason", decision.reason());
    }

    /// What was sent.
    pub fn request(&mut self, parts: &Parts, body: &Bytes) {
        let wanted = self.facts.verdict.level >= Level::Request && self.facts.info.is_resource;
        if !wanted || body.is_empty() {
            return;
        }
        let content_type = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        self.facts.request = parse(content_type.unwrap_or("application/json"), body);
    }

    /// Records the answer; what it takes from the body is put back.
    pub async fn finish(mut self, response: Response) -> Response {
        let code = response.status().as_u16();
        self.facts.status = Some((code, None));
        if self.facts.verdict.level == Level::None {
            self.complete = true;
            return response;
        }
        if self.long_running && code < 300 {
            self.audit.record(&self.facts, Stage::ResponseStarted).await;
            return response.map(|inner| Recorded { inner, trail: Some(self) }.boxed_unsync());
        }
        let (parts, answer) = response.into_parts();
        let wanted = self.facts.verdict.level == Level::RequestResponse && self.facts.info.is_resource;
        let content_type = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let content_type = content_type.unwrap_or("").to_string();
        let answer = if wanted || code >= 400 {
            match answer.collect().await {
                Ok(collected) => {
                    let bytes = collected.to_bytes();
                    let value = parse(&content_type, &bytes);
                    if code >= 400 {
                        let status = value.clone().filter(|value| value["kind"] == "Status");
                        self.facts.status = Some((code, status));
                    }
                    if wanted {
                        self.facts.response = value;
                    }
                    body::full(bytes)
                }
                Err(error) => {
                    tracing::debug!(%error, "an answer could not be read for the audit log");
                    body::full(Bytes::new())
                }
            }
        } else {
            answer
        };
        self.audit.record(&self.facts, Stage::ResponseComplete).await;
        self.complete = true;
        Response::from_parts(parts, answer)
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        if std::thread::panicking() {
            self.facts.status = Some((500, None));
            self.audit.offer(&self.facts, Stage::Panic);
        } else {
            // A watch that ended, or a client that went away.
            self.audit.offer(&self.facts, Stage::ResponseComplete);
        }
    }
}

/// A body that is recorded as complete when it is dropped.
struct Recorded {
    inner: body::Body,
    /// Dropped with the body.
    trail: Option<Trail>,
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = body::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, body::BoxError>>> {
        let polled = std::pin::Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, std::task::Poll::Ready(None)) {
            self.trail = None;
        }
        polled
    }
}

/// An object of a body.
fn parse(content_type: &str, bytes: &Bytes) -> Option<Value> {
    let media = match content_type {
        kind if kind.contains("protobuf") => Media::Protobuf,
        kind if kind.contains("yaml") => Media::Yaml,
        _ => Media::Json,
    };
    orlop_api::decode::parse(bytes, media).ok()
}
