//! Events of `events.k8s.io/v1`: the first of a kind is written at once, the second turns it into a series, and the
//! series' count is written again when it ends or has lasted long. Answers to client-go's `tools/events`.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::{EventType, forget_oldest, log_failure, object_reference, send};

/// Events that wait for being written; what comes on top of a full queue is dropped. They are written one after the
/// other, so that a burst of them gives way to what they tell about.
const QUEUE: usize = 16_384;
/// What has not been seen for so long is over.
const FINISH: Duration = Duration::from_secs(6 * 60);
/// How often the count of a series that goes on is written; it keeps the event from expiring.
const REFRESH: Duration = Duration::from_secs(30 * 60);

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence<'a> {
    /// Good or bad news.
    pub kind: EventType,
    /// Why, one word: `Scheduled`.
    pub reason: &'static str,
    /// What was being done: `Binding`.
    pub action: &'static str,
    /// The sentence for people. It does not tell events apart.
    pub note: &'a str,
}

/// Writes events for one reporting controller, in the background. Cheap to clone.
#[derive(Clone)]
pub struct SeriesRecorder {
    queue: mpsc::Sender<Record>,
}

impl SeriesRecorder {
    /// A recorder that writes through `client`. `controller` is `reportingController`, e.g. `default-scheduler`;
    /// `instance` is `reportingInstance`, upstream's are the controller's name and the host's. Needs a tokio runtime.
    pub fn new(client: kube::Client, controller: &str, instance: &str) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        let (controller, instance) = (controller.to_owned(), instance.to_owned());
        tokio::spawn(Writer { client, controller, instance, known: HashMap::new() }.run(records));
        Self { queue }
    }

    /// Records what happened to `regarding`; `related` is what else had a part in it.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        regarding: &K,
        related: Option<ObjectReference>,
        occurrence: Occurrence<'_>,
    ) {
        let record = Record {
            key: Key {
                kind: occurrence.kind.as_str(),
                action: occurrence.action,
                reason: occurrence.reason,
                regarding: parts(object_reference(regarding)),
                related: related.map(parts),
            },
            note: occurrence.note.to_owned(),
            at: Timestamp::now(),
        };
        if self.queue.try_send(record).is_err() {
            debug!(reason = occurrence.reason, "event dropped: too many are waiting");
        }
    }
}

/// The fields of an object reference, as something to look up by: apiVersion, kind, namespace, name, uid,
/// resourceVersion, fieldPath.
type Reference = [Option<String>; 7];

fn parts(reference: ObjectReference) -> Reference {
    let ObjectReference { api_version, kind, namespace, name, uid, resource_version, field_path } = reference;
    [api_version, kind, namespace, name, uid, resource_version, field_path]
}

fn reference(parts: &Reference) -> ObjectReference {
    let [api_version, kind, namespace, name, uid, resource_version, field_path] = parts.clone();
    ObjectReference { api_version, kind, namespace, name, uid, resource_version, field_path }
}

/// Events with equal keys are one series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: &'static str,
    action: &'static str,
    reason: &'static str,
    regarding: Reference,
    related: Option<Reference>,
}

struct Record {
    key: Key,
    note: String,
    at: Timestamp,
}

/// What is known of events with one key.
struct Known {
    note: String,
    first: Timestamp,
    /// How often it was seen and when last, from the second time on.
    series: Option<(i32, Timestamp)>,
    last: Instant,
    written: Instant,
}

struct Writer {
    client: kube::Client,
    controller: String,
    instance: String,
    known: HashMap<Key, Known>,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        let mut rounds = tokio::time::interval(FINISH);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => self.take(record).await,
                    None => return,
                },
                _ = rounds.tick(), if !self.known.is_empty() => self.look_round().await,
            }
        }
    }

    async fn take(&mut self, record: Record) {
        let now = Instant::now();
        let Record { key, note, at } = record;
        if let Some(known) = self.known.get_mut(&key) {
            known.last = now;
            let begins = known.series.is_none();
            known.series = Some((known.series.map_or(2, |(count, _)| count.saturating_add(1)), at));
            if begins {
                self.write(&key).await;
            }
            return;
        }
        forget_oldest(&mut self.known, |known| known.last);
        self.known.insert(key.clone(), Known { note, first: at, series: None, last: now, written: now });
        self.write(&key).await;
    }

    /// Ends what has not been seen for long and writes the counts of what goes on.
    async fn look_round(&mut self) {
        let now = Instant::now();
        let over = |known: &Known| now.duration_since(known.last) >= FINISH;
        let due = |known: &Known| over(known) || now.duration_since(known.written) >= REFRESH;
        let series = self.known.iter().filter(|(_, known)| known.series.is_some() && due(known));
        let series: Vec<Key> = series.map(|(key, _)| key.clone()).collect();
        for key in &series {
            self.write(key).await;
        }
        self.known.retain(|_, known| !over(known));
    }

    async fn write(&mut self, key: &Key) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.written = Instant::now();
        let event = compose(key, known, &self.controller, &self.instance);
        if let Err(error) = persist(&self.client, &event).await {
            let name = key.regarding[3].as_deref().unwrap_or_default();
            log_failure(name, key.reason, &error);
        }
    }
}

fn compose(key: &Key, known: &Known, controller: &str, instance: &str) -> Event {
    let regarding = reference(&key.regarding);
    let name = regarding.name.as_deref().unwrap_or_default();
    let namespace = regarding.namespace.clone().filter(|namespace| !namespace.is_empty());
    let series = known.series.map(|(count, last)| EventSeries { count, last_observed_time: MicroTime(last) });
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", known.first.as_nanosecond())),
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(known.first)),
        series,
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        action: Some(key.action.to_owned()),
        reason: Some(key.reason.to_owned()),
        regarding: Some(regarding),
        related: key.related.as_ref().map(reference),
        note: Some(known.note.clone()),
        type_: Some(key.kind.to_owned()),
        ..Event::default()
    }
}

/// Writes a new event, or the series of one that is there. One that has expired meanwhile is made anew.
async fn persist(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    let namespace = event.namespace().unwrap_or_default();
    let events = Request::new(Event::url_path(&(), Some(&namespace)));
    if event.series.is_some() {
        let patch = Patch::Strategic(json!({"series": event.series}));
        let params = PatchParams::default();
        match send(client, || events.patch(&event.name_any(), &params, &patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result,
        }
    }
    let body = serde_json::to_vec(event).map_err(kube::Error::SerdeError)?;
    send(client, || events.create(&PostParams::default(), body.clone())).await
}
