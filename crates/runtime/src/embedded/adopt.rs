//! Start of the runtime: what is on disk becomes what is known, and what watches it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use orlop_cri::ContainerEventKind;

use super::{Container, Inner, Life, Sandbox, canonical};
use crate::client::{self, Connection};
use crate::error::{Context, Result, RuntimeError};
use crate::protocol::{Request, Response};
use crate::state::{ContainerRecord, ExitRecord, SandboxRecord, StartedRecord, now_nanos, start_ticks};
use crate::{files, overlay};

impl Inner {
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<()> {
        for id in names_in(&self.options.root.join("sandboxes"))? {
            self.adopt_sandbox(&id).await?;
        }
        for id in names_in(&self.options.root.join("containers"))? {
            self.adopt_container(&id)?;
        }
        self.clear_stray_mounts()?;
        self.clear_stray_files()?;
        // Only now, when every container is known, can an exit be noted.
        let sandboxes: Vec<_> = self.sandboxes.lock().values().cloned().collect();
        for sandbox in sandboxes {
            let id = sandbox.record.lock().id.clone();
            match self.watch_shim(&id).await {
                Ok(connection) => self.follow(Arc::clone(&sandbox), connection),
                Err(_) => {
                    sandbox.alive.send_replace(false);
                }
            }
            self.settle_containers(&id, *sandbox.alive.borrow());
        }
        self.images.collect(&self.used_layers())
    }

    async fn adopt_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let directory = self.sandbox_dir(id);
        let record = match files::read_json::<SandboxRecord>(&directory.join("sandbox.json")) {
            Ok(Some(record)) if record.complete => record,
            Ok(Some(record)) => {
                // The caller never learned its id, so nobody will ask for it.
                self.discard_sandbox(&record).await;
                return Ok(());
            }
            Ok(None) => return files::remove_tree(&directory),
            Err(error) => {
                tracing::warn!(sandbox = id, %error, "removing a sandbox whose state cannot be read");
                return files::remove_tree(&directory);
            }
        };
        let alive = watch::Sender::new(!record.stopped);
        let sandbox = Sandbox { record: record.into(), alive, operation: tokio::sync::Mutex::default() };
        self.sandboxes.lock().insert(id.to_owned(), Arc::new(sandbox));
        Ok(())
    }

    fn adopt_container(&self, id: &str) -> Result<()> {
        let directory = self.container_dir(id);
        let record = match files::read_json::<ContainerRecord>(&directory.join("container.json")) {
            Ok(Some(record)) if self.sandbox(&record.sandbox_id).is_ok() => record,
            Ok(_) => return self.discard_container_files(id),
            Err(error) => {
                tracing::warn!(container = id, %error, "removing a container whose state cannot be read");
                return self.discard_container_files(id);
            }
        };
        let container = Container {
            record,
            life: watch::Sender::new(Life::default()),
            operation: tokio::sync::Mutex::default(),
        };
        self.containers.lock().insert(id.to_owned(), Arc::new(container));
        Ok(())
    }

    /// Reads what the shim wrote about the sandbox's containers. Called after the watch is open, so that nothing is lost
    /// in between.
    fn settle_containers(&self, sandbox_id: &str, alive: bool) {
        for container in self.containers_of(sandbox_id) {
            let directory = self.container_dir(&container.record.id);
            let started: Option<StartedRecord> =
                files::read_json(&directory.join("started.json")).ok().flatten();
            let mut exit: Option<ExitRecord> = files::read_json(&directory.join("exit.json")).ok().flatten();
            if let (Some(started), None) = (&started, &exit)
                && (!alive || start_ticks(started.pid) != Some(started.start_ticks))
            {
                let message = "the container was lost, e.g. by a reboot, while the runtime was not running";
                exit = Some(self.record_loss(&container, 255, Some("Unknown"), message));
            }
            container.life.send_if_modified(|life| {
                life.started = started;
                life.exit = life.exit.take().or(exit);
                true
            });
        }
    }

    /// Ends what is left of a container without a shim, and writes the exit record that the shim could not.
    fn record_loss(
        &self,
        container: &Container,
        code: i32,
        reason: Option<&str>,
        message: &str,
    ) -> ExitRecord {
        self.cgroups.kill(&container.record.cgroup);
        self.cgroups.remove(&container.record.cgroup);
        let exit = ExitRecord {
            exit_code: code,
            signal: None,
            oom_killed: false,
            finished_at: now_nanos(),
            reason: reason.map(str::to_owned),
            message: message.to_owned(),
        };
        let path = self.container_dir(&container.record.id).join("exit.json");
        if let Err(error) = files::write_json_volatile(&path, &exit) {
            tracing::warn!(container = container.record.id, %error, "exit record not written");
        }
        exit
    }

    pub(super) async fn watch_shim(&self, id: &str) -> Result<Connection> {
        match client::open(&self.socket(id), Request::Watch, Vec::new()).await? {
            (Response::Done, _, connection) => Ok(connection),
            (other, ..) => {
                Err(RuntimeError::Shim(format!("the shim of sandbox {id} refused to be watched: {other:?}")))
            }
        }
    }

    /// Takes a shim's events until it is gone.
    pub(super) fn follow(self: &Arc<Self>, sandbox: Arc<Sandbox>, connection: Connection) {
        // Weak, so that dropping the runtime ends the task.
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(response) = connection.next().await {
                let Some(inner) = inner.upgrade() else { return };
                if let Response::Exited { id, exit } = response {
                    inner.container_exited(&id, exit);
                }
            }
            if let Some(inner) = inner.upgrade() {
                inner.shim_gone(&sandbox).await;
            }
        });
    }

    async fn shim_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (id, uid) = {
            let record = sandbox.record.lock();
            (record.id.clone(), record.config.metadata.uid.clone())
        };
        let inner = Arc::clone(self);
        let sandbox_id = id.clone();
        // What the shim's orderly end recorded is kept; the rest died, or dies now, with it.
        let settled = tokio::task::spawn_blocking(move || {
            for container in inner.containers_of(&sandbox_id) {
                let running = { container.life.borrow().state() == orlop_cri::ContainerState::Running };
                if running {
                    let path = inner.container_dir(&container.record.id).join("exit.json");
                    let exit = files::read_json(&path).ok().flatten().unwrap_or_else(|| {
                        inner.record_loss(&container, 137, None, "the shim of the container's sandbox died")
                    });
                    inner.container_exited(&container.record.id, exit);
                }
            }
        });
        let _ = settled.await;
        sandbox.alive.send_replace(false);
        self.sandbox_event(ContainerEventKind::Stopped, &id, uid);
    }

    /// Mounts of containers that are no longer known.
    fn clear_stray_mounts(&self) -> Result<()> {
        let containers = canonical(&self.options.root.join("containers"));
        let sandboxes = canonical(&self.options.run_dir.join("sandboxes"));
        for mount in overlay::mounts_below(&containers)? {
            let known = owner(&mount, &containers).is_some_and(|id| self.containers.lock().contains_key(id));
            if !known {
                overlay::unmount(&mount)?;
            }
        }
        for mount in overlay::mounts_below(&sandboxes)? {
            let known = owner(&mount, &sandboxes).is_some_and(|id| self.sandboxes.lock().contains_key(id));
            if !known {
                overlay::unmount(&mount)?;
            }
        }
        Ok(())
    }

    /// Run-time files of sandboxes that are no longer known, and of execs that were under way.
    fn clear_stray_files(&self) -> Result<()> {
        for kind in ["sandboxes", "state"] {
            let directory = self.options.run_dir.join(kind);
            for id in names_in(&directory)? {
                if !self.sandboxes.lock().contains_key(&id) {
                    files::remove_tree(&directory.join(&id))?;
                }
            }
        }
        let execs = self.options.run_dir.join("exec");
        for name in names_in(&execs)? {
            let path = execs.join(name);
            fs::remove_file(&path).context("remove", &path)?;
        }
        Ok(())
    }

    pub(super) fn discard_container_files(&self, id: &str) -> Result<()> {
        let directory = self.container_dir(id);
        overlay::unmount(&directory.join("rootfs"))?;
        // First the record, so that a crash in between leaves something that is recognised as a leftover.
        let _ = fs::remove_file(directory.join("container.json"));
        files::remove_tree(&directory)
    }
}

/// The first path component below `base`.
fn owner<'a>(mount: &'a Path, base: &Path) -> Option<&'a str> {
    mount.strip_prefix(base).ok()?.components().next()?.as_os_str().to_str()
}

/// Names in a directory; none when it does not exist.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(source).context("list", directory),
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        }
    }
}
