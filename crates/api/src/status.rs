//! `meta/v1` Status and the errors an API server answers with.
//!
//! One constructor for each of upstream's `k8s.io/apimachinery/pkg/api/errors` constructors: code, reason, message and
//! details are theirs, so that a client's `IsNotFound` and a script's grep both keep working.

use std::fmt;

use orlop_json::Map;
use serde::{Deserialize, Serialize};

use crate::field::{ErrorList, go_quote};

/// `meta/v1` Status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Status`.
    #[serde(default = "status_kind")]
    pub kind: String,
    /// `v1`.
    #[serde(default = "status_version")]
    pub api_version: String,
    /// ListMeta, empty in answers to errors.
    #[serde(default)]
    pub metadata: Map,
    /// `Success` or `Failure`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For machines: `NotFound`, `Conflict`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// The HTTP status code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// What a Status is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    /// The object's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource (in most errors) or the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The object's uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One entry a complaint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// Seconds to wait before trying again; 0 = nothing said.
    #[serde(default, skip_serializing_if = "is_zero_i32")]
    pub retry_after_seconds: i32,
}

/// One complaint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusCause {
    /// `FieldValueInvalid`, `FieldManagerConflict`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The path of the field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn status_kind() -> String {
    "Status".into()
}

fn status_version() -> String {
    "v1".into()
}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

fn is_zero_i32(seconds: &i32) -> bool {
    *seconds == 0
}

impl Status {
    /// A success with details, as delete answers.
    pub fn success(details: Option<StatusDetails>) -> Status {
        Status {
            kind: status_kind(),
            api_version: status_version(),
            metadata: Map::new(),
            status: "Success".into(),
            message: String::new(),
            reason: String::new(),
            details,
            code: 0,
        }
    }

    /// A failure without details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Status {
        Status {
            kind: status_kind(),
            api_version: status_version(),
            metadata: Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }
}

/// A refusal that a client gets as a [`Status`].
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(pub Box<Status>);

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl From<Status> for ApiError {
    fn from(status: Status) -> ApiError {
        ApiError(Box::new(status))
    }
}

/// `deployments.apps`, or `pods` in the core group.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> StatusDetails {
    StatusDetails { name: name.into(), group: group.into(), kind: kind.into(), ..StatusDetails::default() }
}

fn failure(code: u16, reason: &str, message: impl Into<String>, details: Option<StatusDetails>) -> ApiError {
    let mut status = Status::failure(code, reason, message);
    status.details = details;
    status.into()
}

/// The text of several errors: one alone as it is, more in brackets, equal ones once.
pub fn aggregate<S: AsRef<str>>(messages: impl IntoIterator<Item = S>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for message in messages {
        if !seen.iter().any(|s| s == message.as_ref()) {
            seen.push(message.as_ref().to_owned());
        }
    }
    if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
}

impl ApiError {
    /// The Status.
    pub fn status(&self) -> &Status {
        &self.0
    }

    /// The Status, to send.
    pub fn into_status(self) -> Status {
        *self.0
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// The reason, for machines.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// 404: there is no such object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> ApiError {
        let message = format!("{} {} not found", qualified(group, resource), go_quote(name));
        failure(404, "NotFound", message, Some(details(group, resource, name)))
    }

    /// 404: there is no such path (upstream's generic answer).
    pub fn path_not_found() -> ApiError {
        failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
            Some(StatusDetails::default()),
        )
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> ApiError {
        let message = format!("{} {} already exists", qualified(group, resource), go_quote(name));
        failure(409, "AlreadyExists", message, Some(details(group, resource, name)))
    }

    /// 409: the name generated from `generateName` is taken (the client may try again).
    pub fn generate_name_conflict(
        group: &str,
        resource: &str,
        name: &str,
        retry_after_seconds: i32,
    ) -> ApiError {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            go_quote(name)
        );
        let mut details = details(group, resource, name);
        details.retry_after_seconds = retry_after_seconds;
        failure(409, "AlreadyExists", message, Some(details))
    }

    /// 409: somebody else was faster.
    pub fn conflict(group: &str, resource: &str, name: &str, message: impl fmt::Display) -> ApiError {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {message}",
            qualified(group, resource),
            go_quote(name)
        );
        failure(409, "Conflict", message, Some(details(group, resource, name)))
    }

    /// 409: server-side apply met fields that others own.
    pub fn apply_conflict(causes: Vec<StatusCause>, message: impl Into<String>) -> ApiError {
        failure(409, "Conflict", message, Some(StatusDetails { causes, ..StatusDetails::default() }))
    }

    /// 422: the object breaks rules. `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: ErrorList) -> ApiError {
        let causes = errors
            .iter()
            .map(|error| StatusCause {
                reason: error.kind.reason().into(),
                message: error.body(),
                field: error.field.clone(),
            })
            .collect();
        let mut message = format!("{} {} is invalid", qualified(group, kind), go_quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors.iter().map(ToString::to_string)));
        }
        let mut details = details(group, kind, name);
        details.causes = causes;
        failure(422, "Invalid", message, Some(details))
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        failure(400, "BadRequest", message, None)
    }

    /// 403: refused by authorization or admission.
    pub fn forbidden(group: &str, resource: &str, name: &str, message: impl fmt::Display) -> ApiError {
        let text = if resource.is_empty() {
            format!("forbidden: {message}")
        } else if name.is_empty() {
            format!("{} is forbidden: {message}", qualified(group, resource))
        } else {
            format!("{} {} is forbidden: {message}", qualified(group, resource), go_quote(name))
        };
        failure(403, "Forbidden", text, Some(details(group, resource, name)))
    }

    /// 401: who are you? An empty message says `not authorized`.
    pub fn unauthorized(message: &str) -> ApiError {
        failure(401, "Unauthorized", if message.is_empty() { "not authorized" } else { message }, None)
    }

    /// 405: the resource has no such verb.
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> ApiError {
        let message =
            format!("{verb} is not supported on resources of kind {}", go_quote(&qualified(group, resource)));
        failure(405, "MethodNotAllowed", message, Some(details(group, resource, "")))
    }

    /// 500: our fault.
    pub fn internal(error: impl fmt::Display) -> ApiError {
        let text = error.to_string();
        let cause = StatusCause { message: text.clone(), ..StatusCause::default() };
        failure(
            500,
            "InternalError",
            format!("Internal error occurred: {text}"),
            Some(StatusDetails { causes: vec![cause], ..StatusDetails::default() }),
        )
    }

    /// 504: the request took too long.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: i32) -> ApiError {
        failure(
            504,
            "Timeout",
            format!("Timeout: {message}"),
            Some(StatusDetails { retry_after_seconds, ..StatusDetails::default() }),
        )
    }

    /// 500: the operation could not be completed now; try again.
    pub fn server_timeout(
        group: &str,
        resource: &str,
        operation: &str,
        retry_after_seconds: i32,
    ) -> ApiError {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        let mut details = details(group, resource, operation);
        details.retry_after_seconds = retry_after_seconds;
        failure(500, "ServerTimeout", message, Some(details))
    }

    /// 503: not now.
    pub fn service_unavailable(message: impl Into<String>) -> ApiError {
        failure(503, "ServiceUnavailable", message, None)
    }

    /// 429: slow down; try again in `retry_after_seconds`.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> ApiError {
        failure(
            429,
            "TooManyRequests",
            message,
            Some(StatusDetails { retry_after_seconds, ..StatusDetails::default() }),
        )
    }

    /// 410: the resource version or the continue token is too old.
    pub fn expired(message: impl Into<String>) -> ApiError {
        failure(410, "Expired", message, None)
    }

    /// 410: it was there and will not come back.
    pub fn gone(message: impl Into<String>) -> ApiError {
        failure(410, "Gone", message, None)
    }

    /// 415: the body's media type is none of `accepted`.
    pub fn unsupported_media_type(accepted: &[&str]) -> ApiError {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        failure(415, "UnsupportedMediaType", message, None)
    }

    /// 406: the client accepts none of `accepted`.
    pub fn not_acceptable(accepted: &[&str]) -> ApiError {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        failure(406, "NotAcceptable", message, None)
    }

    /// 413: the body is too large.
    pub fn request_entity_too_large(message: impl fmt::Display) -> ApiError {
        failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"), None)
    }

    /// Any other code and reason.
    pub fn generic(code: u16, reason: &str, message: impl Into<String>) -> ApiError {
        failure(code, reason, message, None)
    }

    /// The same error with these details.
    #[must_use]
    pub fn with_details(mut self, details: StatusDetails) -> ApiError {
        self.0.details = Some(details);
        self
    }

    /// The same error with one more cause.
    #[must_use]
    pub fn with_cause(mut self, cause: StatusCause) -> ApiError {
        self.0.details.get_or_insert_with(StatusDetails::default).causes.push(cause);
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::field::{Path, invalid, required};

    #[test]
    fn statuses_encode_as_upstream() {
        let cases = [
            (
                ApiError::not_found("apps", "deployments", "web"),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"web\" not found","reason":"NotFound","details":{"name":"web","group":"apps","kind":"deployments"},"code":404}"#,
            ),
            (
                ApiError::invalid("", "Pod", "p", vec![required(&Path::new("a"), "x")]),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Pod \"p\" is invalid: a: Required value: x","reason":"Invalid","details":{"name":"p","kind":"Pod","causes":[{"reason":"FieldValueRequired","message":"Required value: x","field":"a"}]},"code":422}"#,
            ),
            (
                ApiError::bad_request("no"),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"no","reason":"BadRequest","code":400}"#,
            ),
        ];
        for (error, want) in cases {
            assert_eq!(orlop_json::to_string(error.status()).unwrap(), want);
        }
    }

    #[test]
    fn several_errors_stand_in_brackets_once_each() {
        let p = Path::new("a");
        let errors = vec![required(&p, ""), required(&p, ""), invalid(&p, 1, "x")];
        let error = ApiError::invalid("", "Pod", "p", errors);
        assert_eq!(error.to_string(), "Pod \"p\" is invalid: [a: Required value, a: Invalid value: 1: x]");
        assert_eq!(error.status().details.as_ref().unwrap().causes.len(), 3);
    }
}
