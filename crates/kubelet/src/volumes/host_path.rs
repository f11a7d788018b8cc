//! hostPath volumes: the checks and creations that their `type` asks for. Answers to upstream's plugin.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Checks, or makes, what the volume points to.
pub(crate) fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path).ok().map(|meta| meta.file_type());
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    match kind {
        "" => {
            // The runtime needs something to bind: as upstream's runtimes do, a missing path becomes a directory.
            if found.is_none() {
                fs::create_dir_all(path).map_err(|error| format!("{}: {error}", source.path))?;
            }
            Ok(())
        }
        "DirectoryOrCreate" => match found {
            Some(kind) if kind.is_dir() => Ok(()),
            Some(_) => failed("a directory"),
            None => fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
                .map_err(|error| format!("{}: {error}", source.path)),
        },
        "FileOrCreate" => match found {
            Some(kind) if kind.is_file() => Ok(()),
            Some(_) => failed("a file"),
            None => fs::File::create(path)
                .and_then(|_| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
                .map_err(|error| format!("{}: {error}", source.path)),
        },
        "Directory" if found.is_some_and(|kind| kind.is_dir()) => Ok(()),
        "Directory" => failed("a directory"),
        "File" if found.is_some_and(|kind| kind.is_file()) => Ok(()),
        "File" => failed("a file"),
        "Socket" if found.is_some_and(|kind| kind.is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if found.is_some_and(|kind| kind.is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if found.is_some_and(|kind| kind.is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let check = |path: &Path, kind: &str| {
            check(&HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.to_owned()) })
                .map_err(|e| e.replace(&dir.path().display().to_string(), ""))
        };
        assert_eq!(check(dir.path(), "Directory"), Ok(()));
        assert_eq!(
            check(&file, "Directory"),
            Err("hostPath type check failed: /file is not a directory".to_owned())
        );
        assert_eq!(check(&file, "File"), Ok(()));
        assert_eq!(
            check(&dir.path().join("none"), "File"),
            Err("hostPath type check failed: /none is not a file".to_owned())
        );
        assert_eq!(check(&dir.path().join("new"), "DirectoryOrCreate"), Ok(()));
        assert_eq!(check(Path::new("/dev/null"), "CharDevice"), Ok(()));
        assert_eq!(
            check(&file, "Socket"),
            Err("hostPath type check failed: /file is not a socket file".to_owned())
        );
        assert_eq!(check(&file, "Pipe"), Err("Pipe is an invalid volume type".to_owned()));
    }
}
