//! The system calls that have no safe wrapper, each in the smallest function that can be used safely.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Turns a -1 into the error behind it.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(libc::c_int::try_from(result).unwrap_or(i32::MAX))
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Makes a descriptor non-blocking (or blocking again).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: fcntl on an open descriptor, integers only.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags))?;
    }
    Ok(())
}

/// A pipe, both ends closed on exec: (read, write).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// A connected pair of packet sockets.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A packet socket listening on `path`, non-blocking.
pub(crate) fn packet_listener(path: &Path) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd)
}

/// A packet socket connected to `path`, blocking, whose calls give up after `seconds`.
pub(crate) fn packet_connect(path: &Path, seconds: i64) -> io::Result<OwnedFd> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
    };
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = nix::sys::time::TimeVal::new(seconds, 0);
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Accepts one connection, non-blocking.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{SockFlag, accept4};
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 has just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket in the caller's network namespace, non-blocking, not connected.
pub(crate) fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the child's pid.
    Parent(i32),
}

/// Forks. Only for single-threaded processes: the shim, before and during its loop.
pub(crate) fn fork(new_pid_namespace: bool) -> io::Result<Fork> {
    let pid = if new_pid_namespace {
        let flags = libc::c_ulong::try_from(libc::CLONE_NEWPID | libc::SIGCHLD).unwrap_or_default();
        // SAFETY: a clone without a new stack or shared memory is a fork; the process has one thread, so no lock is
        // held by another one.
        check_long(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) })?
    } else {
        // SAFETY: as above.
        check(unsafe { libc::fork() })?
    };
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid) })
}

/// Ends the process at once, without destructors (which belong to the parent of a fork).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// One reaped child: (pid, exit code or 128 + signal, signal).
pub(crate) fn reap() -> Option<(i32, i32, Option<i32>)> {
    let mut status = 0;
    // SAFETY: waitpid writes one integer.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        Some((pid, 128 + signal, Some(signal)))
    } else {
        Some((pid, libc::WEXITSTATUS(status), None))
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call.
    match check(unsafe { libc::kill(pid, signal) }) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.map(drop),
    }
}

/// Closes every descriptor but stdio. Only at the start of a process, before anything has opened one.
pub(crate) fn close_inherited() {
    // SAFETY: nothing in this process owns a descriptor above 2 yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// prctl with one number.
pub(crate) fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take one integer.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }).map(drop)
}

/// Names the process, for `ps`.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Blocks the signals and returns a descriptor that reads them.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; signalfd returns a fresh descriptor.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Unblocks all signals and gives SIGPIPE (which Rust ignores) its default again: what a container expects to inherit.
pub(crate) fn reset_signals() {
    // SAFETY: the set is initialised before use; both calls only change this process.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Waits for any child for ever: the whole life of a pause process, first of its process namespace.
pub(crate) fn reap_forever() -> ! {
    loop {
        // SAFETY: waits for children; without one it sleeps until a signal (an orphan's end, too) comes.
        unsafe {
            if libc::waitpid(-1, std::ptr::null_mut(), 0) < 0 {
                libc::pause();
            }
        }
    }
}

/// Sets the host name of the current UTS namespace.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: reads `len` bytes of the string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Sets a terminal's size.
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

/// An anonymous file in memory.
pub(crate) fn memory_file(name: &CStr) -> io::Result<std::fs::File> {
    // SAFETY: returns a fresh descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))?) };
    Ok(fd.into())
}

/// Flushes the file system that holds `path`.
pub(crate) fn sync_filesystem(path: &Path) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    // SAFETY: plain system call on an open descriptor.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// An epoll instance. Interest is level-triggered.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: returns a fresh descriptor.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        token: u64,
        events: libc::c_int,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: reads one epoll_event.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) }).map(drop)
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, events: libc::c_int) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, events)
    }

    /// Descriptors must be removed before they are closed, because a forked child may hold a copy.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Waits for ever; returns (token, events).
    pub(crate) fn wait(&self) -> io::Result<Vec<(u64, libc::c_int)>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 32];
        // SAFETY: writes at most 32 entries.
        let result = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 32, -1) };
        let count = match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        let count = usize::try_from(count).unwrap_or(0);
        Ok(events[..count].iter().map(|event| (event.u64, event.events.cast_signed())).collect())
    }
}

/// The new mount API: a file system being configured.
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    pub(crate) fn open(kind: &CStr) -> io::Result<FsContext> {
        // SAFETY: returns a fresh descriptor.
        let fd = check_long(unsafe {
            libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1 /* FSOPEN_CLOEXEC */)
        })?;
        // SAFETY: as above.
        Ok(FsContext(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sets an option to a string.
    pub(crate) fn set(&self, key: &CStr, value: &Path) -> io::Result<()> {
        let value = c_path(value)?;
        const SET_STRING: libc::c_int = 1;
        // SAFETY: both strings are terminated and outlive the call.
        check_long(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), SET_STRING, key.as_ptr(), value.as_ptr(), 0)
        })
        .map(drop)
    }

    /// Creates the file system and attaches it at `target`.
    pub(crate) fn mount(self, target: &Path) -> io::Result<()> {
        const CMD_CREATE: libc::c_int = 6;
        let null = std::ptr::null::<libc::c_char>();
        let target = c_path(target)?;
        // SAFETY: descriptors are open, strings terminated; the new descriptor is owned at once.
        unsafe {
            check_long(libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), CMD_CREATE, null, null, 0))?;
            let mount = check_long(libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                1, /* FSMOUNT_CLOEXEC */
                0,
            ))?;
            let mount = OwnedFd::from_raw_fd(mount);
            const F_EMPTY_PATH: libc::c_uint = 4;
            check_long(libc::syscall(
                libc::SYS_move_mount,
                mount.as_fd().as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                F_EMPTY_PATH,
            ))?;
        }
        Ok(())
    }
}

/// Watches a descriptor from the asynchronous runtime. It must be non-blocking.
pub(crate) fn watched(
    fd: OwnedFd,
    interest: tokio::io::Interest,
) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor for as long as it lives, which is what registration demands.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
