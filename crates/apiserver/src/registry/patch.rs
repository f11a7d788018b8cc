//! Patches: JSON patch, merge patch, strategic merge patch, server-side apply.

use std::sync::Arc;

use orlop_api::decode::{self, DecodeError, Decoded, FieldValidation, Media};
use orlop_api::field::{self, Path};
use orlop_api::patch::json;
use orlop_api::schema::Struct;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::update::Change;
use super::{Call, Registry, Warnings, Written, object};
use crate::managed;
use crate::resources::Resource;

/// A kind of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own, which knows list keys.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    /// By content type, of those that custom resources take; 415 for others.
    pub fn of_custom_media_type(media_type: &str) -> Result<PatchKind, ApiError> {
        match PatchKind::of_media_type(media_type) {
            Ok(kind) if kind != PatchKind::Strategic => Ok(kind),
            _ => Err(ApiError::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ])),
        }
    }

    /// By content type; 415 for others.
    pub fn of_media_type(media_type: &str) -> Result<PatchKind, ApiError> {
        match media_type {
            "application/json-patch+json" => Ok(PatchKind::Json),
            "application/merge-patch+json" => Ok(PatchKind::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
            "application/apply-patch+yaml" => Ok(PatchKind::Apply),
            _ => {
                let mut error = ApiError::generic(415, "UnsupportedMediaType", "415: Unsupported Media Type");
                error.0.details = Some(Default::default());
                Err(error)
            }
        }
    }
}

/// A patch that is ready to be applied to whatever is current.
pub struct Patch<'a> {
    kind: PatchKind,
    body: Value,
    resource: &'a Arc<Resource>,
    schema: Option<&'static Struct>,
    validation: FieldValidation,
    warnings: &'a Warnings,
    manager: &'a str,
    subresource: &'a str,
    force: bool,
}

impl<'a> Patch<'a> {
    /// Reads a patch body.
    pub fn new(
        call: &Call<'a>,
        kind: PatchKind,
        body: &[u8],
        validation: FieldValidation,
        force: bool,
    ) -> Result<Patch<'a>, ApiError> {
        let resource = call.resource;
        if resource.schema.is_none() && resource.custom.is_none() {
            return Err(ApiError::internal(format!("no type is known for {}", resource.kind)));
        }
        Ok(Patch {
            kind,
            body: read(kind, body, validation, call.warnings)?,
            resource,
            schema: resource.schema,
            validation,
            warnings: call.warnings,
            manager: call.field_manager,
            subresource: call.subresource,
            force,
        })
    }

    /// Reads a patched object again as its kind, and fills in defaults.
    fn settle(&self, patched: &Value) -> Result<Value, ApiError> {
        let settled = match (&self.resource.custom, self.schema) {
            (Some(kind), _) => crate::custom::decode::patched(kind, patched, self.validation),
            (None, Some(schema)) => decode::normalise(patched, schema, self.validation),
            (None, None) => Err(DecodeError::Malformed("no type is known".to_string())),
        };
        let mut value = settled_by(self.kind, patched, settled, self.warnings)?;
        value["kind"] = self.resource.kind.clone().into();
        value["apiVersion"] = self.resource.group_version().into();
        if let Some(strategy) = self.resource.strategy() {
            strategy.defaults(&mut value);
        }
        Ok(value)
    }

    /// The object an apply to nothing makes.
    fn applied(&self, live: Option<&Value>) -> Result<Value, ApiError> {
        managed::apply(
            self.resource,
            self.subresource,
            live,
            &self.body,
            self.manager,
            self.force,
            |merged| self.settle(merged),
        )
    }
}

/// Reads the body of a patch.
pub fn read(
    kind: PatchKind,
    body: &[u8],
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, ApiError> {
    // Unless complaints are ignored, upstream reads patches of these two kinds once more to find some.
    let reread = validation != FieldValidation::Ignore && matches!(kind, PatchKind::Json | PatchKind::Merge);
    let refused = |text: String| match kind {
        PatchKind::Apply => ApiError::bad_request(format!("error decoding YAML: {text}")),
        _ if reread => ApiError::bad_request(format!("error decoding patch: {text}")),
        _ => ApiError::bad_request(text),
    };
    let media = if kind == PatchKind::Apply { Media::Yaml } else { Media::Json };
    let (value, duplicates) = decode::parse_strict(body, media).map_err(|error| match kind {
        PatchKind::Apply => refused(format!("error converting YAML to JSON: {error}")),
        _ => refused(error.to_string()),
    })?;
    let no_map = |value: &Value| {
        let what = json::go_kind(value);
        format!("json: cannot unmarshal {what} into Go value of type map[string]interface {{}}")
    };
    match (kind, &value) {
        (PatchKind::Json, _) if reread => json::check_operations(&value).map_err(refused)?,
        (PatchKind::Json, _) | (_, Value::Object(_)) | (PatchKind::Apply, Value::Null) => {}
        (PatchKind::Apply, value) => {
            return Err(refused(format!("error unmarshaling JSON: while decoding JSON: {}", no_map(value))));
        }
        (PatchKind::Merge, Value::Null) => return Err(ApiError::bad_request("invalid JSON Patch")),
        (PatchKind::Merge, value) if reread => return Err(refused(no_map(value))),
        (PatchKind::Strategic, Value::Null) => return Ok(Value::Object(Default::default())),
        (PatchKind::Strategic, value) => return Err(refused(no_map(value))),
        (PatchKind::Merge, _) => {}
    }
    match validation {
        FieldValidation::Strict if !duplicates.is_empty() => {
            return Err(ApiError::bad_request(if kind == PatchKind::Apply {
                format!(
                    "error strict decoding YAML: error converting YAML to JSON: {}",
                    duplicates.join(", ")
                )
            } else {
                DecodeError::Strict(duplicates).to_string()
            }));
        }
        FieldValidation::Warn => duplicates.into_iter().for_each(|text| warnings.add(text)),
        _ => {}
    }
    Ok(value)
}

/// What reading a patched object again as its kind has come to.
pub fn settled_by(
    kind: PatchKind,
    patched: &Value,
    settled: Result<Decoded, DecodeError>,
    warnings: &Warnings,
) -> Result<Value, ApiError> {
    let decoded = settled.map_err(|mut error| {
        if let (PatchKind::Strategic, DecodeError::Strict(all)) = (kind, &mut error) {
            all.sort();
        }
        let cause = field::invalid(&Path::new("patch"), patched.to_string(), error.to_string());
        ApiError::invalid("", "", "", vec![cause])
    })?;
    let mut texts = decoded.warnings;
    if kind == PatchKind::Strategic {
        // Upstream reads the result of this kind field by field and sorts its complaints; other results it decodes.
        texts.sort();
    }
    texts.into_iter().for_each(|text| warnings.add(text));
    Ok(decoded.value)
}

/// Applies a patch to a plain value, without settling it.
pub fn apply_plain(
    kind: PatchKind,
    current: &Value,
    patch: &Value,
    schema: Option<&'static Struct>,
) -> Result<Value, ApiError> {
    use orlop_api::patch::{merge, strategic};
    match (kind, schema) {
        (PatchKind::Json, _) => json::apply(current, patch).map_err(|e| e.into_api_error()),
        (PatchKind::Strategic, Some(schema)) => {
            strategic::apply(current, patch, schema).map_err(|e| e.into_api_error())
        }
        _ => Ok(merge::apply(current, patch)),
    }
}

impl Change for Patch<'_> {
    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        if self.kind == PatchKind::Apply {
            return self.applied(Some(current));
        }
        let mut patched = apply_plain(self.kind, current, &self.body, self.schema)?;
        // A patch that does not speak of the version does not mean one.
        let named = match self.kind {
            PatchKind::Json => {
                object::meta(&patched, "resourceVersion") != object::meta(current, "resourceVersion")
            }
            _ => self.body.pointer("/metadata/resourceVersion").is_some(),
        };
        if !named {
            object::set_meta(&mut patched, "resourceVersion", None);
        }
        self.settle(&patched)
    }

    fn owns_managed_fields(&self) -> bool {
        self.kind == PatchKind::Apply
    }

    fn is_patch(&self) -> bool {
        true
    }

    /// Upstream tries a patch five times.
    fn attempts(&self) -> usize {
        5
    }
}

impl Registry {
    /// Creates the object that an apply names and that does not exist.
    pub async fn create_applied(&self, call: &Call<'_>, patch: &Patch<'_>) -> Result<Written, ApiError> {
        let mut object = patch.applied(None)?;
        super::create::align_namespace(call, &mut object)?;
        super::update::check_name(&object, call.name)?;
        object::set_meta(&mut object, "resourceVersion", None);
        self.create_prepared(call, object).await
    }
}
