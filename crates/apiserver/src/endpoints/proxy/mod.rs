//! The `proxy` subresource of pods, Services and nodes: any HTTP request passed on, upgrades included. Answers that
//! point to places on the backend are rewritten to point through the proxy, as upstream's `proxyutil.Transport` does.

mod location;
mod rewrite;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use orlop_api::status::ApiError;
use orlop_streaming::upgrade::{self, Wanted};

use super::{Endpoint, backend};
use crate::admission::{ObjectKind, Operation, Request};
use crate::http::body::{self, BoxError, Response};
use rewrite::Rewriter;

/// Serves a proxy request.
pub(super) async fn serve(endpoint: &Endpoint<'_>) -> Result<Response, ApiError> {
    let parts = &endpoint.request.parts;
    let Some(tail) = tail(parts.uri.path(), &endpoint.request.info.resource) else {
        return Err(ApiError::path_not_found());
    };
    let target = location::resolve(endpoint)?;
    admit(endpoint, tail).await?;
    // Relative links in a page that has no slash at its end would lead out of the proxy.
    if tail.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(redirect(parts));
    }
    // Paths of kubelets are relative to nothing else.
    let path = if tail.is_empty() { "/" } else { tail };
    match forward(endpoint, &target, path).await {
        Ok(response) => Ok(response),
        Err(error) => {
            let text = format!("Error trying to reach service: '{error}'");
            Ok(body::text(StatusCode::SERVICE_UNAVAILABLE.as_u16(), text))
        }
    }
}

/// Admission sees the options object of the connection.
async fn admit(endpoint: &Endpoint<'_>, path: &str) -> Result<(), ApiError> {
    let kind = match endpoint.request.info.resource.as_str() {
        "pods" => "PodProxyOptions",
        "services" => "ServiceProxyOptions",
        _ => "NodeProxyOptions",
    };
    let mut options = orlop_json::json!({"kind": kind, "apiVersion": "v1"});
    if !path.is_empty() {
        options["path"] = path.into();
    }
    let call = endpoint.call(false, "");
    let mut request = Request::new(&call, Operation::Connect, &mut options, None)
        .of_kind(Some(ObjectKind::new("", "v1", kind)));
    endpoint.server.registry.admit(&mut request).await
}

/// What follows `.../NAME/proxy` in the path, as it was sent; `None` when the path is not of that form.
fn tail<'a>(path: &'a str, resource: &str) -> Option<&'a str> {
    // /api/v1/nodes/NAME/proxy, /api/v1/namespaces/NAMESPACE/pods/NAME/proxy
    let segments = if resource == "nodes" { 5 } else { 7 };
    let mut rest = path;
    for _ in 0..segments {
        let trimmed = rest.trim_start_matches('/');
        if trimmed.is_empty() {
            return None;
        }
        rest = trimmed.find('/').map_or("", |end| &trimmed[end..]);
    }
    Some(rest)
}

fn redirect(parts: &http::request::Parts) -> Response {
    let mut location = format!("{}/", parts.uri.path());
    if let Some(query) = parts.uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = body::text(StatusCode::MOVED_PERMANENTLY.as_u16(), "");
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

async fn forward(
    endpoint: &Endpoint<'_>,
    target: &backend::Backend,
    path: &str,
) -> Result<Response, BoxError> {
    let parts = &endpoint.request.parts;
    let upgrades = upgrade::wanted(&parts.headers) != Wanted::Other;
    let uri = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut headers = backend::headers(parts, upgrades);
    // Compressed pages could not be rewritten.
    headers.remove(header::ACCEPT_ENCODING);
    headers.insert(header::HOST, backend::value(&target.authority())?);
    let prefix = parts.uri.path().strip_suffix(path).unwrap_or(parts.uri.path());
    headers.insert(HeaderName::from_static("x-forwarded-uri"), backend::value(parts.uri.path())?);
    if let Some(host) = parts.headers.get(header::HOST) {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host.clone());
    }
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
    let mut request = http::Request::builder().method(parts.method.clone()).uri(uri);
    if let Some(all) = request.headers_mut() {
        *all = headers;
    }
    let upload = endpoint.request.upload.lock().take().unwrap_or_else(backend::empty);
    let response = target.send(request.body(upload)?).await?;
    let response = backend::answer(parts, response)?;
    let rewriter = Rewriter {
        prefix: prefix.to_owned(),
        backend: target.authority(),
        host: parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned(),
    };
    Ok(rewritten(response, rewriter))
}

/// Rewrites where a redirect leads, and the links of a page.
fn rewritten(mut response: Response, rewriter: Rewriter) -> Response {
    if response.status().is_redirection()
        && let Some(location) = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok())
        && let Ok(value) = HeaderValue::from_str(&rewriter.url(location))
    {
        response.headers_mut().insert(header::LOCATION, value);
        return response;
    }
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let is_page = content_type.is_some_and(|t| t.split(';').next().unwrap_or("").trim() == "text/html");
    if !is_page || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|page| rewriter.page(page).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_of_paths() {
        let check = |path: &str, resource: &str, expected: Option<&str>| {
            assert_eq!(tail(path, resource), expected, "{path}");
        };
        check("/api/v1/nodes/n1/proxy", "nodes", Some(""));
        check("/api/v1/nodes/n1/proxy/", "nodes", Some("/"));
        check("/api/v1/nodes/n1/proxy/logs/a%2Fb/", "nodes", Some("/logs/a%2Fb/"));
        check("/api/v1/namespaces/d/pods/p:80/proxy/x//y", "pods", Some("/x//y"));
        check("/api/v1/namespaces/d/pods/p", "pods", None);
    }
}
