//! The API for clients in this process: a tower service that runs the same pipeline without sockets and TLS.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;

use super::body::{Body, BoxError, Response};
use super::pipeline::{Identity, RequestBody};
use crate::ApiServer;
use crate::authn::UserInfo;

/// A `tower::Service` for `kube::Client::new`, acting as one user.
#[derive(Clone)]
pub struct InMemory {
    server: Arc<ApiServer>,
    user: Arc<UserInfo>,
}

impl ApiServer {
    /// A client transport that acts as `user`.
    pub fn in_memory(self: &Arc<Self>, user: UserInfo) -> InMemory {
        InMemory { server: self.clone(), user: Arc::new(user) }
    }
}

impl<B> tower::Service<http::Request<B>> for InMemory
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let identity = Identity::InProcess(self.user.clone());
        answer(self.server.clone(), identity, request.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}

/// Runs the pipeline. No generics here: the pipeline is compiled in this crate, not by each caller.
fn answer(
    server: Arc<ApiServer>,
    identity: Identity,
    request: http::Request<RequestBody>,
) -> BoxFuture<'static, Result<Response, BoxError>> {
    if request.headers().contains_key(http::header::UPGRADE) {
        return Box::pin(upgrade(server, identity, request));
    }
    let (parts, body) = request.into_parts();
    Box::pin(async move { Ok(server.handle(parts, body, identity).await) })
}

/// A request that takes the connection over needs one: a pipe in memory that speaks HTTP/1.1.
async fn upgrade(
    server: Arc<ApiServer>,
    identity: Identity,
    mut request: http::Request<RequestBody>,
) -> Result<Response, BoxError> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (server, identity) = (server.clone(), identity.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body: Body = body.map_err(BoxError::from).boxed_unsync();
            Ok::<_, std::convert::Infallible>(server.handle(parts, body, identity).await)
        }
    });
    tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(theirs), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "in-memory connection ended");
        }
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    if let Some(path) = request.uri().path_and_query() {
        *request.uri_mut() = http::Uri::from(path.clone());
    }
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
}
