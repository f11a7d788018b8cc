//! The bind mounts of a container: its volumes, `/etc/hosts` and the termination message file.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;
use orlop_cri::{Mount, MountPropagation};

use crate::env::Environment;
use crate::expansion::expand_strictly;
use crate::volumes::{Volumes, prepare_subpath};

/// Mounts of the container. `hosts` is the pod's hosts file. The error is the message of `CreateContainerConfigError`.
pub(crate) fn mounts(
    pod_dir: &Path,
    container: &Container,
    volumes: &Volumes,
    environment: &Environment,
    hosts: Option<&Path>,
) -> Result<Vec<Mount>, String> {
    if let Some(device) = container.volume_devices.iter().flatten().next() {
        return Err(format!(
            "volumeDevices (\"{}\") are not supported by this kubelet; use volumeMounts",
            device.name
        ));
    }
    let mut out = Vec::new();
    let mut own_hosts = false;
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = volumes.ready.get(&mount.name) else {
            return Err(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            ));
        };
        own_hosts |= mount.mount_path == "/etc/hosts";
        let sub_path = match mount.sub_path_expr.as_deref().filter(|expr| !expr.is_empty()) {
            Some(expression) => expand_strictly(expression, |name| environment.get(name))?,
            None => mount.sub_path.clone().unwrap_or_default(),
        };
        let host_path = if sub_path.is_empty() {
            volume.path.clone()
        } else {
            let stage = pod_dir
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&container.name)
                .join(index.to_string());
            prepare_subpath(&volume.path, &sub_path, &stage).map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                    mount.name, container.name
                )
            })?
        };
        let readonly = mount.read_only == Some(true);
        out.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path,
            readonly: readonly || volume.read_only,
            recursive_readonly: readonly
                && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
        });
    }
    if let Some(hosts) = hosts
        && !own_hosts
    {
        out.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: hosts.to_owned(),
            ..Mount::default()
        });
    }
    if let Some(path) = container.termination_message_path.as_deref().filter(|path| !path.is_empty()) {
        let file = message_file(pod_dir, &container.name)
            .map_err(|error| format!("termination message file: {error}"))?;
        out.push(Mount { container_path: absolute(path), host_path: file, ..Mount::default() });
    }
    Ok(out)
}

/// The runtime wants absolute paths; the API allows others.
fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// A fresh file for a container's last words; every instance of the container gets its own.
fn message_file(pod_dir: &Path, container: &str) -> io::Result<PathBuf> {
    let dir = pod_dir.join("containers").join(container);
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{:08x}", rand::random::<u32>()));
    fs::File::create_new(&file)?;
    // Whoever the container runs as may write it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    Ok(file)
}
