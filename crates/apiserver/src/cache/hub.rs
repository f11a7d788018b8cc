//! Who is told of a change: watchers, indexed so that an event costs what its interested watchers cost.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::{Entry, Snapshot};

/// Events a watcher may lag behind before it is cut; it then lists again, as a client of a slow connection must.
const QUEUE: usize = 8192;

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
    pub receiver: Option<mpsc::Receiver<Arc<Change>>>,
}

#[derive(Default)]
pub(super) struct Hub {
    watchers: HashMap<Interest, Vec<mpsc::Sender<Arc<Change>>>>,
}

impl Hub {
    pub(super) fn register(&mut self, interest: Interest) -> mpsc::Receiver<Arc<Change>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        // Watchers that went away while nothing happened are swept when the next one comes.
        self.watchers.retain(|_, list| {
            list.retain(|sender| !sender.is_closed());
            !list.is_empty()
        });
        self.watchers.entry(interest).or_default().push(sender);
        receiver
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
                list.retain(|sender| sender.try_send(change.clone()).is_ok());
                if list.is_empty() {
                    self.watchers.remove(&key);
                }
            }
        }
    }
}
