//! A unix socket for the people on the node itself: `orlop image` talks HTTP to it. Only root can open it.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use orlop_cri::{CriError, Runtime};
use tokio_util::sync::CancellationToken;

/// Listens until `shutdown`.
pub async fn serve(
    path: &Path,
    runtime: Arc<dyn Runtime>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // A socket file that a killed server left is in the way of the next one.
    let _ = std::fs::remove_file(path);
    let listener = tokio::net::UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let runtime = runtime.clone();
                async move { Ok::<_, Infallible>(answer(request, &*runtime).await) }
            });
            // A client that went away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn answer(request: Request<Incoming>, runtime: &dyn Runtime) -> Response<Full<Bytes>> {
    let (status, text) = match route(request, runtime).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (status_of(&error), error.to_string()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

async fn route(request: Request<Incoming>, runtime: &dyn Runtime) -> Result<String, CriError> {
    let reference = || reference(request.uri().query().unwrap_or_default());
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/images") => json(&runtime.list_images(None).await?),
        (&Method::DELETE, "/images") => runtime.remove_image(&reference()?).await.map(|()| String::new()),
        (&Method::POST, "/images/pull") => runtime.pull_image(&reference()?, None).await,
        (&Method::POST, "/images/import") => {
            let body = request.into_body().into_data_stream().map_err(std::io::Error::other).boxed();
            json(&runtime.import_image(body).await?)
        }
        (method, path) => Err(CriError::NotFound(format!("{method} {path} is not served here"))),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, CriError> {
    serde_json::to_string(value).map_err(|error| CriError::Internal(error.to_string()))
}

fn reference(query: &str) -> Result<String, CriError> {
    let missing = || CriError::InvalidArgument("the parameter `reference` is missing".to_owned());
    let value = query.split('&').find_map(|pair| pair.strip_prefix("reference=")).ok_or_else(missing)?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| CriError::InvalidArgument("`reference` is not UTF-8".to_owned()))
}

fn status_of(error: &CriError) -> StatusCode {
    match error {
        CriError::NotFound(_) => StatusCode::NOT_FOUND,
        CriError::InvalidArgument(_) => StatusCode::BAD_REQUEST,
        CriError::FailedPrecondition(_) => StatusCode::CONFLICT,
        CriError::DeadlineExceeded(_) => StatusCode::GATEWAY_TIMEOUT,
        CriError::Unimplemented(_) => StatusCode::NOT_IMPLEMENTED,
        CriError::ImagePull(_) => StatusCode::BAD_GATEWAY,
        CriError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::reference;

    #[test]
    fn references_are_decoded() {
        let check = |query: &str, expected: &str| assert_eq!(reference(query).unwrap(), expected, "{query}");
        check("reference=localhost/web:1", "localhost/web:1");
        check("a=b&reference=x%40sha256%3Aab", "x@sha256:ab");
        check("reference=100%", "100%");
        assert!(reference("a=b").is_err());
        assert!(reference("reference=%ff").is_err());
    }
}
