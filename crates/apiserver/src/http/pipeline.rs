//! The way of every request: request info, authentication, impersonation, authorization, routing, and what every
//! answer gets (warnings, audit id, compression, metrics).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;

use super::body::{self, BoxError, Response};
use super::filters::Limits;
use super::negotiate::{Accept, Format};
use super::seat::Seat;
use super::{discovery, gzip, openapi};
use crate::ApiServer;
use crate::audit::Trail;
use crate::authn::{Peer, UserInfo};
use crate::authz::{Attributes, Decision, forbidden, impersonation};
use crate::metrics::Verdict;
use crate::registry::{Annotations, Warnings, render};
use crate::request_info::{Query, RequestInfo};

/// Largest request body in bytes.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Where an identity comes from.
#[derive(Clone)]
pub enum Identity {
    /// A connection: what its client certificate proves, if it showed one; else the headers decide.
    Connection(Arc<Peer>),
    /// A client in this process.
    InProcess(Arc<UserInfo>),
}

/// A request on its way, after authentication and authorization.
pub struct Request {
    /// Method, URI, headers, extensions.
    pub parts: Parts,
    /// Where it goes.
    pub info: RequestInfo,
    /// Its query.
    pub query: Query,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// The form of the answer.
    pub accept: Accept,
    /// Warnings for the answer.
    pub warnings: Warnings,
    /// Annotations for the audit event.
    pub annotations: Annotations,
    /// The body of a request that is passed on as it comes (a proxy's); any other body has been read.
    pub upload: parking_lot::Mutex<Option<RequestBody>>,
}

/// Whether a request may go on.
enum Admitted {
    /// As this user.
    User(Arc<UserInfo>),
    /// Not now.
    Refused(Response),
}

/// Waiting that shows in the metrics, whose first bound is five milliseconds.
const NOTICEABLE: Duration = Duration::from_micros(500);

/// On an answer: how long its request waited for webhooks and for a seat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited(pub(super) Duration);

/// A request before it is admitted.
struct Incoming<'a> {
    parts: &'a Parts,
    info: &'a RequestInfo,
    query: &'a Query,
    identity: &'a Identity,
}

impl Identity {
    /// Where a connection comes from.
    fn address(&self) -> Option<std::net::IpAddr> {
        match self {
            Identity::Connection(peer) => peer.address,
            Identity::InProcess(_) => None,
        }
    }
}

/// A request body, read when it is needed.
pub type RequestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Bytes of a refused body that are read and thrown away, and for how long.
const DISCARDED: usize = 8 * MAX_BODY;
const DISCARD_TIME: std::time::Duration = std::time::Duration::from_secs(5);

/// Reads on for a while without keeping anything: HTTP/2 resets a stream whose body is dropped half read, and the
/// client would see that instead of the answer.
async fn discard(mut body: RequestBody) {
    let read = async {
        let mut left = DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // A client that stalls gets its answer too, or the reset.
    let _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

/// Reads a body whole; 413 above the limit.
pub async fn read_body(mut body: RequestBody) -> Result<Bytes, ApiError> {
    let mut first: Option<Bytes> = None;
    let mut more: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("the body of the request could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + more.len() + data.len() > MAX_BODY {
            discard(body).await;
            return Err(ApiError::request_entity_too_large(format!("limit is {MAX_BODY}")));
        }
        match &first {
            // Most bodies are one frame and need no copy.
            None => first = Some(data),
            Some(_) => more.extend_from_slice(&data),
        }
    }
    let first = first.unwrap_or_default();
    if more.is_empty() {
        return Ok(first);
    }
    let mut whole = first.to_vec();
    whole.append(&mut more);
    Ok(Bytes::from(whole))
}

/// Attributes of a request for the authorizers.
pub fn attributes<'a>(user: &'a UserInfo, info: &'a RequestInfo, query: &'a Query) -> Attributes<'a> {
    let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let selector = |name: &str| if selects { query.value(name) } else { "" };
    Attributes {
        user,
        verb: &info.verb,
        is_resource: info.is_resource,
        group: &info.group,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
        version: &info.version,
        field_selector: selector("fieldSelector"),
        label_selector: selector("labelSelector"),
    }
}

impl ApiServer {
    /// Serves a request that the outer filters let through.
    pub(super) async fn serve_request(
        self: Arc<Self>,
        mut parts: Parts,
        request_body: RequestBody,
        identity: Identity,
        info: RequestInfo,
        query: Query,
        limits: Limits,
    ) -> Response {
        let audit_id = parts
            .headers
            .get("audit-id")
            .cloned()
            .or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        let gzip_accepted = gzip::accepted(&parts.headers);
        let accept = Accept::negotiate(&parts.headers, query.get("pretty"));
        let error_accept = accept.clone().unwrap_or(Accept::JSON);
        let warnings = Warnings::default();
        let annotations = Annotations::default();
        let mut kept = None;
        let mut elsewhere_for = Duration::ZERO;
        let mut seat = Seat::None;
        // A body that is not read would cost the client its connection, so it is read whatever comes of the request.
        // Only requests that take the connection over have none that ends.
        let connects = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward");
        // What another server answers is passed on as it comes.
        let mut elsewhere = self.aggregator.find(&info.path);
        let mut upload = None;
        let body = if elsewhere.is_some() || info.subresource == "proxy" {
            upload = Some(request_body);
            Ok(Bytes::new())
        } else if connects {
            Ok(Bytes::new())
        } else {
            read_body(request_body).await
        };
        let mut trail = self.audit.as_ref().map(|audit| {
            let id = audit_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("");
            audit.trail(&parts, &info, id, identity.address())
        });
        let incoming = Incoming { parts: &parts, info: &info, query: &query, identity: &identity };
        let admitted = self.admit(&incoming, limits, &mut seat, &mut trail).await;
        self.authenticator.clear(&mut parts.headers);
        let result = match admitted {
            Err(error) => Err(error),
            Ok(Admitted::Refused(response)) => Ok(response),
            Ok(Admitted::User(user)) if elsewhere.is_some() => match (elsewhere.take(), upload.take()) {
                (Some(remote), Some(body)) => {
                    Ok(crate::aggregation::forward(remote, &parts, &user, body).await)
                }
                _ => Err(ApiError::internal("the request has no body to pass on")),
            },
            Ok(Admitted::User(user)) => {
                let accept = match (accept, info.is_resource) {
                    (Ok(accept), _) => Ok(accept),
                    // Other paths have forms of their own and negotiate themselves.
                    (Err(_), false) => Ok(Accept::JSON),
                    (Err(error), true) => Err(error),
                };
                match (accept, body) {
                    (Err(error), _) | (_, Err(error)) => Err(error),
                    (Ok(accept), Ok(body)) => {
                        if let Some(trail) = &mut trail {
                            trail.request(&parts, &body);
                        }
                        let request = Request {
                            parts,
                            info,
                            query,
                            user,
                            accept,
                            warnings,
                            annotations,
                            upload: parking_lot::Mutex::new(upload),
                        };
                        let result = self.clone().route(&request, body).await;
                        if let Some(trail) = &mut trail {
                            for (key, value) in request.annotations.take() {
                                trail.annotate(key, value);
                            }
                        }
                        elsewhere_for = request.annotations.waited();
                        kept = Some(request.warnings);
                        result
                    }
                }
            }
        };
        let mut response = match result {
            Ok(response) => response,
            Err(error) => error_response(&error, error_accept),
        };
        if let Some(trail) = trail {
            response = trail.finish(response).await;
        }
        let headers = response.headers_mut();
        for warning in kept.map(|w| w.take()).unwrap_or_default() {
            add_warning(headers, &warning);
        }
        if let Some(id) = audit_id {
            headers.insert("audit-id", id);
        }
        seat.note(headers);
        let waited = elsewhere_for + seat.waited();
        let transport = &self.options.strict_transport_security;
        if !transport.is_empty()
            && let Ok(value) = HeaderValue::from_str(&transport.join("; "))
        {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if waited >= NOTICEABLE {
            response.extensions_mut().insert(Waited(waited));
        }
        if gzip_accepted { gzip::compress(response).await } else { response }
    }

    /// Authentication, impersonation, priority and fairness, authorization.
    async fn admit(
        &self,
        incoming: &Incoming<'_>,
        limits: Limits,
        seat: &mut Seat,
        trail: &mut Option<Trail>,
    ) -> Result<Admitted, ApiError> {
        let Incoming { info, query, .. } = incoming;
        let begun = Instant::now();
        let identified = self.identify(incoming, trail).await;
        let verdict = if identified.is_ok() { Verdict::Yes } else { Verdict::No };
        self.metrics.authentication.observe(verdict, begun.elapsed());
        let user = identified?;
        if let Err(response) = self.take_seat(&user, info, query, limits, seat).await {
            return Ok(Admitted::Refused(response));
        }
        // Health checks must work before anybody has rights.
        if !info.is_resource && matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz") {
            return Ok(Admitted::User(user));
        }
        let begun = Instant::now();
        let attributes = attributes(&user, info, query);
        let decision = self.authorizer.authorize(&attributes).await;
        let verdict = if matches!(decision, Decision::Allow(_)) { Verdict::Yes } else { Verdict::No };
        self.metrics.authorization.observe(verdict, begun.elapsed());
        if let Some(trail) = trail {
            trail.authorized(&decision);
        }
        match decision {
            Decision::Allow(_) => Ok(Admitted::User(user)),
            Decision::NoOpinion(reason) | Decision::Deny(reason) => Err(forbidden(&attributes, &reason)),
            Decision::Failed(failure) => {
                let uri = incoming.parts.uri.path_and_query().map_or("", |uri| uri.as_str());
                let text = format!("Internal Server Error: {}: {}\n", go_quote(uri), failure.error);
                Ok(Admitted::Refused(body::response(500, "text/plain; charset=utf-8", text)))
            }
        }
    }

    /// Authentication and impersonation.
    async fn identify(
        &self,
        incoming: &Incoming<'_>,
        trail: &mut Option<Trail>,
    ) -> Result<Arc<UserInfo>, ApiError> {
        let Incoming { parts, info, query, identity } = incoming;
        let user = match identity {
            Identity::InProcess(user) => user.clone(),
            Identity::Connection(peer) => {
                self.authenticator.authenticate(&parts.headers, peer, &info.path).await?.into()
            }
        };
        if let Some(trail) = trail {
            if !trail.authenticated(&user).await {
                return Err(ApiError::internal("the audit event could not be recorded"));
            }
            if let Some(stale) = self.authenticator.stale_token(&parts.headers) {
                trail.annotate("authentication.k8s.io/stale-token", stale);
            }
        }
        match impersonation::wanted(&parts.headers)? {
            None => Ok(user),
            Some(wanted) => {
                let request = attributes(&user, info, query);
                let impersonated = self.authorizer.impersonate(wanted, &request).await?;
                if let Some(trail) = trail {
                    trail.impersonated(&impersonated.user, &impersonated.constraint);
                }
                Ok(impersonated.user.into())
            }
        }
    }

    async fn route(self: Arc<Self>, request: &Request, body: Bytes) -> Result<Response, ApiError> {
        if request.info.is_resource {
            return crate::endpoints::resource(self, request, body).await;
        }
        let path = request.info.path.as_str();
        let read = matches!(request.parts.method, Method::GET | Method::HEAD);
        let known = discovery::is_path(&self, path)
            || openapi::is_path(path)
            || crate::endpoints::is_plain_path(path);
        if !known {
            // A group that exists answers in the API's form, anything else as a plain web server.
            let parts: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
            let in_group = match parts.as_slice() {
                ["api", _] => true,
                ["apis", group, _] => self
                    .registry
                    .resources
                    .table()
                    .list
                    .iter()
                    .any(|r| r.custom.is_none() && r.group == *group),
                _ => false,
            };
            return if in_group {
                Err(ApiError::path_not_found())
            } else {
                Ok(body::text(404, "404 page not found\n"))
            };
        }
        if !read {
            let mut error = ApiError::generic(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            );
            error.0.details = Some(Default::default());
            return Err(error);
        }
        if discovery::is_path(&self, path) {
            return discovery::serve(&self, request);
        }
        if openapi::is_path(path) {
            return openapi::serve(self, request).await;
        }
        crate::endpoints::plain(&self, request).await
    }
}

/// An error in the negotiated format.
fn error_response(error: &ApiError, accept: Accept) -> Response {
    let mut response = body::error(error);
    if accept.format != Format::Json || accept.pretty {
        let value = orlop_json::to_value(error.status()).unwrap_or_default();
        *response.body_mut() = body::full(render::encode(&value, accept));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(accept.format.content_type()));
    }
    response
}

/// Adds `Warning: 299 - "text"`; control characters are dropped, quotes escaped.
fn add_warning(headers: &mut HeaderMap, text: &str) {
    let mut quoted = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
        headers.append(header::WARNING, value);
    }
}
