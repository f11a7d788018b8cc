//! Durable small files: written beside their place, synced, renamed. A reader sees the old content or the new, never half.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Result, RuntimeError};

/// Replaces `path` by `bytes`, durably.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    let mut file = File::create(&temporary).context("create", &temporary)?;
    file.write_all(bytes).context("write", &temporary)?;
    file.sync_all().context("sync", &temporary)?;
    fs::rename(&temporary, path).context("rename", path)?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Replaces `path` by `bytes` without waiting for the disk: for files that a reboot makes meaningless.
pub(crate) fn write_atomic_volatile(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    fs::write(&temporary, bytes).context("write", &temporary)?;
    fs::rename(&temporary, path).context("rename", path)
}

/// Replaces `path` by the JSON of `value`, durably.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, &encode(path, value)?)
}

/// Replaces `path` by the JSON of `value`, without waiting for the disk.
pub(crate) fn write_json_volatile<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic_volatile(path, &encode(path, value)?)
}

fn encode<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| RuntimeError::Damaged { path: path.to_owned(), message: error.to_string() })
}

/// Reads a JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(source).context("read", path),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| RuntimeError::Damaged { path: path.to_owned(), message: error.to_string() })
}

/// Makes a directory and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context("create directory", path)
}

/// Makes renames in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).context("sync", path)
}

/// Removes a directory tree; absent is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", path),
        _ => Ok(()),
    }
}

/// The name under which a file is written before it takes its place.
fn temporary_beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.tmp-{}", uuid::Uuid::new_v4().simple()))
}
