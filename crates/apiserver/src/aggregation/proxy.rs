//! Passing a request on to the server that answers for it, and its answer back.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;

use super::Remote;
use crate::authn::UserInfo;
use crate::http::body::{self, Body, BoxError, Response};

/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// An error in the form of a plain web server.
fn error(code: u16, text: &str) -> Response {
    let mut response = body::text(code, format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        // What may stand in a header's name, the percent sign left out.
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Puts an identity into headers, in place of whatever a client claimed.
pub(super) fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", percent_encode(key).to_ascii_lowercase());
        values.iter().for_each(|value| add(&name, value));
    }
}

/// The headers of a request for a backend.
fn request_headers(from: &HeaderMap, user: &UserInfo, upgrade: bool) -> HeaderMap {
    let named: Vec<String> = from
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut headers = HeaderMap::with_capacity(from.len() + 6);
    for (name, value) in from {
        // The caller has proved who he is here; what he proved it with is not for others.
        let private = *name == header::AUTHORIZATION
            || *name == header::HOST
            || name.as_str().starts_with("impersonate-")
            || *name == header::CONTENT_LENGTH && upgrade;
        let hop = (HOP_BY_HOP.contains(name) || named.iter().any(|n| n == name.as_str()))
            && !(upgrade && (*name == header::CONNECTION || *name == header::UPGRADE));
        if !private && !hop {
            headers.append(name.clone(), value.clone());
        }
    }
    identify(&mut headers, user);
    headers
}

/// Whether a request wants to take its connection over.
fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.to_ascii_lowercase().contains("upgrade"))
}

/// Answers a request with what the backend answers.
pub async fn forward(remote: Arc<Remote>, parts: &Parts, user: &UserInfo, request_body: Body) -> Response {
    if !remote.available {
        return error(503, "service unavailable");
    }
    let backend = match &remote.backend {
        Ok(backend) => backend.clone(),
        Err(text) => return error(500, text),
    };
    let upgrade = is_upgrade(&parts.headers) && backend.has_connections();
    let target = parts.uri.path_and_query().map_or("/", |pq| pq.as_str());
    let host = remote.service.as_ref().map(|service| format!("{}.{}.svc", service.name, service.namespace));
    // Over the pool the target is a whole URI, else a path.
    let uri = match (&remote.service, &host) {
        (Some(service), Some(host)) if !upgrade => format!("https://{host}:{}{target}", service.port),
        _ => target.to_string(),
    };
    let mut request = match http::Request::builder().method(parts.method.clone()).uri(uri).body(request_body)
    {
        Ok(request) => request,
        Err(problem) => return error(500, &problem.to_string()),
    };
    *request.headers_mut() = request_headers(&parts.headers, user, upgrade);
    if upgrade {
        if let Ok(value) = HeaderValue::from_str(&host.unwrap_or_default()) {
            request.headers_mut().insert(header::HOST, value);
        }
        *request.body_mut() = body::full("");
        return match backend.send_alone(request).await {
            Ok(response) => take_over(parts, response),
            Err(text) => broken(&remote, &text),
        };
    }
    match backend.send(request).await {
        Ok(mut response) => {
            for name in HOP_BY_HOP {
                response.headers_mut().remove(name);
            }
            response
        }
        Err(text) => broken(&remote, &text),
    }
}

fn broken(remote: &Remote, text: &str) -> Response {
    tracing::warn!(name = remote.name, error = text, "an aggregated API server did not answer");
    error(503, &format!("error trying to reach service: {text}"))
}

/// Joins both connections when the backend agreed to change the protocol.
fn take_over(parts: &Parts, mut response: http::Response<hyper::body::Incoming>) -> Response {
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return response.map(|body| body.map_err(BoxError::from).boxed_unsync());
    }
    let Some(client) = parts.extensions.get::<hyper::upgrade::OnUpgrade>().cloned() else {
        return error(500, "the client's connection cannot be upgraded");
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
    });
    let (parts, _) = response.into_parts();
    http::Response::from_parts(parts, body::full(""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn identities_travel_in_headers_and_secrets_do_not() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "root"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("accept", "application/json"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
        ] {
            from.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut user = UserInfo::new("alice", &["team-a"]);
        user.uid = "u1".into();
        user.extra.insert("example.com/scope key".into(), vec!["x".into(), "y".into()]);
        let headers = request_headers(&from, &user, false);
        let mut got: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        got.sort();
        assert_eq!(
            got,
            [
                "accept: application/json",
                "x-remote-extra-example.com%2fscope%20key: x",
                "x-remote-extra-example.com%2fscope%20key: y",
                "x-remote-group: system:authenticated",
                "x-remote-group: team-a",
                "x-remote-uid: u1",
                "x-remote-user: alice",
            ]
        );
    }
}
