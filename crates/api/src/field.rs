//! Field paths and field errors: the vocabulary in which validation speaks.
//!
//! Texts, types and order answer to `k8s.io/apimachinery/pkg/util/validation/field`. A [`Path`] is a shared linked
//! list, so that walking down an object costs one small allocation a step and cloning costs a counter.

use std::fmt;
use std::sync::Arc;

use orlop_json::Value;

/// Where in an object something is: `spec.containers[0].name`, `metadata.labels[foo]`.
#[derive(Clone, Debug, Default)]
pub struct Path(Option<Arc<Node>>);

#[derive(Debug)]
struct Node {
    parent: Path,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Child(orlop_json::Key),
    Index(usize),
    Key(orlop_json::Key),
}

impl Path {
    /// The object itself. It prints as `<nil>`, as upstream's nil path does; its children print without a prefix.
    pub fn root() -> Path {
        Path(None)
    }

    /// A path of one field.
    pub fn new(name: &str) -> Path {
        Path::root().child(name)
    }

    /// The field `name` of this.
    pub fn child(&self, name: &str) -> Path {
        self.step(Step::Child(name.into()))
    }

    /// The item `index` (from 0) of this list.
    pub fn index(&self, index: usize) -> Path {
        self.step(Step::Index(index))
    }

    /// The entry `key` of this map.
    pub fn key(&self, key: &str) -> Path {
        self.step(Step::Key(key.into()))
    }

    /// Whether this is the object itself.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    fn step(&self, step: Step) -> Path {
        Path(Some(Arc::new(Node { parent: self.clone(), step })))
    }

    fn write(&self, out: &mut String) {
        let Some(node) = &self.0 else { return };
        node.parent.write(out);
        match &node.step {
            Step::Child(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(index) => out.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                out.push('[');
                out.push_str(key);
                out.push(']');
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str("<nil>");
        }
        let mut out = String::new();
        self.write(&mut out);
        f.write_str(&out)
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// A reference to something that does not exist.
    NotFound,
    /// A value that must be given was not.
    Required,
    /// A value that must be unique was repeated.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// A value that is not one of a closed set.
    NotSupported,
    /// A valid value that is not allowed here.
    Forbidden,
    /// A value that is too long.
    TooLong,
    /// A list or map with too many items.
    TooMany,
    /// The server failed while it was looking at the field.
    Internal,
    /// A value of the wrong type.
    TypeInvalid,
}

impl ErrorType {
    /// The words of the message: `Invalid value`.
    pub fn title(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooMany => "Too many",
            ErrorType::Internal => "Internal error",
        }
    }

    /// The `reason` of the cause in a Status: `FieldValueInvalid`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One complaint about one field. Displays as `spec.replicas: Invalid value: -1: must be …`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorType,
    /// The path, printed.
    pub field: String,
    /// The value found there; `None` leaves the value out of the message.
    pub bad_value: Option<Value>,
    /// The rest of the message; may be empty.
    pub detail: String,
}

/// Complaints in the order in which they were found.
pub type ErrorList = Vec<FieldError>;

impl FieldError {
    /// The message without the field: `Invalid value: -1: must be …`.
    pub fn body(&self) -> String {
        let mut out = String::from(self.kind.title());
        let silent = matches!(
            self.kind,
            ErrorType::Required | ErrorType::Forbidden | ErrorType::TooLong | ErrorType::Internal
        );
        if let (false, Some(value)) = (silent, &self.bad_value) {
            out.push_str(": ");
            match value {
                Value::String(text) => out.push_str(&go_quote(text)),
                other => out.push_str(&go_json(other)),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    fn new(kind: ErrorType, path: &Path, bad_value: Option<Value>, detail: impl Into<String>) -> FieldError {
        FieldError { kind, field: path.to_string(), bad_value, detail: detail.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// A value that must be given is missing.
pub fn required(path: &Path, detail: &str) -> FieldError {
    FieldError::new(ErrorType::Required, path, Some(Value::String(String::new())), detail)
}

/// A malformed value.
pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
    FieldError::new(ErrorType::Invalid, path, Some(value.into()), detail)
}

/// A malformed value that the message does not repeat.
pub fn invalid_omitted(path: &Path, detail: impl Into<String>) -> FieldError {
    FieldError::new(ErrorType::Invalid, path, None, detail)
}

/// A value outside of a closed set; `valid` is listed in the given order (upstream's callers mostly sort it).
pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> FieldError {
    let detail = if valid.is_empty() {
        String::new()
    } else {
        let quoted: Vec<String> = valid.iter().map(|text| go_quote(text)).collect();
        format!("supported values: {}", quoted.join(", "))
    };
    FieldError::new(ErrorType::NotSupported, path, Some(value.into()), detail)
}

/// A value that must be unique and is not.
pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
    FieldError::new(ErrorType::Duplicate, path, Some(value.into()), "")
}

/// Something that is not allowed here.
pub fn forbidden(path: &Path, detail: impl Into<String>) -> FieldError {
    FieldError::new(ErrorType::Forbidden, path, Some(Value::String(String::new())), detail)
}

/// A value of more than `max` bytes.
pub fn too_long(path: &Path, max: usize) -> FieldError {
    let unit = if max == 1 { "byte" } else { "bytes" };
    FieldError::new(ErrorType::TooLong, path, None, format!("may not be more than {max} {unit}"))
}

/// A list or map of more than `max` items.
pub fn too_many(path: &Path, actual: usize, max: usize) -> FieldError {
    let unit = if max == 1 { "item" } else { "items" };
    let detail = format!("must have at most {max} {unit}");
    FieldError::new(ErrorType::TooMany, path, Some(Value::from(actual)), detail)
}

/// A reference to something that does not exist.
pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
    FieldError::new(ErrorType::NotFound, path, Some(value.into()), "")
}

/// The server's own failure.
pub fn internal(path: &Path, detail: impl Into<String>) -> FieldError {
    FieldError::new(ErrorType::Internal, path, None, detail)
}

/// A value of the wrong type.
pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
    FieldError::new(ErrorType::TypeInvalid, path, Some(value.into()), detail)
}

/// A value as Go's `json.Marshal` writes it inside messages: `<`, `>`, `&` and the line separators escaped.
pub fn go_json(value: &Value) -> String {
    let plain = value.to_string();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    let mut out = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            other => out.push(other),
        }
    }
    out
}

/// A string as Go's `%q` prints it.
pub fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if unprintable(c) => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The characters above ASCII that Go does not print (controls, spaces other than U+0020, format characters).
fn unprintable(c: char) -> bool {
    c.is_control()
        || (c != ' ' && c.is_whitespace())
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn paths_print_as_upstream() {
        let spec = Path::new("spec");
        let cases = [
            (Path::root().to_string(), "<nil>"),
            (spec.child("containers").index(0).child("name").to_string(), "spec.containers[0].name"),
            (Path::new("metadata").child("labels").key("a/b").to_string(), "metadata.labels[a/b]"),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
    }

    #[test]
    fn messages_are_upstreams() {
        let p = Path::new("f");
        let cases = [
            (required(&p, ""), "f: Required value"),
            (required(&p, "why"), "f: Required value: why"),
            (invalid(&p, -1, "low"), "f: Invalid value: -1: low"),
            (invalid(&p, "a\"b", ""), "f: Invalid value: \"a\\\"b\""),
            (invalid(&p, Value::Null, "x"), "f: Invalid value: null: x"),
            (invalid(&p, json!({"a": [1]}), "x"), "f: Invalid value: {\"a\":[1]}: x"),
            (invalid_omitted(&p, "x"), "f: Invalid value: x"),
            (
                not_supported(&p, "z", &["a", "b"]),
                "f: Unsupported value: \"z\": supported values: \"a\", \"b\"",
            ),
            (duplicate(&p, "a"), "f: Duplicate value: \"a\""),
            (forbidden(&p, "no"), "f: Forbidden: no"),
            (too_long(&p, 63), "f: Too long: may not be more than 63 bytes"),
            (too_many(&p, 5, 3), "f: Too many: 5: must have at most 3 items"),
            (not_found(&p, "a"), "f: Not found: \"a\""),
            (internal(&p, "oops"), "f: Internal error: oops"),
        ];
        for (error, want) in cases {
            assert_eq!(error.to_string(), want);
        }
    }
}
