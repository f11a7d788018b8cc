//! Small HTTP, TCP and gRPC calls into pods, for probes and hooks. Certificates are not verified, as upstream's probes
//! do not: the address is the pod's own.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of a body that are looked at.
const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// The number of a port given by number or by the name of a container port.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            match container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)) {
                Some(found) => found.container_port,
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port: {name:?} in container {}", container.name))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n != 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// How the kernel's refusal reads in upstream's messages.
fn dial_error(address: &str, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => format!("connect: {error}"),
    };
    format!("dial tcp {address}: {why}")
}

/// Connects to a TCP port; the error is upstream's text.
pub(crate) async fn tcp(
    action: &TCPSocketAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
) -> Result<(), String> {
    let port = port(&action.port, container)?;
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let address = host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(dial_error(&address, &error)),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// GETs the action's URL; the error is upstream's text. Redirects to the same host are followed.
pub(crate) async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    agent: &str,
    timeout: Duration,
) -> Result<(), String> {
    let port = port(&action.port, container)?;
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{scheme}://{}{path}", host_port(host, port));
    let failed = |why: String| format!("Get \"{url}\": {why}");
    match tokio::time::timeout(timeout, follow(&url, action, agent)).await {
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Ok(()),
        Ok(Ok(status)) => Err(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
        Ok(Err(why)) => Err(failed(why)),
        Err(_) => Err(failed(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
        )),
    }
}

async fn follow(url: &str, action: &HTTPGetAction, agent: &str) -> Result<StatusCode, String> {
    let mut uri: Uri = url.parse().map_err(|error| format!("parse: {error}"))?;
    for _ in 0..=MAX_REDIRECTS {
        let (status, location) = get_once(&uri, action, agent).await?;
        let Some(location) = location.filter(|_| status.is_redirection()) else { return Ok(status) };
        let next: Uri = if location.starts_with('/') {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            format!("{}://{authority}{location}", uri.scheme_str().unwrap_or("http"))
        } else {
            location
        }
        .parse()
        .map_err(|error| format!("redirect: {error}"))?;
        if next.host() != uri.host() {
            // A redirect elsewhere counts as an answer; it is not followed.
            return Ok(status);
        }
        uri = next;
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

async fn get_once(
    uri: &Uri,
    action: &HTTPGetAction,
    agent: &str,
) -> Result<(StatusCode, Option<String>), String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let tls = uri.scheme_str() == Some("https");
    let address = host_port(host, uri.port_u16().unwrap_or(if tls { 443 } else { 80 }));
    let stream = TcpStream::connect(&address).await.map_err(|error| dial_error(&address, &error))?;
    let mut request =
        Request::builder().method(Method::GET).uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    if let Some(headers) = request.headers_mut() {
        headers.insert(HOST, HeaderValue::from_str(&address).map_err(|error| error.to_string())?);
        headers.insert(USER_AGENT, HeaderValue::from_str(agent).map_err(|error| error.to_string())?);
        headers.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        for header in action.http_headers.iter().flatten() {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| error.to_string())?;
            let value = HeaderValue::from_str(&header.value).map_err(|error| error.to_string())?;
            headers.insert(name, value);
        }
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(UNVERIFIED.clone());
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() });
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            driver.abort();
            return Err(error);
        }
    };
    let status = answer.status();
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // The body is read so that the server sees its answer taken; how it ends does not matter.
    let _ = Limited::new(answer.into_body(), MAX_BODY).collect().await;
    driver.abort();
    Ok((status, location))
}

/// Asks `grpc.health.v1.Health/Check`; the error is upstream's text.
pub(crate) async fn grpc(
    action: &GRPCAction,
    pod_ip: &str,
    agent: &str,
    timeout: Duration,
) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
    let address = host_port(pod_ip, port);
    match tokio::time::timeout(
        timeout,
        grpc_check(&address, action.service.as_deref().unwrap_or_default(), agent),
    )
    .await
    {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "timeout: health rpc did not complete within {}",
            crate::images::go_duration(timeout)
        )),
    }
}

async fn grpc_check(address: &str, service: &str, agent: &str) -> Result<(), String> {
    let unreachable =
        |why: String| format!("timeout: failed to connect service \"{address}\" within 1s: {why}");
    let stream =
        TcpStream::connect(address).await.map_err(|error| unreachable(dial_error(address, &error)))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    // One length-prefixed HealthCheckRequest: field 1, the service's name.
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(&message);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(USER_AGENT, agent)
        .body(Full::new(body.freeze()))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let early = answer.headers().clone();
    let collected = answer.into_body().collect().await.map_err(|error| error.to_string())?;
    driver.abort();
    let trailers = collected.trailers().cloned().unwrap_or(early);
    let code = trailers.get("grpc-status").and_then(|v| v.to_str().ok()).unwrap_or("0").to_owned();
    if code == "12" {
        return Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
            .to_owned());
    }
    if code != "0" {
        let why = trailers.get("grpc-message").and_then(|v| v.to_str().ok()).unwrap_or_default();
        return Err(format!("error: health rpc probe failed: grpc status {code}: {why}"));
    }
    // HealthCheckResponse: field 1, a varint; 1 is SERVING.
    let bytes = collected.to_bytes();
    let status = bytes
        .get(5..)
        .and_then(|m| (m.first() == Some(&0x08)).then(|| m.get(1).copied()).flatten())
        .unwrap_or(0);
    match status {
        1 => Ok(()),
        2 => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        3 => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
    }
}

static UNVERIFIED: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    // The ring provider supports the default versions; anything else would show in the first test.
    #[allow(clippy::expect_used)]
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3");
    Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
});

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 2048];
                let read = stream.read(&mut buffer).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let answer = if asked.starts_with("GET /moved ") {
                    "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"
                } else {
                    answer
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn get(port: u16, path: &str) -> Result<(), String> {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]}))
                .unwrap();
        let action: HTTPGetAction = serde_json::from_value(json!({"port": "web", "path": path})).unwrap();
        http_get(&action, &container, "127.0.0.1", "kube-probe/1.36", Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn http_answers() {
        let ok = serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(get(ok, "/").await, Ok(()));
        assert_eq!(get(ok, "moved").await, Ok(()));
        let bad = serve("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(get(bad, "/x").await, Err("HTTP probe failed with statuscode: 503".to_owned()));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let expected = format!(
            "Get \"http://127.0.0.1:{free}/x\": dial tcp 127.0.0.1:{free}: connect: connection refused"
        );
        assert_eq!(get(free, "/x").await, Err(expected));
    }

    #[test]
    fn ports_by_name_and_number() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
                .unwrap();
        for (asked, expected) in [
            (IntOrString::Int(8080), Ok(8080)),
            (IntOrString::String("web".into()), Ok(80)),
            (IntOrString::String("81".into()), Ok(81)),
            (IntOrString::String("db".into()), Err("couldn't find port: \"db\" in container c".to_owned())),
            (IntOrString::Int(0), Err("invalid port number: 0".to_owned())),
        ] {
            assert_eq!(port(&asked, &container), expected);
        }
    }
}
