//! Parameters: objects of the kind a policy names, chosen by a binding.

use orlop_api::selector::LabelSelector;
use orlop_json::{Map, Value};
use std::sync::Arc;

use crate::cache::{Cache, Entry, from};
use crate::registry::Registry;
use crate::resources::Resource;

/// The kind of a policy's parameters.
pub(super) struct ParamKind {
    group: String,
    version: String,
    kind: String,
}

impl ParamKind {
    /// `None` when the policy has no parameters.
    pub(super) fn of(value: &Value) -> Option<ParamKind> {
        let (group, version) = orlop_api::meta::split_api_version(value.get("apiVersion")?.as_str()?);
        Some(ParamKind {
            group: group.to_string(),
            version: version.to_string(),
            kind: value.get("kind")?.as_str()?.to_string(),
        })
    }

    /// The resource of the kind, or upstream's text when there is none.
    pub(super) fn resource(&self, registry: &Registry) -> Result<Arc<Resource>, String> {
        let table = registry.resources.table();
        let found = table.list.iter().find(|resource| {
            resource.group == self.group && resource.version == self.version && resource.kind == self.kind
        });
        found.filter(|resource| resource.cache.is_some()).cloned().ok_or_else(|| {
            format!(
                "failed to find resource referenced by paramKind: '{}/{}, Kind={}'",
                self.group, self.version, self.kind
            )
        })
    }
}

fn served(resource: &Resource, entry: &Entry) -> Value {
    resource.to_served(entry.value())
}

/// The parameters a binding chooses for a request in `namespace`: one evaluation for each. Without parameters there is
/// one, with null.
pub(super) fn collect(
    kind: Option<(&ParamKind, &Resource)>,
    reference: &Value,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let (Some((_, resource)), false) = (kind, reference.is_null()) else { return Ok(vec![Value::Null]) };
    let Some(cache) = &resource.cache else { return Ok(vec![Value::Null]) };
    let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or("");
    let wanted = text("namespace");
    let namespace = match (resource.namespaced, wanted, namespace) {
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "", own) => own,
        (true, wanted, _) => wanted,
        (false, "", _) => "",
        (false, ..) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
    };
    let name = text("name");
    let selector = reference.get("selector").filter(|s| !s.is_null());
    let found = match (name, selector) {
        ("", None) => return Err("one of name or selector must be provided".into()),
        ("", Some(selector)) => {
            let selector = LabelSelector::from_object(selector).map_err(|error| error.0)?;
            selected(cache, namespace, &selector).iter().map(|entry| served(resource, entry)).collect()
        }
        (name, _) => {
            let entry = cache.get(&resource.key(namespace, name));
            entry.iter().map(|entry| served(resource, entry)).collect::<Vec<Value>>()
        }
    };
    if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

/// Objects of a namespace (or of the cluster) that a selector matches.
fn selected(cache: &Cache, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Entry>> {
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let snapshot = cache.snapshot().0;
    snapshot
        .range::<_, str>(from(&prefix))
        .take_while(|(key, _)| key.starts_with(&prefix))
        .map(|(_, entry)| entry)
        .filter(|entry| {
            let labels: Map = entry
                .labels
                .iter()
                .map(|(key, value)| (key.as_ref().into(), value.as_ref().into()))
                .collect();
            selector.matches(Some(&labels))
        })
        .cloned()
        .collect()
}
