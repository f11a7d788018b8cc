//! Watches: a stream of encoded events for one client.
//!
//! The task behind a stream is the client's own connection task: nothing is spawned, and a client that stops reading
//! is cut when its queue is full.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::list::{ListOptions, expired};
use super::render::Renderer;
use super::selection::Selection;
use crate::ApiServer;
use crate::cache::{Cache, Caches, Change, ChangeKind, Entry, Mailbox, Subscription, from};
use crate::http::negotiate::Format;

/// How often a watcher is told how far it has come.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Everything a running watch needs.
pub struct Watch {
    server: Arc<ApiServer>,
    /// Changes of a kind whose objects may be stored in another version: they are converted on their way out.
    pending: std::collections::VecDeque<(ChangeKind, Arc<Entry>)>,
    caches: Arc<Caches>,
    selection: Selection,
    renderer: Renderer,
    receiver: Mailbox,
    /// Events not yet sent, in order.
    queue: std::collections::VecDeque<Bytes>,
    /// The version the client asked for: it may lie in the future.
    skip_through: u64,
    /// Changes up to here are in `queue` or were sent.
    revision: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    stop: CancellationToken,
}

/// Begins a watch.
#[allow(clippy::too_many_arguments)]
pub fn start(
    server: Arc<ApiServer>,
    caches: Arc<Caches>,
    cache: &Cache,
    namespace: &str,
    options: &ListOptions,
    selection: Selection,
    mut renderer: Renderer,
    minimum_timeout: u64,
    stop: CancellationToken,
) -> Result<Watch, ApiError> {
    let since = match options.revision()? {
        None | Some(0) => None,
        Some(_) if options.send_initial_events == Some(true) => None,
        Some(revision) => Some(revision),
    };
    // An unset or zero version begins with the current state, unless the client says it does not want that.
    let skip_initial = since.is_none() && options.send_initial_events == Some(false);
    let interest = selection.interest(namespace);
    let Subscription { initial, backlog, revision, receiver } =
        cache.subscribe(since, interest).map_err(|e| expired(e.requested, e.oldest))?;
    let Some(receiver) = receiver else {
        return Err(ApiError::internal("the watch could not be registered"));
    };
    let mut queue = std::collections::VecDeque::new();
    let mut pending = std::collections::VecDeque::new();
    let converts = renderer.converts();
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    if let Some(initial) = initial.filter(|_| !skip_initial) {
        for (key, entry) in initial.range::<_, str>(from(&prefix)) {
            if !key.starts_with(&prefix) {
                break;
            }
            if selection.matches(entry) {
                queue.push_back(renderer.event("ADDED", entry));
            }
        }
        cache.reads.init_events.add(queue.len() as u64);
        if options.send_initial_events == Some(true) && options.bookmarks {
            queue.push_back(renderer.bookmark(revision, true));
        }
    }
    let in_scope = |entry: &Entry| entry.key.starts_with(&prefix) && selection.matches(entry);
    for change in backlog {
        if let Some(kind) = change.seen_by(in_scope) {
            if converts {
                pending.push_back((kind, change.object(kind)));
            } else {
                queue.push_back(render_change(&mut renderer, &change, kind));
            }
        }
    }
    let seconds = options.timeout_seconds.filter(|s| *s > 0).unwrap_or_else(|| {
        use rand::Rng as _;
        // Spread over twice the minimum, so that clients do not all come back at once.
        minimum_timeout + rand::rng().random_range(0..=minimum_timeout)
    });
    let now = Instant::now();
    Ok(Watch {
        server,
        pending,
        caches,
        selection: selection.within(namespace),
        renderer,
        receiver,
        queue,
        skip_through: since.unwrap_or(0),
        revision,
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_INTERVAL,
        deadline: now + Duration::from_secs(seconds),
        stop,
    })
}

/// The event that tells a watcher what went wrong.
pub fn error_frame(error: &ApiError, format: Format) -> Bytes {
    let mut status = json!({"kind": "Status", "apiVersion": "v1"});
    if let (Value::Object(all), Ok(Value::Object(fields))) =
        (&mut status, orlop_json::to_value(error.status()))
    {
        all.extend(fields);
    }
    if format == Format::Protobuf
        && let Some(message) = orlop_api::protobuf::encode(&status)
    {
        return orlop_api::protobuf::watch_frame("ERROR", &message).into();
    }
    let mut line = json!({"type": "ERROR", "object": status}).to_string();
    line.push('\n');
    line.into()
}

fn render_change(renderer: &mut Renderer, change: &Change, kind: ChangeKind) -> Bytes {
    if renderer.sends_frames() {
        change.frame(kind)
    } else {
        renderer.event(kind.as_str(), &change.object(kind))
    }
}

impl Watch {
    fn take(&mut self, change: &Change) {
        if change.revision <= self.skip_through {
            return;
        }
        self.revision = self.revision.max(change.revision);
        let selection = &self.selection;
        if let Some(kind) = change.seen_by(|entry| selection.matches_scoped(entry)) {
            if self.renderer.converts() {
                self.pending.push_back((kind, change.object(kind)));
                return;
            }
            let frame = render_change(&mut self.renderer, change, kind);
            self.queue.push_back(frame);
        }
    }

    /// The next encoded event; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some((kind, entry)) = self.pending.pop_front() {
                return self.converted(kind, entry).await;
            }
            if let Some(frame) = self.queue.pop_front() {
                return Some(frame);
            }
            tokio::select! {
                biased;
                change = self.receiver.recv() => match change {
                    Some(change) => self.take(&change),
                    None => return None,
                },
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    // Read before the queue is drained: everything up to it has been dispatched.
                    let applied = self.caches.applied();
                    while let Ok(change) = self.receiver.try_recv() {
                        self.take(&change);
                    }
                    self.revision = self.revision.max(applied);
                    let bookmark = self.renderer.bookmark(self.revision, false);
                    self.queue.push_back(bookmark);
                    self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                }
            }
        }
    }

    /// The event of an object in the version that is watched; a conversion that fails ends the watch.
    async fn converted(&mut self, kind: ChangeKind, entry: Arc<Entry>) -> Option<Bytes> {
        let resource = self.renderer.resource().clone();
        match self.server.registry.entry(&resource, entry).await {
            Ok(entry) => Some(self.renderer.event(kind.as_str(), &entry)),
            Err(error) => {
                tracing::warn!(%error, kind = resource.kind, "an object could not be converted for a watch");
                None
            }
        }
    }

    /// The events as a stream of body chunks.
    pub fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        futures::stream::unfold(
            self,
            |mut watch| async move { watch.next().await.map(|frame| (frame, watch)) },
        )
    }
}

/// The object of a bookmark event.
pub fn bookmark_object(kind: &str, api_version: &str, revision: u64, initial_end: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": kind, "apiVersion": api_version, "metadata": metadata})
}
