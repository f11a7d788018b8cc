//! The shim's event loop: one thread, one epoll, no timers. Sleeps until something happens.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::launch::{self, Launch, Stdio};
use super::output::{Output, Sink};
use crate::cgroup::Cgroups;
use crate::protocol::{ExecRequest, Request, Response, StartRequest, receive, send};
use crate::state::{ExitRecord, StartedRecord, now_nanos};
use crate::sys::{self, Epoll};

const READ: libc::c_int = libc::EPOLLIN;

/// What a token of the epoll instance stands for.
enum Source {
    Listener,
    Signals,
    Connection,
    Launch(i32),
    Output(String, usize),
    Sink(String, usize, u64),
}

/// What a launch helper is starting.
enum Starting {
    Container {
        request: StartRequest,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        stdin: Option<OwnedFd>,
        /// Signals that came before there was a process to take them.
        signals: Vec<i32>,
    },
    Exec {
        id: String,
        process: PathBuf,
    },
}

struct Pending {
    launch: Launch,
    token: u64,
    /// Who wants the answer: more than one when a runtime died amid a start and the next one asks for it again.
    connections: Vec<u64>,
    what: Starting,
}

impl Pending {
    fn starts(&self, container: &str) -> bool {
        matches!(&self.what, Starting::Container { request, .. } if request.id == container)
    }
}

/// A running container.
struct Running {
    request: StartRequest,
    started: StartedRecord,
    outputs: Vec<Output>,
    /// stdin's write end, or the terminal's master.
    input: Option<OwnedFd>,
    oom_kills_before: u64,
}

/// A running exec'd process.
struct Executing {
    id: String,
    connection: u64,
}

struct Connection {
    socket: OwnedFd,
    watches: bool,
    /// Its attach session had stdin of this container.
    input_of: Option<String>,
}

pub(super) struct Server {
    epoll: Epoll,
    listener: OwnedFd,
    signals: OwnedFd,
    cgroups: Cgroups,
    sources: HashMap<u64, Source>,
    next_token: u64,
    connections: HashMap<u64, Connection>,
    launches: HashMap<i32, Pending>,
    containers: BTreeMap<String, Running>,
    execs: HashMap<i32, Executing>,
    /// Exits of processes whose start has not been reported yet.
    early: HashMap<i32, (i32, Option<i32>)>,
    /// Asked to shut down by this connection.
    leaving: Option<u64>,
}

impl Server {
    pub(super) fn new(listener: OwnedFd) -> io::Result<Server> {
        let signals =
            sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE])?;
        let cgroups = Cgroups::detect().map_err(io::Error::other)?;
        let mut server = Server {
            epoll: Epoll::new()?,
            listener,
            signals,
            cgroups,
            sources: HashMap::new(),
            next_token: 0,
            connections: HashMap::new(),
            launches: HashMap::new(),
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            early: HashMap::new(),
            leaving: None,
        };
        let token = server.token(Source::Listener);
        server.epoll.add(server.listener.as_fd(), token, READ)?;
        let token = server.token(Source::Signals);
        server.epoll.add(server.signals.as_fd(), token, READ)?;
        Ok(server)
    }

    /// Serves until told to shut down.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            for (token, _) in self.epoll.wait()? {
                self.dispatch(token);
            }
            if let Some(connection) = self.leaving
                && self.containers.is_empty()
                && self.launches.is_empty()
            {
                self.respond(connection, &Response::Done, &[]);
                return Ok(());
            }
        }
    }

    fn token(&mut self, source: Source) -> u64 {
        self.next_token += 1;
        self.sources.insert(self.next_token, source);
        self.next_token
    }

    fn dispatch(&mut self, token: u64) {
        match self.sources.get(&token) {
            Some(Source::Listener) => self.accept(),
            Some(Source::Signals) => self.signalled(),
            Some(Source::Connection) => self.converse(token),
            Some(Source::Launch(pid)) => self.launched(*pid),
            Some(Source::Output(id, index)) => {
                let (id, index) = (id.clone(), *index);
                self.pump(&id, index);
            }
            Some(Source::Sink(id, index, sink)) => {
                let (id, index, sink) = (id.clone(), *index, *sink);
                self.drain_sink(&id, index, sink);
            }
            None => {}
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) = sys::accept(self.listener.as_fd()) {
            let token = self.token(Source::Connection);
            if self.epoll.add(socket.as_fd(), token, READ).is_ok() {
                self.connections.insert(token, Connection { socket, watches: false, input_of: None });
            } else {
                self.sources.remove(&token);
            }
        }
    }

    /// One message, or the end of a connection.
    fn converse(&mut self, token: u64) {
        let Some(connection) = self.connections.get(&token) else { return };
        match receive::<Request>(connection.socket.as_fd()) {
            Ok(Some((request, fds))) => self.request(token, request, fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData || error.is_json() => {
                self.refuse(token, &format!("message not understood: {error}"));
            }
            Ok(None) | Err(_) => self.hang_up(token),
        }
    }

    fn hang_up(&mut self, token: u64) {
        self.sources.remove(&token);
        let Some(connection) = self.connections.remove(&token) else { return };
        self.epoll.remove(connection.socket.as_fd());
        let abandoned: Vec<i32> =
            self.execs.iter().filter(|(_, exec)| exec.connection == token).map(|(pid, _)| *pid).collect();
        for pid in abandoned {
            kill_session(pid);
        }
        for (id, index, sink) in self.sinks_of(token) {
            self.close_sink(&id, index, sink);
        }
        if let Some(id) = connection.input_of
            && let Some(running) = self.containers.get_mut(&id)
            && running.request.stdin_once
            && !running.request.tty
        {
            running.input = None;
        }
    }

    fn respond(&mut self, token: u64, response: &Response, fds: &[OwnedFd]) {
        if let Some(connection) = self.connections.get(&token) {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if send(connection.socket.as_fd(), response, &fds).is_err() {
                // The other end is gone, or does not read: its hang-up comes as an event of its own.
                self.hang_up(token);
            }
        }
    }

    fn respond_all(&mut self, tokens: &[u64], response: &Response) {
        for token in tokens {
            self.respond(*token, response, &[]);
        }
    }

    fn refuse(&mut self, token: u64, message: &str) {
        self.respond(token, &Response::Error { message: message.to_owned(), gone: false }, &[]);
    }

    fn gone(&mut self, token: u64, id: &str) {
        let message = format!("container {id} is not running");
        self.respond(token, &Response::Error { message, gone: true }, &[]);
    }

    fn request(&mut self, token: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Start(request) => {
                if let Err(error) = self.start(token, request) {
                    self.refuse(token, &format!("start a process: {error}"));
                }
            }
            Request::Exec(request) => {
                if let Err(error) = self.exec(token, &request, fds) {
                    self.refuse(token, &format!("start a process: {error}"));
                }
            }
            Request::Kill { id, signal } => self.kill(token, &id, signal),
            Request::Attach { id, stdin, stdout, stderr } => {
                self.attach(token, &id, stdin, [stdout, stderr], fds);
            }
            Request::ReopenLog { id } => match self.containers.get_mut(&id) {
                None => self.gone(token, &id),
                Some(running) => match Output::reopen(&mut running.outputs) {
                    Ok(()) => self.respond(token, &Response::Done, &[]),
                    Err(error) => self.refuse(token, &format!("reopen log of container {id}: {error}")),
                },
            },
            Request::Socket { v6 } => match sys::tcp_socket(v6) {
                Ok(socket) => self.respond(token, &Response::Done, &[socket]),
                Err(error) => self.refuse(token, &format!("make a socket: {error}")),
            },
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.watches = true;
                }
                self.respond(token, &Response::Done, &[]);
            }
            Request::Shutdown => {
                self.leaving = Some(token);
                for running in self.containers.values() {
                    let _ = sys::kill(running.started.pid, libc::SIGKILL);
                }
                for pending in self.launches.values() {
                    let _ = sys::kill(pending.launch.pid, libc::SIGKILL);
                }
            }
        }
    }

    fn start(&mut self, token: u64, request: StartRequest) -> io::Result<()> {
        // A runtime that died after it had asked left a start behind, under way or done. The next one's request joins it:
        // a second launch of the same container would fail, and its clean-up would end the first.
        if let Some(running) = self.containers.get(&request.id) {
            let started = running.started.clone();
            self.respond(token, &Response::Started { started, oom_score_refused: false }, &[]);
            return Ok(());
        }
        if let Some(pending) = self.launches.values_mut().find(|pending| pending.starts(&request.id)) {
            pending.connections.push(token);
            return Ok(());
        }
        if launch::has_started(&request.bundle) {
            return Err(io::Error::other(format!("container {} has run already", request.id)));
        }
        let mut stdio = Stdio::default();
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if !request.tty {
            if request.stdin {
                let (read, write) = sys::pipe()?;
                (stdio.stdin, stdin) = (Some(read), Some(write));
            }
            let (read, write) = sys::pipe()?;
            (stdout, stdio.stdout) = (Some(read), Some(write));
            let (read, write) = sys::pipe()?;
            (stderr, stdio.stderr) = (Some(read), Some(write));
        }
        let launch = launch::start(&request, stdio)?;
        self.track(token, launch, Starting::Container { request, stdout, stderr, stdin, signals: Vec::new() })
    }

    fn exec(&mut self, token: u64, request: &ExecRequest, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Some(running) = self.containers.get(&request.id) else {
            self.gone(token, &request.id);
            return Ok(());
        };
        let mut fds = fds.into_iter();
        let stdio = Stdio {
            stdin: request.stdin.then(|| fds.next()).flatten(),
            stdout: request.stdout.then(|| fds.next()).flatten(),
            stderr: request.stderr.then(|| fds.next()).flatten(),
        };
        let (root, bundle) = (running.request.state_root.clone(), running.request.bundle.clone());
        let launch = launch::exec(request, &root, &bundle, stdio)?;
        let what = Starting::Exec { id: request.id.clone(), process: request.process.clone() };
        self.track(token, launch, what)
    }

    fn track(&mut self, connection: u64, launch: Launch, what: Starting) -> io::Result<()> {
        let pid = launch.pid;
        let token = self.token(Source::Launch(pid));
        self.epoll.add(launch.answer.as_fd(), token, READ)?;
        self.launches.insert(pid, Pending { launch, token, connections: vec![connection], what });
        Ok(())
    }

    /// A helper has answered (or died).
    fn launched(&mut self, pid: i32) {
        let Some(pending) = self.launches.get(&pid) else { return };
        let Some((response, fds)) = launch::answer(&pending.launch) else { return };
        let Some(pending) = self.launches.remove(&pid) else { return };
        self.epoll.remove(pending.launch.answer.as_fd());
        self.sources.remove(&pending.token);
        match (pending.what, &response) {
            (
                Starting::Container { request, stdout, stderr, stdin, signals },
                Response::Started { started, .. },
            ) => {
                let pid = started.pid;
                let terminal = fds.into_iter().next();
                self.adopt(request, started.clone(), [stdout, stderr], stdin, terminal);
                self.respond_all(&pending.connections, &response);
                if let Some((code, signal)) = self.early.remove(&pid) {
                    self.ended(pid, code, signal);
                } else {
                    let leaving = self.leaving.map(|_| libc::SIGKILL);
                    for signal in signals.into_iter().chain(leaving) {
                        let _ = sys::kill(pid, signal);
                    }
                }
            }
            (Starting::Exec { id, process }, Response::Started { started, .. }) => {
                let _ = std::fs::remove_file(process);
                let pid = started.pid;
                let Some(&connection) = pending.connections.first() else { return };
                self.execs.insert(pid, Executing { id, connection });
                self.respond(connection, &response, &fds);
                if let Some((code, signal)) = self.early.remove(&pid) {
                    self.ended(pid, code, signal);
                } else if !self.connections.contains_key(&connection) {
                    kill_session(pid);
                }
            }
            (what, _) => {
                match what {
                    Starting::Container { request, .. } => {
                        self.cgroups.kill(&request.cgroup);
                        self.cgroups.remove(&request.cgroup);
                        launch::forget(&request.state_root, &request.id);
                        launch::forget_start(&request.bundle);
                    }
                    Starting::Exec { process, .. } => drop(std::fs::remove_file(process)),
                }
                self.respond_all(&pending.connections, &response);
            }
        }
        if self.launches.is_empty() {
            self.early.clear();
        }
    }

    fn adopt(
        &mut self,
        request: StartRequest,
        started: StartedRecord,
        pipes: [Option<OwnedFd>; 2],
        stdin: Option<OwnedFd>,
        terminal: Option<OwnedFd>,
    ) {
        let id = request.id.clone();
        let input = match &terminal {
            Some(master) => master.try_clone().ok(),
            None => stdin,
        };
        let [stdout, stderr] = pipes;
        let outputs = Output::of_container(&request.log_path, terminal.or(stdout), stderr);
        let oom_kills_before = 0;
        self.containers.insert(id.clone(), Running { request, started, outputs, input, oom_kills_before });
        let count = self.containers.get(&id).map_or(0, |running| running.outputs.len());
        for index in 0..count {
            let token = self.token(Source::Output(id.clone(), index));
            let Some(output) =
                self.containers.get_mut(&id).and_then(|running| running.outputs.get_mut(index))
            else {
                continue;
            };
            output.token = token;
            if let Some(fd) = &output.source {
                let _ = sys::set_nonblocking(fd.as_fd(), true);
                let _ = self.epoll.add(fd.as_fd(), token, READ);
            }
        }
    }

    fn kill(&mut self, token: u64, id: &str, signal: i32) {
        let starting = self.launches.values_mut().find(|pending| pending.starts(id));
        if let Some(Pending { what: Starting::Container { signals, .. }, .. }) = starting {
            signals.push(signal);
            return self.respond(token, &Response::Done, &[]);
        }
        let Some(running) = self.containers.get(id) else { return self.gone(token, id) };
        match sys::kill(running.started.pid, signal) {
            Ok(()) => self.respond(token, &Response::Done, &[]),
            Err(error) => self.refuse(token, &format!("send signal {signal} to container {id}: {error}")),
        }
    }

    fn attach(&mut self, token: u64, id: &str, stdin: bool, wanted: [bool; 2], fds: Vec<OwnedFd>) {
        let Some(running) = self.containers.get_mut(id) else { return self.gone(token, id) };
        let mut input = Vec::new();
        if stdin {
            match running.input.as_ref().map(OwnedFd::try_clone) {
                Some(Ok(fd)) => input.push(fd),
                _ => return self.refuse(token, &format!("container {id} has no open stdin")),
            }
        }
        let mut added = Vec::new();
        for (index, fd) in (0..2).filter(|index| wanted[*index]).zip(fds) {
            let _ = sys::set_nonblocking(fd.as_fd(), true);
            if let Some(output) = running.outputs.get_mut(index) {
                self.next_token += 1;
                output.sinks.push(Sink::new(self.next_token, token, fd));
                added.push((self.next_token, index));
            }
        }
        for (sink, index) in added {
            self.sources.insert(sink, Source::Sink(id.to_owned(), index, sink));
        }
        if stdin && let Some(connection) = self.connections.get_mut(&token) {
            connection.input_of = Some(id.to_owned());
        }
        self.respond(token, &Response::Done, &input);
    }

    /// Moves what a stream has to say to the log and the attached.
    fn pump(&mut self, id: &str, index: usize) {
        let Some(output) = self.containers.get_mut(id).and_then(|running| running.outputs.get_mut(index))
        else {
            return;
        };
        output.read_once();
        output.update_interest(&self.epoll);
        if output.source.is_none() {
            self.sources.remove(&output.token);
        }
        self.drop_broken(id, index);
    }

    fn drain_sink(&mut self, id: &str, index: usize, sink: u64) {
        let Some(output) = self.containers.get_mut(id).and_then(|running| running.outputs.get_mut(index))
        else {
            return;
        };
        if let Some(sink) = output.sinks.iter_mut().find(|candidate| candidate.token == sink) {
            sink.flush();
        }
        output.update_interest(&self.epoll);
        self.drop_broken(id, index);
    }

    fn drop_broken(&mut self, id: &str, index: usize) {
        let Some(output) = self.containers.get(id).and_then(|running| running.outputs.get(index)) else {
            return;
        };
        let broken: Vec<u64> =
            output.sinks.iter().filter(|sink| sink.broken).map(|sink| sink.token).collect();
        for sink in broken {
            self.close_sink(id, index, sink);
        }
    }

    fn sinks_of(&self, connection: u64) -> Vec<(String, usize, u64)> {
        let mut found = Vec::new();
        for (id, running) in &self.containers {
            for (index, output) in running.outputs.iter().enumerate() {
                let mine = output.sinks.iter().filter(|sink| sink.connection == connection);
                found.extend(mine.map(|sink| (id.clone(), index, sink.token)));
            }
        }
        found
    }

    fn close_sink(&mut self, id: &str, index: usize, sink: u64) {
        self.sources.remove(&sink);
        if let Some(output) = self.containers.get_mut(id).and_then(|running| running.outputs.get_mut(index)) {
            output.remove_sink(sink, &self.epoll);
        }
    }

    fn signalled(&mut self) {
        // The content does not matter: several signals may be one, so all children are asked.
        let mut buffer = [0_u8; 1024];
        while nix::unistd::read(&self.signals, &mut buffer).is_ok_and(|count| count > 0) {}
        while let Some((pid, code, signal)) = sys::reap() {
            if self.launches.contains_key(&pid) {
                // Its answer was written before it ended; a helper that died without gives end of file.
                self.launched(pid);
            } else {
                self.ended(pid, code, signal);
            }
        }
    }

    fn ended(&mut self, pid: i32, code: i32, signal: Option<i32>) {
        if let Some(exec) = self.execs.remove(&pid) {
            let exit = ExitRecord {
                exit_code: code,
                signal,
                oom_killed: false,
                finished_at: now_nanos(),
                reason: None,
                message: String::new(),
            };
            self.respond(exec.connection, &Response::Exited { id: exec.id, exit }, &[]);
            return;
        }
        let id =
            self.containers.iter().find(|(_, running)| running.started.pid == pid).map(|(id, _)| id.clone());
        match id {
            Some(id) => self.container_ended(&id, code, signal),
            None if !self.launches.is_empty() => drop(self.early.insert(pid, (code, signal))),
            // An orphan of a container that shares our process namespace.
            None => {}
        }
    }

    fn container_ended(&mut self, id: &str, code: i32, signal: Option<i32>) {
        let Some(running) = self.containers.get(id) else { return };
        let finished_at = now_nanos();
        let cgroup = running.request.cgroup.clone();
        let oom_killed = self.cgroups.oom_kills(&cgroup) > running.oom_kills_before;
        if running.request.kill_all {
            self.cgroups.kill(&cgroup);
        }
        let Some(mut running) = self.containers.remove(id) else { return };
        for output in &mut running.outputs {
            output.finish(&self.epoll);
            self.sources.remove(&output.token);
            for sink in &output.sinks {
                self.sources.remove(&sink.token);
            }
        }
        let exit = ExitRecord {
            exit_code: code,
            signal,
            oom_killed,
            finished_at,
            reason: None,
            message: String::new(),
        };
        // The record is what a later runtime finds; without it the container counts as lost, which is what it then is.
        let _ = crate::files::write_json_volatile(&running.request.bundle.join("exit.json"), &exit);
        self.cgroups.remove(&cgroup);
        launch::forget(&running.request.state_root, id);
        let watchers: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.watches)
            .map(|(token, _)| *token)
            .collect();
        for token in watchers {
            self.respond(token, &Response::Exited { id: id.to_owned(), exit: exit.clone() }, &[]);
        }
        // Attached connections learn that it is over.
        let attached: Vec<u64> =
            running.outputs.iter().flat_map(|output| &output.sinks).map(|sink| sink.connection).collect();
        for token in attached {
            self.hang_up(token);
        }
    }
}

/// Kills an exec'd process with its whole session: every process it started that did not leave on purpose.
fn kill_session(leader: i32) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let session = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(3)?.parse::<i32>().ok());
        if session == Some(leader) && pid != leader {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }
    let _ = sys::kill(leader, libc::SIGKILL);
}

/// Tells a malformed message apart from a broken connection.
trait IsJson {
    fn is_json(&self) -> bool;
}

impl IsJson for io::Error {
    fn is_json(&self) -> bool {
        self.get_ref().is_some_and(|inner| inner.is::<serde_json::Error>())
    }
}
