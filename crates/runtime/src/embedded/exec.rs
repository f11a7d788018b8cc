//! Further processes in a container, attaching to its own, and ports of its pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use orlop_cri::{
    AttachOptions, AttachStreams, ContainerState, CriError, DuplexStream, ExecOptions, ExecOutput,
    ExecSession, TerminalSize,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, oneshot};

use super::streams::FdStream;
use super::{Container, Inner};
use crate::client::{self, Connection};
use crate::error::{Context, Result, RuntimeError};
use crate::protocol::{ExecRequest, Request, Response};
use crate::{files, spec, sys};

/// Most output of each stream that [`Inner::exec_sync`] keeps, bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// How long a stream may stay silent after the process has ended before a child of it that holds the stream open is no
/// longer waited for.
const LINGER: Duration = Duration::from_millis(100);

impl Inner {
    fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        let state = container.life.borrow().state();
        match state {
            ContainerState::Running => Ok(container),
            state => Err(RuntimeError::Precondition(format!(
                "container {id:?} is in {state:?} state, not Running"
            ))),
        }
    }

    pub(super) async fn exec(&self, id: &str, options: ExecOptions) -> Result<ExecSession> {
        let container = self.running(id)?;
        if options.command.is_empty() {
            return Err(RuntimeError::Invalid("exec needs a command".to_owned()));
        }
        let bundle = self.container_dir(id);
        let spec: Value = files::read_json(&bundle.join("config.json"))?
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id:?} has no spec")))?;
        let process =
            self.options.run_dir.join("exec").join(format!("{}.json", uuid::Uuid::new_v4().simple()));
        files::write_json_volatile(&process, &spec::exec_process(&spec, &options.command, options.tty))?;
        let pipes = |wanted: bool| if wanted && !options.tty { sys::pipe().map(Some) } else { Ok(None) };
        let (stdin, stdout, stderr) = (
            pipes(options.stdin).context("make pipe for", &process)?,
            pipes(options.stdout).context("make pipe for", &process)?,
            pipes(options.stderr).context("make pipe for", &process)?,
        );
        let request = ExecRequest {
            id: id.to_owned(),
            process: process.clone(),
            tty: options.tty,
            stdin: stdin.is_some(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            oom_score_adj: container.record.config.resources.oom_score_adj,
        };
        let (stdin, their_stdin) = stdin.map(|(read, write)| (write, read)).unzip();
        let (stdout, their_stdout) = stdout.unzip();
        let (stderr, their_stderr) = stderr.unzip();
        let theirs = [their_stdin, their_stdout, their_stderr].into_iter().flatten().collect();
        let socket = self.socket(&container.record.sandbox_id);
        let answer = client::open(&socket, Request::Exec(request), theirs).await;
        let (response, fds, connection) = answer.inspect_err(|_| drop(std::fs::remove_file(&process)))?;
        match response {
            Response::Started { .. } => {}
            Response::Error { message, gone } => {
                let _ = std::fs::remove_file(&process);
                return Err(exec_failure(id, &message, gone));
            }
            other => return Err(RuntimeError::Shim(format!("unexpected answer of the shim: {other:?}"))),
        }
        let streams = match fds.into_iter().next() {
            Some(terminal) => {
                terminal_streams(terminal, options.stdin, None).context("use terminal of", &process)?
            }
            None => AttachStreams {
                stdin: boxed_writer(stdin, None).context("use stdin of", &process)?,
                stdout: boxed_reader(stdout, None).context("use stdout of", &process)?,
                stderr: boxed_reader(stderr, None).context("use stderr of", &process)?,
                resize: None,
            },
        };
        Ok(ExecSession { streams, exit: exit_of(connection, id.to_owned()) })
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, CriError> {
        let options =
            ExecOptions { command: command.to_vec(), stdin: false, stdout: true, stderr: true, tty: false };
        let session = self.exec(id, options).await?;
        let work = collect(session);
        if timeout.is_zero() {
            return work.await;
        }
        // Dropping the session kills the process.
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            Err(CriError::DeadlineExceeded(format!(
                "failed to exec in container: timeout {timeout:?} exceeded: context deadline exceeded"
            )))
        })
    }

    pub(super) async fn attach(&self, id: &str, options: AttachOptions) -> Result<AttachStreams> {
        let container = self.running(id)?;
        let tty = container.record.config.tty;
        if options.stdin && !container.record.config.stdin && !tty {
            return Err(RuntimeError::Precondition(format!("container {id:?} was made without stdin")));
        }
        let socket = self.socket(&container.record.sandbox_id);
        let wants_stderr = options.stderr && !tty;
        let pipe = |wanted: bool| if wanted { sys::pipe().map(Some) } else { Ok(None) };
        let (stdout, their_stdout) = pipe(options.stdout).context("make pipe for", &socket)?.unzip();
        let (stderr, their_stderr) = pipe(wants_stderr).context("make pipe for", &socket)?.unzip();
        let theirs: Vec<OwnedFd> = [their_stdout, their_stderr].into_iter().flatten().collect();
        let output = if theirs.is_empty() {
            None
        } else {
            let request = Request::Attach {
                id: id.to_owned(),
                stdin: false,
                stdout: options.stdout,
                stderr: wants_stderr,
            };
            Some(Arc::new(attached(id, client::open(&socket, request, theirs).await?)?.1))
        };
        // A connection of its own for stdin, because its end closes stdin.
        let mut input = None;
        if options.stdin || tty {
            let request = Request::Attach { id: id.to_owned(), stdin: true, stdout: false, stderr: false };
            let (fd, connection) = attached(id, client::open(&socket, request, Vec::new()).await?)?;
            input = fd.map(|fd| (fd, Arc::new(connection)));
        }
        let mut streams = AttachStreams {
            stdin: None,
            stdout: boxed_reader(stdout, output.clone()).context("attach to", &socket)?,
            stderr: boxed_reader(stderr, output).context("attach to", &socket)?,
            resize: None,
        };
        if let Some((fd, connection)) = input {
            if tty {
                streams.resize = Some(resizer(fd.try_clone().context("attach to", &socket)?));
            }
            if options.stdin {
                streams.stdin = boxed_writer(Some(fd), Some(connection)).context("attach to", &socket)?;
            }
        }
        Ok(streams)
    }

    pub(super) async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn DuplexStream>> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !*sandbox.alive.borrow() {
            return Err(RuntimeError::Precondition(format!("sandbox {sandbox_id:?} is not running")));
        }
        let mut failure = None;
        for (v6, address) in
            [(false, IpAddr::V4(Ipv4Addr::LOCALHOST)), (true, IpAddr::V6(Ipv6Addr::LOCALHOST))]
        {
            let path = self.socket(sandbox_id);
            // A socket stays in the namespace in which it was made, whoever connects it.
            let (response, fds) = client::call(&path, Request::Socket { v6 }).await?;
            let Some(fd) = fds.into_iter().next() else {
                failure = Some(format!("{response:?}"));
                continue;
            };
            let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
            match socket.connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => drop(failure.get_or_insert(error.to_string())),
            }
        }
        Err(RuntimeError::Shim(format!(
            "failed to connect to localhost:{port} inside namespace {sandbox_id:?}: {}",
            failure.unwrap_or_default()
        )))
    }
}

/// The text that upstream kubelets pass on to `kubectl exec`.
fn exec_failure(id: &str, message: &str, gone: bool) -> RuntimeError {
    if gone {
        return RuntimeError::Precondition(format!("container {id:?} is not running"));
    }
    let text = if message.starts_with("exec") {
        format!("unable to start container process: {message}")
    } else {
        message.to_owned()
    };
    RuntimeError::Shim(format!(
        "failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: {text}"
    ))
}

fn attached(id: &str, answer: (Response, Vec<OwnedFd>, Connection)) -> Result<(Option<OwnedFd>, Connection)> {
    match answer {
        (Response::Done, fds, connection) => Ok((fds.into_iter().next(), connection)),
        (Response::Error { message, gone: false }, ..) => Err(RuntimeError::Shim(message)),
        (Response::Error { .. }, ..) => {
            Err(RuntimeError::Precondition(format!("container {id:?} is not running")))
        }
        (other, ..) => Err(RuntimeError::Shim(format!("unexpected answer of the shim: {other:?}"))),
    }
}

/// Waits for the process; kills it (by closing the connection) when nobody waits for the result any more.
fn exit_of(connection: Connection, id: String) -> oneshot::Receiver<Result<i32, CriError>> {
    let (mut sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = tokio::select! {
            response = connection.next() => match response {
                Some(Response::Exited { exit, .. }) => Ok(exit.exit_code),
                other => Err(CriError::Internal(format!("lost the process in container {id:?}: {other:?}"))),
            },
            () = sender.closed() => return,
        };
        let _ = sender.send(outcome);
    });
    receiver
}

async fn collect(session: ExecSession) -> Result<ExecOutput, CriError> {
    let ExecSession { streams, exit } = session;
    let (ended, end) = tokio::sync::watch::channel(false);
    let stdout = read_all(streams.stdout, end.clone());
    let stderr = read_all(streams.stderr, end);
    let exit = async {
        let code = exit.await;
        ended.send_replace(true);
        code
    };
    let (stdout, stderr, code) = tokio::join!(stdout, stderr, exit);
    let exit_code = code.unwrap_or_else(|_| Err(CriError::Internal("lost the process".to_owned())))?;
    Ok(ExecOutput { stdout, stderr, exit_code })
}

/// Reads to the end, or to silence after the process has ended. Output beyond the limit is read and dropped.
async fn read_all(
    stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    mut ended: tokio::sync::watch::Receiver<bool>,
) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut buffer = vec![0_u8; 16 * 1024];
    let mut over = false;
    loop {
        let read = if over {
            match tokio::time::timeout(LINGER, stream.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return kept,
            }
        } else {
            tokio::select! {
                biased;
                read = stream.read(&mut buffer) => read,
                _ = ended.wait_for(|ended| *ended) => {
                    over = true;
                    continue;
                }
            }
        };
        match read {
            Ok(0) | Err(_) => return kept,
            Ok(count) => {
                let room = MAX_OUTPUT.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..count.min(room)]);
            }
        }
    }
}

fn boxed_reader(
    fd: Option<OwnedFd>,
    session: Option<Arc<Connection>>,
) -> std::io::Result<Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>> {
    fd.map(|fd| Ok(Box::new(FdStream::new(fd, session)?) as Box<_>)).transpose()
}

fn boxed_writer(
    fd: Option<OwnedFd>,
    session: Option<Arc<Connection>>,
) -> std::io::Result<Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>> {
    fd.map(|fd| Ok(Box::new(FdStream::new(fd, session)?) as Box<_>)).transpose()
}

fn terminal_streams(
    terminal: OwnedFd,
    stdin: bool,
    session: Option<Arc<Connection>>,
) -> std::io::Result<AttachStreams> {
    let resize = resizer(terminal.try_clone()?);
    let writer = if stdin { Some(terminal.try_clone()?) } else { None };
    Ok(AttachStreams {
        stdin: boxed_writer(writer, session.clone())?,
        stdout: boxed_reader(Some(terminal), session)?,
        stderr: None,
        resize: Some(resize),
    })
}

/// Applies sizes to a terminal until the sender is dropped.
fn resizer(terminal: OwnedFd) -> mpsc::Sender<TerminalSize> {
    let (sender, mut receiver) = mpsc::channel::<TerminalSize>(4);
    tokio::spawn(async move {
        while let Some(size) = receiver.recv().await {
            if let Err(error) = sys::set_terminal_size(terminal.as_fd(), size.width, size.height) {
                tracing::debug!(%error, "terminal not resized");
            }
        }
    });
    sender
}
