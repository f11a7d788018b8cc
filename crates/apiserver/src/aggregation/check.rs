//! Whether the server behind an APIService is there: upstream's checks, in its order and words.

use std::sync::Arc;
use std::time::Duration;

use super::backend::Backend;
use super::resolve::Unavailable;
use super::{AGGREGATOR, proxy};
use crate::authn::UserInfo;
use crate::http::body;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;

/// How long a backend has to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked before it counts as gone.
const ATTEMPTS: usize = 5;
/// Largest document that is read from a backend.
const MAX_DOCUMENT: usize = 32 * 1024 * 1024;

/// Reads a document as the server itself; the status, content type and body.
pub fn get<'a>(
    backend: &'a Backend,
    host: &'a str,
    path: &'a str,
    accept: &'a str,
) -> BoxFuture<'a, Result<Document, String>> {
    Box::pin(read(backend, host, path, accept))
}

/// Status, headers and body.
pub type Document = (u16, http::HeaderMap, bytes::Bytes);

async fn read(backend: &Backend, host: &str, path: &str, accept: &str) -> Result<Document, String> {
    let request = http::Request::get(format!("https://{host}{path}"))
        .header(http::header::ACCEPT, accept)
        .header(http::header::USER_AGENT, "orlop-apiserver");
    let mut request = request.body(body::full("")).map_err(|error| error.to_string())?;
    let user =
        UserInfo { name: AGGREGATOR.into(), groups: vec!["system:masters".into()], ..UserInfo::default() };
    proxy::identify(request.headers_mut(), &user);
    let exchange = async {
        let response = backend.send(request).await?;
        let (parts, body) = response.into_parts();
        let mut bytes = bytes::BytesMut::new();
        let mut body = body;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            if bytes.len() + data.len() > MAX_DOCUMENT {
                return Err(format!("{path}: the document is larger than {MAX_DOCUMENT} bytes"));
            }
            bytes.extend_from_slice(&data);
        }
        Ok((parts.status.as_u16(), parts.headers, bytes.freeze()))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| {
        Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_string())
    })
}

/// Asks for the path that every API server must answer: one success of several attempts is enough.
pub async fn discovery(
    backend: &Arc<Backend>,
    address: &str,
    host: &str,
    group: &str,
    version: &str,
) -> Result<(), Unavailable> {
    let path = format!("/apis/{group}/{version}");
    let url = format!("https://{address}{path}");
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..ATTEMPTS {
        let (backend, host, path, url) = (backend.clone(), host.to_string(), path.clone(), url.clone());
        attempts.spawn(async move {
            match get(&backend, &host, &path, "application/json, */*").await {
                Ok((200..300, ..)) => Ok(()),
                Ok((status, ..)) => {
                    Err(format!("failing or missing response from {url}: bad status from {url}: {status}"))
                }
                Err(error) => {
                    let quoted = orlop_api::field::go_quote(&url);
                    Err(format!("failing or missing response from {url}: Get {quoted}: {error}"))
                }
            }
        });
    }
    let mut last = String::new();
    while let Some(ended) = attempts.join_next().await {
        match ended {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(text)) => last = text,
            Err(error) => last = error.to_string(),
        }
    }
    Err(Unavailable { reason: "FailedDiscoveryCheck", message: last })
}
