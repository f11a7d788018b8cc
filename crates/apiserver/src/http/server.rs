//! Connections: TLS, HTTP/1.1 and HTTP/2, graceful shutdown.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
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

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request, and a request for the end of its header; as upstream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Most requests of a connection at once; as upstream.
const MAX_STREAMS: u32 = 250;
/// Largest header of a request, bytes.
const MAX_HEADER: usize = 256 * 1024;

impl ApiServer {
    /// Serves a listener over TLS until `shutdown`, then goes in order: `/readyz` fails; after the shutdown delay no
    /// connection and no request is taken any more, watches end, and requests under way are finished.
    pub fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.accept(listener, tls, shutdown))
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        let delayed = async {
            shutdown.cancelled().await;
            self.drain.begin();
            tokio::time::sleep(self.options.shutdown_delay).await;
        };
        let mut delayed = std::pin::pin!(delayed);
        loop {
            let accepted = tokio::select! {
                () = delayed.as_mut() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, acceptor) = (self.clone(), acceptor.clone());
                    connections.spawn(async move { server.connection(stream, acceptor).await });
                }
                Err(error) => {
                    // Out of files, mostly: wait until some connection ends.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        self.drain.close();
        self.end_watches().await;
        connections.close();
        let _ = tokio::time::timeout(self.options.request_timeout, connections.wait()).await;
        self.stop_watches();
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.tls_handshake_errors.inc();
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.tls_handshake_errors.inc();
                return;
            }
        };
        let mut peer = self.authorities.peer(stream.get_ref().1.peer_certificates());
        peer.address = stream.get_ref().0.peer_addr().ok().map(|address| address.ip());
        let identity = Identity::Connection(Arc::new(peer));
        // Ended with the server, or by chance, so that clients spread over the servers behind one address.
        let closing = self.drain.closing.child_token();
        let goaway = closing.clone();
        let streams = match self.options.http2_max_streams {
            0 => MAX_STREAMS,
            chosen => chosen,
        };
        let http1_only = self.options.http1_only;
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (server, identity) = (self.clone(), identity.clone());
            let chance = server.options.goaway_chance;
            if chance > 0.0
                && request.version() == http::Version::HTTP_2
                && !goaway.is_cancelled()
                && rand::random::<f64>() < chance
            {
                server.metrics.goaways.inc();
                goaway.cancel();
            }
            async move {
                let (parts, body) = request.into_parts();
                let body = body.map_err(BoxError::from).boxed_unsync();
                Ok::<_, std::convert::Infallible>(server.handle(parts, body, identity).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_HEADER);
        if http1_only {
            builder = builder.http1_only();
        }
        builder
            .http2()
            .timer(hyper_util::rt::TokioTimer::new())
            .max_concurrent_streams(streams)
            .max_header_list_size(MAX_HEADER as u32)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
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
