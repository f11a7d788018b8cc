//! Overlay mounts of containers, and the tmpfs of a pod's `/dev/shm`.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::error::{Context, Result, RuntimeError};
use crate::sys::FsContext;

/// Longest option string of the old mount call: one page, less its terminator.
const MAX_OPTIONS: usize = 4095;

/// Mounts `upper` over `lowers` (topmost first) at `target`.
pub(crate) fn mount(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    match mount_with_context(lowers, upper, work, target) {
        // Kernels before 6.8 do not know `lowerdir+`.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            mount_with_options(lowers, upper, work, target)
        }
        result => result.context("mount overlay at", target),
    }
}

fn mount_with_context(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> std::io::Result<()> {
    let context = FsContext::open(c"overlay")?;
    context.set(c"source", Path::new("overlay"))?;
    for lower in lowers {
        context.set(c"lowerdir+", lower)?;
    }
    context.set(c"upperdir", upper)?;
    context.set(c"workdir", work)?;
    context.mount(target)
}

fn mount_with_options(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let lower = lowers.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    if options.len() > MAX_OPTIONS {
        return Err(RuntimeError::Invalid(format!(
            "cannot mount {}: {} image layers do not fit the mount options of this kernel; \
             use a shorter data directory or a kernel of 6.8 or later",
            target.display(),
            lowers.len()
        )));
    }
    nix::mount::mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mount overlay at", target)
}

/// Mounts a tmpfs of `bytes`.
pub(crate) fn mount_shm(target: &Path, bytes: u64) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={bytes}");
    nix::mount::mount(Some("shm"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .context("mount tmpfs at", target)
}

/// Takes a mount away; absent is fine. Detached lazily, because a dying process may still hold it for a moment.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    match nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        result => result.context("unmount", target),
    }
}

/// Mount points at or below `directory`, deepest first.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(path).context("read", path)?;
    let mut mounts: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(directory))
        .collect();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.components().count()));
    Ok(mounts)
}

/// mountinfo writes blanks as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            let code = digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit.wrapping_sub(b'0')));
            out.push(u8::try_from(code).unwrap_or(b'?'));
        } else {
            out.push(byte);
        }
    }
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_mount_points() {
        assert_eq!(unescape("/a\\040b/c"), Path::new("/a b/c"));
        assert_eq!(unescape("/plain"), Path::new("/plain"));
    }
}
