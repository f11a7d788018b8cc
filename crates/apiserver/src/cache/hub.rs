//! Who is told of a change: watchers, indexed so that an event costs what its interested watchers cost.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Entry, Snapshot};

/// Events a watcher may lag behind before it is cut; it then lists again, as a client of a slow connection must.
const QUEUE: usize = 8192;
/// Bytes of objects it may lag behind, but for one event.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there before.
    Modified,
    /// It is gone.
    Deleted,
}

impl ChangeKind {
    /// The `type` of a watch event.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        }
    }
}

/// One committed change of one object.
#[derive(Debug)]
pub struct Change {
    /// The revision of the commit.
    pub revision: u64,
    /// What happened, without regard to selectors.
    pub kind: ChangeKind,
    /// The object afterwards; for a deletion its last state under the deletion's resource version.
    pub entry: Arc<Entry>,
    /// The object before.
    pub previous: Option<Arc<Entry>>,
    /// The encoded watch event for each type, made once by the first watcher that needs it.
    frames: [OnceLock<Bytes>; 3],
}

impl Change {
    pub(super) fn new(
        revision: u64,
        kind: ChangeKind,
        entry: Arc<Entry>,
        previous: Option<Arc<Entry>>,
    ) -> Change {
        Change { revision, kind, entry, previous, frames: Default::default() }
    }

    /// What a watcher with this filter sees: an object that enters the selection is ADDED, one that leaves it is
    /// DELETED with its former content under the new resource version.
    pub fn seen_by(&self, matches: impl Fn(&Entry) -> bool) -> Option<ChangeKind> {
        let before = self.previous.as_deref().is_some_and(&matches);
        let after = self.kind != ChangeKind::Deleted && matches(&self.entry);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
        }
    }

    /// The object that goes with `kind` for a watcher.
    pub fn object(&self, kind: ChangeKind) -> Arc<Entry> {
        match (kind, &self.previous) {
            (ChangeKind::Deleted, Some(previous)) if self.kind != ChangeKind::Deleted => {
                Arc::new(previous.with_revision(self.revision))
            }
            _ => self.entry.clone(),
        }
    }

    /// The encoded event, one line of JSON.
    pub fn frame(&self, kind: ChangeKind) -> Bytes {
        self.frames[kind as usize].get_or_init(|| frame(kind.as_str(), &self.object(kind).bytes)).clone()
    }
}

/// Encodes a watch event.
pub fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 32);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// The narrowest index under which a watcher can be found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Every object.
    All,
    /// Objects of a namespace.
    Namespace(Box<str>),
    /// One object, by `namespace/name` or `name`.
    Object(Box<str>),
    /// Pods of a node (`spec.nodeName`).
    Node(Box<str>),
}

/// A watch that has begun: what to send first, then what comes.
pub struct Subscription {
    /// The whole state, when the watch begins with it.
    pub initial: Option<Snapshot>,
    /// Changes that happened after the requested revision.
    pub backlog: Vec<Arc<Change>>,
    /// Revision that `initial` or `backlog` reach.
    pub revision: u64,
    /// Later changes; it closes when the watcher was too slow.
    pub receiver: Option<Mailbox>,
}

/// The changes that wait for a watcher.
#[derive(Default)]
struct Post {
    queue: VecDeque<Arc<Change>>,
    bytes: usize,
    closed: bool,
}

#[derive(Default)]
struct Shelf {
    post: Mutex<Post>,
    wake: Notify,
}

/// Where a watcher finds its changes. One that does not fetch them is cut: it loses what waits, at once, so that what a
/// stalled client holds is bounded in number and in bytes.
pub struct Mailbox(Arc<Shelf>);

impl Mailbox {
    /// The next change; `None` when the watcher was cut or the kind is not served any more.
    pub async fn recv(&mut self) -> Option<Arc<Change>> {
        loop {
            match self.try_recv() {
                Ok(change) => return Some(change),
                Err(true) => return None,
                Err(false) => self.0.wake.notified().await,
            }
        }
    }

    /// The next change, if it is there; the error says whether none will come.
    pub fn try_recv(&mut self) -> Result<Arc<Change>, bool> {
        let mut post = self.0.post.lock();
        match post.queue.pop_front() {
            Some(change) => {
                post.bytes -= change.entry.bytes.len();
                Ok(change)
            }
            None => Err(post.closed),
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut post = self.0.post.lock();
        post.closed = true;
        post.queue = VecDeque::new();
    }
}

struct Sender(Arc<Shelf>);

/// What became of a change that was sent.
#[derive(PartialEq, Eq)]
enum Sent {
    Queued,
    /// The watcher has gone.
    Gone,
    /// It lagged too far behind.
    Cut,
}

impl Sender {
    fn is_closed(&self) -> bool {
        self.0.post.lock().closed
    }

    fn send(&self, change: &Arc<Change>) -> Sent {
        let mut post = self.0.post.lock();
        if post.closed {
            return Sent::Gone;
        }
        let bytes = change.entry.bytes.len();
        if post.queue.len() >= QUEUE || (post.bytes > 0 && post.bytes + bytes > QUEUE_BYTES) {
            *post = Post { closed: true, ..Post::default() };
            drop(post);
            self.0.wake.notify_one();
            return Sent::Cut;
        }
        post.bytes += bytes;
        post.queue.push_back(change.clone());
        drop(post);
        self.0.wake.notify_one();
        Sent::Queued
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.post.lock().closed = true;
        self.0.wake.notify_one();
    }
}

#[derive(Default)]
pub(super) struct Hub {
    watchers: HashMap<Interest, Vec<Sender>>,
    /// Watchers that were cut.
    pub(super) cut: u64,
}

impl Hub {
    pub(super) fn register(&mut self, interest: Interest) -> Mailbox {
        let shelf: Arc<Shelf> = Arc::default();
        // Watchers that went away while nothing happened are swept when the next one comes.
        self.watchers.retain(|_, list| {
            list.retain(|sender| !sender.is_closed());
            !list.is_empty()
        });
        self.watchers.entry(interest).or_default().push(Sender(shelf.clone()));
        Mailbox(shelf)
    }

    /// How many are told of a change of this object, those of a node left out.
    pub(super) fn interested(&self, namespace: &str, key: &str) -> usize {
        let of = |interest: &Interest| self.watchers.get(interest).map_or(0, Vec::len);
        of(&Interest::All) + of(&Interest::Namespace(namespace.into())) + of(&Interest::Object(key.into()))
    }

    pub(super) fn len(&self) -> usize {
        self.watchers.values().map(Vec::len).sum()
    }

    pub(super) fn dispatch(&mut self, change: &Arc<Change>) {
        if self.watchers.is_empty() {
            return;
        }
        let node =
            |entry: &Entry| entry.field("spec.nodeName").filter(|n| !n.is_empty()).map(Box::<str>::from);
        let now = node(&change.entry);
        let before = change.previous.as_deref().and_then(node).filter(|n| now.as_ref() != Some(n));
        let keys = [
            Some(Interest::All),
            Some(Interest::Namespace(change.entry.namespace().into())),
            Some(Interest::Object(change.entry.key.as_ref().into())),
            now.map(Interest::Node),
            before.map(Interest::Node),
        ];
        for key in keys.into_iter().flatten() {
            if let Some(list) = self.watchers.get_mut(&key) {
                let cut = &mut self.cut;
                list.retain(|sender| {
                    let sent = sender.send(change);
                    *cut += u64::from(sent == Sent::Cut);
                    sent == Sent::Queued
                });
                if list.is_empty() {
                    self.watchers.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn change(revision: u64, bytes: usize) -> Arc<Change> {
        let object = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, "x".repeat(bytes));
        let entry = Entry::from_stored(
            "x".into(),
            revision,
            object.as_bytes(),
            Default::default(),
            Default::default(),
        );
        Arc::new(Change::new(revision, ChangeKind::Added, Arc::new(entry.unwrap()), None))
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_read_is_cut_and_others_go_on() {
        let check = |bytes: usize, most: usize| {
            let mut hub = Hub::default();
            let (mut slow, mut quick) = (hub.register(Interest::All), hub.register(Interest::All));
            let mut sent = 0;
            while hub.len() == 2 {
                sent += 1;
                assert!(sent <= most, "{sent} events of {bytes} bytes");
                hub.dispatch(&change(sent as u64, bytes));
                assert_eq!(quick.try_recv().unwrap().revision, sent as u64);
            }
            assert_eq!((hub.cut, hub.len()), (1, 1));
            // What waited is gone with the watcher's place.
            assert_eq!(slow.try_recv().err(), Some(true));
            assert_eq!(Arc::strong_count(&slow.0), 1);
        };
        check(100, QUEUE + 1);
        check(QUEUE_BYTES / 10, 11);
        // One event always fits.
        let mut hub = Hub::default();
        let mut only = hub.register(Interest::All);
        hub.dispatch(&change(1, 2 * QUEUE_BYTES));
        assert!(only.recv().await.is_some());
        drop(hub);
        assert!(only.recv().await.is_none());
    }

    #[test]
    fn who_is_told() {
        let mut hub = Hub::default();
        let kept: Vec<Mailbox> = [
            Interest::All,
            Interest::All,
            Interest::Namespace("n".into()),
            Interest::Object("n/x".into()),
            Interest::Node("host".into()),
        ]
        .into_iter()
        .map(|interest| hub.register(interest))
        .collect();
        assert_eq!(
            (hub.interested("n", "n/x"), hub.interested("n", "n/y"), hub.interested("m", "m/x")),
            (4, 3, 2)
        );
        drop(kept);
    }
}
