//! Mounts and owners of volume directories: the few system calls volumes need.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Makes a directory with exactly these permission bits, whatever the umask.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if !path.is_dir() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Whether something is mounted at `path`.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return true };
    match (fs::symlink_metadata(path), fs::metadata(parent)) {
        (Ok(here), Ok(above)) => here.dev() != above.dev(),
        _ => false,
    }
}

/// Mounts a tmpfs at `path` unless one is there. `size` in bytes; `None` leaves the kernel's default.
pub(crate) fn mount_tmpfs(path: &Path, size: Option<u64>, mode: u32) -> io::Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))
        .map_err(io::Error::from)
}

/// Binds `source` onto `target`, which exists.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(io::Error::from)
}

/// Detaches everything mounted at or below `dir`, deepest first.
pub(crate) fn unmount_below(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for path in mounts_below(dir)? {
        if let Err(error) = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            last = Err(io::Error::new(
                io::Error::from(error).kind(),
                format!("unmount {}: {error}", path.display()),
            ));
        }
    }
    last
}

fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(&dir))
        .collect();
    // The table is in mount order: what was mounted last goes first.
    found.reverse();
    Ok(found)
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> String {
    let mut out = Vec::new();
    let bytes = path.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'\\' && i + 3 < bytes.len() {
            let digits = std::str::from_utf8(&bytes[i + 1..i + 4]).ok();
            if let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
                out.push(byte);
                i += 4;
                continue;
            }
        }
        out.push(bytes[i]);
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Removes a pod's directory. Refuses while anything is mounted below it, so that no volume's content is lost.
pub(crate) fn remove_pod_dir(dir: &Path) -> io::Result<()> {
    unmount_below(dir)?;
    if let Some(still) = mounts_below(dir)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", still.display())));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a volume to a group (`fsGroup`): group and group permissions on every file, setgid on directories.
/// `on_root_mismatch` skips the walk when the top already has it.
pub(crate) fn own_by_group(dir: &Path, group: u32, on_root_mismatch: bool) -> io::Result<()> {
    if on_root_mismatch {
        let top = fs::metadata(dir)?;
        if top.gid() == group && top.mode() & 0o2070 == 0o2070 {
            return Ok(());
        }
    }
    give(dir, group)
}

fn give(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mode = if meta.is_dir() { meta.mode() | 0o2070 } else { meta.mode() | 0o060 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
    }
}
