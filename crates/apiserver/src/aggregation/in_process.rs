//! API servers of this process: each answers for a group and version until somebody names a Service for it.
//!
//! Its APIService is made as a local one (it names no Service), and made again when it goes. An APIService of the same
//! name that does name a Service, as a metrics-server from outside brings one, is left alone and wins. Requests reach
//! the server as they would over a connection: authorized, with the caller's identity in headers.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::Priority;
use crate::http::body::{Body, Response};

/// Answers one request.
pub type Answer = Arc<dyn Fn(http::Request<Body>) -> BoxFuture<'static, Response> + Send + Sync>;

/// An API server of this process.
#[derive(Clone)]
pub struct InProcess {
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Of its APIService.
    pub priority: Priority,
    /// The server: discovery of the group and version, its OpenAPI documents, its resources.
    pub answer: Answer,
}

impl InProcess {
    /// A server that answers with a function.
    pub fn new<F, R>(group: &str, version: &str, priority: Priority, answer: F) -> InProcess
    where
        F: Fn(http::Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        let answer: Answer = Arc::new(move |request: http::Request<Body>| answer(request).boxed());
        InProcess { group: group.to_string(), version: version.to_string(), priority, answer }
    }

    /// The name of its APIService.
    pub fn name(&self) -> String {
        format!("{}.{}", self.version, self.group)
    }
}
