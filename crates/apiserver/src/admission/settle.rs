//! What admission made of an object, read again as its kind: unknown fields go, defaults come.

use orlop_api::decode::{self, FieldValidation};
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::Request;
use crate::resources::Resource;

/// Reads a changed object again as the kind the request is about.
pub fn settle(request: &Request<'_>, mut object: Value) -> Result<Value, ApiError> {
    let resource = request.call.resource;
    let kind = request.kind();
    let (name, api_version) = (kind.kind.to_string(), kind.api_version());
    let schema = match request.own_kind {
        Some(kind) => orlop_api::schema::kind(kind.group, kind.version, kind.kind),
        None => resource.schema,
    };
    if let Some(schema) = schema {
        object =
            decode::normalise(&object, schema, FieldValidation::Ignore).map_err(ApiError::internal)?.value;
    }
    object["kind"] = name.into();
    object["apiVersion"] = api_version.into();
    if request.own_kind.is_none()
        && let Some(strategy) = resource.strategy()
    {
        strategy.defaults(&mut object);
    }
    Ok(object)
}

/// An object of one resource in the form of an equivalent one.
pub fn convert(from: &Resource, to: &Resource, object: &Value) -> Value {
    if object.is_null() {
        return Value::Null;
    }
    to.to_served(from.to_stored(object.clone()))
}
