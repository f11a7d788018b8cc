//! `exec` and `attach`: a process's streams over WebSocket (KEP-4006) or SPDY/3.1. The error channel ends with one
//! `Status`. Answers to upstream's `remotecommand`.

mod spdy;
mod websocket;

pub(super) use spdy::no_common_protocol;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use orlop_cri::{AttachOptions, AttachStreams, ContainerState, CriError, ExecOptions, TerminalSize};
use orlop_streaming::upgrade::{self, Wanted};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Body, error, flag, query};
use crate::context::Context;
use crate::pod::PodExt;
use crate::runtime_status::PodRuntimeStatus;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CHUNK: usize = 32 << 10;

/// How long a client may take to open its streams (upstream's `streamCreationTimeout`).
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Which streams a client asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// What a client says.
#[derive(Debug)]
enum Input {
    Stdin(Bytes),
    StdinEnd,
    Resize(TerminalSize),
}

/// A client that is connected: what it says, and where output goes by channel number. The input ends when the client
/// goes away; dropping the output says all that is queued and closes the connection.
struct Client {
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<(u8, Bytes)>,
    /// Ends when everything has been sent.
    sent: tokio::task::JoinHandle<()>,
}

/// The answer that accepts an upgrade, and how to get the client once the connection is upgraded.
type Accepted = (Response<Body>, futures::future::BoxFuture<'static, Option<Client>>);

/// Accepts the upgrade, or says why not.
fn accept(request: &mut Request<Incoming>, asked: Asked) -> Result<Accepted, Box<Response<Body>>> {
    match upgrade::wanted(request.headers()) {
        Wanted::WebSocket => websocket::accept(request, asked),
        Wanted::Spdy => spdy::accept(request, asked),
        Wanted::Other => Err(Box::new(error(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request: send Upgrade: websocket or SPDY/3.1",
        ))),
    }
}

/// A `101` with these headers.
pub(super) fn switching(headers: http::HeaderMap) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    answer
}

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
    let asked =
        Asked { stdin: options.stdin, stdout: options.stdout, stderr: options.stderr, tty: options.tty };
    let (answer, client) = match accept(&mut request, asked) {
        Ok(accepted) => accepted,
        Err(answer) => return *answer,
    };
    let runtime = context.runtime.clone();
    tokio::spawn(async move {
        let Some(client) = client.await else { return };
        match runtime.exec(&id, options).await {
            Ok(session) => {
                let exit = session.exit;
                talk(client, session.streams, async move {
                    match exit.await {
                        Ok(outcome) => exit_status(outcome),
                        Err(_) => internal("the runtime lost the process"),
                    }
                })
                .await;
            }
            Err(failure) => {
                refuse(client, internal(&format!("error executing command in container: {failure}"))).await
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
    let asked = Asked { stdin: options.stdin, stdout: options.stdout, stderr: options.stderr, tty };
    let (answer, client) = match accept(&mut request, asked) {
        Ok(accepted) => accepted,
        Err(answer) => return *answer,
    };
    let runtime = context.runtime.clone();
    tokio::spawn(async move {
        let Some(client) = client.await else { return };
        match runtime.attach(&id, options).await {
            Ok(streams) => talk(client, streams, async { success() }).await,
            Err(failure) => {
                refuse(client, internal(&format!("error attaching to container: {failure}"))).await
            }
        }
    });
    answer
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

async fn refuse(client: Client, status: Value) {
    say_last(client.output, client.sent, status).await;
}

/// Sends the status and waits until it is on its way.
async fn say_last(output: mpsc::Sender<(u8, Bytes)>, sent: tokio::task::JoinHandle<()>, status: Value) {
    let _ = output.send((ERROR, status.to_string().into())).await;
    drop(output);
    let _ = sent.await;
}

/// Copies between client and process until both outputs have ended; then sends what `ended` says.
async fn talk(client: Client, streams: AttachStreams, ended: impl Future<Output = Value>) {
    let Client { mut input, output, sent } = client;
    let AttachStreams { mut stdin, stdout, stderr, resize } = streams;
    let copies = [
        stdout.map(|s| tokio::spawn(copy(STDOUT, s, output.clone()))),
        stderr.map(|s| tokio::spawn(copy(STDERR, s, output.clone()))),
    ];
    let listening = async {
        while let Some(said) = input.recv().await {
            match said {
                Input::Stdin(data) => {
                    let failed = match &mut stdin {
                        Some(stdin) => stdin.write_all(&data).await.is_err() || stdin.flush().await.is_err(),
                        None => false,
                    };
                    if failed {
                        stdin = None;
                    }
                }
                Input::StdinEnd => stdin = None,
                Input::Resize(size) => {
                    if let Some(resize) = &resize {
                        let _ = resize.send(size).await;
                    }
                }
            }
        }
    };
    let result = async {
        for copy in copies.into_iter().flatten() {
            let _ = copy.await;
        }
        ended.await
    };
    tokio::select! {
        status = result => say_last(output, sent, status).await,
        // The client went away: dropping the session ends the process.
        () = listening => {}
    }
}

async fn copy(channel: u8, mut from: Box<dyn AsyncRead + Send + Unpin>, to: mpsc::Sender<(u8, Bytes)>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            // A terminal whose other end is gone reads as an error: that is its end.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.send((channel, Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// `{"Width":80,"Height":24}`
fn terminal_size(size: &Value) -> Option<TerminalSize> {
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
            terminal_size(&json!({"Width": 80, "Height": 24})),
            Some(TerminalSize { width: 80, height: 24 })
        );
        assert_eq!(terminal_size(&json!("x")), None);
    }
}
