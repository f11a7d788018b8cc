//! The shim: one small single-threaded process per pod, our own binary executed again.
//!
//! It holds the sandbox's namespaces, is the parent of the pod's containers, owns their output and writes their logs and
//! exit records. It depends on nothing of the process that started it, so that one may be killed or upgraded at any
//! time. It decides nothing: the runtime tells it what to do over a unix socket (see [`crate::protocol`]).

mod executor;
mod launch;
mod log;
mod output;
mod server;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::protocol::Ready;
use crate::state::start_ticks;
use crate::sys::{self, Fork};

/// What a shim is to be: its only argument, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShimArgs {
    /// Sandbox id, for messages.
    pub id: String,
    /// Socket to listen on.
    pub socket: PathBuf,
    /// Host name; `None` keeps the node's (and its UTS namespace).
    pub hostname: Option<String>,
    /// Make a network namespace.
    pub new_net: bool,
    /// Make an IPC namespace.
    pub new_ipc: bool,
    /// Make a process namespace for the whole pod.
    pub new_pid: bool,
    /// cgroup for the shim itself.
    pub cgroup: String,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
}

/// The shim's `main`: call it first thing in the binary, before any thread or runtime exists, when the command line
/// says so. `args` are the arguments after those of `Options::shim_command`.
pub fn shim_main(args: impl Iterator<Item = OsString>) -> ! {
    let outcome = args
        .last()
        .ok_or_else(|| "the shim is started by the runtime, not by hand".to_owned())
        .and_then(|text| {
            serde_json::from_slice::<ShimArgs>(text.as_encoded_bytes())
                .map_err(|error| format!("bad argument: {error}"))
        })
        .and_then(|args| run(&args));
    let code = match outcome {
        Ok(()) => 0,
        Err(message) => {
            // The runtime reads stderr when it does not get the ready line.
            let _ = writeln!(std::io::stderr(), "{message}");
            1
        }
    };
    std::process::exit(code)
}

fn run(args: &ShimArgs) -> Result<(), String> {
    // A second fork makes the first process, a child of the runtime, end at once: the shim belongs to init.
    if let Fork::Parent(_) = sys::fork(false).map_err(|error| format!("fork: {error}"))? {
        sys::exit_now(0);
    }
    // What somebody above us forgot to close on exec would stay open for as long as the pod lives.
    sys::close_inherited();
    nix::unistd::setsid().map_err(|error| format!("setsid: {error}"))?;
    sys::set_name(c"orlop-shim");
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(|error| format!("become subreaper: {error}"))?;
    let _ = std::env::set_current_dir("/");
    // The shim dies last of its pod. Without the right to say so it keeps what it has.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    Cgroups::detect().and_then(|cgroups| cgroups.escape(&args.cgroup)).map_err(|error| error.to_string())?;
    enter_namespaces(args)?;
    let pause_pid = if args.new_pid { Some(start_pause()?) } else { None };
    let _ = std::fs::remove_file(&args.socket);
    let listener = sys::packet_listener(&args.socket)
        .map_err(|error| format!("listen on {}: {error}", args.socket.display()))?;
    let server = server::Server::new(listener).map_err(|error| format!("set up the event loop: {error}"))?;
    let pid = nix::unistd::getpid().as_raw();
    let ready = Ready { pid, start_ticks: start_ticks(pid).unwrap_or(0), pause_pid };
    announce(&ready)?;
    server.run().map_err(|error| format!("sandbox {}: {error}", args.id))
}

fn enter_namespaces(args: &ShimArgs) -> Result<(), String> {
    use nix::sched::CloneFlags;
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, args.new_net);
    flags.set(CloneFlags::CLONE_NEWIPC, args.new_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, args.hostname.is_some());
    nix::sched::unshare(flags).map_err(|error| format!("make namespaces: {error}"))?;
    if let Some(hostname) = &args.hostname {
        sys::set_hostname(hostname).map_err(|error| format!("set host name {hostname:?}: {error}"))?;
    }
    for (name, value) in &args.sysctls {
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
    }
    Ok(())
}

/// The first process of a shared process namespace: it only reaps. It dies with the shim.
fn start_pause() -> Result<i32, String> {
    match sys::fork(true).map_err(|error| format!("make a process namespace: {error}"))? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL.unsigned_abs().into());
            sys::set_name(c"pause");
            detach_stdio();
            sys::reap_forever()
        }
    }
}

/// Tells the runtime that requests can come, and lets go of its descriptors.
fn announce(ready: &Ready) -> Result<(), String> {
    let line = serde_json::to_string(ready).map_err(|error| error.to_string())?;
    writeln!(std::io::stdout(), "{line}").map_err(|error| format!("announce: {error}"))?;
    detach_stdio();
    Ok(())
}

fn detach_stdio() {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}
