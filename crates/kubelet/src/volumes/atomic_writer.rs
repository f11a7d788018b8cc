//! Files of a projected volume, changed all at once: they live in a time-stamped directory to which `..data` points,
//! and a rename of that link is the change. Same layout as upstream's `pkg/volume/util/atomic_writer.go`, which
//! applications rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when not root.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// Makes `target` hold exactly `payload`. Returns whether anything changed.
///
/// # Errors
/// A path that leaves the volume, or whatever the file system refuses.
pub(crate) fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && is_current(&target.join(old), payload)
    {
        return Ok(false);
    }
    let stamp = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let name = format!("{stamp}.{:09}", rand::random_range(0..1_000_000_000_u32));
    let fresh = target.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let full = fresh.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&full, &file.data)?;
        let mut mode = file.mode;
        if let Some(group) = group {
            mode |= 0o440 & !0o007;
            chown(&full, file.uid, Some(group))?;
        } else if file.uid.is_some() {
            chown(&full, file.uid, None)?;
        }
        fs::set_permissions(&full, fs::Permissions::from_mode(mode))?;
    }
    let _ = fs::remove_file(target.join(DATA_TMP));
    symlink(&name, target.join(DATA_TMP))?;
    fs::rename(target.join(DATA_TMP), target.join(DATA))?;
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &wanted {
        let link = target.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let shown = entry.file_name().to_string_lossy().into_owned();
        if shown.starts_with("..") {
            if shown != DATA && shown != name {
                let _ = fs::remove_dir_all(entry.path());
            }
        } else if !wanted.contains(shown.as_str()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(true)
}

fn check_path(path: &str) -> io::Result<()> {
    let fine = !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if fine {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid path {path:?}: must be relative, without '..'"),
        ))
    }
}

fn is_current(dir: &Path, payload: &Payload) -> bool {
    let same = payload.iter().all(|(path, file)| {
        let full = dir.join(path);
        fs::read(&full).is_ok_and(|data| data == file.data)
            && fs::metadata(&full).is_ok_and(|meta| meta.permissions().mode() & 0o700 == file.mode & 0o700)
    });
    same && count(dir) == payload.len()
}

fn count(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
        .sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                ((*path).to_owned(), File { data: data.as_bytes().to_vec(), mode: 0o644, uid: None })
            })
            .collect()
    }

    #[test]
    fn files_appear_change_and_go_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        let before = fs::read_link(dir.path().join("..data")).unwrap();
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap(), "nothing changed");
        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("c").as_deref(), read("d/b")), (Some("3"), Some("4"), None));
        assert!(!dir.path().join(before).exists(), "the old directory is gone");
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "", "..x"] {
            assert!(write(dir.path(), &payload(&[(path, "")]), None).is_err(), "{path}");
        }
    }
}
