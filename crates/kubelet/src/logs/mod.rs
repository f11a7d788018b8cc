//! Container log files: reading them for `kubectl logs`, taking last words from them, rotating them. They are in the
//! CRI log format; answers to upstream's `kuberuntime/logs` and `pkg/kubelet/logs`.

mod format;
mod read;
mod rotate;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use orlop_cri::ContainerStatus;

use crate::runtime_status::{MESSAGE_PATH, MESSAGE_POLICY};

pub(crate) use read::{LogOptions, stream};
pub(crate) use rotate::rotate_all;

/// Longest termination message.
const MAX_MESSAGE: u64 = 4096;
/// What is taken from a log instead: at most so many bytes and lines.
const MAX_LOG_BYTES: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// What a container left in its termination message file, or at the end of its log when its policy says so.
pub(crate) fn termination_message(ended: &ContainerStatus) -> String {
    let noted = |key: &str| ended.container.annotations.get(key).map(String::as_str).unwrap_or_default();
    let path = Path::new("/").join(noted(MESSAGE_PATH));
    let file =
        ended.mounts.iter().find(|mount| mount.container_path == path).map(|mount| mount.host_path.clone());
    if let Some(text) = file.and_then(|file| head(&file)).filter(|text| !text.is_empty()) {
        return text;
    }
    if noted(MESSAGE_POLICY) == "FallbackToLogsOnError" && ended.exit_code != 0 {
        return log_tail(&ended.log_path);
    }
    String::new()
}

fn head(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn log_tail(path: &Path) -> String {
    let Ok(mut file) = fs::File::open(path) else { return String::new() };
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    // Stamps come on top of the content: read a little more.
    let from = length.saturating_sub(MAX_LOG_BYTES * 2);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(from)).is_err() || file.read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    if from > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let mut text = Vec::new();
    for line in lines.iter().skip(lines.len().saturating_sub(MAX_LOG_LINES)) {
        if let Some(parsed) = format::parse(line) {
            text.extend_from_slice(parsed.content);
            if !parsed.partial {
                text.push(b'\n');
            }
        }
    }
    let skip = text.len().saturating_sub(usize::try_from(MAX_LOG_BYTES).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&text[skip..]).into_owned()
}

/// All files of one container log, oldest first: rotated ones, then the one being written.
pub(crate) fn files(log: &Path) -> Vec<PathBuf> {
    let mut rotated = rotated(log);
    rotated.push(log.to_owned());
    rotated
}

/// Rotated files of a log, oldest first: `0.log.20260102-150405`, possibly compressed.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix) && !n.ends_with(".tmp"))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Removes a container's log with all rotated files.
pub(crate) fn remove(log: &Path) {
    for file in files(log) {
        // A log that was never written is as good as removed.
        let _ = fs::remove_file(file);
    }
}
