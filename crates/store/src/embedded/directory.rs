//! The data directory: who may use it, whether it is ours, how full its disk is.
//!
//! `LOCK` is held while the store is open; `FORMAT` names the format; `fjall/` is the engine's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;

use crate::StoreError;

const FORMAT: &str = "orlop-store 1 fjall\n";
/// Stands in `FORMAT` until the engine's files are complete; nothing was acknowledged before that.
const CREATING: &str = "orlop-store creating\n";
const ENGINE: &str = "fjall";

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Unlocked by the operating system when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Creates or takes over the directory; [`Directory::finish`] marks a new one complete.
    pub fn open(path: &Path) -> Result<Directory, StoreError> {
        let failed = |action| move |e: io::Error| io_error(action, path, e);
        // Secrets are stored here: nobody else may look.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("create data directory"))?;
        let found = Directory::identify(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))
            .map_err(failed("open the lock file in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => return Err(failed("lock")(e)),
        }
        let directory = Directory { path: path.to_owned(), _lock: lock };
        if found && !directory.engine_path().join("version").is_file() {
            return Err(StoreError::Corrupt {
                path: path.to_owned(),
                detail: format!("{ENGINE}/version is missing"),
            });
        }
        if !found {
            directory.write_format(CREATING)?;
            match fs::remove_dir_all(directory.engine_path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("clear")(e)),
                _ => {}
            }
        }
        Ok(directory)
    }

    /// Whether a complete store is here; an error if something else is.
    fn identify(path: &Path) -> Result<bool, StoreError> {
        let foreign = |reason: String| StoreError::Foreign { path: path.to_owned(), reason };
        match fs::read_to_string(path.join("FORMAT")) {
            Ok(format) if format == FORMAT => return Ok(true),
            Ok(format) if format == CREATING => return Ok(false),
            Ok(format) => {
                let (format, known) = (format.trim(), FORMAT.trim());
                return Err(foreign(format!("its format is {format:?}, this version reads {known:?}")));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(foreign("its FORMAT file is not text".into()));
            }
            Err(e) => return Err(io_error("read the format of", path, e)),
        }
        for entry in fs::read_dir(path).map_err(|e| io_error("list", path, e))? {
            let name = entry.map_err(|e| io_error("list", path, e))?.file_name();
            // `lost+found`: the directory is a file system of its own.
            if !["LOCK", "FORMAT.new", "lost+found"].iter().any(|known| name == *known) {
                return Err(foreign(format!("it has no FORMAT file but contains {name:?}")));
            }
        }
        Ok(false)
    }

    /// Marks the store complete once the engine's files are durable.
    pub fn finish(&self) -> Result<(), StoreError> {
        self.write_format(FORMAT)
    }

    fn write_format(&self, format: &str) -> Result<(), StoreError> {
        let (target, new) = (self.path.join("FORMAT"), self.path.join("FORMAT.new"));
        if fs::read_to_string(&target).is_ok_and(|present| present == format) {
            return Ok(());
        }
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(format.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &target)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|e| io_error("write the format of", &self.path, e))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn engine_path(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Refuses when less than `reserve` bytes are free.
    pub fn check_space(&self, reserve: u64) -> Result<(), StoreError> {
        let stat =
            statvfs(&self.path).map_err(|e| io_error("measure the free space of", &self.path, e.into()))?;
        // The types differ between platforms.
        #[allow(clippy::unnecessary_cast)]
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        if free < reserve {
            return Err(StoreError::NoSpace { path: self.path.clone(), free, reserve });
        }
        Ok(())
    }

    /// Bytes on disk; a hole in a file costs nothing.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        fn blocks(path: &Path) -> io::Result<u64> {
            let meta = match fs::symlink_metadata(path) {
                // The engine removes files while we look.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
                other => other?,
            };
            let mut sum = meta.blocks();
            if meta.is_dir() {
                for entry in fs::read_dir(path)? {
                    sum += blocks(&entry?.path())?;
                }
            }
            Ok(sum)
        }
        blocks(&self.path).map(|blocks| blocks * 512).map_err(|e| io_error("measure", &self.path, e))
    }
}

/// An operating system's error about `path`.
pub(super) fn io_error(action: &'static str, path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source: Arc::new(error) }
}
