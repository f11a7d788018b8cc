//! One output stream of a container: read once, written to the log and to everyone attached.
//!
//! An attached client that reads slowly slows the container down (as a terminal does) rather than losing output; one
//! that goes away frees it.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use super::log::{LineSplitter, LogFile};
use crate::sys::Epoll;

/// Backlog of one attached client at which the container has to wait, bytes.
const MAX_BACKLOG: usize = 64 * 1024;
const CHUNK: usize = 32 * 1024;

/// An attached client's descriptor.
pub(super) struct Sink {
    pub(super) token: u64,
    pub(super) connection: u64,
    fd: OwnedFd,
    backlog: Vec<u8>,
    registered: bool,
    pub(super) broken: bool,
}

impl Sink {
    pub(super) fn new(token: u64, connection: u64, fd: OwnedFd) -> Sink {
        Sink { token, connection, fd, backlog: Vec::new(), registered: false, broken: false }
    }

    fn push(&mut self, data: &[u8]) {
        self.backlog.extend_from_slice(data);
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.broken {
            match nix::unistd::write(&self.fd, &self.backlog) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => self.broken = true,
            }
        }
    }
}

/// The stream.
pub(super) struct Output {
    /// The pipe's read end, or the terminal's master; `None` after its end.
    pub(super) source: Option<OwnedFd>,
    pub(super) token: u64,
    pub(super) sinks: Vec<Sink>,
    log: Rc<RefCell<Option<LogFile>>>,
    lines: LineSplitter,
    paused: bool,
    /// The source after its end, until epoll has let go of it.
    ended: Option<OwnedFd>,
}

impl Output {
    /// stdout and stderr of a container (a terminal has only the first), sharing its log.
    pub(super) fn of_container(
        log_path: &Path,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Vec<Output> {
        let log = if log_path.as_os_str().is_empty() { None } else { LogFile::open(log_path).ok() };
        let log = Rc::new(RefCell::new(log));
        [(stdout, "stdout"), (stderr, "stderr")]
            .into_iter()
            .filter_map(|(source, name)| {
                Some(Output {
                    source: Some(source?),
                    token: 0,
                    sinks: Vec::new(),
                    log: Rc::clone(&log),
                    lines: LineSplitter::new(name),
                    paused: false,
                    ended: None,
                })
            })
            .collect()
    }

    /// Reopens the log that the streams share.
    pub(super) fn reopen(outputs: &mut [Output]) -> std::io::Result<()> {
        match outputs.first() {
            Some(output) => output.log.borrow_mut().as_mut().map_or(Ok(()), LogFile::reopen),
            None => Ok(()),
        }
    }

    /// Reads one chunk; true when there may be more.
    pub(super) fn read_once(&mut self) -> bool {
        let Some(source) = &self.source else { return false };
        let mut buffer = [0_u8; CHUNK];
        match nix::unistd::read(source, &mut buffer) {
            Ok(0) => self.end(),
            Ok(count) => {
                self.distribute(&buffer[..count]);
                return true;
            }
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(nix::errno::Errno::EINTR) => return true,
            // A terminal whose last user has gone says EIO.
            Err(_) => self.end(),
        }
        false
    }

    fn distribute(&mut self, data: &[u8]) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            self.lines.push(data, log);
        }
        for sink in &mut self.sinks {
            sink.push(data);
        }
    }

    fn end(&mut self) {
        self.ended = self.source.take();
        if let Some(log) = self.log.borrow_mut().as_mut() {
            self.lines.finish(log);
        }
    }

    /// Tells epoll what this stream waits for now.
    pub(super) fn update_interest(&mut self, epoll: &Epoll) {
        if let Some(fd) = self.ended.take() {
            epoll.remove(fd.as_fd());
        }
        for sink in &mut self.sinks {
            let wanted = !sink.backlog.is_empty() && !sink.broken;
            if wanted && !sink.registered {
                sink.registered = epoll.add(sink.fd.as_fd(), sink.token, libc::EPOLLOUT).is_ok();
            } else if !wanted && sink.registered {
                epoll.remove(sink.fd.as_fd());
                sink.registered = false;
            }
        }
        let pause = self.sinks.iter().any(|sink| sink.backlog.len() > MAX_BACKLOG && !sink.broken);
        if pause != self.paused
            && let Some(source) = &self.source
        {
            self.paused = pause;
            if pause {
                epoll.remove(source.as_fd());
            } else {
                let _ = epoll.add(source.as_fd(), self.token, libc::EPOLLIN);
            }
        }
    }

    pub(super) fn remove_sink(&mut self, token: u64, epoll: &Epoll) {
        if let Some(index) = self.sinks.iter().position(|sink| sink.token == token) {
            let sink = self.sinks.swap_remove(index);
            if sink.registered {
                epoll.remove(sink.fd.as_fd());
            }
        }
        self.update_interest(epoll);
    }

    /// The container has ended: takes what is still in the pipe. A process that it left behind may hold the other end
    /// open, so an empty pipe is the end, too.
    pub(super) fn finish(&mut self, epoll: &Epoll) {
        if let Some(source) = &self.source
            && !self.paused
        {
            epoll.remove(source.as_fd());
        }
        while self.read_once() {}
        if self.source.is_some() {
            self.end();
        }
        for sink in &mut self.sinks {
            sink.flush();
            if sink.registered {
                epoll.remove(sink.fd.as_fd());
                sink.registered = false;
            }
        }
    }
}
