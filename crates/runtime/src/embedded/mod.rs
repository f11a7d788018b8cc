//! [`EmbeddedRuntime`]: the runtime as kubelets use it. Memory holds what the files say; files change first.

mod adopt;
mod container;
mod exec;
mod sandbox;
mod service;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::future::BoxFuture;
use orlop_cri::{ContainerEvent, ContainerEventKind, ContainerState, PodNetwork};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroups;
use crate::error::{Result, RuntimeError};
use crate::files;
use crate::images::{ImageStore, PullOptions};
use crate::state::{ContainerRecord, ExitRecord, SandboxRecord, StartedRecord};

/// How an [`EmbeddedRuntime`] is set up.
#[derive(Clone)]
pub struct Options {
    /// Directory for images, layers and containers; survives reboots. On a file system that overlayfs can use.
    pub root: PathBuf,
    /// Directory for sockets and the like; need not survive a reboot. At most 80 bytes long.
    pub run_dir: PathBuf,
    /// Program and first arguments that end in [`shim_main`](crate::shim_main), e.g. `/proc/self/exe shim`.
    pub shim_command: Vec<OsString>,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// cgroup of this instance, absolute below the cgroup root, e.g. `/orlop`. Shims live in `shims` below it, and
    /// [`EmbeddedRuntime::uninstall`] removes all of it.
    pub cgroup_root: String,
    /// Registries spoken to over plain HTTP, besides those on this machine (`host:port`).
    pub insecure_registries: Vec<String>,
    /// Registry to the mirrors that are asked before it.
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Most bytes that one image layer may unpack to.
    pub max_layer_bytes: u64,
}

impl Options {
    /// The usual choices, with the cgroup `/orlop`.
    pub fn new(
        root: PathBuf,
        run_dir: PathBuf,
        shim_command: Vec<OsString>,
        network: Arc<dyn PodNetwork>,
    ) -> Options {
        Options {
            root,
            run_dir,
            shim_command,
            network,
            cgroup_root: "/orlop".to_owned(),
            insecure_registries: Vec::new(),
            registry_mirrors: BTreeMap::new(),
            max_layer_bytes: 64 << 30,
        }
    }
}

/// The container runtime in this process. Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedRuntime {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    options: Options,
    pull_options: PullOptions,
    images: Arc<ImageStore>,
    cgroups: Cgroups,
    bounding: Vec<String>,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEvent>,
    warned_oom_score: AtomicBool,
}

/// A sandbox as far as it is known.
pub(crate) struct Sandbox {
    record: Mutex<SandboxRecord>,
    /// Its shim answers. Falls once and for all.
    alive: watch::Sender<bool>,
    /// One change at a time.
    operation: tokio::sync::Mutex<()>,
}

/// A container as far as it is known.
pub(crate) struct Container {
    record: ContainerRecord,
    life: watch::Sender<Life>,
    operation: tokio::sync::Mutex<()>,
}

/// What a container has been through.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    started: Option<StartedRecord>,
    exit: Option<ExitRecord>,
}

impl Life {
    fn state(&self) -> ContainerState {
        match (&self.started, &self.exit) {
            (_, Some(_)) => ContainerState::Exited,
            (Some(_), None) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        }
    }
}

impl EmbeddedRuntime {
    /// Opens the runtime and adopts everything that an earlier process left, running or not. Leftovers of a crash
    /// (half-made sandboxes, mounts of removed containers) are cleared.
    pub fn open(options: Options) -> BoxFuture<'static, Result<EmbeddedRuntime>> {
        Box::pin(Self::adopted(options))
    }

    async fn adopted(options: Options) -> Result<EmbeddedRuntime> {
        let socket_dir = options.run_dir.join("s");
        for directory in ["sandboxes", "containers"] {
            files::make_dir(&options.root.join(directory))?;
        }
        for directory in [socket_dir.clone(), options.run_dir.join("exec"), options.run_dir.join("state")] {
            files::make_dir(&directory)?;
        }
        if socket_dir.as_os_str().len() > 82 {
            return Err(RuntimeError::Invalid(format!(
                "run directory {} is too long for unix sockets: choose one of at most 80 bytes",
                options.run_dir.display()
            )));
        }
        protect(&options.root)?;
        protect(&options.run_dir)?;
        let images = Arc::new(ImageStore::open(&options.root.join("images"), options.max_layer_bytes)?);
        let inner = Arc::new(Inner {
            pull_options: PullOptions {
                insecure_registries: options.insecure_registries.clone(),
                mirrors: options.registry_mirrors.clone(),
            },
            images,
            cgroups: Cgroups::detect()?,
            bounding: crate::spec::own_bounding_set(),
            sandboxes: Mutex::new(BTreeMap::new()),
            containers: Mutex::new(BTreeMap::new()),
            events: broadcast::channel(1024).0,
            warned_oom_score: AtomicBool::new(false),
            options,
        });
        inner.adopt_all().await?;
        Ok(EmbeddedRuntime { inner })
    }

    /// Stops and removes every sandbox and container and takes mounts and cgroups away. Images stay; they are plain
    /// files below the root directory, which may then be deleted.
    pub fn uninstall(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.remove_everything())
    }

    async fn remove_everything(&self) -> Result<()> {
        let ids: Vec<String> = self.inner.sandboxes.lock().keys().cloned().collect();
        for id in ids {
            self.inner.remove_sandbox(&id).await?;
        }
        let inner = Arc::clone(&self.inner);
        crate::client::blocking(move || {
            for directory in [&inner.options.root, &inner.options.run_dir] {
                for mount in crate::overlay::mounts_below(&canonical(directory))? {
                    crate::overlay::unmount(&mount)?;
                }
            }
            inner.cgroups.kill(&inner.options.cgroup_root);
            inner.cgroups.remove(&inner.options.cgroup_root);
            Ok(())
        })
        .await
    }
}

impl Inner {
    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.options.root.join("sandboxes").join(id)
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.options.root.join("containers").join(id)
    }

    /// Where a sandbox's files for containers and its `/dev/shm` are.
    fn sandbox_run_dir(&self, id: &str) -> PathBuf {
        self.options.run_dir.join("sandboxes").join(id)
    }

    fn socket(&self, sandbox_id: &str) -> PathBuf {
        let short: String = sandbox_id.chars().take(16).collect();
        self.options.run_dir.join("s").join(short)
    }

    /// libcontainer's state directory for a sandbox's containers.
    fn state_root(&self, sandbox_id: &str) -> PathBuf {
        self.options.run_dir.join("state").join(sandbox_id)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = self.sandboxes.lock().get(id).cloned();
        found.ok_or_else(|| {
            RuntimeError::NotFound(format!("an error occurred when try to find sandbox {id:?}: not found"))
        })
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.containers.lock().get(id).cloned();
        found.ok_or_else(|| {
            RuntimeError::NotFound(format!("an error occurred when try to find container {id:?}: not found"))
        })
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        self.containers
            .lock()
            .values()
            .filter(|container| container.record.sandbox_id == sandbox_id)
            .cloned()
            .collect()
    }

    fn pod_uid(&self, sandbox_id: &str) -> String {
        self.sandbox(sandbox_id)
            .map(|sandbox| sandbox.record.lock().config.metadata.uid.clone())
            .unwrap_or_default()
    }

    fn container_event(&self, kind: ContainerEventKind, container: &Container) {
        // Nobody listening is fine.
        let _ = self.events.send(ContainerEvent::Container {
            kind,
            id: container.record.id.clone(),
            pod_sandbox_id: container.record.sandbox_id.clone(),
            pod_uid: self.pod_uid(&container.record.sandbox_id),
        });
    }

    fn sandbox_event(&self, kind: ContainerEventKind, id: &str, pod_uid: String) {
        let _ = self.events.send(ContainerEvent::Sandbox { kind, id: id.to_owned(), pod_uid });
    }

    /// Layers that containers stand on.
    fn used_layers(&self) -> BTreeSet<String> {
        self.containers.lock().values().flat_map(|container| container.record.layers.clone()).collect()
    }

    /// Notes that a container has ended; the first to say so wins.
    fn container_exited(&self, id: &str, exit: ExitRecord) {
        let Ok(container) = self.container(id) else { return };
        let first = container.life.send_if_modified(|life| {
            let first = life.exit.is_none();
            if first {
                life.exit = Some(exit);
            }
            first
        });
        if first {
            self.container_event(ContainerEventKind::Stopped, &container);
        }
    }
}

/// Layers may hold programs with rights that only containers should get at: nobody else may look in.
fn protect(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    crate::error::Context::context(
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)),
        "set mode of",
        path,
    )
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
