//! The runtime's side of the shim's socket.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, Result, RuntimeError};
use crate::protocol::{Ready, Request, Response, receive, send};
use crate::shim::ShimArgs;
use crate::sys;

/// Longest a shim may take for one answer, seconds. Starting a container is the slowest thing it does.
const PATIENCE: i64 = 120;

/// Starts a shim and waits until it listens.
pub(crate) async fn spawn(command: &[OsString], args: &ShimArgs) -> Result<Ready> {
    let id = args.id.clone();
    let text = serde_json::to_string(args).map_err(|error| RuntimeError::Shim(error.to_string()))?;
    let Some((program, rest)) = command.split_first() else {
        return Err(RuntimeError::Shim("no shim command is configured".to_owned()));
    };
    let mut command = Command::new(program);
    // An empty environment: the shim lives long and must not carry this process's secrets or socket activation.
    command.args(rest).arg(text).env_clear().current_dir("/").stdin(Stdio::null());
    let program = PathBuf::from(program);
    let output = blocking(move || command.output().context("run shim", &program)).await?;
    let ready = serde_json::from_slice::<Ready>(output.stdout.trim_ascii());
    ready.map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        RuntimeError::Shim(format!("failed to start the shim of sandbox {id}: {}", said.trim()))
    })
}

/// Runs blocking work beside the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RuntimeError::Shim(format!("work was cut short: {error}")))?
}

/// An open connection: later messages come through it, closing it ends what it stands for.
pub(crate) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// The next message; `None` when the shim is gone.
    pub(crate) async fn next(&self) -> Option<Response> {
        loop {
            let received = self.0.async_io(Interest::READABLE, |fd| receive::<Response>(fd.as_fd())).await;
            match received {
                Ok(Some((response, _))) => return Some(response),
                // A message of a later release.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// Sends a request; the answer with its descriptors and the connection for what follows.
pub(crate) async fn open(
    socket: &Path,
    request: Request,
    fds: Vec<OwnedFd>,
) -> Result<(Response, Vec<OwnedFd>, Connection)> {
    let path = socket.to_owned();
    let (response, fds, fd) = blocking(move || exchange(&path, &request, &fds)).await?;
    sys::set_nonblocking(fd.as_fd(), true).context("configure", socket)?;
    let connection = sys::watched(fd, Interest::READABLE).context("watch", socket)?;
    Ok((response, fds, Connection(connection)))
}

/// Sends a request and takes its only answer.
pub(crate) async fn call(socket: &Path, request: Request) -> Result<(Response, Vec<OwnedFd>)> {
    let path = socket.to_owned();
    blocking(move || exchange(&path, &request, &[]).map(|(response, fds, _)| (response, fds))).await
}

fn exchange(path: &Path, request: &Request, fds: &[OwnedFd]) -> Result<(Response, Vec<OwnedFd>, OwnedFd)> {
    let unreachable = |error: io::Error| {
        RuntimeError::Shim(format!("the sandbox's shim does not answer at {}: {error}", path.display()))
    };
    let socket = sys::packet_connect(path, PATIENCE).map_err(unreachable)?;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send(socket.as_fd(), request, &borrowed).map_err(unreachable)?;
    match receive::<Response>(socket.as_fd()).map_err(unreachable)? {
        Some((response, fds)) => Ok((response, fds, socket)),
        None => Err(unreachable(io::ErrorKind::UnexpectedEof.into())),
    }
}
