//! `exec` and `attach` over WebSocket, subprotocols `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first byte of each
//! binary message is the channel (0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize), 255 closes the channel named by the
//! second byte (v5). The error channel ends with one `Status`. Answers to upstream's `remotecommand` and KEP-4006.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use orlop_cri::{AttachOptions, AttachStreams, ContainerState, CriError, ExecOptions, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tracing::debug;

use super::{Body, error, flag, query};
use crate::context::Context;
use crate::pod::PodExt;
use crate::runtime_status::PodRuntimeStatus;

/// In order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const CHUNK: usize = 32 << 10;

/// The id of the running container that is meant.
async fn running(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<(String, bool), Box<Response<Body>>> {
    let Some(pod) = context.pods.get(namespace, name) else {
        return Err(Box::new(error(
            StatusCode::NOT_FOUND,
            format!("pod does not exist: {namespace}/{name}"),
        )));
    };
    let status = match PodRuntimeStatus::read(&*context.runtime, pod.uid()).await {
        Ok(status) => status,
        Err(failure) => return Err(Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()))),
    };
    let tty = pod.find_container(container).is_some_and(|(_, c)| c.tty == Some(true));
    match status.latest(container) {
        Some(found) if found.container.state == ContainerState::Running => {
            Ok((found.container.id.clone(), tty))
        }
        _ => Err(Box::new(error(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))),
    }
}

/// Accepts the upgrade, or says why not.
fn upgrade(
    request: &mut Request<Incoming>,
) -> Result<(Response<Body>, hyper::upgrade::OnUpgrade), Box<Response<Body>>> {
    let headers = request.headers();
    if !has_token(headers, UPGRADE, "websocket") {
        let message = "only WebSocket is spoken here (subprotocol v5.channel.k8s.io): send an Upgrade: websocket request";
        return Err(Box::new(error(StatusCode::BAD_REQUEST, message)));
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(Box::new(error(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing")));
    };
    let accept = derive_accept_key(key.as_bytes());
    let Some(protocol) = PROTOCOLS.into_iter().find(|p| has_token(headers, SEC_WEBSOCKET_PROTOCOL, p)) else {
        let message = format!("no common subprotocol: offer one of {}", PROTOCOLS.join(", "));
        return Err(Box::new(error(StatusCode::FORBIDDEN, message)));
    };
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = answer.headers_mut();
    out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        out.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((answer, hyper::upgrade::on(request)))
}

fn has_token(headers: &HeaderMap, name: http::header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.trim().eq_ignore_ascii_case(token))
}

pub(super) async fn exec(
    context: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let query = query(request.uri().query().unwrap_or_default());
    let command: Vec<String> =
        query.iter().filter(|(key, _)| key == "command").map(|(_, v)| v.clone()).collect();
    if command.is_empty() {
        return error(StatusCode::BAD_REQUEST, "you must specify at least 1 command");
    }
    let options = ExecOptions {
        command,
        stdin: flag(&query, &["input", "stdin"]),
        stdout: flag(&query, &["output", "stdout"]),
        stderr: flag(&query, &["error", "stderr"]) && !flag(&query, &["tty"]),
        tty: flag(&query, &["tty"]),
    };
    if !options.stdin && !options.stdout && !options.stderr {
        return error(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    let (id, _) = match running(context, namespace, pod, container).await {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let (answer, upgraded) = match upgrade(&mut request) {
        Ok(upgraded) => upgraded,
        Err(answer) => return *answer,
    };
    let runtime = context.runtime.clone();
    tokio::spawn(async move {
        let Some(socket) = connected(upgraded).await else { return };
        match runtime.exec(&id, options).await {
            Ok(session) => {
                let exit = session.exit;
                talk(socket, session.streams, async move {
                    match exit.await {
                        Ok(outcome) => exit_status(outcome),
                        Err(_) => internal("the runtime lost the process"),
                    }
                })
                .await;
            }
            Err(failure) => {
                refuse(socket, internal(&format!("error executing command in container: {failure}"))).await
            }
        }
    });
    answer
}

pub(super) async fn attach(
    context: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let query = query(request.uri().query().unwrap_or_default());
    let (id, tty) = match running(context, namespace, pod, container).await {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let options = AttachOptions {
        stdin: flag(&query, &["input", "stdin"]),
        stdout: flag(&query, &["output", "stdout"]),
        stderr: flag(&query, &["error", "stderr"]) && !tty,
    };
    let (answer, upgraded) = match upgrade(&mut request) {
        Ok(upgraded) => upgraded,
        Err(answer) => return *answer,
    };
    let runtime = context.runtime.clone();
    tokio::spawn(async move {
        let Some(socket) = connected(upgraded).await else { return };
        match runtime.attach(&id, options).await {
            Ok(streams) => talk(socket, streams, async { success() }).await,
            Err(failure) => {
                refuse(socket, internal(&format!("error attaching to container: {failure}"))).await
            }
        }
    });
    answer
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn connected(upgraded: hyper::upgrade::OnUpgrade) -> Option<Socket> {
    match upgraded.await {
        Ok(upgraded) => {
            Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await)
        }
        Err(error) => {
            debug!(%error, "client went away during the upgrade");
            None
        }
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn internal(message: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500,
    })
}

/// What the error channel says about a process's end.
fn exit_status(outcome: Result<i32, CriError>) -> Value {
    match outcome {
        Ok(0) => success(),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(failure) => internal(&format!("error executing command in container: {failure}")),
    }
}

fn framed(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(Bytes::from(bytes))
}

async fn refuse(mut socket: Socket, status: Value) {
    let _ = socket.send(framed(ERROR, status.to_string().as_bytes())).await;
    finish(&mut socket).await;
}

async fn finish<S>(sink: &mut S)
where
    S: futures::Sink<Message> + Unpin,
{
    let frame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
    let _ = sink.send(Message::Close(Some(frame))).await;
}

/// Copies between socket and process until both outputs have ended; then sends what `ended` says.
async fn talk(socket: Socket, streams: AttachStreams, ended: impl Future<Output = Value>) {
    let (mut sink, mut source) = socket.split();
    let (output, mut messages) = mpsc::channel::<Message>(16);
    let AttachStreams { mut stdin, stdout, stderr, resize } = streams;
    let copies = [
        stdout.map(|s| tokio::spawn(copy(STDOUT, s, output.clone()))),
        stderr.map(|s| tokio::spawn(copy(STDERR, s, output.clone()))),
    ];
    let pong = output.clone();
    drop(output);
    let input = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => match bytes.split_first() {
                    Some((0, data)) => {
                        let failed = match &mut stdin {
                            Some(stdin) => {
                                stdin.write_all(data).await.is_err() || stdin.flush().await.is_err()
                            }
                            None => false,
                        };
                        if failed {
                            stdin = None;
                        }
                    }
                    Some((4, data)) => {
                        if let (Some(resize), Some(size)) = (&resize, terminal_size(data)) {
                            let _ = resize.send(size).await;
                        }
                    }
                    // The client has no more to say on stdin.
                    Some((255, [0])) => stdin = None,
                    _ => {}
                },
                Message::Ping(data) => {
                    let _ = pong.send(Message::Pong(data)).await;
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let result = async {
        for copy in copies.into_iter().flatten() {
            let _ = copy.await;
        }
        ended.await
    };
    let status = {
        let mut input = std::pin::pin!(input);
        let mut result = std::pin::pin!(result);
        loop {
            tokio::select! {
                message = messages.recv() => {
                    let Some(message) = message else { continue };
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
                status = &mut result => break Some(status),
                // The client went away: dropping the session ends the process.
                () = &mut input => break None,
            }
        }
    };
    let Some(status) = status else { return };
    while let Ok(message) = messages.try_recv() {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.send(framed(ERROR, status.to_string().as_bytes())).await;
    finish(&mut sink).await;
}

async fn copy(channel: u8, mut from: Box<dyn AsyncRead + Send + Unpin>, to: mpsc::Sender<Message>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            // A terminal whose other end is gone reads as an error: that is its end.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.send(framed(channel, &buffer[..read])).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// `{"Width":80,"Height":24}`
fn terminal_size(data: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(data).ok()?;
    let get = |name: &str| size.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: get("Width")?, height: get("Height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_sizes() {
        assert_eq!(exit_status(Ok(0))["status"], "Success");
        let failed = exit_status(Ok(3));
        assert_eq!(
            (&failed["reason"], &failed["details"]["causes"][0]),
            (&json!("NonZeroExitCode"), &json!({"reason": "ExitCode", "message": "3"}))
        );
        assert_eq!(
            terminal_size(br#"{"Width":80,"Height":24}"#),
            Some(TerminalSize { width: 80, height: 24 })
        );
        assert_eq!(terminal_size(b"x"), None);
    }
}
