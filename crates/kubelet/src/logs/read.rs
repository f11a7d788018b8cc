//! Reads a container's log for a client: from the end, since a time, following what is written, across rotation.
//! Following sleeps in inotify and on the runtime's events; it never polls.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_cri::{ContainerEvent, ContainerEventKind, ContainerState, Runtime};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::{files, format};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// What of a log is wanted (`PodLogOptions`).
#[derive(Debug, Clone, Default)]
pub(crate) struct LogOptions {
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    /// Not more bytes than this.
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr`; `None` is both.
    pub stream: Option<&'static str>,
}

/// Turns log lines into what the client sees.
struct Formatter {
    options: LogOptions,
    left: Option<u64>,
    /// Whether the last output ended in the middle of a line, by stream.
    within: [bool; 2],
    rest: BytesMut,
}

impl Formatter {
    fn new(options: LogOptions) -> Self {
        let left = options.limit_bytes;
        Self { options, left, within: [false; 2], rest: BytesMut::new() }
    }

    /// Takes bytes of the file; returns bytes for the client, and whether the limit is reached.
    fn take(&mut self, bytes: &[u8]) -> (Bytes, bool) {
        self.rest.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line = self.rest.split_to(end + 1);
            self.line(&line, &mut out);
            if self.left == Some(0) {
                return (out.freeze(), true);
            }
        }
        (out.freeze(), false)
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        let Some(parsed) = format::parse(line) else { return };
        if let Some(wanted) = self.options.stream
            && wanted.as_bytes() != parsed.stream
        {
            return;
        }
        if let Some(since) = self.options.since
            && parsed.time().is_some_and(|time| time < since)
        {
            return;
        }
        let slot = usize::from(parsed.stream == b"stderr");
        let before = out.len();
        // The stamp stands at the beginning of what the container wrote as one line.
        if self.options.timestamps && !self.within[slot] {
            out.extend_from_slice(parsed.stamp);
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(parsed.content);
        if !parsed.partial {
            out.extend_from_slice(b"\n");
        }
        self.within[slot] = parsed.partial;
        if let Some(left) = &mut self.left {
            let written = u64::try_from(out.len() - before).unwrap_or(u64::MAX);
            if written > *left {
                out.truncate(before + usize::try_from(*left).unwrap_or(usize::MAX));
                *left = 0;
            } else {
                *left -= written;
            }
        }
    }
}

/// Where the last `lines` lines begin: index into `files` and offset.
fn tail_start(files: &[PathBuf], lines: u64) -> (usize, u64) {
    if lines == 0 {
        let last = files.len().saturating_sub(1);
        let length = files.last().and_then(|f| fs::metadata(f).ok()).map_or(0, |m| m.len());
        return (last, length);
    }
    let mut missing = lines;
    for (index, file) in files.iter().enumerate().rev() {
        let Ok(mut open) = File::open(file) else { continue };
        let Ok(length) = open.metadata().map(|m| m.len()) else { continue };
        let mut end = length;
        while end > 0 {
            let begin = end.saturating_sub(CHUNK as u64);
            let mut buffer = vec![0; usize::try_from(end - begin).unwrap_or(CHUNK)];
            if open.seek(SeekFrom::Start(begin)).is_err() || open.read_exact(&mut buffer).is_err() {
                break;
            }
            for (at, byte) in buffer.iter().enumerate().rev() {
                let position = begin + at as u64;
                // The feed that ends the file ends the last line; it does not begin another.
                if *byte == b'\n' && position + 1 != length {
                    missing -= 1;
                    if missing == 0 {
                        return (index, position + 1);
                    }
                }
            }
            end = begin;
        }
        if length > 0 {
            // The file's first line begins at its begin.
            missing -= 1;
            if missing == 0 {
                return (index, 0);
            }
        }
    }
    (0, 0)
}

/// Streams the log of container `id` at `log`. The channel ends when everything wanted was sent.
pub(crate) fn stream(
    runtime: Arc<dyn Runtime>,
    id: String,
    log: PathBuf,
    options: LogOptions,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        if let Err(error) = send(&*runtime, &id, &log, options, &sender).await {
            // A client that went away needs no error.
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn send(
    runtime: &dyn Runtime,
    id: &str,
    log: &Path,
    options: LogOptions,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let follow = options.follow;
    // Before the first read, so that nothing written meanwhile is missed.
    let watch = if follow { Some(Watch::new(log)?) } else { None };
    let mut events = runtime.container_events();
    let all = files(log);
    let (first, offset) = options.tail_lines.map_or((0, 0), |lines| tail_start(&all, lines));
    let mut formatter = Formatter::new(options);
    let mut current = None;
    for (index, path) in all.iter().enumerate().skip(first) {
        let Ok(mut file) = File::open(path) else { continue };
        if index == first {
            file.seek(SeekFrom::Start(offset))?;
        }
        if drain(&mut file, &mut formatter, sender).await? {
            return Ok(());
        }
        current = Some(file);
    }
    let Some(mut watch) = watch else { return Ok(()) };
    let mut running = is_running(runtime, id).await;
    loop {
        // Everything that is there now; then, if the container has ended before that, nothing more will come.
        if let Some(file) = &mut current
            && drain(file, &mut formatter, sender).await?
        {
            return Ok(());
        }
        let replaced = match (&current, fs::metadata(log)) {
            (Some(file), Ok(meta)) => file.metadata()?.ino() != meta.ino(),
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        };
        if replaced {
            current = File::open(log).ok();
            continue;
        }
        if !running {
            return Ok(());
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            event = events.next() => match event {
                Some(ContainerEvent::Container { kind: ContainerEventKind::Stopped | ContainerEventKind::Deleted, id: ended, .. }) if ended == id => {
                    running = false;
                }
                Some(ContainerEvent::Lagged) => running = is_running(runtime, id).await,
                Some(_) => {}
                None => {
                    // The runtime's stream ended; a new one begins where this one stopped.
                    events = runtime.container_events();
                    running = is_running(runtime, id).await;
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            },
            () = sender.closed() => return Ok(()),
        }
    }
}

async fn is_running(runtime: &dyn Runtime, id: &str) -> bool {
    let status = runtime.container_status(id).await;
    status.is_ok_and(|status| {
        matches!(status.container.state, ContainerState::Running | ContainerState::Created)
    })
}

/// Sends everything up to the file's present end; `true` when the client has enough or is gone.
async fn drain(
    file: &mut File,
    formatter: &mut Formatter,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        let (bytes, enough) = formatter.take(&buffer[..read]);
        if !bytes.is_empty() && sender.send(Ok(bytes)).await.is_err() {
            return Ok(true);
        }
        if enough {
            return Ok(true);
        }
    }
}

/// Changes in a log's directory.
struct Watch {
    // tokio has no inotify of its own; a pipe's reading end is read in the same way.
    changes: pipe::Receiver,
}

impl Watch {
    fn new(log: &Path) -> io::Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from)?;
        let dir = log
            .parent()
            .ok_or_else(|| io::Error::other(format!("log {} has no directory", log.display())))?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, flags).map_err(io::Error::from)?;
        Ok(Self { changes: pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))? })
    }

    /// Returns after something in the directory has changed; what it was is of no interest.
    async fn changed(&mut self) -> io::Result<()> {
        let mut events = [0; 4096];
        self.changes.read(&mut events).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.000000001Z stdout F one\n\
        2026-01-01T00:00:01.000000001Z stderr F two\n\
        2026-01-01T00:00:02.000000001Z stdout P thr\n\
        2026-01-01T00:00:02.000000002Z stdout F ee\n";

    fn check(options: LogOptions, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(&log, LOG).unwrap();
        let shown = format!("{options:?}");
        let (first, offset) = options.tail_lines.map_or((0, 0), |lines| tail_start(&files(&log), lines));
        assert_eq!(first, 0);
        let mut formatter = Formatter::new(options);
        let (out, _) = formatter.take(&LOG.as_bytes()[usize::try_from(offset).unwrap()..]);
        assert_eq!(String::from_utf8_lossy(&out), expected, "{shown}");
    }

    #[test]
    fn options_choose_what_is_shown() {
        let all = LogOptions::default;
        check(all(), "one\ntwo\nthree\n");
        check(LogOptions { stream: Some("stderr"), ..all() }, "two\n");
        check(LogOptions { since: Some("2026-01-01T00:00:01Z".parse().unwrap()), ..all() }, "two\nthree\n");
        check(LogOptions { tail_lines: Some(3), ..all() }, "two\nthree\n");
        check(LogOptions { tail_lines: Some(0), ..all() }, "");
        check(LogOptions { tail_lines: Some(99), ..all() }, "one\ntwo\nthree\n");
        check(LogOptions { limit_bytes: Some(6), ..all() }, "one\ntw");
        check(
            LogOptions { timestamps: true, ..all() },
            "2026-01-01T00:00:00.000000001Z one\n2026-01-01T00:00:01.000000001Z two\n2026-01-01T00:00:02.000000001Z three\n",
        );
    }

    #[test]
    fn the_tail_reaches_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.20260101-000000"), "a\nb\nc\n").unwrap();
        fs::write(&log, "d\ne\n").unwrap();
        for (lines, expected) in [(1, (1, 2)), (2, (1, 0)), (3, (0, 4)), (5, (0, 0)), (9, (0, 0))] {
            assert_eq!(tail_start(&files(&log), lines), expected, "{lines}");
        }
    }
}
