//! Answers in the form the client asked for: the object, a `Table` of it, or its metadata only; JSON, YAML or protobuf.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use orlop_api::field::{self, Path};
use orlop_api::protobuf;
use orlop_api::status::ApiError;
use orlop_json::{Key, Value, json};

use super::list::Page;
use super::{Written, watch};
use crate::cache::Entry;
use crate::http::negotiate::{Accept, Format, View};
use crate::resources::Resource;

/// What a table row carries besides its cells (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    /// Metadata (the default).
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl IncludeObject {
    /// Reads the query parameter.
    ///
    /// # Errors
    /// 400 for another value.
    pub fn parse(text: &str) -> Result<IncludeObject, ApiError> {
        match text {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "Object" => Ok(IncludeObject::Object),
            "None" => Ok(IncludeObject::None),
            other => {
                let detail = "must be 'Metadata', 'Object', 'None', or empty";
                let error = field::invalid(&Path::new("includeObject"), other, detail);
                Err(ApiError::bad_request(format!("Unable to convert to Table as requested: {error}")))
            }
        }
    }
}

/// Renders objects of one resource for one request.
#[derive(Clone)]
pub struct Renderer {
    resource: Arc<Resource>,
    accept: Accept,
    include: IncludeObject,
    /// Whether a table's columns were already sent on this watch.
    columns_sent: bool,
}

/// Encodes a value in the negotiated format.
pub fn encode(value: &Value, accept: Accept) -> Bytes {
    match accept.format {
        Format::Yaml => Bytes::from(to_yaml(value)),
        // Every kind that is served has a message; tables, which have none, are not negotiated.
        Format::Protobuf => Bytes::from(protobuf::encode(value).unwrap_or_default()),
        Format::Json if accept.pretty => {
            let mut text = orlop_json::to_vec_pretty(value).unwrap_or_default();
            text.push(b'\n');
            Bytes::from(text)
        }
        Format::Json => Bytes::from(orlop_json::to_vec(value).unwrap_or_default()),
    }
}

/// YAML with sorted keys, as upstream writes it.
pub fn to_yaml(value: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut keys: Vec<&Key> = map.keys().collect();
                keys.sort();
                Value::Object(keys.into_iter().map(|k| (k.clone(), sorted(&map[k]))).collect())
            }
            Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    serde_saphyr::to_string(&sorted(value)).unwrap_or_default()
}

impl Renderer {
    /// For answers about `resource` in the negotiated form.
    pub fn new(resource: Arc<Resource>, accept: Accept, include: IncludeObject) -> Renderer {
        Renderer { resource, accept, include, columns_sent: false }
    }

    /// Whether the object is shown as it is stored.
    fn is_plain(&self) -> bool {
        // A list view means nothing for single objects: they are sent as they are.
        matches!(self.accept.view, View::Object) && self.resource.conversion.is_none()
    }

    fn sends_bytes(&self) -> bool {
        self.is_plain() && self.accept.format == Format::Json && !self.accept.pretty
    }

    fn sends_messages(&self) -> bool {
        self.is_plain() && self.accept.format == Format::Protobuf
    }

    /// Whether watch events can be sent as all other plain JSON watches get them.
    pub fn sends_frames(&self) -> bool {
        self.is_plain() && self.accept.format != Format::Protobuf
    }

    /// Whether objects may be stored in another version than they are shown in.
    pub fn converts(&self) -> bool {
        self.resource.custom.as_ref().is_some_and(|kind| kind.definition.versions.len() > 1)
    }

    /// The resource whose objects are shown.
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// One stored object in protobuf.
    fn enveloped(&self, entry: &Entry) -> Vec<u8> {
        protobuf::envelope(&self.resource.group_version(), &self.resource.kind, &entry.message())
    }

    fn served(&self, entry: &Entry) -> Value {
        self.resource.to_served(entry.value())
    }

    /// One stored object.
    pub fn entry(&self, entry: &Entry) -> Bytes {
        if self.sends_bytes() {
            entry.bytes.clone()
        } else if self.sends_messages() {
            Bytes::from(self.enveloped(entry))
        } else if let View::Partial(version) = self.accept.view
            && let Some(object) = self.partial_bytes(entry, version)
        {
            object
        } else {
            self.value(&self.served(entry))
        }
    }

    /// The result of a write.
    pub fn written(&self, written: &Written) -> Bytes {
        match written {
            Written::Stored(entry) => self.entry(entry),
            Written::Unstored(value) => self.value(value),
        }
    }

    /// One object in served form.
    pub fn value(&self, value: &Value) -> Bytes {
        encode(&self.view(value), self.accept)
    }

    /// The metadata of an object.
    fn partial(&self, object: &Value, version: &str) -> Value {
        let mut metadata = object["metadata"].clone();
        let internal = self.resource.strategy().map_or(&[][..], |strategy| strategy.internal_annotations());
        if !internal.is_empty()
            && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
        {
            annotations.retain(|key, _| !internal.contains(&key.as_str()));
            if annotations.is_empty()
                && let Some(metadata) = metadata.as_object_mut()
            {
                metadata.remove("annotations");
            }
        }
        json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata})
    }

    /// The same as JSON straight from the stored bytes, when the metadata is shown as it is stored: those who follow
    /// metadata follow everything, and parsing each object for them is what they want to spare.
    fn partial_bytes(&self, entry: &Entry, version: &str) -> Option<Bytes> {
        let internal = self.resource.strategy().map_or(&[][..], |strategy| strategy.internal_annotations());
        let plain = self.accept.format == Format::Json && !self.accept.pretty;
        if !plain || !internal.is_empty() || self.resource.conversion.is_some() {
            return None;
        }
        let metadata = entry.metadata();
        let mut out = BytesMut::with_capacity(metadata.len() + 96);
        out.put_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
        out.put_slice(version.as_bytes());
        out.put_slice(b"\",\"metadata\":");
        out.put_slice(metadata);
        out.put_u8(b'}');
        Some(out.freeze())
    }

    fn view(&self, value: &Value) -> Value {
        match self.accept.view {
            View::Object | View::PartialList(_) => value.clone(),
            View::Partial(version) => self.partial(value, version),
            View::Table(version) => {
                let revision = value["metadata"].get("resourceVersion");
                let metadata = revision.map_or(json!({}), |revision| json!({"resourceVersion": revision}));
                self.table(version, metadata, true, std::iter::once(value))
            }
        }
    }

    /// A list.
    pub fn page(&self, page: &Page) -> Bytes {
        let kind = self.resource.list_kind();
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        // Items of a custom resource's list say what they are, and its metadata is never without a token.
        let custom = self.resource.custom.is_some();
        if custom && self.accept.view == View::Object {
            metadata = json!({"continue": "", "resourceVersion": page.revision.to_string()});
        }
        if !page.continue_token.is_empty() {
            metadata["continue"] = json!(page.continue_token);
            if let Some(remaining) = page.remaining {
                metadata["remainingItemCount"] = json!(remaining);
            }
        }
        if self.sends_bytes() {
            let size: usize = page.entries.iter().map(|entry| entry.bytes.len() + 1).sum();
            let mut out = BytesMut::with_capacity(size + 256);
            out.put_slice(
                format!(
                    "{{\"kind\":\"{kind}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    self.resource.group_version()
                )
                .as_bytes(),
            );
            for (at, entry) in page.entries.iter().enumerate() {
                if at > 0 {
                    out.put_u8(b',');
                }
                if custom {
                    out.put_slice(&entry.bytes);
                    continue;
                }
                let (start, rest) = entry.item();
                out.put_slice(start);
                out.put_slice(rest);
            }
            out.put_slice(b"]}");
            return out.freeze();
        }
        if self.sends_messages() {
            let items: Vec<Bytes> = page.entries.iter().map(|entry| entry.message()).collect();
            let items = items.iter().map(|item| item.as_ref());
            let version = self.resource.group_version();
            return Bytes::from(protobuf::encode_list(&version, &kind, &metadata, items));
        }
        if let View::Partial(version) | View::PartialList(version) = self.accept.view {
            let items: Option<Vec<_>> =
                page.entries.iter().map(|entry| self.partial_bytes(entry, version)).collect();
            if let Some(items) = items {
                let head = format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":["
                );
                return Bytes::from([head.as_bytes(), &items.join(&b","[..]), b"]}"].concat());
            }
        }
        self.list(page.entries.iter().map(|entry| self.served(entry)).collect(), metadata)
    }

    /// A list of objects in served form.
    pub fn list(&self, objects: Vec<Value>, metadata: Value) -> Bytes {
        let custom = self.resource.custom.is_some();
        let value = match self.accept.view {
            View::Table(version) => self.table(version, metadata, true, objects.iter()),
            View::Partial(version) | View::PartialList(version) => {
                let items: Vec<Value> = objects.iter().map(|object| self.partial(object, version)).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items})
            }
            View::Object => {
                let items: Vec<Value> = objects
                    .into_iter()
                    .map(|mut object| {
                        if let Some(map) = object.as_object_mut().filter(|_| !custom) {
                            map.remove("kind");
                            map.remove("apiVersion");
                        }
                        object
                    })
                    .collect();
                let kind = self.resource.list_kind();
                json!({"kind": kind, "apiVersion": self.resource.group_version(), "metadata": metadata, "items": items})
            }
        };
        encode(&value, self.accept)
    }

    fn table<'a>(
        &self,
        version: &str,
        metadata: Value,
        columns: bool,
        objects: impl Iterator<Item = &'a Value>,
    ) -> Value {
        let now = jiff::Timestamp::now();
        let rows: Vec<Value> = objects
            .map(|object| {
                let cells = match self.resource.strategy() {
                    Some(strategy) => strategy.cells(object, now),
                    None => vec![object["metadata"]["name"].clone()],
                };
                let mut row = json!({"cells": cells});
                match self.include {
                    IncludeObject::Metadata => row["object"] = self.partial(object, version),
                    IncludeObject::Object => row["object"] = object.clone(),
                    IncludeObject::None => row["object"] = Value::Null,
                }
                row
            })
            .collect();
        let definitions = if columns { self.columns() } else { Value::Null };
        json!({"kind": "Table", "apiVersion": version, "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
    }

    fn columns(&self) -> Value {
        self.resource
            .columns
            .iter()
            .map(|column| {
                let description = match column.description.as_str() {
                    "" => format!("{} of the {}", column.name, self.resource.kind),
                    description => description.to_owned(),
                };
                json!({
                    "name": column.name,
                    "type": column.kind,
                    "format": column.format,
                    "description": description,
                    "priority": column.priority,
                })
            })
            .collect()
    }

    /// A watch event.
    pub fn event(&mut self, kind: &str, entry: &Entry) -> Bytes {
        if self.sends_frames() {
            return crate::cache::frame(kind, &entry.bytes);
        }
        if self.sends_messages() {
            return Bytes::from(protobuf::watch_frame(kind, &self.enveloped(entry)));
        }
        if let View::Partial(version) | View::PartialList(version) = self.accept.view
            && let Some(object) = self.partial_bytes(entry, version)
        {
            return crate::cache::frame(kind, &object);
        }
        let object = self.served(entry);
        let value = match self.accept.view {
            View::Object => object,
            View::Partial(version) | View::PartialList(version) => self.partial(&object, version),
            View::Table(version) => {
                let metadata = json!({"resourceVersion": entry.revision.to_string()});
                let first = !std::mem::replace(&mut self.columns_sent, true);
                self.table(version, metadata, first, std::iter::once(&object))
            }
        };
        self.frame(kind, &value)
    }

    /// A bookmark event.
    pub fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let api_version = self.resource.group_version();
        let object = match self.accept.view {
            View::Object => watch::bookmark_object(&self.resource.kind, &api_version, revision, initial_end),
            View::Partial(version) | View::PartialList(version) => {
                watch::bookmark_object("PartialObjectMetadata", version, revision, initial_end)
            }
            View::Table(version) => {
                let object = watch::bookmark_object(&self.resource.kind, &api_version, revision, initial_end);
                let metadata = json!({"resourceVersion": revision.to_string()});
                let first = !std::mem::replace(&mut self.columns_sent, true);
                self.table(version, metadata, first, std::iter::once(&object))
            }
        };
        self.frame("BOOKMARK", &object)
    }

    /// An event in the stream's form.
    fn frame(&self, kind: &str, object: &Value) -> Bytes {
        if self.accept.format == Format::Protobuf {
            return Bytes::from(protobuf::watch_frame(kind, &encode(object, self.accept)));
        }
        crate::cache::frame(kind, &orlop_json::to_vec(object).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_sorted() {
        let yaml = to_yaml(&json!({"b": 1, "a": ["x"], "c": {"z": "true", "y": null}}));
        assert!(yaml.find("a:") < yaml.find("b:") && yaml.find("y:") < yaml.find("z:"), "{yaml}");
    }
}
