//! Bodies of requests to objects in normalised form.
//!
//! Follows Go's `encoding/json` with `sigs.k8s.io/json` (case-sensitive names, unknown and repeated fields) and
//! `sigs.k8s.io/yaml`: what is accepted, what is warned of and the words of each refusal are upstream's.

mod lexer;
pub mod scalar;
mod typed;
mod yaml;

use std::borrow::Cow;
use std::fmt;

use orlop_json::Value;

pub use lexer::MAX_DEPTH;
pub use typed::forget_empty_lists;
pub(crate) use typed::{emit, zero};

use crate::field::go_quote;
use crate::meta::split_api_version;
use crate::protobuf::{self, Envelope};
use crate::schema::{self, Struct};
use crate::status::ApiError;

/// What to do about unknown and repeated fields (`?fieldValidation=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Nothing.
    Ignore,
    /// Tell the client in `Warning` headers.
    Warn,
    /// Refuse.
    Strict,
}

impl FieldValidation {
    /// The value of the query parameter; nothing said = warn. `None` = no such value.
    pub fn parse(text: &str) -> Option<FieldValidation> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

/// The notation of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Group, version and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gvk<'a> {
    /// Empty = core.
    pub group: &'a str,
    /// `v1`, …
    pub version: &'a str,
    /// `Pod`, …
    pub kind: &'a str,
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// In normalised form, with `kind` and `apiVersion`.
    pub value: Value,
    /// Texts for `Warning` headers; empty unless asked for.
    pub warnings: Vec<String>,
}

/// Why a body is no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It cannot even be told what it is (malformed JSON or YAML).
    Unrecognized(String),
    /// A value of the wrong type or in a wrong notation.
    Malformed(String),
    /// Unknown or repeated fields, when these are refused.
    Strict(Vec<String>),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Unrecognized(text) | DecodeError::Malformed(text) => f.write_str(text),
            DecodeError::Strict(all) => write!(f, "strict decoding error: {}", all.join(", ")),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The body of a create or an update: the object that is expected at the endpoint, which also says what is meant when
/// the body has no `kind` or `apiVersion`. The object may be of another version (or another group's equivalent) of the
/// expected kind: look at its `apiVersion`.
///
/// # Errors
/// 400 with upstream's texts.
pub fn decode(
    body: &[u8],
    media: Media,
    expected: &Gvk,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let unrecognized = |text: &str| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {text} ({})",
            expected.kind,
            summarize(body)
        ))
    };
    let (json, yaml_duplicates) = to_json(body, media).map_err(|error| unrecognized(&error))?;
    let envelope = match media {
        Media::Protobuf => Some(Envelope::open(body).map_err(|error| unrecognized(&error.to_string()))?),
        _ => None,
    };
    let read = |ty: &'static Struct| match &envelope {
        Some(envelope) => Ok(read_protobuf(envelope, ty)),
        None => read(&json, ty),
    };
    let no_kind = |text: &str| unrecognized(&format!("couldn't get version/kind; json parse error: {text}"));
    let Some(ty) = schema::kind(expected.group, expected.version, expected.kind) else {
        return Err(ApiError::internal(format!("no type is known for {}", expected.kind)));
    };
    let mut outcome = read(ty).map_err(|error| no_kind(&error))?;
    if let Some(error) = &outcome.meta_mismatch {
        return Err(no_kind(error));
    }
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let (api_version, kind) = (text(&outcome.value, "apiVersion"), text(&outcome.value, "kind"));
    let (group, version) = if api_version.is_empty() {
        (expected.group, expected.version)
    } else {
        split_api_version(&api_version)
    };
    let kind = if kind.is_empty() { expected.kind } else { &kind };
    let cannot = |error: &dyn fmt::Display| {
        ApiError::bad_request(format!(
            "{kind} in version {} cannot be handled as a {}: {error}",
            go_quote(version),
            expected.kind
        ))
    };
    if (group, version, kind) != (expected.group, expected.version, expected.kind) {
        let Some(other) = schema::kind(group, version, kind) else {
            let group_version =
                if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            return Err(cannot(&format!(
                "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                go_quote(kind),
                go_quote(&group_version)
            )));
        };
        let internal = match expected.group {
            "" => "core",
            group => group.split('.').next().unwrap_or(group),
        };
        if kind != expected.kind {
            return Err(cannot(&format!(
                "converting ({}) to ({internal}.{}): unknown conversion",
                other.go_type, expected.kind
            )));
        }
        outcome = read(other).map_err(|error| no_kind(&error))?;
    }
    if let Some(error) = outcome.error() {
        return Err(cannot(&error));
    }
    let mut strict = yaml_duplicates;
    strict.append(&mut outcome.strict);
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(cannot(&DecodeError::Strict(strict)));
    }
    let mut value = outcome.value;
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    set_type_meta(&mut value, kind, &api_version);
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// The body of a create or an update of a custom resource, as it was sent, and its repeated keys.
///
/// # Errors
/// 400 with upstream's texts for what is no object, has no kind or is of another version.
pub fn decode_custom(body: &[u8], media: Media, expected: &Gvk) -> Result<(Value, Vec<String>), ApiError> {
    let unrecognized = |text: &str| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {text} ({})",
            expected.kind,
            summarize(body)
        ))
    };
    let no_kind = |text: &str| unrecognized(&format!("couldn't get version/kind; json parse error: {text}"));
    let (value, duplicates) = parse_strict(body, media).map_err(|error| no_kind(&error.to_string()))?;
    if !value.is_object() {
        let what = match &value {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(no_kind(&format!(
            "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
    }
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("");
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    let shown = || String::from_utf8_lossy(body.trim_ascii()).into_owned();
    if kind.is_empty() {
        return Err(unrecognized(&format!("Object 'Kind' is missing in '{}'", shown())));
    }
    let (group, version) = split_api_version(api_version);
    if api_version.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"\" cannot be handled as a {}: Object 'apiVersion' is missing in '{}'",
            expected.kind,
            shown()
        )));
    }
    if (group, version) != (expected.group, expected.version) {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({}/{})",
            expected.group, expected.version
        )));
    }
    Ok((value, duplicates))
}

/// An object that a patch has changed, read again as its type.
///
/// # Errors
/// [`DecodeError::Malformed`] and [`DecodeError::Strict`] with upstream's texts.
pub fn normalise(
    value: &Value,
    ty: &'static Struct,
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    // Encoding a JSON value into memory cannot fail.
    decode_as(&orlop_json::to_vec(value).unwrap_or_default(), ty, validation)
}

/// JSON as a type that the caller knows; `kind` and `apiVersion` are not looked at.
///
/// # Errors
/// [`DecodeError`] with upstream's texts.
pub fn decode_as(
    body: &[u8],
    ty: &'static Struct,
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let outcome = read(body, ty).map_err(DecodeError::Unrecognized)?;
    if let Some(error) = outcome.error() {
        return Err(DecodeError::Malformed(error));
    }
    if validation == FieldValidation::Strict && !outcome.strict.is_empty() {
        return Err(DecodeError::Strict(outcome.strict));
    }
    let warnings = if validation == FieldValidation::Warn { outcome.strict } else { Vec::new() };
    Ok(Decoded { value: outcome.value, warnings })
}

/// Any JSON, YAML or protobuf: patches, custom resources, options. Repeated keys are not looked at.
///
/// # Errors
/// [`DecodeError::Unrecognized`]; Go's text for JSON, `error converting YAML to JSON: …` is for the caller to add.
pub fn parse(body: &[u8], media: Media) -> Result<Value, DecodeError> {
    parse_strict(body, media).map(|(value, _)| value)
}

/// Any JSON or YAML, and its repeated keys: `duplicate field "a.b"`, or in YAML
/// `yaml: unmarshal errors:\n  line 8: key "a" already set in map`.
///
/// # Errors
/// [`DecodeError::Unrecognized`].
pub fn parse_strict(body: &[u8], media: Media) -> Result<(Value, Vec<String>), DecodeError> {
    if media == Media::Protobuf {
        let value = protobuf::decode(body);
        return value
            .map(|value| (value, Vec::new()))
            .map_err(|error| DecodeError::Unrecognized(error.to_string()));
    }
    if media == Media::Yaml && !looks_like_json(body) {
        let text = String::from_utf8_lossy(body);
        let (value, duplicates) = yaml::parse(&text).map_err(DecodeError::Unrecognized)?;
        return Ok((value, yaml_complaint(duplicates)));
    }
    let mut lexer = lexer::Lexer::new(body);
    let value = lexer.any(&mut String::new()).and_then(|value| lexer.end().map(|()| value));
    let value = value.map_err(|error| DecodeError::Unrecognized(error.0))?;
    let duplicates =
        lexer.duplicates.iter().map(|path| format!("duplicate field {}", go_quote(path))).collect();
    Ok((value, duplicates))
}

fn set_type_meta(value: &mut Value, kind: &str, api_version: &str) {
    let Value::Object(map) = value else { return };
    let complete = map.contains_key("kind") && map.contains_key("apiVersion");
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), api_version.into());
    if !complete {
        // They stand first.
        for key in ["apiVersion", "kind"] {
            if let Some(value) = map.remove(key) {
                map.shift_insert(0, key.into(), value);
            }
        }
    }
}

struct Outcome {
    value: Value,
    strict: Vec<String>,
    mismatch: Option<String>,
    refused: Option<String>,
    meta_mismatch: Option<String>,
}

impl Outcome {
    fn error(&self) -> Option<String> {
        self.refused.clone().or_else(|| self.mismatch.clone())
    }
}

fn read(body: &[u8], ty: &'static Struct) -> Result<Outcome, String> {
    let mut reader = typed::Reader::new(body);
    let first = reader.lexer.begin().map_err(|error| error.0)?;
    let value = match first {
        b'{' => reader.document(ty).map_err(|error| error.0)?,
        other => {
            // A syntax error counts first.
            let value =
                reader.lexer.any(&mut String::new()).and_then(|value| reader.lexer.end().map(|()| value));
            if !value.map_err(|error| error.0)?.is_null() {
                let what = match other {
                    b'[' => "array",
                    b'"' => "string",
                    b't' | b'f' => "bool",
                    _ => "number",
                };
                return Err(format!(
                    "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string \
                     \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
                ));
            }
            typed::Reader::new(b"{}").document(ty).map_err(|error| error.0)?
        }
    };
    Ok(Outcome {
        value,
        strict: reader.strict,
        mismatch: reader.mismatch,
        refused: reader.refused,
        meta_mismatch: reader.meta_mismatch,
    })
}

/// A message as a type. That it is no such message is noted, not returned: whose message it is counts first.
fn read_protobuf(envelope: &Envelope<'_>, ty: &'static Struct) -> Outcome {
    let (mut value, refused) = match protobuf::decode_message(envelope.message, ty) {
        Ok(value) => (value, None),
        Err(error) => (Value::Object(orlop_json::Map::new()), Some(error.to_string())),
    };
    set_type_meta(&mut value, envelope.kind, envelope.api_version);
    Outcome { value, strict: Vec::new(), mismatch: None, refused, meta_mismatch: None }
}

/// JSON bytes of a body, and the complaint about repeated YAML keys.
fn to_json(body: &[u8], media: Media) -> Result<(Cow<'_, [u8]>, Vec<String>), String> {
    if media != Media::Yaml || looks_like_json(body) {
        return Ok((Cow::Borrowed(body), Vec::new()));
    }
    let (value, duplicates) = yaml::parse(&String::from_utf8_lossy(body))?;
    Ok((Cow::Owned(value.to_string().into_bytes()), yaml_complaint(duplicates)))
}

fn yaml_complaint(duplicates: Vec<String>) -> Vec<String> {
    if duplicates.is_empty() {
        return Vec::new();
    }
    vec![format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))]
}

/// JSON in a body declared as YAML is common (clients do it) and quicker to read as what it is.
fn looks_like_json(body: &[u8]) -> bool {
    let trimmed = body.trim_ascii();
    trimmed.starts_with(b"{") && orlop_json::from_slice::<serde::de::IgnoredAny>(trimmed).is_ok()
}

/// The beginning of a body, for messages.
fn summarize(body: &[u8]) -> String {
    const LENGTH: usize = 30;
    let head = &body[..body.len().min(LENGTH)];
    let more = if body.len() > LENGTH { " ..." } else { "" };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

#[cfg(test)]
mod tests;
