//! Between etcd's messages and the contract's types.

use bytes::Bytes;

use crate::{Event, EventKind, KeyValue, Revision};

/// etcd counts revisions with a sign.
pub(super) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A revision of etcd; it is never negative.
pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// The part of an error that says something to people.
pub(super) fn cause(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// Keys begin with `/registry` here; in etcd they begin with what `--etcd-prefix` says.
pub(super) struct KeyMap {
    ours: Vec<u8>,
    theirs: Vec<u8>,
}

impl KeyMap {
    pub fn new(ours: &str, theirs: &str) -> KeyMap {
        KeyMap { ours: ours.as_bytes().to_vec(), theirs: theirs.as_bytes().to_vec() }
    }

    pub fn translate(&self, key: &[u8]) -> Vec<u8> {
        match key.strip_prefix(&self.ours[..]) {
            Some(rest) if self.ours != self.theirs => [&self.theirs, rest].concat(),
            _ => key.to_vec(),
        }
    }

    pub fn restore(&self, key: &[u8]) -> Bytes {
        match key.strip_prefix(&self.theirs[..]) {
            Some(rest) if self.ours != self.theirs => [&self.ours, rest].concat().into(),
            _ => Bytes::copy_from_slice(key),
        }
    }
}

/// One key's state.
pub(super) fn key_value(keys: &KeyMap, kv: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key: keys.restore(kv.key()),
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: Revision(unsigned(kv.create_revision())),
        mod_revision: Revision(unsigned(kv.mod_revision())),
    }
}

/// One change; `None` for an event without a key, which etcd never sends.
pub(super) fn event(keys: &KeyMap, event: &etcd_client::Event) -> Option<Event> {
    let kv = event.kv()?;
    let kind = match event.event_type() {
        etcd_client::EventType::Put => EventKind::Put,
        etcd_client::EventType::Delete => EventKind::Delete,
    };
    Some(Event { revision: Revision(unsigned(kv.mod_revision())), kind, kv: key_value(keys, kv) })
}

/// What tells a reader that it has seen everything up to `revision`.
pub(super) fn progress(revision: i64) -> Event {
    let revision = Revision(unsigned(revision));
    let nothing = KeyValue {
        key: Bytes::new(),
        value: Bytes::new(),
        create_revision: Revision::NONE,
        mod_revision: revision,
    };
    Event { revision, kind: EventKind::Progress, kv: nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_under_another_prefix() {
        let check = |theirs: &str, ours: &str, etcd: &str| {
            let map = KeyMap::new("/registry", theirs);
            assert_eq!(map.translate(ours.as_bytes()), etcd.as_bytes());
            assert_eq!(map.restore(etcd.as_bytes()), ours.as_bytes());
        };
        check("/registry", "/registry/pods/a/b", "/registry/pods/a/b");
        check("/clusters/one", "/registry/pods/a/b", "/clusters/one/pods/a/b");
        check("/clusters/one", "/other", "/other");
    }
}
