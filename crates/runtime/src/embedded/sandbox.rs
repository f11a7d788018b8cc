//! Sandboxes: a shim with namespaces, a network, a cgroup and a few files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orlop_cri::{
    ContainerEventKind, ContainerState, DnsConfig, NamespaceMode, PodNetworkRequest, PodSandboxConfig,
};
use tokio::sync::watch;

use super::{Inner, Sandbox};
use crate::client::{self, blocking};
use crate::error::{Context, Result, RuntimeError};
use crate::protocol::{Ready, Request};
use crate::shim::ShimArgs;
use crate::state::{SandboxRecord, new_id, now_nanos, start_ticks};
use crate::{files, overlay};

/// Size of a pod's `/dev/shm`, bytes.
const SHM_BYTES: u64 = 64 << 20;
/// How long an orderly end of a shim may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn run_sandbox(self: &Arc<Self>, config: PodSandboxConfig) -> Result<String> {
        let id = new_id();
        let mut record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: now_nanos(),
            shim: None,
            ips: Vec::new(),
            complete: false,
            stopped: false,
        };
        match self.build_sandbox(&mut record).await {
            Ok(()) => Ok(id),
            Err(error) => {
                self.discard_sandbox(&record).await;
                Err(error)
            }
        }
    }

    async fn build_sandbox(self: &Arc<Self>, record: &mut SandboxRecord) -> Result<()> {
        self.save_sandbox(record)?;
        let inner = Arc::clone(self);
        let copy = record.clone();
        blocking(move || inner.prepare_sandbox(&copy)).await?;
        let shim = client::spawn(&self.options.shim_command, &self.shim_args(record)).await?;
        record.shim = Some(shim.clone());
        self.save_sandbox(record)?;
        let watching = self.watch_shim(&record.id).await?;
        if record.config.namespaces.network != NamespaceMode::Node {
            let request = network_request(record, &shim);
            let attachment = self.options.network.attach(&request).await.map_err(|error| {
                RuntimeError::Shim(format!("failed to setup network for sandbox {:?}: {error}", record.id))
            })?;
            record.ips = attachment.ips;
        }
        record.complete = true;
        self.save_sandbox(record)?;
        let sandbox = Arc::new(Sandbox {
            record: record.clone().into(),
            alive: watch::Sender::new(true),
            operation: tokio::sync::Mutex::default(),
        });
        self.sandboxes.lock().insert(record.id.clone(), Arc::clone(&sandbox));
        self.follow(sandbox, watching);
        self.sandbox_event(ContainerEventKind::Started, &record.id, record.config.metadata.uid.clone());
        Ok(())
    }

    fn save_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let directory = self.sandbox_dir(&record.id);
        files::make_dir(&directory)?;
        files::write_json_volatile(&directory.join("sandbox.json"), record)
    }

    fn shim_args(&self, record: &SandboxRecord) -> ShimArgs {
        let namespaces = &record.config.namespaces;
        let own_net = namespaces.network != NamespaceMode::Node;
        ShimArgs {
            id: record.id.clone(),
            socket: self.socket(&record.id),
            hostname: own_net.then(|| record.config.hostname.clone()),
            new_net: own_net,
            new_ipc: namespaces.ipc != NamespaceMode::Node,
            new_pid: namespaces.pid == NamespaceMode::Pod,
            cgroup: format!("{}/shims", self.options.cgroup_root.trim_end_matches('/')),
            sysctls: record.config.sysctls.clone(),
        }
    }

    /// Files, `/dev/shm` and the pod's cgroup.
    fn prepare_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let config = &record.config;
        let directory = self.sandbox_run_dir(&record.id);
        files::make_dir(&directory)?;
        let resolv_conf = resolv_conf(&config.dns)
            .or_else(|| fs::read_to_string("/etc/resolv.conf").ok())
            .unwrap_or_default();
        write_public(&directory.join("resolv.conf"), &resolv_conf)?;
        let hostname = if config.hostname.is_empty() {
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
        } else {
            format!("{}\n", config.hostname)
        };
        write_public(&directory.join("hostname"), &hostname)?;
        if config.namespaces.ipc != NamespaceMode::Node {
            let shm = directory.join("shm");
            files::make_dir(&shm)?;
            overlay::mount_shm(&shm, SHM_BYTES)?;
        }
        if !config.log_directory.as_os_str().is_empty() {
            files::make_dir(&config.log_directory)?;
        }
        if !config.cgroup_parent.is_empty() {
            self.cgroups.create(&config.cgroup_parent)?;
            self.cgroups.set(&config.cgroup_parent, &config.resources)?;
        }
        Ok(())
    }

    /// Ends the sandbox's containers and shim and gives its network back; its records stay.
    pub(super) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        for container in self.containers_of(id) {
            let running = { container.life.borrow().state() == ContainerState::Running };
            if running {
                self.stop_container(&container.record.id, Duration::ZERO).await?;
            }
        }
        let mut record = { sandbox.record.lock().clone() };
        self.end_shim(&record).await;
        self.release_sandbox(&record).await?;
        record.stopped = true;
        self.save_sandbox(&record)?;
        *sandbox.record.lock() = record;
        sandbox.alive.send_replace(false);
        Ok(())
    }

    /// Asks the shim to end; kills it when it does not.
    async fn end_shim(&self, record: &SandboxRecord) {
        let socket = self.socket(&record.id);
        if socket.exists() {
            let _ = tokio::time::timeout(SHUTDOWN, client::call(&socket, Request::Shutdown)).await;
        }
        let Some(shim) = &record.shim else { return };
        for attempt in 0..200_u32 {
            if start_ticks(shim.pid) != Some(shim.start_ticks) {
                return;
            }
            if attempt == 100 {
                tracing::warn!(
                    sandbox = record.id,
                    pid = shim.pid,
                    "the shim did not end when asked; killing it"
                );
                let _ = crate::sys::kill(shim.pid, libc::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Network, `/dev/shm`, socket.
    async fn release_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        if record.config.namespaces.network != NamespaceMode::Node {
            self.options.network.detach(&record.id).await.map_err(|error| {
                RuntimeError::Shim(format!("failed to destroy network for sandbox {:?}: {error}", record.id))
            })?;
        }
        let run_dir = self.sandbox_run_dir(&record.id);
        overlay::unmount(&run_dir.join("shm"))?;
        files::remove_tree(&self.state_root(&record.id))?;
        let socket = self.socket(&record.id);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove", &socket)
            }
            _ => Ok(()),
        }
    }

    /// Stops and forgets a sandbox with its containers.
    pub(super) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.remove_container(&container.record.id).await?;
        }
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        let record = { sandbox.record.lock().clone() };
        self.remove_sandbox_files(&record)?;
        self.sandboxes.lock().remove(id);
        self.sandbox_event(ContainerEventKind::Deleted, id, record.config.metadata.uid);
        Ok(())
    }

    fn remove_sandbox_files(&self, record: &SandboxRecord) -> Result<()> {
        files::remove_tree(&self.sandbox_run_dir(&record.id))?;
        if !record.config.cgroup_parent.is_empty() {
            // Still in use when the pod has a newer sandbox: then it stays.
            let shared = self.sandboxes.lock().values().any(|other| {
                let other = other.record.lock();
                other.id != record.id && other.config.cgroup_parent == record.config.cgroup_parent
            });
            if !shared {
                self.cgroups.remove(&record.config.cgroup_parent);
            }
        }
        files::remove_tree(&self.sandbox_dir(&record.id))
    }

    /// Clears what there is of a sandbox that was never complete.
    pub(super) async fn discard_sandbox(&self, record: &SandboxRecord) {
        self.end_shim(record).await;
        let released = self.release_sandbox(record).await;
        if let Err(error) = released.and_then(|()| self.remove_sandbox_files(record)) {
            tracing::warn!(sandbox = record.id, %error, "leftovers of a failed sandbox stay behind until the next start");
        }
    }
}

fn network_request(record: &SandboxRecord, shim: &Ready) -> PodNetworkRequest {
    let metadata = &record.config.metadata;
    PodNetworkRequest {
        sandbox_id: record.id.clone(),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        netns: format!("/proc/{}/ns/net", shim.pid).into(),
        port_mappings: record.config.port_mappings.clone(),
    }
}

/// `None` when nothing is configured: then containers see the node's.
fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return None;
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Some(text)
}

fn write_public(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).context("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).context("set mode of", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_files() {
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns).as_deref(), Some(expected));
    }
}
