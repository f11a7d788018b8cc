//! Audit events in a file: one line each, put aside when it grows too large.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::options::AuditLogOptions;

/// The file, written by one thread.
pub struct LogFile {
    options: AuditLogOptions,
    /// `None`: the standard output.
    file: Option<BufWriter<File>>,
    size: u64,
}

impl LogFile {
    /// Opens or makes the file.
    pub fn open(options: &AuditLogOptions) -> std::io::Result<LogFile> {
        let mut log = LogFile { options: options.clone(), file: None, size: 0 };
        if options.path != Path::new("-") {
            log.reopen()?;
        }
        Ok(log)
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        if let Some(dir) = self.options.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file =
            std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.options.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(BufWriter::new(file));
        Ok(())
    }

    /// Writes lines, and puts the file aside before it would grow beyond its size.
    pub fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let limit = self.options.max_size.saturating_mul(1024 * 1024);
        if self.file.is_some() && limit > 0 && self.size > 0 && self.size + lines.len() as u64 > limit {
            self.rotate()?;
        }
        match &mut self.file {
            None => {
                let mut out = std::io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Some(file) => {
                file.write_all(lines)?;
                file.flush()?;
                self.size += lines.len() as u64;
                Ok(())
            }
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.file = None;
        let old = self.backup_name(jiff::Timestamp::now());
        std::fs::rename(&self.options.path, &old)?;
        self.reopen()?;
        if self.options.compress {
            compress(&old)?;
        }
        self.remove_old()
    }

    /// Name parts before and after the time of an old file.
    fn parts(&self) -> (String, String) {
        let stem = self.options.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension = self.options.path.extension().map(|e| format!(".{}", e.to_string_lossy()));
        (format!("{stem}-"), extension.unwrap_or_default())
    }

    fn backup_name(&self, at: jiff::Timestamp) -> PathBuf {
        let (prefix, extension) = self.parts();
        let time = at.strftime("%Y-%m-%dT%H-%M-%S.%3f");
        self.options.path.with_file_name(format!("{prefix}{time}{extension}"))
    }

    /// Removes files beyond the number and the age that are kept.
    fn remove_old(&self) -> std::io::Result<()> {
        let (prefix, extension) = self.parts();
        let dir = self.options.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut old: Vec<(String, PathBuf)> = std::fs::read_dir(dir.unwrap_or(Path::new(".")))?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_string_lossy().into_owned();
                let name = name.strip_suffix(".gz").unwrap_or(&name);
                let time = name.strip_prefix(&prefix)?.strip_suffix(&extension)?.to_string();
                Some((time, path))
            })
            .collect();
        // The names are times and sort as such; the newest first.
        old.sort_by(|a, b| b.0.cmp(&a.0));
        let keep = match self.options.max_backup {
            0 => usize::MAX,
            count => count as usize,
        };
        let days = i64::from(self.options.max_age);
        let oldest = jiff::Timestamp::now()
            .checked_sub(jiff::SignedDuration::from_hours(24 * days))
            .map(|t| t.strftime("%Y-%m-%dT%H-%M-%S.%3f").to_string())
            .unwrap_or_default();
        for (at, (time, path)) in old.iter().enumerate() {
            if at >= keep || (days > 0 && *time < oldest) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn compress(path: &Path) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let mut encoder = flate2::write::GzEncoder::new(File::create(&name)?, flate2::Compression::default());
    std::io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::options::{AuditBatch, AuditMode};

    #[test]
    fn files_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let options = AuditLogOptions {
            path: dir.path().join("audit.log"),
            max_age: 1,
            max_backup: 2,
            max_size: 1,
            compress: true,
            legacy_format: false,
            mode: AuditMode::Blocking,
            batch: AuditBatch {
                buffer_size: 1,
                max_size: 1,
                max_wait: std::time::Duration::ZERO,
                throttle: None,
            },
            truncate: None,
        };
        let mut log = LogFile::open(&options).unwrap();
        let line = vec![b'x'; 700 * 1024];
        for _ in 0..5 {
            log.write(&line).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("audit-2") && names[0].ends_with(".log.gz"), "{names:?}");
        assert_eq!(std::fs::metadata(&options.path).unwrap().len(), line.len() as u64);
    }
}
