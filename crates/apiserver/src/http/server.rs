//! Connections: TLS, HTTP/1.1 and HTTP/2, graceful shutdown.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::BoxError;
use super::pipeline::Identity;
use crate::ApiServer;
use crate::authn::user_of_certificate;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request, and a request for the end of its header; as upstream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long requests under way may take to end after the shutdown began; watches end at once.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

impl ApiServer {
    /// Serves a listener over TLS until `shutdown`; then lets requests under way finish.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections.spawn(async move { server.connection(stream, acceptor, shutdown).await });
                }
                Err(error) => {
                    // Out of files, mostly: wait until some connection ends.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        self.stop_watches();
        connections.close();
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, connections.wait()).await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
    ) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        };
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(|certificate| user_of_certificate(certificate))
            .map(Arc::new);
        let identity = Identity::Connection(certificate);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (server, identity) = (self.clone(), identity.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.map_err(BoxError::from).boxed_unsync();
                Ok::<_, std::convert::Infallible>(server.handle(parts, body, identity).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
        builder
            .http2()
            .timer(hyper_util::rt::TokioTimer::new())
            .max_concurrent_streams(250)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                // Requests under way are finished, new ones go elsewhere.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }
}
