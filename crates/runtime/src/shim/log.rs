//! The CRI log format: `<RFC 3339 with nanoseconds> <stream> <P|F> <content>`, one line each.
//!
//! Source: `k8s.io/design-proposals-archive/node/kubelet-cri-logging.md`. A line longer than [`MAX_LINE`] is cut into
//! parts tagged `P`, the last part `F`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest content of one log line, bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// A container's log file, shared by its streams.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> std::io::Result<LogFile> {
        let mut log = LogFile { path: path.to_owned(), file: None };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the path anew, after the file there was moved away.
    pub(super) fn reopen(&mut self) -> std::io::Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?);
        Ok(())
    }

    /// A full disk must not stop the container: what cannot be written is lost, as with upstream runtimes.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
    }
}

/// One stream's unfinished line.
pub(super) struct LineSplitter {
    stream: &'static str,
    pending: Vec<u8>,
}

impl LineSplitter {
    pub(super) fn new(stream: &'static str) -> LineSplitter {
        LineSplitter { stream, pending: Vec::new() }
    }

    /// Takes output as it was read and writes the lines that are complete.
    pub(super) fn push(&mut self, data: &[u8], log: &mut LogFile) {
        let out = self.format(data, &timestamp());
        if !out.is_empty() {
            log.write(&out);
        }
    }

    /// The stream ended: what is left is a line.
    pub(super) fn finish(&mut self, log: &mut LogFile) {
        if !self.pending.is_empty() {
            let mut out = Vec::new();
            append(&mut out, &timestamp(), self.stream, b'F', &self.pending);
            self.pending = Vec::new();
            log.write(&out);
        }
    }

    fn format(&mut self, mut data: &[u8], time: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + 64);
        while !data.is_empty() {
            let room = MAX_LINE - self.pending.len();
            match data.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    if self.pending.is_empty() {
                        append(&mut out, time, self.stream, b'F', &data[..end]);
                    } else {
                        self.pending.extend_from_slice(&data[..end]);
                        append(&mut out, time, self.stream, b'F', &self.pending);
                        self.pending.clear();
                    }
                    data = &data[end + 1..];
                }
                None if data.len() > room => {
                    self.pending.extend_from_slice(&data[..room]);
                    append(&mut out, time, self.stream, b'P', &self.pending);
                    self.pending.clear();
                    data = &data[room..];
                }
                None => {
                    self.pending.extend_from_slice(data);
                    data = &[];
                }
            }
        }
        if self.pending.is_empty() && self.pending.capacity() > 4096 {
            self.pending = Vec::new();
        }
        out
    }
}

fn append(out: &mut Vec<u8>, time: &str, stream: &str, tag: u8, content: &[u8]) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(content);
    out.push(b'\n');
}

fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pushes: &[&[u8]], expected: &[(char, usize)]) {
        let mut splitter = LineSplitter::new("stdout");
        let mut out = Vec::new();
        for push in pushes {
            out.extend(splitter.format(push, "T"));
        }
        let got: Vec<(char, usize)> = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                assert!(line.starts_with(b"T stdout "), "{line:?}");
                (char::from(line[9]), line.len() - 11)
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn lines_and_parts() {
        check(&[b"hello\nworld\n"], &[('F', 5), ('F', 5)]);
        check(&[b"hel", b"lo\n"], &[('F', 5)]);
        check(&[b"\n\n"], &[('F', 0), ('F', 0)]);
        check(&[b"no end"], &[]);
        let long = vec![b'x'; MAX_LINE * 2 + 5];
        check(&[&long, b"\n"], &[('P', MAX_LINE), ('P', MAX_LINE), ('F', 5)]);
        // Exactly the limit is one whole line.
        let mut exact = vec![b'x'; MAX_LINE];
        exact.push(b'\n');
        check(&[&exact], &[('F', MAX_LINE)]);
        check(&[&exact[..MAX_LINE], b"\n"], &[('F', MAX_LINE)]);
    }

    #[test]
    fn time_has_nanoseconds() {
        let time = timestamp();
        assert_eq!(time.len(), "2026-01-01T00:00:00.000000000Z".len(), "{time}");
        assert!(time.ends_with('Z'), "{time}");
    }
}
