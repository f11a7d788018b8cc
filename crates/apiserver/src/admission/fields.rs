//! Readers of normalised objects, so that a plugin's rule reads like its sentence in the documentation. What is absent
//! reads as empty.

use orlop_json::{Map, Value};

pub(crate) trait Fields {
    /// The text of a field; empty when absent.
    fn text(&self, field: &str) -> &str;
    /// The items of a list; none when absent.
    fn items(&self, field: &str) -> &[Value];
    /// A boolean, when set.
    fn flag(&self, field: &str) -> Option<bool>;
    /// Whether a field is set.
    fn has(&self, field: &str) -> bool;
    /// The entries of a map; none when absent.
    fn map(&self, field: &str) -> Option<&Map>;
    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Fields for Value {
    fn text(&self, field: &str) -> &str {
        self.get(field).and_then(Value::as_str).unwrap_or("")
    }

    fn items(&self, field: &str) -> &[Value] {
        self.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn flag(&self, field: &str) -> Option<bool> {
        self.get(field).and_then(Value::as_bool)
    }

    fn has(&self, field: &str) -> bool {
        self.get(field).is_some_and(|value| !value.is_null())
    }

    fn map(&self, field: &str) -> Option<&Map> {
        self.get(field).and_then(Value::as_object)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.get("metadata")?.get("annotations")?.get(key)?.as_str()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.get("metadata")?.get("labels")?.get(key)?.as_str()
    }
}
