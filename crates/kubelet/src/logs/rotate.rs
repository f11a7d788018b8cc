//! Log rotation: a log that has grown too long is renamed, and its writer told to begin a new file. Answers to
//! upstream's `container_log_manager.go`.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use orlop_cri::{ContainerFilter, ContainerState, CriError, Runtime};
use tracing::warn;

use super::rotated;

/// Looks at the logs of all running containers.
pub(crate) async fn rotate_all(
    runtime: &dyn Runtime,
    max_size: u64,
    max_files: usize,
) -> Result<(), CriError> {
    let filter = ContainerFilter { state: Some(ContainerState::Running), ..Default::default() };
    for container in runtime.list_containers(&filter).await? {
        let Ok(status) = runtime.container_status(&container.id).await else { continue };
        let log = status.log_path;
        if fs::metadata(&log).map(|meta| meta.len()).unwrap_or(0) < max_size {
            continue;
        }
        if let Err(error) = rotate(runtime, &container.id, &log, max_files).await {
            warn!(container = container.id, log = %log.display(), %error, "log not rotated; trying again later");
        }
    }
    Ok(())
}

async fn rotate(runtime: &dyn Runtime, id: &str, log: &Path, max_files: usize) -> Result<(), String> {
    // Room for the file being written and the one about to be renamed.
    let old = rotated(log);
    let keep = max_files.saturating_sub(2);
    for file in old.iter().take(old.len().saturating_sub(keep)) {
        fs::remove_file(file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    let name = std::path::PathBuf::from(name);
    fs::rename(log, &name).map_err(|error| error.to_string())?;
    if let Err(error) = runtime.reopen_container_log(id).await {
        // Nothing may be lost: the writer goes on with the old file under the old name.
        fs::rename(&name, log).map_err(|error| error.to_string())?;
        return Err(error.to_string());
    }
    Ok(())
}
