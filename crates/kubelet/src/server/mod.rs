//! The kubelet's HTTPS server: what the API server asks of a node (`logs`, `exec`,
//! `attach`, `port-forward`) and what monitoring reads.
//! Clients show a certificate of the cluster's CA, and others than the API server are authorized by asking the API
//! server. Answers to upstream's `pkg/kubelet/server`.

mod auth;
mod container_logs;
mod port_forward;
mod remote;
mod stats;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::context::Context;
use crate::kubelet::KubeletError;
use crate::pod::PodExt;
use auth::Caller;

/// An answer's body: whole or streamed.
type Body = BoxBody<Bytes, std::io::Error>;

fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An error as upstream's kubelet answers it: plain text.
fn error(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", message.into() + "\n")
}

/// Listens and serves until `shutdown`. Returns the port; `None` when there are no certificates.
pub(crate) async fn start(
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> Result<Option<u16>, KubeletError> {
    let Some(tls) = &context.options.tls else {
        warn!(
            "the kubelet has no serving certificate: kubectl logs and exec will not work; set the TLS options"
        );
        return Ok(None);
    };
    let acceptor = TlsAcceptor::from(auth::tls_config(tls).map_err(KubeletError::Tls)?);
    let address = context.options.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|source| KubeletError::Listen { address, source })?;
    let port = listener.local_addr().map_err(|source| KubeletError::Listen { address, source })?.port();
    info!(%address, "kubelet server is listening");
    tokio::spawn(accept(context, listener, acceptor, shutdown));
    Ok(Some(port))
}

async fn accept(
    context: Arc<Context>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) {
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors: give connections a moment to end.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (context, acceptor, stop) = (context.clone(), acceptor.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(%peer, %error, "TLS handshake failed");
                    return;
                }
            };
            let caller = auth::caller(stream.get_ref().1);
            let service = service_fn(move |request| {
                let (context, caller) = (context.clone(), caller.clone());
                async move { Ok::<_, Infallible>(serve(context, caller, request).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                debug!(%peer, %error, "connection ended with an error");
            }
        });
    }
}

async fn serve(context: Arc<Context>, caller: Option<Caller>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if parts == ["healthz"]
        || (parts.len() == 2 && parts[0] == "healthz" && matches!(parts[1], "ping" | "log" | "syncloop"))
    {
        return whole(StatusCode::OK, "text/plain; charset=utf-8", "ok");
    }
    let Some(caller) = caller else { return error(StatusCode::UNAUTHORIZED, "Unauthorized") };
    if let Err(refused) = auth::authorize(&context, &caller, request.method(), &path).await {
        return error(StatusCode::FORBIDDEN, refused);
    }
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["pods" | "runningpods"]) => pods(&context),
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            container_logs::serve(
                &context,
                namespace,
                pod,
                container,
                request.uri().query().unwrap_or_default(),
            )
            .await
        }
        (
            &Method::GET | &Method::POST,
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container],
        ) => {
            let (namespace, pod, container) =
                ((*namespace).to_owned(), (*pod).to_owned(), (*container).to_owned());
            remote::exec(&context, &namespace, &pod, &container, request).await
        }
        (
            &Method::GET | &Method::POST,
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container],
        ) => {
            let (namespace, pod, container) =
                ((*namespace).to_owned(), (*pod).to_owned(), (*container).to_owned());
            remote::attach(&context, &namespace, &pod, &container, request).await
        }
        (
            &Method::GET | &Method::POST,
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _],
        ) => {
            let (namespace, pod) = ((*namespace).to_owned(), (*pod).to_owned());
            port_forward::serve(&context, &namespace, &pod, request).await
        }
        (&Method::GET, ["stats", "summary"]) => stats::summary(&context).await,
        (&Method::GET, ["metrics"]) => stats::metrics(&context).await,
        (&Method::GET, ["metrics", "resource"]) => stats::resource_metrics(&context).await,
        _ => error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// The node's pods as this kubelet sees them.
fn pods(context: &Context) -> Response<Body> {
    let items: Vec<Pod> = context
        .pods
        .list()
        .iter()
        .map(|pod| {
            let mut pod = (**pod).clone();
            if let Some(newest) = context.status.get(pod.uid()) {
                pod.status = Some(newest);
            }
            pod
        })
        .collect();
    let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    whole(StatusCode::OK, "application/json", list.to_string())
}

/// Query parameters, decoded, in order.
fn query(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut out = Vec::with_capacity(text.len());
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            let hex = bytes
                .get(i + 1..i + 3)
                .and_then(|pair| std::str::from_utf8(pair).ok())
                .and_then(|pair| u8::from_str_radix(pair, 16).ok());
            match (bytes[i], hex) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    i += 2;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            pair.split_once('=')
                .map_or_else(|| (decode(pair), String::new()), |(k, v)| (decode(k), decode(v)))
        })
        .collect()
}

/// A boolean parameter as upstream reads it.
fn flag(query: &[(String, String)], names: &[&str]) -> bool {
    query.iter().any(|(key, value)| names.contains(&key.as_str()) && matches!(value.as_str(), "1" | "true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let got = query("command=sh&command=-c&command=echo%20a%26b+c&tty=1&x");
        let values: Vec<&str> = got.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, ["sh", "-c", "echo a&b c"]);
        assert!(flag(&got, &["tty"]) && !flag(&got, &["x"]));
    }
}
