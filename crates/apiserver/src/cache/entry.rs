//! One object as the cache holds it: its encoded bytes and the few facts that selectors ask about.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

/// Labels, sorted by key.
pub type Labels = Box<[(Box<str>, Box<str>)]>;
/// Selectable fields in the order of the kind's field labels.
pub type Fields = Box<[(Arc<str>, Box<str>)]>;

/// An object at one revision. `bytes` are what GET, LIST and WATCH send.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` at cluster scope: the end of the storage key.
    pub key: Arc<str>,
    /// The revision that wrote it: its `metadata.resourceVersion`.
    pub revision: u64,
    /// The JSON encoding with `metadata.resourceVersion` in it.
    pub bytes: Bytes,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Selectable fields.
    pub fields: Fields,
    /// The position behind which the resource version's digits stand in `bytes`.
    version_at: usize,
    /// Where `"metadata"` begins: what precedes it (kind and apiVersion) is left out of list items.
    metadata_at: usize,
    /// The protobuf message; made for the first client that asks for protobuf.
    message: OnceLock<Bytes>,
}

/// Length of the digits of a revision.
fn digits(revision: u64) -> usize {
    revision.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Where `"resourceVersion":"…",` belongs: behind the uid, as upstream orders metadata, else first.
fn splice_position(stored: &[u8]) -> Option<usize> {
    const METADATA: &[u8] = b"\"metadata\":{";
    const UID: &[u8] = b"\"uid\":\"";
    let start = find(stored, METADATA)? + METADATA.len();
    // Only name, generateName and namespace may precede the uid, and none of them can hold a quote or a brace.
    let window = &stored[start..stored.len().min(start + 2048)];
    if let Some(uid) = find(window, UID)
        && !window[..uid].contains(&b'{')
        && !window[..uid].contains(&b'[')
        && let Some(end) = window[uid + UID.len()..].iter().position(|b| *b == b'"')
    {
        let at = start + uid + UID.len() + end + 1;
        if stored.get(at) == Some(&b',') {
            return Some(at + 1);
        }
    }
    Some(start)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The length of the JSON object that `text`, which is valid, begins with.
fn end_of_object(text: &[u8]) -> usize {
    let (mut depth, mut quoted, mut at) = (0_usize, false, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            // What it escapes is passed over.
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'{' if !quoted => depth += 1,
            b'}' if !quoted => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    text.len()
}

impl Entry {
    /// Makes an entry from stored bytes (an encoding whose top level begins with kind, apiVersion, metadata and
    /// whose metadata has no resource version); `None` when the bytes are not of that form.
    pub fn from_stored(
        key: Arc<str>,
        revision: u64,
        stored: &[u8],
        labels: Labels,
        fields: Fields,
    ) -> Option<Entry> {
        const NAME: &[u8] = b"\"resourceVersion\":\"";
        let at = splice_position(stored)?;
        let mut bytes = BytesMut::with_capacity(stored.len() + NAME.len() + digits(revision) + 2);
        bytes.extend_from_slice(&stored[..at]);
        bytes.extend_from_slice(NAME);
        let version_at = bytes.len();
        bytes.extend_from_slice(revision.to_string().as_bytes());
        bytes.extend_from_slice(b"\"");
        if stored.get(at) != Some(&b'}') {
            bytes.extend_from_slice(b",");
        }
        bytes.extend_from_slice(&stored[at..]);
        let metadata_at = find(stored, b"\"metadata\":{")?;
        Some(Entry {
            key,
            revision,
            bytes: bytes.freeze(),
            labels,
            fields,
            version_at,
            metadata_at,
            message: OnceLock::new(),
        })
    }

    /// Whether these are the bytes that were stored: the same but for the resource version.
    pub fn holds(&self, stored: &[u8]) -> bool {
        const NAME: usize = "\"resourceVersion\":\"".len();
        let (before, after) = (self.version_at - NAME, self.version_at + digits(self.revision) + 1);
        let Some(rest) = stored.strip_prefix(&self.bytes[..before]) else { return false };
        let tail = &self.bytes[after..];
        tail.strip_prefix(b",").unwrap_or(tail) == rest
    }

    /// The same object under another resource version (what a DELETED event carries).
    pub fn with_revision(&self, revision: u64) -> Entry {
        let end = self.version_at + digits(self.revision);
        let mut bytes = BytesMut::with_capacity(self.bytes.len() + 4);
        bytes.extend_from_slice(&self.bytes[..self.version_at]);
        bytes.extend_from_slice(revision.to_string().as_bytes());
        bytes.extend_from_slice(&self.bytes[end..]);
        Entry {
            key: self.key.clone(),
            revision,
            bytes: bytes.freeze(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            version_at: self.version_at,
            metadata_at: self.metadata_at,
            message: OnceLock::new(),
        }
    }

    /// The encoding as an item of a list: without kind and apiVersion, which stand once on the list.
    pub fn item(&self) -> (&'static [u8], &[u8]) {
        (b"{", &self.bytes[self.metadata_at..])
    }

    /// The encoding of `metadata`.
    pub fn metadata(&self) -> &[u8] {
        let rest = &self.bytes[(self.metadata_at + b"\"metadata\":".len()).min(self.bytes.len())..];
        &rest[..end_of_object(rest)]
    }

    /// Whether the object is written in this `apiVersion`.
    pub fn is_of(&self, api_version: &str) -> bool {
        const FIELD: &[u8] = b"\"apiVersion\":\"";
        let head = &self.bytes[..self.metadata_at.min(self.bytes.len())];
        find(head, FIELD).is_some_and(|at| {
            let rest = &head[at + FIELD.len()..];
            rest.starts_with(api_version.as_bytes()) && rest.get(api_version.len()) == Some(&b'"')
        })
    }

    /// Namespace; empty at cluster scope.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok().map(|at| self.labels[at].1.as_ref())
    }

    /// The value of a selectable field; `None` when the kind has no such field.
    pub fn field(&self, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(k, _)| k.as_ref() == label).map(|(_, v)| v.as_ref()),
        }
    }

    /// The object's protobuf message, without an envelope.
    pub fn message(&self) -> Bytes {
        let make = || {
            let value = self.value();
            let text = |field: &str| value.get(field).and_then(orlop_json::Value::as_str).unwrap_or("");
            let ty = orlop_api::protobuf::type_of(text("apiVersion"), text("kind"));
            Bytes::from(ty.map(|ty| orlop_api::protobuf::encode_message(&value, ty)).unwrap_or_default())
        };
        self.message.get_or_init(make).clone()
    }

    /// Parses the object.
    pub fn value(&self) -> orlop_json::Value {
        // The bytes were encoded by this server or refused when they were loaded.
        orlop_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_ends_where_its_brace_is_closed() {
        let check = |metadata: &str| {
            let stored = format!(
                "{{\"kind\":\"K\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"spec\":{{\"a\":\"}}\"}}}}"
            );
            let entry =
                Entry::from_stored("x".into(), 7, stored.as_bytes(), Labels::default(), Fields::default());
            let entry = entry.unwrap();
            let seen: orlop_json::Value = orlop_json::from_slice(entry.metadata()).unwrap();
            assert_eq!(seen, entry.value()["metadata"]);
        };
        check(r#"{"name":"x"}"#);
        check(r#"{"name":"x","uid":"u","annotations":{"a":"}{\\\"}"}}"#);
        check(r#"{"name":"x","managedFields":[{"fieldsV1":{"f:a":{".":{}}}}]}"#);
        check("{}");
    }

    #[track_caller]
    fn check(stored: &str, expected: &str) {
        let entry =
            Entry::from_stored("n/x".into(), 42, stored.as_bytes(), Labels::default(), Fields::default())
                .unwrap();
        assert_eq!(std::str::from_utf8(&entry.bytes).unwrap(), expected);
        let later = entry.with_revision(1234);
        assert_eq!(std::str::from_utf8(&later.bytes).unwrap(), expected.replace("\"42\"", "\"1234\""));
        assert_eq!((entry.namespace(), entry.name()), ("n", "x"));
        assert!(entry.holds(stored.as_bytes()) && later.holds(stored.as_bytes()));
        assert!(!entry.holds(stored.replace("metadata", "Metadata").as_bytes()) && !entry.holds(b"{}"));
    }

    #[test]
    fn resource_version_is_spliced() {
        check(
            r#"{"kind":"A","apiVersion":"v1","metadata":{"name":"x","uid":"u","labels":{"uid":"z"}}}"#,
            r#"{"kind":"A","apiVersion":"v1","metadata":{"name":"x","uid":"u","resourceVersion":"42","labels":{"uid":"z"}}}"#,
        );
        check(
            r#"{"kind":"A","metadata":{"labels":{"uid":"z","a":"b"}}}"#,
            r#"{"kind":"A","metadata":{"resourceVersion":"42","labels":{"uid":"z","a":"b"}}}"#,
        );
        check(r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"42"}}"#);
    }
}
