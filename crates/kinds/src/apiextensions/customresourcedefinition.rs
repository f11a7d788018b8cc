//! CustomResourceDefinitions: defaults, validation, and the part of their status that belongs to the spec (stored
//! versions). What the names of a definition are worth is decided where all definitions are known: in the API server.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};
use orlop_structural::definition;

use crate::cursor::{
    Cursor, bump_generation, child, default_empty_to, default_to, keep_field, set_generation,
};
use crate::metadata::{
    validate_embedded_object_meta, validate_generic_object_meta, validate_generic_object_meta_update,
};
use crate::{NameRule, Strategy, printer};

/// See the module.
pub struct CustomResourceDefinition;

/// Adds the storage version to the versions in which objects may be stored.
fn note_storage_version(obj: &mut Value) {
    let storage = obj["spec"]["versions"].items().iter().find(|version| version["storage"].flag());
    let Some(name) = storage.map(|version| version["name"].clone()) else { return };
    let status = child(obj, "status");
    if !status["storedVersions"].items().contains(&name) {
        match &mut status["storedVersions"] {
            Value::Array(stored) => stored.push(name),
            other => *other = json!([name]),
        }
    }
}

impl Strategy for CustomResourceDefinition {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        let kind = spec["names"]["kind"].text().to_owned();
        let names = child(spec, "names");
        if !kind.is_empty() {
            default_empty_to(names, "singular", kind.to_lowercase());
            default_empty_to(names, "listKind", format!("{kind}List"));
        }
        default_to(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service") {
            default_to(service, "port", 443);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({
            "conditions": null,
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": null,
        });
        set_generation(obj, 1);
        note_storage_version(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep_field(obj, old, "status");
        bump_generation(obj, old, &["spec"]);
        note_storage_version(obj);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = validate_generic_object_meta(obj, false, NameRule::DnsSubdomain);
        let name = obj["metadata"]["name"].text();
        let names = &obj["spec"]["names"];
        if name != format!("{}.{}", names["plural"].text(), obj["spec"]["group"].text()) {
            let path = Path::new("metadata").child("name");
            errs.push(field::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group"));
        }
        errs.extend(definition::validate(obj, validate_embedded_object_meta));
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_generic_object_meta_update(obj, old);
        errs.extend(definition::validate_update(obj, old, validate_embedded_object_meta));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    /// Formats that mean nothing, but for those that were there before.
    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(definition::unknown_formats).unwrap_or_default();
        let mut formats = definition::unknown_formats(obj);
        formats.retain(|format| !known.contains(format));
        formats.iter().map(|format| format!("unrecognized format {}", field::go_quote(format))).collect()
    }

    /// As upstream: the metadata is not put back.
    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep_field(obj, old, "spec");
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_generic_object_meta_update(obj, old);
        errs.extend(definition::validate_status(obj));
        errs
    }

    fn cells(&self, obj: &Value, _now: jiff::Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::created_at(obj)]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::texts;
    use pretty_assertions::assert_eq;

    fn widgets() -> Value {
        json!({"metadata": {"name": "widgets.example.com"}, "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    fn made() -> Value {
        let mut obj = widgets();
        CustomResourceDefinition.defaults(&mut obj);
        CustomResourceDefinition.prepare_create(&mut obj);
        obj
    }

    #[test]
    fn names_follow_the_kind() {
        let obj = made();
        assert_eq!(
            obj["spec"]["names"],
            json!({"plural": "widgets", "kind": "Widget", "singular": "widget", "listKind": "WidgetList"})
        );
        assert_eq!(obj["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(obj["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(texts(&CustomResourceDefinition.validate_create(&obj)), [""; 0]);
    }

    #[test]
    fn formats() {
        let mut old = made();
        let property = |format: &str| json!({"type": "string", "format": format});
        let schema = |properties: Value| json!({"type": "object", "properties": properties});
        let place = "/spec/versions/0/schema/openAPIV3Schema";
        *old.pointer_mut(place).unwrap() = schema(json!({"a": property("foo"), "b": property("date")}));
        assert_eq!(CustomResourceDefinition.warnings(&old, None), [r#"unrecognized format "foo""#]);
        let mut new = old.clone();
        *new.pointer_mut(place).unwrap() = schema(json!({"a": property("foo"), "b": property("bar")}));
        assert_eq!(CustomResourceDefinition.warnings(&new, Some(&old)), [r#"unrecognized format "bar""#]);
    }

    #[test]
    fn the_name_is_plural_and_group() {
        let mut obj = made();
        obj["metadata"]["name"] = "x.example.com".into();
        assert_eq!(
            texts(&CustomResourceDefinition.validate_create(&obj)),
            [r#"metadata.name: Invalid value: "x.example.com": must be spec.names.plural+"."+spec.group"#]
        );
    }

    #[test]
    fn a_new_storage_version_is_noted() {
        let old = made();
        let mut obj = old.clone();
        obj["spec"]["versions"][0]["storage"] = false.into();
        let second = json!({"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
        if let Value::Array(versions) = &mut obj["spec"]["versions"] {
            versions.push(second);
        }
        CustomResourceDefinition.prepare_update(&mut obj, &old);
        assert_eq!(obj["status"]["storedVersions"], json!(["v1", "v2"]));
        assert_eq!(obj["metadata"]["generation"], 2);
    }
}
