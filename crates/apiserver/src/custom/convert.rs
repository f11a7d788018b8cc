//! Custom resources in other versions than they are stored in.
//!
//! Without a webhook only `apiVersion` changes, and what the target's schema does not know is left out. Answers to
//! `apiserver/conversion`.

use std::borrow::Cow;
use std::sync::Arc;

use orlop_api::status::ApiError;
use orlop_json::Value;
use orlop_structural::Malformed;

use super::definition::{Definition, Version};
use super::webhook;
use crate::cache::{Entry, labels_of};
use crate::registry::{Registry, object};
use crate::resources::Resource;

/// The version in which an object is written.
fn version_of(value: &Value) -> &str {
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
    api_version.rsplit('/').next().unwrap_or("")
}

/// Leaves out what the version's schema does not know.
fn shape(definition: &Definition, version: &Version, value: &mut Value) -> Result<(), ApiError> {
    let schema = &definition.compiled(version).schema;
    orlop_structural::prune(value, schema);
    orlop_structural::drop_nulls(value, schema);
    orlop_structural::coerce_metadata(value, schema, Malformed::Drop)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(())
}

/// Converts objects to a version, all at once.
async fn convert(
    registry: &Registry,
    definition: &Definition,
    mut values: Vec<Value>,
    target: &Version,
) -> Result<Vec<Value>, ApiError> {
    let strange: Vec<usize> =
        (0..values.len()).filter(|at| version_of(&values[*at]) != target.name).collect();
    if strange.is_empty() {
        return Ok(values);
    }
    let api_version = definition.api_version(&target.name);
    match &definition.webhook {
        None => strange.iter().for_each(|at| values[*at]["apiVersion"] = api_version.clone().into()),
        Some(webhook) => {
            let objects: Vec<Value> = strange.iter().map(|at| values[*at].clone()).collect();
            let converted = webhook::convert(registry, definition, webhook, objects, &api_version).await?;
            for (at, value) in strange.iter().zip(converted) {
                values[*at] = value;
            }
        }
    }
    for at in strange {
        shape(definition, target, &mut values[at])?;
    }
    Ok(values)
}

impl Registry {
    /// The form in which the resource serves a stored object.
    pub async fn served(&self, resource: &Resource, entry: &Entry) -> Result<Value, ApiError> {
        let value = entry.value();
        match &resource.custom {
            None => Ok(resource.to_served(value)),
            Some(kind) => {
                let made = convert(self, &kind.definition, vec![value], kind.version()).await?;
                Ok(made.into_iter().next().unwrap_or_default())
            }
        }
    }

    /// The form in which a served object is stored; most are stored as they are served.
    pub async fn stored<'v>(
        &self,
        resource: &Resource,
        value: &'v Value,
    ) -> Result<Cow<'v, Value>, ApiError> {
        let Some(kind) = &resource.custom else {
            return Ok(match resource.conversion {
                None => Cow::Borrowed(value),
                Some(_) => Cow::Owned(resource.to_stored(value.clone())),
            });
        };
        let definition = &kind.definition;
        if version_of(value) == definition.storage_version {
            return Ok(Cow::Borrowed(value));
        }
        let storage = definition
            .version(&definition.storage_version)
            .ok_or_else(|| ApiError::internal(format!("{} has no storage version", definition.name)))?;
        let made = convert(self, definition, vec![value.clone()], storage).await?;
        Ok(Cow::Owned(made.into_iter().next().unwrap_or_default()))
    }

    /// Entries in the version that the resource serves; those that are stored so are not touched.
    pub async fn entries(
        &self,
        resource: &Resource,
        mut entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, ApiError> {
        let Some(kind) = &resource.custom else { return Ok(entries) };
        let api_version = kind.definition.api_version(&kind.version().name);
        let strange: Vec<usize> = (0..entries.len()).filter(|at| !entries[*at].is_of(&api_version)).collect();
        if strange.is_empty() {
            return Ok(entries);
        }
        let values = strange.iter().map(|at| entries[*at].value()).collect();
        let converted = convert(self, &kind.definition, values, kind.version()).await?;
        for (at, value) in strange.into_iter().zip(converted) {
            let entry = &entries[at];
            let made = Entry::from_stored(
                entry.key.clone(),
                entry.revision,
                &object::encode(&value),
                labels_of(&value),
                entry.fields.clone(),
            );
            let made = made.ok_or_else(|| ApiError::internal("a converted object has no metadata"))?;
            entries[at] = Arc::new(made);
        }
        Ok(entries)
    }

    /// One entry in the version that the resource serves.
    pub async fn entry(&self, resource: &Resource, entry: Arc<Entry>) -> Result<Arc<Entry>, ApiError> {
        if resource.custom.is_none() {
            return Ok(entry);
        }
        let made = self.entries(resource, vec![entry.clone()]).await?;
        Ok(made.into_iter().next().unwrap_or(entry))
    }
}
