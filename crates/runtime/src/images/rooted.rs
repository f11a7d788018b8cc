//! A directory tree from a stranger: every path is resolved as if the tree were `/`, symbolic links and all, by the
//! kernel (`openat2` with `RESOLVE_IN_ROOT`), so that nothing outside can be reached.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::UnlinkatFlags;

use crate::error::{Context, Result};

/// The root of the tree.
pub(crate) struct Rooted(OwnedFd);

impl Rooted {
    pub(crate) fn open(path: &Path) -> Result<Rooted> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).map(Rooted).context("open", path)
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        loop {
            match openat2(&self.0, path, how) {
                // The kernel saw a rename elsewhere while it resolved.
                Err(Errno::EAGAIN) => {}
                result => return result,
            }
        }
    }

    /// A directory inside.
    pub(crate) fn directory(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// A directory inside, made with its parents where missing. `made` is called for each new one with its path and
    /// descriptor.
    pub(crate) fn make_directories(
        &self,
        path: &Path,
        made: &mut dyn FnMut(&Path, BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(Errno::ENOENT) => {}
            result => return Ok(result?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let parent = self.make_directories(parent, made)?;
        match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            // A symbolic link that leads to nothing.
            Err(Errno::EEXIST) => return Err(io::Error::other("a dangling symbolic link stands in the way")),
            result => result?,
        }
        let directory = self.directory(path)?;
        made(path, directory.as_fd())?;
        Ok(directory)
    }

    /// The content of a regular file inside, when there is one of at most `limit` bytes.
    pub(crate) fn read_to_string(&self, path: &Path, limit: u64) -> io::Result<String> {
        // Non-blocking, lest a FIFO in its place holds us up.
        let file = std::fs::File::from(self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut text = String::new();
        file.take(limit).read_to_string(&mut text)?;
        Ok(text)
    }
}

/// What lies at a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

/// Looks without following.
pub(crate) fn look(parent: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<Found> {
    match nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(Found::Nothing),
        Err(error) => Err(error.into()),
        Ok(stat) => {
            let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
            Ok(match kind {
                SFlag::S_IFDIR => Found::Directory,
                SFlag::S_IFCHR if stat.st_rdev == 0 => Found::Whiteout,
                _ => Found::Other,
            })
        }
    }
}

/// Removes whatever lies at a name.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &std::ffi::OsStr, found: Found) -> io::Result<()> {
    match found {
        Found::Nothing => Ok(()),
        // Through the descriptor's own path: the standard library removes trees without following links.
        Found::Directory => std::fs::remove_dir_all(fd_path(parent).join(name)),
        Found::Whiteout | Found::Other => {
            Ok(nix::unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?)
        }
    }
}

/// A path that leads to an open descriptor's file.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// An archive's path relative to the root, `None` when it climbs out. A leading `/` means the root of the image.
pub(crate) fn normalise(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_of_archives() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(normalise(Path::new(path)), expected.map(PathBuf::from), "{path}");
        };
        check("./a/b", Some("a/b"));
        check("/etc/passwd", Some("etc/passwd"));
        check("a/../../b", None);
        check("..", None);
        check("./", Some(""));
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../..", dir.path().join("up")).unwrap();
        let root = Rooted::open(dir.path()).unwrap();
        assert_eq!(root.directory(Path::new("out")).unwrap_err(), Errno::ENOENT);
        assert!(root.read_to_string(Path::new("out/passwd"), 10).is_err());
        std::fs::write(dir.path().join("inside"), "x").unwrap();
        assert_eq!(root.read_to_string(Path::new("up/up/inside"), 10).unwrap(), "x");
    }
}
