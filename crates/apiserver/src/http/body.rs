//! Response bodies and the two ways to build a response: from bytes, and from an error.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use orlop_api::status::ApiError;

/// Any error of a body or service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A response body: bytes known at once, or a stream.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// A response.
pub type Response = http::Response<Body>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A response with a content type.
pub fn response(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A plain text response.
pub fn text(code: u16, text: impl Into<String>) -> Response {
    response(code, "text/plain; charset=utf-8", text.into())
}

/// A JSON response.
pub fn json(code: u16, value: &orlop_json::Value) -> Response {
    response(code, "application/json", value.to_string())
}

/// The `Status` of an error as JSON.
pub fn error(error: &ApiError) -> Response {
    let bytes = orlop_json::to_vec(error.status()).unwrap_or_default();
    let mut response = response(error.code(), "application/json", bytes);
    if let Some(details) = &error.status().details
        && details.retry_after_seconds > 0
        && let Ok(value) = HeaderValue::from_str(&details.retry_after_seconds.to_string())
    {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}
