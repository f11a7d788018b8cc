//! `subPath` mounts that no symlink can lead out of the volume: the path is resolved, checked, opened step by step
//! without following links, and what was opened is bound to a place of the kubelet's own, which the container gets.
//! Answers to upstream's `pkg/volume/util/subpath` (CVE-2017-1002101).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::fs::{bind, is_mount_point};

/// Prepares `sub_path` of the volume at `volume` and returns the path to mount: `stage`, on which it is bound.
/// A path that does not exist is made as a directory.
pub(crate) fn prepare(volume: &Path, sub_path: &str, stage: &Path) -> io::Result<PathBuf> {
    if Path::new(sub_path).is_absolute()
        || Path::new(sub_path).components().any(|part| part == Component::ParentDir)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("subPath {sub_path:?} must be relative, without '..'"),
        ));
    }
    let volume = volume.canonicalize()?;
    let full = volume.join(sub_path);
    // Links inside the volume are fine (a configMap's files are links); their end must be inside, too.
    let resolved = match full.canonicalize() {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dirs(&volume, &full)?;
            full.canonicalize()?
        }
        Err(error) => return Err(error),
    };
    let inner = resolved.strip_prefix(&volume).map_err(|_| {
        io::Error::other(format!(
            "subpath {} not within volume path {}",
            resolved.display(),
            volume.display()
        ))
    })?;
    let opened = open_without_links(&volume, inner)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if is_mount_point(stage) || bound_file(stage) {
        return Ok(stage.to_owned());
    }
    if let Some(parent) = stage.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(stage)?;
    } else if !stage.exists() {
        fs::File::create(stage)?;
    }
    bind(&source, stage)?;
    Ok(stage.to_owned())
}

/// Whether the stage is a mount on the same file system, which device numbers do not show.
fn bound_file(stage: &Path) -> bool {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    let Some(stage) = stage.to_str() else { return false };
    table.lines().any(|line| line.split(' ').nth(4) == Some(stage))
}

/// Makes the missing directories of `full` below the deepest that exists, without following links on the way.
fn make_dirs(volume: &Path, full: &Path) -> io::Result<()> {
    let mut exists = full;
    while !exists.exists() {
        exists = exists.parent().ok_or_else(|| io::Error::other("subPath has no existing parent"))?;
    }
    let missing = full.strip_prefix(exists).map_err(io::Error::other)?.to_owned();
    let base = exists.canonicalize()?;
    let inner = base.strip_prefix(volume).map_err(|_| {
        io::Error::other(format!("subpath {} not within volume path {}", base.display(), volume.display()))
    })?;
    let mut dir = open_without_links(volume, inner)?;
    // A new directory is as open as the volume itself.
    let mode = fs::metadata(volume)?.permissions().mode() & 0o7777;
    for part in missing.components() {
        let name = part.as_os_str();
        mkdirat(&dir, name, Mode::from_bits_truncate(0o750)).map_err(io::Error::from)?;
        dir = openat(&dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io::Error::from)?;
        let opened = format!("/proc/self/fd/{}", dir.as_raw_fd());
        fs::set_permissions(opened, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn open_without_links(base: &Path, inner: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut dir = open(base, flags, Mode::empty()).map_err(io::Error::from)?;
    for part in inner.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other(format!("unexpected component in {}", inner.display())));
        };
        dir = openat(&dir, name, flags, Mode::empty()).map_err(io::Error::from)?;
        let meta = nix::sys::stat::fstat(&dir).map_err(io::Error::from)?;
        if meta.st_mode & nix::libc::S_IFMT == nix::libc::S_IFLNK {
            return Err(io::Error::other(format!(
                "{} became a symbolic link while it was opened",
                inner.display()
            )));
        }
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    /// Needs root: it binds.
    #[test]
    fn missing_directories_are_made_as_open_as_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, stage) = (dir.path().join("volume"), dir.path().join("stages/0"));
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        symlink("real", volume.join("link")).unwrap();
        fs::create_dir(volume.join("real")).unwrap();
        let prepared = prepare(&volume, "link/a/b", &stage);
        let again = prepare(&volume, "link/a/b", &stage);
        fs::write(volume.join("real/a/b/file"), "x").unwrap();
        let seen = fs::read_to_string(stage.join("file"));
        super::super::fs::unmount_below(dir.path()).unwrap();
        assert_eq!((prepared.unwrap(), again.unwrap()), (stage.clone(), stage));
        assert_eq!(seen.unwrap(), "x");
        assert_eq!(fs::metadata(volume.join("real/a/b")).unwrap().permissions().mode() & 0o7777, 0o2777);
    }

    #[test]
    fn links_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", volume.join("out")).unwrap();
        symlink("/etc", volume.join("abs")).unwrap();
        let stage = dir.path().join("stage");
        for path in ["out", "abs/passwd", "../secret", "/etc/passwd", "abs/new/dir"] {
            let error = prepare(&volume, path, &stage).unwrap_err();
            assert!(!stage.exists(), "{path}: {error}");
        }
    }
}
