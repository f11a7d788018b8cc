//! Lives of sandboxes.

use orlop_cri::{ContainerState, CriError, NamespaceMode, PodSandboxFilter, PodSandboxState, Runtime};

use crate::support::{Host, shell};

#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_sandbox() {
    let host = Host::with_image().await;
    let rt = host.rt();
    let id = host.sandbox().await;
    let status = rt.pod_sandbox_status(&id).await.unwrap();
    assert_eq!((status.sandbox.state, status.ips.len()), (PodSandboxState::Ready, 1));
    assert_eq!(*host.network.attached.lock().unwrap(), std::slice::from_ref(&id));
    let container = host.start(&id, shell("c", "sleep 1000")).await;
    rt.stop_pod_sandbox(&id).await.unwrap();
    rt.stop_pod_sandbox(&id).await.unwrap();
    assert_eq!(rt.pod_sandbox_status(&id).await.unwrap().sandbox.state, PodSandboxState::NotReady);
    let status = rt.container_status(&container).await.unwrap();
    assert_eq!((status.container.state, status.exit_code), (ContainerState::Exited, 137));
    assert!(host.network.attached.lock().unwrap().is_empty());
    let error = rt.create_container(&id, shell("late", "true")).await.unwrap_err();
    assert!(matches!(error, CriError::FailedPrecondition(_)), "{error:?}");
    rt.remove_pod_sandbox(&id).await.unwrap();
    rt.remove_pod_sandbox(&id).await.unwrap();
    assert!(rt.list_pod_sandboxes(&PodSandboxFilter::default()).await.unwrap().is_empty());
    assert!(rt.list_containers(&Default::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_network_leaves_nothing() {
    let host = Host::with_image().await;
    host.network.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = host.rt().run_pod_sandbox(host.sandbox_config()).await.unwrap_err().to_string();
    assert!(
        error.contains("failed to setup network for sandbox") && error.contains("no pod CIDR"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(host.dir.path().join("root/sandboxes")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(host.dir.path().join("run/s")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_namespaces() {
    let host = Host::with_image().await;
    let mut config = host.sandbox_config();
    config.hostname = String::new();
    config.namespaces.network = NamespaceMode::Node;
    config.namespaces.ipc = NamespaceMode::Node;
    config.namespaces.pid = NamespaceMode::Node;
    let sandbox = host.rt().run_pod_sandbox(config).await.unwrap();
    let mut config = shell("c", "ls -l /proc/self/ns | grep -oE '(net|ipc|uts|pid):.[0-9]+'");
    config.security.namespaces.pid = NamespaceMode::Node;
    config.image = crate::support::IMAGE.into();
    let (_, log) = host.run(&sandbox, config).await;
    for kind in ["net", "ipc", "uts", "pid"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(log.contains(ours.to_str().unwrap().trim_end_matches(']')), "{kind} {log}");
    }
    assert!(host.network.attached.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once() {
    let host = std::sync::Arc::new(Host::with_image().await);
    let before = std::time::Instant::now();
    let mut pods = tokio::task::JoinSet::new();
    for index in 0..20 {
        let host = host.clone();
        pods.spawn(async move {
            let mut config = host.sandbox_config();
            config.metadata.name = format!("pod-{index}");
            config.cgroup_parent = format!("{}/pods/pod{index}", host.cgroup_root);
            let sandbox = host.rt().run_pod_sandbox(config).await.unwrap();
            let name = format!("c{index}");
            let id = host.start(&sandbox, shell(&name, "echo up; sleep 1000")).await;
            for _ in 0..5 {
                let output =
                    host.rt().exec_sync(&id, &["hostname".into()], std::time::Duration::ZERO).await.unwrap();
                assert_eq!(output.stdout, b"web-host\n");
            }
            (sandbox, id)
        });
    }
    let pods = pods.join_all().await;
    println!("20 pods with 5 execs each: {:?}", before.elapsed());
    // Shims do not leak descriptors: each has the same few.
    for (sandbox, _) in &pods {
        let record =
            std::fs::read(host.dir.path().join("root/sandboxes").join(sandbox).join("sandbox.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let count = || std::fs::read_dir(format!("/proc/{}/fd", record["shim"]["pid"])).unwrap().count();
        let settled = async {
            // Three for stdio, three of its own, the watch, two pipes and the log.
            while count() > 10 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let outcome = tokio::time::timeout(std::time::Duration::from_secs(10), settled).await;
        let links = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", record["shim"]["pid"])).unwrap();
            fds.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap_or_default()).collect::<Vec<_>>()
        };
        assert!(outcome.is_ok(), "{} descriptors: {:?}", count(), links());
    }
    let before = std::time::Instant::now();
    let removals = pods.iter().map(|(sandbox, _)| host.rt().remove_pod_sandbox(sandbox));
    for removed in futures::future::join_all(removals).await {
        removed.unwrap();
    }
    println!("20 pods removed: {:?}", before.elapsed());
    // One alone, for comparison.
    let before = std::time::Instant::now();
    let sandbox = host.sandbox().await;
    let ready = before.elapsed();
    let id = host.rt().create_container(&sandbox, shell("one", "sleep 1000")).await.unwrap();
    let created = before.elapsed();
    host.rt().start_container(&id).await.unwrap();
    println!("one pod: sandbox {ready:?}, created {created:?}, started {:?}", before.elapsed());
}
