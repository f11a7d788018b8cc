//! Objects in protobuf: `application/vnd.kubernetes.protobuf`.
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` that says what the object is and holds its message. The
//! messages follow from [`crate::schema`]; what is read comes out in the same normalised form as from JSON. Bodies are
//! not trusted: lengths are checked before anything is copied, nesting is bounded, unknown fields are skipped.

mod read;
pub mod wire;
mod write;

use std::fmt;

use orlop_json::Value;

use crate::meta::split_api_version;
use crate::schema::{self, Struct};

/// What every body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are no message; Go's text where Go has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// An opened body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `v1`, `apps/v1`; empty when the client did not say.
    pub api_version: &'a str,
    /// `Pod`; empty when the client did not say.
    pub kind: &'a str,
    /// The object's message.
    pub message: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Opens a body.
    ///
    /// # Errors
    /// It does not begin with [`MAGIC`], or what follows is no `runtime.Unknown`.
    pub fn open(body: &'a [u8]) -> Result<Envelope<'a>, Error> {
        let Some(rest) = body.strip_prefix(MAGIC) else {
            return Err(Error::new(
                "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
            ));
        };
        let mut out = Envelope { api_version: "", kind: "", message: &[] };
        let mut reader = wire::Reader::new(rest);
        while let Some((number, value)) = reader.next()? {
            match number {
                1 => {
                    let mut meta = wire::Reader::new(value.bytes("TypeMeta")?);
                    while let Some((number, value)) = meta.next()? {
                        match number {
                            1 => out.api_version = value.text("APIVersion")?,
                            2 => out.kind = value.text("Kind")?,
                            _ => {}
                        }
                    }
                }
                2 => out.message = value.bytes("Raw")?,
                _ => {}
            }
        }
        Ok(out)
    }
}

/// The type of a kind; options, Status and the metadata views are the same in every group and version.
pub fn type_of(api_version: &str, kind: &str) -> Option<&'static Struct> {
    let (group, version) = split_api_version(api_version);
    schema::kind(group, version, kind).or_else(|| schema::kind("meta.k8s.io", "v1", kind))
}

/// An enveloped object of any known kind in normalised form, with `kind` and `apiVersion`.
///
/// # Errors
/// The bytes are no message of the kind, or the kind is not known.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    read::enveloped(body, crate::decode::MAX_DEPTH)
}

/// A message of a type in normalised form, without `kind` and `apiVersion`.
///
/// # Errors
/// The bytes are no such message.
pub fn decode_message(message: &[u8], ty: &'static Struct) -> Result<Value, Error> {
    read::structure(message, ty, crate::decode::MAX_DEPTH)
}

/// An object with `kind` and `apiVersion` in its envelope; `None` when the kind has no message.
pub fn encode(value: &Value) -> Option<Vec<u8>> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let message = encode_message(value, type_of(api_version, kind)?);
    // Discovery's lists have no version in JSON; an envelope has one.
    let api_version = if api_version.is_empty() { "v1" } else { api_version };
    Some(envelope(api_version, kind, &message))
}

/// The message of an object.
pub fn encode_message(value: &Value, ty: &'static Struct) -> Vec<u8> {
    let mut out = Vec::new();
    write::structure(&mut out, value, ty);
    out
}

/// An object's message in its envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + api_version.len() + kind.len() + 32);
    out.extend_from_slice(MAGIC);
    wire::put_message(&mut out, 1, |out| {
        wire::put_bytes(out, 1, api_version.as_bytes());
        wire::put_bytes(out, 2, kind.as_bytes());
    });
    wire::put_bytes(&mut out, 2, message);
    wire::put_bytes(&mut out, 3, b"");
    wire::put_bytes(&mut out, 4, b"");
    out
}

/// A list of encoded items in its envelope. `metadata` is the list's.
pub fn encode_list<'a>(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut message = Vec::new();
    wire::put_message(&mut message, 1, |out| {
        if let Some(ty) = schema::Schemas::get().openapi("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta") {
            write::structure(out, metadata, ty);
        }
    });
    for item in items {
        wire::put_bytes(&mut message, 2, item);
    }
    envelope(api_version, kind, &message)
}

/// A watch event as it stands in the stream: its length in four bytes, big-endian, and a `WatchEvent` without an
/// envelope of its own around the enveloped object.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    wire::put_bytes(&mut out, 1, event.as_bytes());
    wire::put_message(&mut out, 2, |out| wire::put_bytes(out, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
