//! A runtime in temporary directories that takes everything away again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orlop_cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, NamespaceMode, NamespaceOptions,
    PodNetwork, PodNetworkAttachment, PodNetworkRequest, PodSandboxConfig, PodSandboxMetadata, Runtime,
};
use orlop_runtime::{EmbeddedRuntime, Options};

pub const IMAGE: &str = "localhost/busybox:test";

/// Brings up the loopback interface and remembers whom it served.
#[derive(Default)]
pub struct LoopbackNetwork {
    pub attached: std::sync::Mutex<Vec<String>>,
    pub fail: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl PodNetwork for LoopbackNetwork {
    async fn attach(&self, request: &PodNetworkRequest) -> orlop_cri::Result<PodNetworkAttachment> {
        if self.fail.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(orlop_cri::CriError::Internal("node has no pod CIDR yet".into()));
        }
        let net = request.netns.clone();
        let status = std::process::Command::new("nsenter")
            .arg(format!("--net={}", net.display()))
            .args(["ip", "link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(status.success());
        self.attached.lock().unwrap().push(request.sandbox_id.clone());
        Ok(PodNetworkAttachment { ips: vec![[10, 1, 2, 3].into()] })
    }
    async fn detach(&self, sandbox_id: &str) -> orlop_cri::Result<()> {
        self.attached.lock().unwrap().retain(|id| id != sandbox_id);
        Ok(())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

pub struct Host {
    pub dir: tempfile::TempDir,
    pub cgroup_root: String,
    pub network: Arc<LoopbackNetwork>,
    pub runtime: Option<EmbeddedRuntime>,
}

pub fn shim_command() -> Vec<std::ffi::OsString> {
    vec![env!("CARGO_BIN_EXE_orlop-shim-test").into(), "shim".into()]
}

impl Host {
    pub async fn new() -> Host {
        let dir = tempfile::Builder::new().prefix("orlop-rt-").tempdir_in("/tmp").unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut host = Host { dir, cgroup_root: format!("/{name}"), network: Arc::default(), runtime: None };
        host.reopen().await;
        host
    }

    pub async fn with_image() -> Host {
        let host = Host::new().await;
        host.import(super::archive::busybox(IMAGE)).await.unwrap();
        host
    }

    /// A new runtime object on the same directories, as a new process would.
    pub async fn reopen(&mut self) {
        self.runtime = None;
        let path = self.dir.path();
        let mut options =
            Options::new(path.join("root"), path.join("run"), shim_command(), self.network.clone());
        options.cgroup_root = self.cgroup_root.clone();
        self.runtime = Some(EmbeddedRuntime::open(options).await.unwrap());
    }

    pub fn rt(&self) -> &EmbeddedRuntime {
        self.runtime.as_ref().unwrap()
    }

    pub async fn import(&self, archive: Vec<u8>) -> orlop_cri::Result<Vec<String>> {
        let chunks: Vec<std::io::Result<Bytes>> =
            archive.chunks(100_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        self.rt().import_image(Box::pin(futures::stream::iter(chunks))).await
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    pub fn sandbox_config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "web".into(),
                uid: "uid-1".into(),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: "web-host".into(),
            log_directory: self.logs(),
            cgroup_parent: format!("{}/pods/pod1", self.cgroup_root),
            namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
            dns: orlop_cri::DnsConfig { servers: vec!["10.96.0.10".into()], ..Default::default() },
            ..PodSandboxConfig::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.rt().run_pod_sandbox(self.sandbox_config()).await.unwrap()
    }

    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.rt().create_container(sandbox, config).await.unwrap();
        self.rt().start_container(&id).await.unwrap();
        id
    }

    /// Waits for the end of a container, by its events.
    pub async fn wait(&self, id: &str) -> ContainerStatus {
        use futures::StreamExt;
        let mut events = self.rt().container_events();
        let work = async {
            loop {
                let status = self.rt().container_status(id).await.unwrap();
                if status.container.state == ContainerState::Exited {
                    return status;
                }
                events.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), work).await.expect("the container did not end")
    }

    /// Runs a shell script to its end: (status, log lines without time stamps).
    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> (ContainerStatus, String) {
        let id = self.start(sandbox, config).await;
        let status = self.wait(&id).await;
        let log = log_text(&status.log_path);
        (status, log)
    }
}

/// Content of a CRI log, `stream:text` a line.
pub fn log_text(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let (time, stream, tag, content) =
                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            assert!(time.ends_with('Z') && time.len() == 30, "{line}");
            assert!(tag == "F" || tag == "P", "{line}");
            format!("{stream}:{content}\n")
        })
        .collect()
}

pub fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata { name: name.into(), attempt: 0 },
        image: IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}/0.log").into(),
        security: orlop_cri::LinuxSecurityContext {
            namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
            ..Default::default()
        },
        ..ContainerConfig::default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Destructors cannot wait for the asynchronous runtime, so a thread with one of its own does.
        let (path, cgroup_root, network) =
            (self.dir.path().to_owned(), self.cgroup_root.clone(), self.network.clone());
        let runtime = self.runtime.take();
        let cleaned = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(async move {
                drop(runtime);
                let mut options = Options::new(path.join("root"), path.join("run"), shim_command(), network);
                options.cgroup_root = cgroup_root;
                EmbeddedRuntime::open(options).await.unwrap().uninstall().await.unwrap();
            });
        })
        .join();
        if !std::thread::panicking() {
            cleaned.unwrap();
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts are left");
            assert!(
                !std::path::Path::new("/sys/fs/cgroup/memory").join(&self.cgroup_root[1..]).exists(),
                "cgroups are left"
            );
        }
    }
}
