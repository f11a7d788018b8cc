//! `port-forward`: connections to a pod's ports over SPDY/3.1 (a pair of streams for each connection) or WebSocket (a
//! pair of channels for each port). Answers to upstream's `portforward`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{SinkExt as _, StreamExt as _};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use orlop_cri::{DuplexStream, Runtime};
use orlop_streaming::spdy::{Connection, Role, Stream};
use orlop_streaming::upgrade::{self, STREAM_PROTOCOL, Wanted};
use orlop_streaming::websocket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::remote::{no_common_protocol, switching};
use super::{Body, error, query};
use crate::context::Context;
use crate::pod::PodExt;
use crate::runtime_status::PodRuntimeStatus;

const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const WEBSOCKET_PROTOCOL: &str = "v4.channel.k8s.io";
const CHUNK: usize = 32 << 10;

/// How long the second stream of a pair may take (upstream's `streamCreationTimeout`).
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Pairs of which one stream is missing.
const MOST_INCOMPLETE: usize = 128;

/// Ports of one WebSocket; each takes two of the 256 channels.
const MOST_PORTS: usize = 127;

/// A pod's network, as port forwarding needs it.
#[derive(Clone)]
struct Target {
    runtime: Arc<dyn Runtime>,
    sandbox: String,
    pod: String,
    uid: String,
}

impl Target {
    async fn connect(&self, port: u16) -> Result<Box<dyn DuplexStream>, String> {
        self.runtime.port_forward(&self.sandbox, port).await.map_err(|failure| {
            format!("error forwarding port {port} to pod {}, uid {}: {failure}", self.pod, self.uid)
        })
    }
}

pub(super) async fn serve(
    context: &Context,
    namespace: &str,
    name: &str,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let Some(pod) = context.pods.get(namespace, name) else {
        return error(StatusCode::NOT_FOUND, format!("pod does not exist: {namespace}/{name}"));
    };
    let status = match PodRuntimeStatus::read(&*context.runtime, pod.uid()).await {
        Ok(status) => status,
        Err(failure) => return error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    };
    let Some(sandbox) = status.ready_sandbox() else {
        return error(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("error forwarding ports: pod {namespace}/{name} has no running sandbox"),
        );
    };
    let target = Target {
        runtime: context.runtime.clone(),
        sandbox: sandbox.sandbox.id.clone(),
        pod: format!("{name}_{namespace}"),
        uid: pod.uid().to_owned(),
    };
    match upgrade::wanted(request.headers()) {
        Wanted::Spdy => accept_spdy(&mut request, target),
        Wanted::WebSocket => accept_websocket(&mut request, target),
        Wanted::Other => {
            error(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request")
        }
    }
}

fn accept_spdy(request: &mut Request<Incoming>, target: Target) -> Response<Body> {
    let offers_any = upgrade::tokens(request.headers(), &STREAM_PROTOCOL).next().is_some();
    if offers_any && upgrade::choose(request.headers(), &STREAM_PROTOCOL, &[SPDY_PROTOCOL]).is_none() {
        return *no_common_protocol(request.headers(), &[SPDY_PROTOCOL]);
    }
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let connected = match upgraded.await {
            Ok(upgraded) => Connection::start(TokioIo::new(upgraded), Role::Server),
            Err(error) => return debug!(%error, "client went away during the upgrade"),
        };
        match connected {
            Ok((connection, incoming)) => pair_streams(connection, incoming, target).await,
            Err(error) => debug!(%error, "cannot speak SPDY"),
        }
    });
    switching(upgrade::accept_spdy(Some(SPDY_PROTOCOL)))
}

/// Streams of which the other one has not come yet, by request.
#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

/// Joins the data and error streams of each connection; old clients name no request, but number a pair's streams one
/// after the other.
async fn pair_streams(connection: Connection, mut incoming: orlop_streaming::spdy::Incoming, target: Target) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let (expired, mut expiry) = mpsc::channel::<String>(MOST_INCOMPLETE);
    loop {
        let stream = tokio::select! {
            stream = incoming.recv() => stream,
            Some(request) = expiry.recv() => {
                pairs.remove(&request);
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        let request = match stream.header("requestid") {
            Some(request) => request.to_owned(),
            // The error stream comes first.
            None if kind == "error" => stream.id.to_string(),
            None => stream.id.saturating_sub(2).to_string(),
        };
        if !pairs.contains_key(&request) {
            if pairs.len() >= MOST_INCOMPLETE {
                continue;
            }
            let (expired, request) = (expired.clone(), request.clone());
            tokio::spawn(async move {
                tokio::time::sleep(STREAM_CREATION_TIMEOUT).await;
                let _ = expired.send(request).await;
            });
        }
        let pair = pairs.entry(request.clone()).or_default();
        match kind.as_str() {
            "data" => pair.data = Some(stream),
            "error" => pair.error = Some(stream),
            _ => continue,
        }
        if let Pair { data: Some(_), error: Some(_) } = pair
            && let Some(Pair { data: Some(data), error: Some(error) }) = pairs.remove(&request)
        {
            tokio::spawn(forward(data, error, target.clone()));
        }
    }
    drop(connection);
}

/// One connection. What goes wrong is told on the error stream, which is otherwise closed without a word.
async fn forward(data: Stream, error: Stream, target: Target) {
    let port = data.header("port").unwrap_or_default().to_owned();
    let (mut from_client, to_client) = data.split();
    let (_, say) = error.split();
    let result = async {
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("unable to parse {port:?} as a port"))?;
        let (mut from_pod, mut to_pod) = tokio::io::split(target.connect(port).await?);
        let inward = async {
            while let Some(bytes) = from_client.read().await {
                if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                    break;
                }
            }
            let _ = to_pod.shutdown().await;
        };
        let outward = async {
            let mut buffer = vec![0; CHUNK];
            while let Ok(read @ 1..) = from_pod.read(&mut buffer).await {
                if to_client.write(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
                    break;
                }
            }
        };
        // The pod's end ends the connection; the client's end only says that it sends no more.
        let mut inward = std::pin::pin!(inward);
        let mut outward = std::pin::pin!(outward);
        let mut sending = true;
        loop {
            tokio::select! {
                () = &mut outward => return Ok(()),
                () = &mut inward, if sending => sending = false,
            }
        }
    };
    let result: Result<(), String> = result.await;
    if let Err(failure) = result {
        let _ = say.write(failure.into()).await;
    }
    let _ = say.finish().await;
    let _ = to_client.finish().await;
}

fn accept_websocket(request: &mut Request<Incoming>, target: Target) -> Response<Body> {
    let ports: Vec<u16> = query(request.uri().query().unwrap_or_default())
        .iter()
        .filter(|(name, _)| matches!(name.as_str(), "port" | "ports"))
        .flat_map(|(_, value)| value.split(','))
        .filter_map(|port| port.trim().parse().ok().filter(|port| *port > 0))
        .collect();
    if ports.is_empty() || ports.len() > MOST_PORTS {
        return error(StatusCode::BAD_REQUEST, "query parameter \"port\" is required");
    }
    let offers_any = upgrade::tokens(request.headers(), &SEC_WEBSOCKET_PROTOCOL).next().is_some();
    let chosen = upgrade::choose(request.headers(), &SEC_WEBSOCKET_PROTOCOL, &[WEBSOCKET_PROTOCOL]);
    if offers_any && chosen.is_none() {
        let message = format!("no common subprotocol: offer {WEBSOCKET_PROTOCOL}");
        return error(StatusCode::FORBIDDEN, message);
    }
    let named = offers_any.then_some(WEBSOCKET_PROTOCOL);
    let Some(headers) = upgrade::accept_websocket(request.headers(), named) else {
        return error(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => channels(TokioIo::new(upgraded), ports, target).await,
            Err(error) => debug!(%error, "client went away during the upgrade"),
        }
    });
    switching(headers)
}

/// Port number n has channel 2n for data and 2n + 1 for errors; both begin with the port, two bytes, little end first.
async fn channels<S>(io: S, ports: Vec<u16>, target: Target)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut source) = websocket::server(io).await.split();
    let (output, mut messages) = mpsc::channel::<(u8, Bytes)>(16);
    let mut inputs = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, port) in (0u8..).zip(ports) {
        let (input, from_client) = mpsc::channel::<Bytes>(16);
        inputs.insert(2 * n, input);
        tasks.spawn(channel(n, port, from_client, output.clone(), target.clone()));
    }
    drop(output);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => {
                    if let Some(input) = inputs.get(&bytes.get_u8()) {
                        let _ = input.send(bytes).await;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        while let Some((channel, bytes)) = messages.recv().await {
            let framed = [&[channel], &bytes[..]].concat();
            if sink.send(Message::Binary(framed.into())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

async fn channel(
    n: u8,
    port: u16,
    mut from_client: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<(u8, Bytes)>,
    target: Target,
) {
    let (data, failures) = (2 * n, 2 * n + 1);
    for channel in [data, failures] {
        let _ = output.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
    }
    let (mut from_pod, mut to_pod) = match target.connect(port).await {
        Ok(stream) => tokio::io::split(stream),
        Err(failure) => {
            let _ = output.send((failures, failure.into())).await;
            return;
        }
    };
    let inward = async {
        while let Some(bytes) = from_client.recv().await {
            if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                return;
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from_pod.read(&mut buffer).await {
            if output.send((data, Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}
