//! Starting processes: a short-lived fork of the shim calls libcontainer, which leaves its callers changed (dumpable
//! flag, working directory) and must never run beside other threads.

use std::error::Error;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Capability, Process, Spec};
use libcontainer::syscall::syscall::SyscallType;

use super::executor::{Confine, ProgramExecutor, Report};
use crate::protocol::{ExecRequest, Response, StartRequest, receive, send};
use crate::state::{StartedRecord, now_nanos, start_ticks};
use crate::sys::{self, Fork};

/// The file in a container's directory that says it has been started, and as which process.
const STARTED: &str = "started.json";

/// stdin, stdout, stderr of the new process, as far as given.
#[derive(Default)]
pub(super) struct Stdio {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// A start in progress.
pub(super) struct Launch {
    /// The helper process.
    pub(super) pid: i32,
    /// One [`Response`] comes here, with the terminal's master if there is one.
    pub(super) answer: OwnedFd,
}

/// Starts a container.
pub(super) fn start(request: &StartRequest, stdio: Stdio) -> std::io::Result<Launch> {
    in_helper(|report| {
        let refused = adjust_oom_score(request.oom_score_adj);
        let (pid, terminal) = build_container(request, stdio, report)?;
        let started = record(pid);
        crate::files::write_json_volatile(&request.bundle.join(STARTED), &started)
            .map_err(|error| error.to_string())?;
        Ok((Response::Started { started, oom_score_refused: refused }, terminal))
    })
}

/// Runs a process in a container; `root` is the state directory it was started with.
pub(super) fn exec(
    request: &ExecRequest,
    root: &Path,
    bundle: &Path,
    stdio: Stdio,
) -> std::io::Result<Launch> {
    in_helper(|report| {
        let refused = adjust_oom_score(request.oom_score_adj);
        let (pid, terminal) = join_container(request, root, bundle, stdio, report)?;
        Ok((Response::Started { started: record(pid), oom_score_refused: refused }, terminal))
    })
}

type Outcome = Result<(Response, Option<OwnedFd>), String>;

fn in_helper(work: impl FnOnce(&Report) -> Outcome) -> std::io::Result<Launch> {
    let (ours, theirs) = sys::packet_pair()?;
    match sys::fork(false)? {
        Fork::Parent(pid) => {
            sys::set_nonblocking(ours.as_fd(), true)?;
            Ok(Launch { pid, answer: ours })
        }
        Fork::Child => {
            drop(ours);
            sys::reset_signals();
            let (response, terminal) = attempt(work);
            let fds: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
            let _ = send(theirs.as_fd(), &response, &fds);
            sys::exit_now(0)
        }
    }
}

fn attempt(work: impl FnOnce(&Report) -> Outcome) -> (Response, Option<OwnedFd>) {
    let outcome = Report::new().map_err(|error| format!("make a report file: {error}")).and_then(|report| {
        let _guard = tracing::subscriber::set_default(Capture(report.clone()));
        // A panic in libcontainer must end this helper with an answer, not leave the request open.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&report)))
            .unwrap_or_else(|_| Err(format!("the container library gave up: {}", report.read())))
    });
    match outcome {
        Ok((response, terminal)) => (response, terminal),
        Err(message) => (Response::Error { message, gone: false }, None),
    }
}

fn record(pid: i32) -> StartedRecord {
    StartedRecord { pid, start_ticks: start_ticks(pid).unwrap_or(0), started_at: now_nanos() }
}

/// Children inherit the score. True when the kernel refuses it: lowering needs CAP_SYS_RESOURCE.
fn adjust_oom_score(score: Option<i32>) -> bool {
    let score = score.unwrap_or(0);
    std::fs::write("/proc/self/oom_score_adj", score.to_string()).is_err()
        && std::fs::read_to_string("/proc/self/oom_score_adj")
            .is_ok_and(|now| now.trim() != score.to_string())
}

fn build_container(
    request: &StartRequest,
    stdio: Stdio,
    report: &Report,
) -> Result<(i32, Option<OwnedFd>), String> {
    let state = request.state_root.join(&request.id);
    // Left by a start that did not come to its end.
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir_all(&request.state_root)
        .map_err(|error| format!("create {}: {error}", request.state_root.display()))?;
    let console = request.tty.then(|| Console::listen(&request.state_root, &request.id)).transpose()?;
    let executor = ProgramExecutor { report: report.clone(), confine: None };
    let builder = builder(&request.id, &request.state_root, executor, stdio, console.as_ref())?;
    let mut container = builder
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| describe(&error, report))?;
    container.start().map_err(|error| describe(&error, report))?;
    let pid = container.pid().ok_or("libcontainer reported no process id")?.as_raw();
    let terminal = console.map(Console::accept).transpose()?;
    Ok((pid, terminal))
}

fn join_container(
    request: &ExecRequest,
    root: &Path,
    bundle: &Path,
    stdio: Stdio,
    report: &Report,
) -> Result<(i32, Option<OwnedFd>), String> {
    let console = request.tty.then(|| Console::listen(root, &request.id)).transpose()?;
    let confine = prepare_confinement(&request.process, bundle)?;
    let executor = ProgramExecutor { report: report.clone(), confine };
    let builder = builder(&request.id, root, executor, stdio, console.as_ref())?;
    let pid = builder
        .as_tenant()
        .with_detach(true)
        .with_process(Some(&request.process))
        .build()
        .map_err(|error| describe(&error, report))?
        .as_raw();
    let terminal = console.map(Console::accept).transpose()?;
    Ok((pid, terminal))
}

/// libcontainer does not load the container's seccomp filter for joining processes, so the executor does. Loading needs
/// CAP_SYS_ADMIN (or no_new_privs), and shrinking the bounding set needs CAP_SETPCAP: both are granted up to that point.
fn prepare_confinement(process_file: &Path, bundle: &Path) -> Result<Option<Confine>, String> {
    let spec = Spec::load(bundle.join("config.json")).map_err(|error| error.to_string())?;
    let Some(seccomp) = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()) else {
        return Ok(None);
    };
    let text =
        std::fs::read(process_file).map_err(|error| format!("read {}: {error}", process_file.display()))?;
    let mut process: Process = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let mut caps = process.capabilities().clone().unwrap_or_default();
    let keep = caps.permitted().clone().unwrap_or_default();
    let mut more = keep.clone();
    more.extend([Capability::SysAdmin, Capability::Setpcap]);
    caps.set_bounding(Some(more.clone())).set_permitted(Some(more.clone())).set_effective(Some(more));
    process.set_capabilities(Some(caps));
    let text = serde_json::to_vec(&process).map_err(|error| error.to_string())?;
    std::fs::write(process_file, text)
        .map_err(|error| format!("write {}: {error}", process_file.display()))?;
    Ok(Some(Confine { seccomp, keep }))
}

fn builder(
    id: &str,
    root: &Path,
    executor: ProgramExecutor,
    stdio: Stdio,
    console: Option<&Console>,
) -> Result<ContainerBuilder, String> {
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(root)
        .map_err(|error| error.to_string())?
        .with_executor(executor);
    match console {
        Some(console) => builder = builder.with_console_socket(Some(&console.path)),
        None => {
            builder.stdin = stdio.stdin;
            builder.stdout = stdio.stdout;
            builder.stderr = stdio.stderr;
        }
    }
    Ok(builder)
}

/// The message for people when there is one; else the chain of causes with what libcontainer logged on the way.
fn describe(error: &dyn Error, report: &Report) -> String {
    let told = report.read();
    if told.starts_with("exec") {
        return told;
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    if told.is_empty() { text } else { format!("{text} ({told})") }
}

/// The socket through which a terminal's master comes out of the container.
struct Console {
    path: std::path::PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn listen(directory: &Path, id: &str) -> Result<Console, String> {
        let short: String = id.chars().take(12).collect();
        let name = format!("tty-{short}-{}", nix::unistd::getpid());
        let path = directory.join(&name);
        let _ = std::fs::remove_file(&path);
        // By a relative name, because the whole path may be longer than a socket address can be.
        let listener = std::env::set_current_dir(directory)
            .and_then(|()| std::os::unix::net::UnixListener::bind(&name))
            .map_err(|error| format!("listen on {}: {error}", path.display()))?;
        let _ = std::env::set_current_dir("/");
        Ok(Console { path, listener })
    }

    /// The master has been sent by the time libcontainer reports success, so nothing here waits.
    fn accept(self) -> Result<OwnedFd, String> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        use std::os::fd::FromRawFd;
        let _ = std::fs::remove_file(&self.path);
        let (stream, _) = self.listener.accept().map_err(|error| format!("receive the terminal: {error}"))?;
        let mut buffer = [0_u8; 256];
        let mut iov = [std::io::IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(std::os::fd::RawFd);
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
                .map_err(|error| format!("receive the terminal: {error}"))?;
        for part in message.cmsgs().map_err(|error| error.to_string())? {
            if let ControlMessageOwned::ScmRights(fds) = part
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        Err("the container sent no terminal".to_owned())
    }
}

/// Collects libcontainer's error events: the only place where the innermost causes are told.
struct Capture(Report);

impl tracing::Subscriber for Capture {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = match field.name() {
                    "message" => write!(self.0, " {value:?}"),
                    name => write!(self.0, " {name}={value:?}"),
                };
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.note(text.0.trim());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Removes what libcontainer keeps about a container that has ended.
pub(super) fn forget(state_root: &Path, id: &str) {
    let _ = std::fs::remove_dir_all(state_root.join(id));
}

/// Whether the container whose directory this is has been started, ever.
pub(super) fn has_started(bundle: &Path) -> bool {
    bundle.join(STARTED).exists()
}

/// Takes back the record of a start that failed after it was written.
pub(super) fn forget_start(bundle: &Path) {
    let _ = std::fs::remove_file(bundle.join(STARTED));
}

/// Reads a launch's answer; `None` while there is none yet.
pub(super) fn answer(launch: &Launch) -> Option<(Response, Vec<OwnedFd>)> {
    match receive::<Response>(launch.answer.as_fd()) {
        Ok(Some(answer)) => Some(answer),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Ok(None) => Some((failed("the starting process died without an answer"), Vec::new())),
        Err(error) => Some((failed(&format!("the starting process gave a bad answer: {error}")), Vec::new())),
    }
}

fn failed(message: &str) -> Response {
    Response::Error { message: message.to_owned(), gone: false }
}
