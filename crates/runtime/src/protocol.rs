//! What the runtime and a pod's shim say to each other: one JSON message per packet of a `SOCK_SEQPACKET` unix socket,
//! descriptors alongside.
//!
//! Both ends may be of different releases (the shim outlives an upgrade), so fields are only ever added, with defaults.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::state::{ExitRecord, StartedRecord};

/// Longest message, bytes. Large things (process specs) travel as files.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors in a message.
const MAX_FDS: usize = 4;

/// From runtime to shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op")]
pub(crate) enum Request {
    /// Create and start a container. Answer: `Started` or `Error`.
    Start(StartRequest),
    /// Run a process in a container. Descriptors: those of stdin, stdout, stderr that are asked for, in this order.
    /// Answers: `Started` (with the terminal's master when there is one), later `Exited`. Closing the connection kills
    /// the process and all of its session.
    Exec(ExecRequest),
    /// Send a signal to a container's first process, or to all of its processes.
    Kill {
        /// Container.
        id: String,
        /// Number.
        signal: i32,
    },
    /// Copy output to the given descriptors (stdout, stderr, as asked for) until the connection closes. Answer: `Done`
    /// with the descriptor of stdin or of the terminal when `stdin` is asked for.
    Attach {
        /// Container.
        id: String,
        /// stdin (or the terminal) is wanted.
        stdin: bool,
        /// A descriptor for stdout comes along.
        stdout: bool,
        /// A descriptor for stderr comes along.
        stderr: bool,
    },
    /// Open the log file anew. Answer: `Done`.
    ReopenLog {
        /// Container.
        id: String,
    },
    /// A TCP socket made inside the sandbox's network namespace, not yet connected. Answer: `Done` with it.
    Socket {
        /// IPv6 instead of IPv4.
        v6: bool,
    },
    /// Push `Exited` for every container that ends from now on. Answer: `Done`.
    Watch,
    /// Kill all containers, wait for them and exit. Answer: `Done`, then the connection closes.
    Shutdown,
}

/// How to start a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    /// Container.
    pub id: String,
    /// Directory with `config.json`; `started.json` and `exit.json` are written there.
    pub bundle: PathBuf,
    /// libcontainer's state directory.
    pub state_root: PathBuf,
    /// Absolute path of the log file.
    pub log_path: PathBuf,
    /// Its cgroup, absolute below the cgroup root.
    pub cgroup: String,
    /// With a terminal.
    pub tty: bool,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach session.
    pub stdin_once: bool,
    /// Score for the out-of-memory killer.
    pub oom_score_adj: Option<i32>,
    /// It shares its process namespace, so what it leaves behind must be killed when it ends.
    pub kill_all: bool,
}

/// How to run a process in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    /// Container.
    pub id: String,
    /// File with the OCI process.
    pub process: PathBuf,
    /// With a terminal.
    pub tty: bool,
    /// A descriptor for stdin comes along.
    pub stdin: bool,
    /// A descriptor for stdout comes along.
    pub stdout: bool,
    /// A descriptor for stderr comes along.
    pub stderr: bool,
    /// Score for the out-of-memory killer.
    pub oom_score_adj: Option<i32>,
}

/// From shim to runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "re")]
pub(crate) enum Response {
    /// Done.
    Done,
    /// It runs.
    Started {
        /// Process id and times.
        started: StartedRecord,
        /// The kernel refused the wanted out-of-memory score.
        #[serde(default)]
        oom_score_refused: bool,
    },
    /// A container or an exec'd process ended.
    Exited {
        /// Container.
        id: String,
        /// How.
        exit: ExitRecord,
    },
    /// Refused or failed.
    Error {
        /// Why.
        message: String,
        /// No such container in this shim (it ended or never started).
        #[serde(default)]
        gone: bool,
    },
}

/// The shim's first words, on its stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Process id; `/proc/<pid>/ns/*` are the sandbox's namespaces.
    pub pid: i32,
    /// Start time in clock ticks, tells a reused pid apart.
    pub start_ticks: u64,
    /// First process of the shared process namespace.
    pub pause_pid: Option<i32>,
}

/// Sends one message.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(std::io::Error::other("message to the shim is too long"));
    }
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let iov = [std::io::IoSlice::new(&bytes)];
    let control = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &control[..] };
    nix::sys::socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &iov,
        control,
        nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message; `None` when the other end closed.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> std::io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0_u8; MAX_MESSAGE];
    let mut fds = Vec::new();
    let length = {
        let mut iov = [std::io::IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let message = nix::sys::socket::recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for part in message.cmsgs()? {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, fds)))
}
