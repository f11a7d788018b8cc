//! Compression of large answers for clients that accept it.

use http::{HeaderMap, HeaderValue, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::body::{self, Response};

/// Answers smaller than this (bytes) are sent as they are, as upstream.
const THRESHOLD: u64 = 128 * 1024;

/// Whether the client accepts gzip.
pub fn accepted(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|encoding| encoding.split(';').next().unwrap_or("").trim() == "gzip")
    })
}

/// Compresses a response whose whole body is at hand and large.
pub async fn compress(response: Response) -> Response {
    let large = response.body().size_hint().exact().is_some_and(|size| size >= THRESHOLD);
    if !large || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return body::text(500, "the response could not be read");
    };
    let bytes = collected.to_bytes();
    let plain = bytes.clone();
    let packed = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut encoder =
            flate2::write::GzEncoder::new(Vec::with_capacity(plain.len() / 8), flate2::Compression::new(1));
        encoder.write_all(&plain).and_then(|()| encoder.finish())
    })
    .await;
    match packed {
        Ok(Ok(packed)) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            http::Response::from_parts(parts, body::full(packed))
        }
        _ => http::Response::from_parts(parts, body::full(bytes)),
    }
}
