//! Events as people read them in `kubectl describe`: equal ones are counted instead of written again, and one object
//! cannot flood the store. Answers to client-go's `tools/record`.

mod series;

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::core::request::Error as RequestError;
use rand::Rng;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use series::{Occurrence, SeriesRecorder};

/// Events that wait for being written; what comes on top of a full queue is dropped, as upstream does.
const QUEUE: usize = 1000;
/// client-go's spam filter: an object may have 25 events at once and one more every five minutes.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// How many equal events and objects are remembered.
const REMEMBERED: usize = 4096;
/// How often a server that does not answer is tried again, and after how long, more or less.
const TRIES: usize = 12;
const PAUSE: Duration = Duration::from_secs(10);

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Something needs attention.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Record {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Writes events for one component, in the background. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Record>,
}

impl EventRecorder {
    /// A recorder that writes through `client`. `component` is `source.component`, e.g. `deployment-controller`;
    /// `host` is `source.host`, the node's name for kubelets and empty for others. Needs a tokio runtime.
    pub fn new(client: kube::Client, component: &str, host: &str) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|host| !host.is_empty()),
        };
        tokio::spawn(Writer { client, source, series: HashMap::new(), budgets: HashMap::new() }.run(records));
        Self { queue }
    }

    /// Records an event about `object`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_for(object_reference(object), kind, reason, message);
    }

    /// Records an event about what `object` refers to; set `field_path` to point at a container.
    pub fn event_for(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let record =
            Record { object, kind, reason: reason.to_owned(), message: message.into(), at: Timestamp::now() };
        if self.queue.try_send(record).is_err() {
            debug!(reason, "event dropped: too many are waiting");
        }
    }
}

/// A reference to an object as events carry it.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

type SeriesKey = (Option<String>, Option<String>, Option<String>, &'static str, String, String);

struct Series {
    name: String,
    namespace: String,
    count: i32,
    last: Instant,
}

struct Budget {
    tokens: f64,
    last: Instant,
}

struct Writer {
    client: kube::Client,
    source: EventSource,
    series: HashMap<SeriesKey, Series>,
    budgets: HashMap<Option<String>, Budget>,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        while let Some(record) = records.recv().await {
            if !self.within_budget(&record) {
                continue;
            }
            if let Err(error) = self.write(&record).await {
                log_failure(record.object.name.as_deref().unwrap_or_default(), &record.reason, &error);
            }
        }
    }

    fn within_budget(&mut self, record: &Record) -> bool {
        let now = Instant::now();
        forget_oldest(&mut self.budgets, |budget| budget.last);
        let budget =
            self.budgets.entry(record.object.uid.clone()).or_insert(Budget { tokens: BURST, last: now });
        let refilled = budget.tokens + now.duration_since(budget.last).as_secs_f64() * REFILL_PER_SECOND;
        *budget = Budget { tokens: refilled.min(BURST), last: now };
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    async fn write(&mut self, record: &Record) -> Result<(), kube::Error> {
        let object = &record.object;
        let key = (
            object.uid.clone(),
            object.name.clone(),
            object.field_path.clone(),
            record.kind.as_str(),
            record.reason.clone(),
            record.message.clone(),
        );
        if let Some(series) = self.series.get_mut(&key) {
            let count = series.count + 1;
            let patch = Patch::Strategic(json!({"count": count, "lastTimestamp": Time(record.at)}));
            let events = Request::new(Event::url_path(&(), Some(&series.namespace)));
            let params = PatchParams::default();
            match send(&self.client, || events.patch(&series.name, &params, &patch)).await {
                Ok(()) => {
                    (series.count, series.last) = (count, Instant::now());
                    return Ok(());
                }
                // Events expire; begin a new series.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.series.remove(&key);
                }
                Err(error) => return Err(error),
            }
        }
        let event = self.compose(record);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let events = Request::new(Event::url_path(&(), Some(&namespace)));
        let body = serde_json::to_vec(&event).map_err(kube::Error::SerdeError)?;
        send(&self.client, || events.create(&PostParams::default(), body.clone())).await?;
        forget_oldest(&mut self.series, |series| series.last);
        self.series.insert(key, Series { name, namespace, count: 1, last: Instant::now() });
        Ok(())
    }

    fn compose(&self, record: &Record) -> Event {
        let object = &record.object;
        let name = object.name.clone().unwrap_or_default();
        let namespace = object.namespace.clone().filter(|namespace| !namespace.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", record.at.as_nanosecond())),
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            type_: Some(record.kind.as_str().to_owned()),
            reason: Some(record.reason.clone()),
            message: Some(record.message.clone()),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            first_timestamp: Some(Time(record.at)),
            last_timestamp: Some(Time(record.at)),
            count: Some(1),
            ..Event::default()
        }
    }
}

/// Sends a write until the server answers; an answer is final, whatever it says. What is written is an event: nobody
/// needs it decoded.
async fn send(
    client: &kube::Client,
    request: impl Fn() -> Result<http::Request<Vec<u8>>, RequestError>,
) -> Result<(), kube::Error> {
    let mut tries = 1;
    loop {
        let request = request().map_err(kube::Error::BuildRequest)?;
        match client.request::<IgnoredAny>(request).await {
            Err(kube::Error::HyperError(_) | kube::Error::Service(_)) if tries < TRIES => tries += 1,
            result => return result.map(drop),
        }
        let pause = PAUSE.mul_f64(1.0 + rand::rng().random_range(0.0..0.25));
        tokio::time::sleep(pause).await;
    }
}

fn log_failure(name: &str, reason: &str, error: &kube::Error) {
    match error {
        // The namespace is going away, or the event outlived its series: nobody misses it.
        kube::Error::Api(status) if matches!(status.code, 403 | 404) => {
            debug!(name, reason, error = status.message, "event not written");
        }
        error => warn!(name, reason, %error, "event not written"),
    }
}

/// Keeps a memory bounded: when it is full, the older half goes, so that a flood of events costs each of them little.
fn forget_oldest<K: Eq + std::hash::Hash, V>(memory: &mut HashMap<K, V>, last: impl Fn(&V) -> Instant) {
    if memory.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Instant> = memory.values().map(&last).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    memory.retain(|_, value| last(value) > median);
}
