//! The shim as a program of its own, for this crate's tests; the product's binary calls `shim_main` itself.

fn main() {
    let mut args = std::env::args_os();
    args.next();
    if std::env::args().nth(1).as_deref() == Some("host") {
        orlop_runtime_test_host(args);
    }
    orlop_runtime::shim_main(args)
}

/// A process that opens the runtime, starts one sandbox with one container and then waits to be killed: what a kubelet
/// is to the shim. Arguments: root, run directory, cgroup root, image archive.
fn orlop_runtime_test_host(args: impl Iterator<Item = std::ffi::OsString>) -> ! {
    let args: Vec<_> = args.skip(1).collect();
    let code = match host(&args) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    std::process::exit(code)
}

fn host(args: &[std::ffi::OsString]) -> Result<(), Box<dyn std::error::Error>> {
    use orlop_cri::Runtime;
    let [root, run_dir, cgroup_root, archive] = args else { return Err("four arguments are needed".into()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let command = vec!["/proc/self/exe".into(), "shim".into()];
        let network = std::sync::Arc::new(NoNetwork);
        let mut options = orlop_runtime::Options::new(root.into(), run_dir.into(), command, network);
        options.cgroup_root = cgroup_root.to_string_lossy().into_owned();
        let parent = format!("{}/pod", options.cgroup_root);
        let embedded = orlop_runtime::EmbeddedRuntime::open(options).await?;
        let bytes = std::fs::read(archive)?;
        let stream = futures::stream::iter([Ok(bytes::Bytes::from(bytes))]);
        let names = embedded.import_image(Box::pin(stream)).await?;
        let sandbox = orlop_cri::PodSandboxConfig {
            hostname: "kept".into(),
            cgroup_parent: parent,
            log_directory: std::path::Path::new(run_dir).join("logs"),
            ..Default::default()
        };
        let sandbox = embedded.run_pod_sandbox(sandbox).await?;
        let container = orlop_cri::ContainerConfig {
            image: names[0].clone(),
            command: vec![
                "/bin/sh".into(),
                "-c".into(),
                "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done".into(),
            ],
            log_path: "c.log".into(),
            ..Default::default()
        };
        let container = embedded.create_container(&sandbox, container).await?;
        embedded.start_container(&container).await?;
        println!("{container}");
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Gives every sandbox the same address and does nothing.
struct NoNetwork;

#[async_trait::async_trait]
impl orlop_cri::PodNetwork for NoNetwork {
    async fn attach(
        &self,
        _: &orlop_cri::PodNetworkRequest,
    ) -> orlop_cri::Result<orlop_cri::PodNetworkAttachment> {
        Ok(orlop_cri::PodNetworkAttachment { ips: vec![std::net::IpAddr::from([10, 0, 0, 1])] })
    }
    async fn detach(&self, _: &str) -> orlop_cri::Result<()> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
