//! The directories on the node's disk.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Volumes are called `pvc-<uid of the claim>`.
pub(crate) const PREFIX: &str = "pvc-";

/// Makes the directory of a volume. Whoever a container runs as may write into it; the directory above keeps everybody
/// else of the host out.
pub(crate) fn make(root: &Path, volume: &str) -> io::Result<PathBuf> {
    if !root.is_dir() {
        fs::create_dir_all(root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))?;
    }
    let path = root.join(volume);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?,
    }
    Ok(path)
}

/// Removes the directory of a volume with what is in it; links are not followed. `path` is what the volume says, and must
/// be the very directory that was made for it: objects can be written by others.
pub(crate) fn remove(root: &Path, volume: &str, path: &Path) -> io::Result<()> {
    let plain = volume.starts_with(PREFIX) && !volume.contains('/');
    if !plain || path != root.join(volume) {
        let text = format!(
            "path {} is not the directory of volume {volume} below {}",
            path.display(),
            root.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes directories that were made for volumes that never came to be: empty ones that `known` does not know.
pub(crate) fn remove_leftovers(root: &Path, known: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && !known(name)) {
            // One with data in it is not empty, and stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn directories_are_made_open_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("storage");
        let path = make(&root, "pvc-1").unwrap();
        assert_eq!(make(&root, "pvc-1").unwrap(), path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&root), mode(&path)), (0o700, 0o777));
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        remove(&root, "pvc-1", &path).unwrap();
        remove(&root, "pvc-1", &path).unwrap();
        assert!(!path.exists() && outside.join("kept").exists());
    }

    #[test]
    fn only_a_volumes_own_directory_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("storage"), dir.path().join("other"));
        let path = make(&root, "pvc-1").unwrap();
        fs::create_dir(&other).unwrap();
        let check = |volume: &str, path: &Path| {
            assert!(remove(&root, volume, path).is_err(), "{volume} {}", path.display());
        };
        check("pvc-1", &other);
        check("pvc-2", &path);
        check("pvc-/../..", &root.join("pvc-/../.."));
        check("pvc-1", &root);
        check("", &root.join(""));
        check("other", &root.join("other"));
        assert!(path.exists() && other.exists());
    }

    #[test]
    fn leftovers_are_empty_and_unknown() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pvc-known", "pvc-empty", "pvc-full"] {
            make(dir.path(), name).unwrap();
        }
        fs::create_dir(dir.path().join("somebody's")).unwrap();
        fs::write(dir.path().join("pvc-full/file"), "x").unwrap();
        remove_leftovers(dir.path(), |name| name == "pvc-known");
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["pvc-full", "pvc-known", "somebody's"]);
    }
}
