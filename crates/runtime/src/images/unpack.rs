//! One image layer: a tar stream becomes a directory that overlayfs can use as it is.
//!
//! Whiteouts (`.wh.NAME`) become 0/0 character devices, opaque markers the attribute `trusted.overlay.opaque`. Device
//! nodes are left out: containers get theirs from the runtime, and could not open those of an image. Attributes that
//! overlayfs would take as its own are dropped.
//! Source: OCI image specification, layer.md; kernel documentation, overlayfs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::rooted::{Found, Rooted, fd_path, look, normalise, remove};
use crate::error::{Result, RuntimeError};

/// Bounds on what one layer may bring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerSize {
    pub bytes: u64,
    pub inodes: u64,
}

const OPAQUE: &str = "trusted.overlay.opaque";

/// A stream that counts and hashes what passes.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: Sha256::new() }
    }

    /// `sha256:…` of all that passed.
    pub(crate) fn digest(self) -> String {
        format!("sha256:{}", hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Undoes gzip or zstd, told by the first bytes; anything else passes as it is.
pub(crate) fn decompress<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0_u8; 4];
    let mut length = 0;
    while length < magic.len() {
        match stream.read(&mut magic[length..])? {
            0 => break,
            count => length += count,
        }
    }
    let whole = io::Cursor::new(magic[..length].to_vec()).chain(stream);
    Ok(match &magic[..length] {
        [0x1f, 0x8b, ..] => {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(64 * 1024, whole)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        [b'B', b'Z', b'h', ..] => return Err(io::Error::other("bzip2 compression is not supported")),
        [0xfd, b'7', b'z', b'X'] => return Err(io::Error::other("xz compression is not supported")),
        _ => Box::new(whole),
    })
}

/// Unpacks `layer` (compressed or not) into the empty directory `target`. `lowers` (topmost first) lend their metadata to
/// directories that the layer does not list. Returns the digest of the uncompressed stream and the size.
pub(crate) fn unpack(
    layer: impl Read,
    target: &Path,
    lowers: &[PathBuf],
    limits: Limits,
) -> Result<(String, LayerSize)> {
    let stream =
        decompress(layer).map_err(|error| RuntimeError::BadImage(format!("cannot read layer: {error}")))?;
    let mut hashing = Hashing::new(stream);
    let mut unpacker = Unpacker {
        root: Rooted::open(target)?,
        lowers: lowers.iter().filter_map(|lower| Rooted::open(lower).ok()).collect(),
        limits,
        size: LayerSize::default(),
        directories: Vec::new(),
    };
    let mut archive = tar::Archive::new(&mut hashing);
    let entries = archive.entries().map_err(|error| damaged(&error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(&error))?;
        unpacker.entry(&mut entry)?;
    }
    unpacker.finish()?;
    let size = unpacker.size;
    // The digest covers the padding after the archive's end, too.
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| damaged(&error))?;
    Ok((hashing.digest(), size))
}

fn damaged(error: &io::Error) -> RuntimeError {
    RuntimeError::BadImage(format!("layer is damaged or not a tar archive: {error}"))
}

struct Unpacker {
    root: Rooted,
    lowers: Vec<Rooted>,
    limits: Limits,
    size: LayerSize,
    /// Directories whose times are set last, because filling them changes them.
    directories: Vec<(PathBuf, TimeSpec)>,
}

/// The metadata of one entry.
struct Meta {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    time: TimeSpec,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.size.inodes += 1;
        if self.size.inodes > self.limits.entries {
            return Err(RuntimeError::BadImage(format!(
                "layer has more than {} entries",
                self.limits.entries
            )));
        }
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let path = Path::new(std::ffi::OsStr::from_bytes(&raw));
        if raw.contains(&0) {
            return Err(RuntimeError::BadImage(format!("layer entry {shown:?} has a zero byte in its name")));
        }
        let Some(path) = normalise(path) else {
            return Err(RuntimeError::BadImage(format!("layer entry {shown:?} leads out of the image")));
        };
        self.place(&path, entry)
            .map_err(|error| RuntimeError::BadImage(format!("layer entry {shown:?}: {error}")))
    }

    fn place<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok(());
        }
        let meta = meta(entry.header())?;
        let Some(name) = path.file_name() else {
            let root = self.root.directory(Path::new(""))?;
            return self.dress_directory(path, root.as_fd(), &meta, entry);
        };
        let parent = self.parent(path)?;
        let parent = parent.as_fd();
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(parent, std::ffi::OsStr::from_bytes(hidden));
        }
        let found = look(parent, name)?;
        match kind {
            EntryType::Directory => {
                if found != Found::Directory {
                    remove(parent, name, found)?;
                    nix::sys::stat::mkdirat(parent, name, Mode::S_IRWXU)?;
                }
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                let directory = nix::fcntl::openat(parent, name, flags, Mode::empty())?;
                if found == Found::Whiteout {
                    xattr_set(directory.as_fd(), OPAQUE, b"y")?;
                }
                self.dress_directory(path, directory.as_fd(), &meta, entry)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(parent, name, found)?;
                let flags =
                    OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut file =
                    File::from(nix::fcntl::openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                self.fill(&mut file, entry)?;
                dress(file.as_fd(), &meta, entry)?;
                Ok(nix::sys::stat::futimens(&file, &meta.time, &meta.time)?)
            }
            EntryType::Symlink => {
                remove(parent, name, found)?;
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| io::Error::other("symbolic link without a target"))?;
                nix::unistd::symlinkat(std::ffi::OsStr::from_bytes(&target), parent, name)?;
                dress_name(parent, name, &meta)
            }
            EntryType::Link => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| io::Error::other("hard link without a target"))?;
                let target = normalise(Path::new(std::ffi::OsStr::from_bytes(&target)))
                    .ok_or_else(|| io::Error::other("hard link leads out of the image"))?;
                let target_name =
                    target.file_name().ok_or_else(|| io::Error::other("hard link to the root"))?;
                let from = self.root.directory(target.parent().unwrap_or(Path::new("")))?;
                if look(from.as_fd(), target_name)? == Found::Directory {
                    return Err(io::Error::other("hard link to a directory"));
                }
                if target != path {
                    remove(parent, name, found)?;
                    nix::unistd::linkat(&from, target_name, parent, name, AtFlags::empty())?;
                }
                Ok(())
            }
            EntryType::Fifo => {
                remove(parent, name, found)?;
                nix::sys::stat::mknodat(parent, name, SFlag::S_IFIFO, meta.mode, 0)?;
                dress_name(parent, name, &meta)
            }
            EntryType::Char | EntryType::Block => Ok(()),
            other => {
                Err(io::Error::other(format!("unknown kind of tar entry {:?}", char::from(other.as_byte()))))
            }
        }
    }

    /// The directory that holds `path`, made when the layer did not list it.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let Self { root, lowers, size, .. } = self;
        root.make_directories(path.parent().unwrap_or(Path::new("")), &mut |made, directory| {
            size.inodes += 1;
            copy_directory_metadata(lowers, made, directory)
        })
    }

    fn fill<R: Read>(&mut self, file: &mut File, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let room = self.limits.bytes.saturating_sub(self.size.bytes);
        if entry.size() > room {
            return Err(io::Error::other(format!("layer is larger than {} bytes", self.limits.bytes)));
        }
        let expected = entry.size();
        let written = io::copy(&mut entry.take(room.saturating_add(1)), file)?;
        if written != expected {
            return Err(io::Error::other(format!(
                "{written} bytes of content where {expected} were announced"
            )));
        }
        self.size.bytes += written;
        Ok(())
    }

    fn dress_directory<R: Read>(
        &mut self,
        path: &Path,
        directory: BorrowedFd<'_>,
        meta: &Meta,
        entry: &mut tar::Entry<'_, R>,
    ) -> io::Result<()> {
        // The root was opened as a path only: open it for the calls that need more.
        let opened = File::open(fd_path(directory))?;
        dress(opened.as_fd(), meta, entry)?;
        self.directories.push((path.to_owned(), meta.time));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (path, time) in self.directories.drain(..).rev() {
            // One that was replaced since has no time to keep.
            if let Ok(directory) = self.root.directory(&path)
                && let Ok(file) = File::open(fd_path(directory.as_fd()))
            {
                let _ = nix::sys::stat::futimens(&file, &time, &time);
            }
        }
        Ok(())
    }
}

fn meta(header: &tar::Header) -> io::Result<Meta> {
    let id = |value: u64| {
        u32::try_from(value).map_err(|_| io::Error::other(format!("owner {value} is out of range")))
    };
    let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    Ok(Meta {
        mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
        uid: Uid::from_raw(id(header.uid()?)?),
        gid: Gid::from_raw(id(header.gid()?)?),
        time: TimeSpec::new(seconds, 0),
    })
}

/// `.wh.NAME`: hides NAME of the layers below.
fn whiteout(parent: BorrowedFd<'_>, hidden: &std::ffi::OsStr) -> io::Result<()> {
    if hidden == ".wh..opq" {
        return xattr_set(parent, OPAQUE, b"y");
    }
    // Bookkeeping of aufs.
    if hidden.as_bytes().starts_with(b".wh.") {
        return Ok(());
    }
    if hidden.is_empty() || hidden == "." || hidden == ".." {
        return Err(io::Error::other("whiteout of no name"));
    }
    match look(parent, hidden)? {
        Found::Nothing => Ok(nix::sys::stat::mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)?),
        // This layer has put its own in place: only what is below is hidden.
        Found::Directory => {
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let directory = nix::fcntl::openat(parent, hidden, flags, Mode::empty())?;
            xattr_set(directory.as_fd(), OPAQUE, b"y")
        }
        Found::Whiteout | Found::Other => Ok(()),
    }
}

/// Owner, mode and attributes, in the order in which one does not undo the other.
fn dress<R: Read>(fd: BorrowedFd<'_>, meta: &Meta, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
    nix::unistd::fchown(fd, Some(meta.uid), Some(meta.gid))?;
    nix::sys::stat::fchmod(fd, meta.mode)?;
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        let Ok(name) = std::str::from_utf8(name) else { continue };
        // `trusted` is the host's, above all overlayfs's own; `user.overlay` likewise; SELinux labels are the host's.
        if name.starts_with("trusted.") || name.starts_with("user.overlay.") || name == "security.selinux" {
            continue;
        }
        match xattr_set(fd, name, extension.value_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
            result => result?,
        }
    }
    Ok(())
}

fn dress_name(parent: BorrowedFd<'_>, name: &std::ffi::OsStr, meta: &Meta) -> io::Result<()> {
    nix::unistd::fchownat(parent, name, Some(meta.uid), Some(meta.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(nix::sys::stat::utimensat(parent, name, &meta.time, &meta.time, UtimensatFlags::NoFollowSymlink)?)
}

/// Through `/proc`, because a descriptor opened as a path only refuses `fsetxattr`.
fn xattr_set(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
    xattr::set_deref(fd_path(fd), name, value)
}

fn copy_directory_metadata(lowers: &[Rooted], path: &Path, made: BorrowedFd<'_>) -> io::Result<()> {
    let found = lowers.iter().find_map(|lower| lower.directory(path).ok());
    let Some(original) = found else { return Ok(()) };
    let stat = nix::sys::stat::fstat(&original)?;
    let opened = File::open(fd_path(made))?;
    nix::unistd::fchown(&opened, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    Ok(nix::sys::stat::fchmod(&opened, Mode::from_bits_truncate(stat.st_mode & 0o7777))?)
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
