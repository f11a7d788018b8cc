//! Containers: a writable layer over an image, a spec, a life.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orlop_cri::{
    ContainerConfig, ContainerEventKind, ContainerState, ContainerStats, LinuxContainerResources,
    NamespaceMode,
};
use tokio::sync::watch;

use super::{Container, Inner, Life};
use crate::client::{self, blocking};
use crate::error::{Context, Result, RuntimeError};
use crate::images::rooted::{Rooted, normalise};
use crate::images::unpack::LayerSize;
use crate::protocol::{Ready, Request, Response, StartRequest};
use crate::spec::{self, SpecInput};
use crate::state::{ContainerRecord, ExitRecord, SandboxRecord, new_id, now_nanos};
use crate::{files, overlay, signals, users};

/// How long a killed container may take to be gone (its processes may hang in the kernel).
const KILL_PATIENCE: Duration = Duration::from_secs(120);

impl Inner {
    pub(super) async fn create_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<String> {
        let sandbox = self.sandbox(sandbox_id)?;
        let record = { sandbox.record.lock().clone() };
        let Some(shim) = record.shim.clone().filter(|_| *sandbox.alive.borrow()) else {
            return Err(RuntimeError::Precondition(format!("sandbox {sandbox_id} is not ready")));
        };
        // Until the container is listed as their user, nothing else keeps the layers from removal.
        let _layers = self.images.hold().await;
        let inner = Arc::clone(self);
        let container = blocking(move || {
            let id = new_id();
            inner.build_container(&id, &record, &shim, config).inspect_err(|_| {
                if let Err(error) = inner.discard_container_files(&id) {
                    tracing::warn!(container = id, %error, "leftovers of a failed container stay behind until the next start");
                }
            })
        })
        .await?;
        let id = container.record.id.clone();
        let container = Arc::new(container);
        self.containers.lock().insert(id.clone(), Arc::clone(&container));
        self.container_event(ContainerEventKind::Created, &container);
        Ok(id)
    }

    fn build_container(
        &self,
        id: &str,
        sandbox: &SandboxRecord,
        shim: &Ready,
        config: ContainerConfig,
    ) -> Result<Container> {
        let image = self.images.find(&config.image).ok_or_else(|| {
            RuntimeError::NotFound(format!(
                "failed to resolve image {:?}: not found; pull it first",
                config.image
            ))
        })?;
        let image_config = self.images.config(&image.id)?;
        let image_process = image_config.config().as_ref();
        let stop_signal = config
            .stop_signal
            .clone()
            .or_else(|| image_process.and_then(|image| image.stop_signal().clone()));
        let stop_signal = match &stop_signal {
            None => libc::SIGTERM,
            Some(name) => signals::parse(name).ok_or_else(|| {
                RuntimeError::Invalid(format!("failed to parse stop signal {name:?}: no such signal"))
            })?,
        };
        let directory = self.container_dir(id);
        let rootfs = self.mount_rootfs(&directory, &image.layers)?;
        let identity = users::resolve(&rootfs, &image.user, &config.security)?;
        make_working_directory(&rootfs, &spec::working_directory(&config, &image_config))?;
        let cgroup = format!("{}/{id}", sandbox.config.cgroup_parent.trim_end_matches('/'));
        let run_dir = self.sandbox_run_dir(&sandbox.id);
        let shm = if sandbox.config.namespaces.ipc == NamespaceMode::Node {
            "/dev/shm".into()
        } else {
            run_dir.join("shm")
        };
        let spec = spec::build(&SpecInput {
            config: &config,
            sandbox: &sandbox.config,
            shim,
            image: &image_config,
            identity: &identity,
            rootfs: &rootfs,
            cgroup: &cgroup,
            unified_cgroups: self.cgroups.is_unified(),
            counts_swap: self.cgroups.counts_swap(),
            has_hugetlb: self.cgroups.has("hugetlb"),
            resolv_conf: &run_dir.join("resolv.conf"),
            hostname_file: Some(&run_dir.join("hostname")),
            shm: &shm,
            target_pid: self.target_pid(&config),
            bounding: &self.bounding,
        })?;
        files::write_json_volatile(&directory.join("config.json"), &spec)?;
        let log_path = if config.log_path.as_os_str().is_empty() {
            PathBuf::new()
        } else {
            sandbox.config.log_directory.join(&config.log_path)
        };
        let record = ContainerRecord {
            id: id.to_owned(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.image_ref(),
            layers: image.layers,
            created_at: now_nanos(),
            log_path,
            cgroup,
            user: (identity.uid, identity.gid, identity.groups),
            stop_signal,
            kill_all: config.security.namespaces.pid != NamespaceMode::Container,
            config,
        };
        files::write_json_volatile(&directory.join("container.json"), &record)?;
        Ok(Container {
            record,
            life: watch::Sender::new(Life::default()),
            operation: tokio::sync::Mutex::default(),
        })
    }

    fn mount_rootfs(&self, directory: &Path, layers: &[String]) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        for name in ["rootfs", "upper", "work"] {
            files::make_dir(&directory.join(name))?;
        }
        let upper = directory.join("upper");
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).context("set mode of", &upper)?;
        let rootfs = directory.join("rootfs");
        let mut lowers: Vec<PathBuf> =
            layers.iter().rev().map(|layer| self.images.layer_path(layer)).collect();
        if lowers.is_empty() {
            // An image may have no layers at all; overlayfs wants one.
            let empty = directory.join("empty");
            files::make_dir(&empty)?;
            lowers.push(empty);
        }
        overlay::mount(&lowers, &upper, &directory.join("work"), &rootfs)?;
        Ok(rootfs)
    }

    fn target_pid(&self, config: &ContainerConfig) -> Option<i32> {
        let NamespaceMode::Target(id) = &config.security.namespaces.pid else { return None };
        let target = self.container(id).ok()?;
        let life = target.life.borrow();
        life.exit.is_none().then(|| life.started.as_ref().map(|started| started.pid)).flatten()
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _operation = container.operation.lock().await;
        let state = { container.life.borrow().state() };
        if state != ContainerState::Created {
            return Err(RuntimeError::Precondition(format!(
                "container {id:?} is in {state:?} state, not Created"
            )));
        }
        let record = &container.record;
        let request = StartRequest {
            id: id.to_owned(),
            bundle: self.container_dir(id),
            state_root: self.state_root(&record.sandbox_id),
            log_path: record.log_path.clone(),
            cgroup: record.cgroup.clone(),
            tty: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            oom_score_adj: record.config.resources.oom_score_adj,
            kill_all: record.kill_all,
        };
        let answer = client::call(&self.socket(&record.sandbox_id), Request::Start(request)).await;
        let failure = match answer {
            Ok((Response::Started { started, oom_score_refused }, _)) => {
                if oom_score_refused {
                    self.warn_oom_score();
                }
                container.life.send_modify(|life| life.started = Some(started));
                self.container_event(ContainerEventKind::Started, &container);
                return Ok(());
            }
            Ok((Response::Error { message, .. }, _)) => {
                // An earlier process of ours asked for this start, and the container has ended since: its exit comes.
                if let Some(started) = files::read_json(&self.container_dir(id).join("started.json"))? {
                    container.life.send_modify(|life| life.started = Some(started));
                    self.container_event(ContainerEventKind::Started, &container);
                    return Ok(());
                }
                start_failure(&message)
            }
            Ok((other, _)) => format!("unexpected answer of the shim: {other:?}"),
            Err(error) => error.to_string(),
        };
        let exit = ExitRecord {
            exit_code: 128,
            signal: None,
            oom_killed: false,
            finished_at: now_nanos(),
            reason: Some("StartError".to_owned()),
            message: failure.clone(),
        };
        files::write_json_volatile(&self.container_dir(id).join("exit.json"), &exit)?;
        self.container_exited(id, exit);
        Err(RuntimeError::Shim(failure))
    }

    fn warn_oom_score(&self) {
        if !self.warned_oom_score.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the kernel refuses to set oom_score_adj (no CAP_SYS_RESOURCE); containers keep this process's score"
            );
        }
    }

    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, timeout: Duration) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.life.borrow().state() != ContainerState::Running {
            return Ok(());
        }
        let mut life = container.life.subscribe();
        if !timeout.is_zero() {
            self.signal(&container, container.record.stop_signal).await?;
            let ended = life.wait_for(|life| life.exit.is_some());
            if tokio::time::timeout(timeout, ended).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(&container, libc::SIGKILL).await?;
        match tokio::time::timeout(KILL_PATIENCE, life.wait_for(|life| life.exit.is_some())).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::Precondition(format!(
                "container {id} did not end {} s after it was killed; its processes hang in the kernel, see dmesg",
                KILL_PATIENCE.as_secs()
            ))),
        }
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<()> {
        let record = &container.record;
        let request = Request::Kill { id: record.id.clone(), signal };
        match client::call(&self.socket(&record.sandbox_id), request).await {
            Ok((Response::Error { gone: false, message }, _)) => Err(RuntimeError::Shim(message)),
            // Gone is what was wanted; its exit arrives by the watch. A dead shim's watch does the rest, too.
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(container = record.id, %error, "signal not delivered");
                Ok(())
            }
        }
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        self.stop_container(id, Duration::ZERO).await?;
        let _operation = container.operation.lock().await;
        let inner = Arc::clone(self);
        let record = container.record.clone();
        blocking(move || {
            inner.cgroups.remove(&record.cgroup);
            inner.discard_container_files(&record.id)
        })
        .await?;
        self.containers.lock().remove(id);
        self.container_event(ContainerEventKind::Deleted, &container);
        Ok(())
    }

    pub(super) fn update_resources(&self, id: &str, resources: &LinuxContainerResources) -> Result<()> {
        let container = self.container(id)?;
        let state = container.life.borrow().state();
        match state {
            ContainerState::Running => self.cgroups.update(&container.record.cgroup, resources),
            state => Err(RuntimeError::Precondition(format!(
                "container {id:?} is in {state:?} state, not Running"
            ))),
        }
    }

    /// One reading; walks the writable layer when that is wanted too.
    pub(super) fn container_stats(&self, container: &Container, with_layer: bool) -> ContainerStats {
        let record = &container.record;
        let usage = self.cgroups.usage(&record.cgroup);
        let layer = match with_layer {
            true => tree_size(&self.container_dir(&record.id).join("upper")),
            false => LayerSize::default(),
        };
        ContainerStats {
            id: record.id.clone(),
            timestamp: now_nanos(),
            cpu_usage_nanos: usage.cpu_nanos,
            memory_working_set_bytes: usage.working_set,
            memory_usage_bytes: usage.memory,
            memory_rss_bytes: usage.rss,
            writable_layer_bytes: layer.bytes,
            writable_layer_inodes: layer.inodes,
            process_count: usage.pids,
        }
    }

    /// Bytes and inodes of all writable layers.
    pub(super) fn writable_usage(&self) -> LayerSize {
        let ids: Vec<String> = self.containers.lock().keys().cloned().collect();
        ids.iter().map(|id| tree_size(&self.container_dir(id).join("upper"))).fold(
            LayerSize::default(),
            |sum, size| LayerSize { bytes: sum.bytes + size.bytes, inodes: sum.inodes + size.inodes },
        )
    }
}

/// The text that upstream kubelets show for a failed start.
fn start_failure(message: &str) -> String {
    if message.starts_with("exec") {
        format!(
            "failed to create task: OCI runtime create failed: unable to start container process: error during container init: {message}"
        )
    } else {
        format!("failed to create task: OCI runtime create failed: {message}")
    }
}

/// Image or pod may name a directory that does not exist: it is made, as runc does.
fn make_working_directory(rootfs: &Path, directory: &Path) -> Result<()> {
    let Some(directory) = normalise(directory) else {
        return Err(RuntimeError::Invalid(format!(
            "working directory {} is not a plain path",
            directory.display()
        )));
    };
    let root = Rooted::open(rootfs)?;
    root.make_directories(&directory, &mut |_, _| Ok(()))
        .map(drop)
        .context("create working directory", &directory)
}

/// Allocated bytes and inodes below a directory, without following links.
fn tree_size(directory: &Path) -> LayerSize {
    use std::os::unix::fs::MetadataExt;
    let mut size = LayerSize::default();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            size.inodes += 1;
            size.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    size
}
