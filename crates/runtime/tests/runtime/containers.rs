//! Lives of containers.

use std::time::Duration;

use orlop_cri::{
    ContainerFilter, ContainerState, CriError, LinuxContainerResources, Mount, NamespaceMode, RunAsUser,
    Runtime, SecurityProfile,
};

use crate::support::{Host, log_text, shell};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_logs() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let mut config = shell(
        "c",
        "echo out; echo err >&2; hostname; pwd; echo $FROM_IMAGE $HOSTNAME $MINE; cat /etc/resolv.conf /etc/hostname; exit 3",
    );
    config.envs = vec![("MINE".into(), "a b".into())];
    let (status, log) = host.run(&sandbox, config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    for line in [
        "stdout:out",
        "stderr:err",
        "stdout:web-host",
        "stdout:/srv/here",
        "stdout:yes web-host a b",
        "stdout:nameserver 10.96.0.10",
    ] {
        assert!(log.contains(&format!("{line}\n")), "{line} in {log}");
    }
    assert!(status.started_at > status.container.created_at && status.finished_at >= status.started_at);
    assert_eq!(status.pid, None);
    assert_eq!(status.image_ref.split('@').next(), Some("localhost/busybox"));
    let (status, _) = host.run(&sandbox, shell("ok", "true")).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    // Layers: whiteout and opaque directory.
    let (_, log) = host
        .run(&sandbox, shell("layers", "ls /etc/old /gone 2>&1; test -e /gone/file || echo opaque"))
        .await;
    assert!(
        log.contains("/etc/old: No such file") && log.contains("stdout:new") && log.contains("opaque"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_stopping() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let rt = host.rt();
    let trap = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let wait_ready = async |id: &str| {
        let path = rt.container_status(id).await.unwrap().log_path;
        while !log_text(&path).contains("ready") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let id = host.start(&sandbox, shell("polite", trap)).await;
    wait_ready(&id).await;
    rt.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    let status = rt.container_status(&id).await.unwrap();
    assert_eq!((status.container.state, status.exit_code), (ContainerState::Exited, 7));
    assert!(log_text(&status.log_path).contains("bye"));
    // Deaf to the signal: killed.
    let id =
        host.start(&sandbox, shell("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done")).await;
    wait_ready(&id).await;
    rt.stop_container(&id, Duration::from_millis(300)).await.unwrap();
    assert_eq!(rt.container_status(&id).await.unwrap().exit_code, 137);
    // A signal of its own.
    let mut config = shell("usr1", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done");
    config.stop_signal = Some("SIGUSR1".into());
    let id = host.start(&sandbox, config).await;
    wait_ready(&id).await;
    rt.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(rt.container_status(&id).await.unwrap().exit_code, 9);
    // Stopping what is stopped, or never was, is fine.
    rt.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    rt.stop_container("nope", Duration::from_secs(1)).await.unwrap();
    rt.remove_container(&id).await.unwrap();
    rt.remove_container(&id).await.unwrap();
    assert!(matches!(rt.container_status(&id).await, Err(CriError::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn start_errors_are_upstreams() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let check = async |command: &str, expected: &str| {
        let mut config = shell("bad", "");
        config.command = vec![command.into()];
        let id = host.rt().create_container(&sandbox, config).await.unwrap();
        let error = host.rt().start_container(&id).await.unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
        let status = host.rt().container_status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert_eq!(status.container.state, ContainerState::Exited);
        assert!(status.message.ends_with(expected), "{}", status.message);
    };
    check("nope", "exec: \"nope\": executable file not found in $PATH").await;
    check("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory").await;
    check("/bin/notexec", "exec: \"/bin/notexec\": permission denied").await;
    check("/etc", "exec: \"/etc\": is a directory").await;
    let mut config = shell("missing", "true");
    config.image = "localhost/none:1".into();
    assert!(matches!(host.rt().create_container(&sandbox, config).await, Err(CriError::NotFound(_))));
    let mut config = shell("user", "true");
    config.security.run_as_user = Some(RunAsUser::Name("ghost".into()));
    let error = host.rt().create_container(&sandbox, config).await.unwrap_err().to_string();
    assert!(error.contains("unable to find user ghost"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_rights() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let probe = "id; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; touch /x 2>&1; touch /proc/sys/kernel/hostname 2>&1; head -c1 /proc/kcore 2>&1 | wc -c; unshare -m true 2>&1; sleep 0";
    let (_, log) = host.run(&sandbox, shell("root", probe)).await;
    assert!(log.contains("uid=0(root) gid=0(root)") && log.contains("CapEff:\t00000000a80425fb"), "{log}");
    assert!(log.contains("Seccomp:\t0"), "{log}");
    let mut config = shell("web", probe);
    config.security.run_as_user = Some(RunAsUser::Name("web".into()));
    config.security.supplemental_groups = vec![77];
    config.security.no_new_privs = true;
    config.security.readonly_rootfs = true;
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    let (status, log) = host.run(&sandbox, config).await;
    assert!(log.contains("uid=33(web) gid=34(web) groups=34(web),50(logs),77"), "{log}");
    assert!(
        log.contains("CapEff:\t0000000000000000")
            && log.contains("NoNewPrivs:\t1")
            && log.contains("Seccomp:\t2"),
        "{log}"
    );
    assert!(log.contains("/x: Read-only file system"), "{log}");
    assert_eq!(status.user, Some((33, 34, vec![34, 50, 77])));
    // seccomp without no_new_privs, as root: unshare is refused even with the capability that the kernel wants elsewhere.
    let mut config = shell("seccomp", probe);
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    let (_, log) = host.run(&sandbox, config).await;
    assert!(log.contains("Seccomp:\t2") && log.contains("Operation not permitted"), "{log}");
    let mut config = shell("caps", probe);
    config.security.drop_capabilities = vec!["ALL".into()];
    config.security.add_capabilities = vec!["NET_ADMIN".into()];
    let (_, log) = host.run(&sandbox, config).await;
    assert!(log.contains("CapEff:\t0000000000001000"), "{log}");
    let mut config = shell(
        "privileged",
        "ls /dev | wc -l; touch /proc/sys/kernel/hostname && echo writable; mount -t tmpfs x /tmp && echo mounted",
    );
    config.security.privileged = true;
    let (_, log) = host.run(&sandbox, config).await;
    assert!(log.contains("writable") && log.contains("mounted"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_oom() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let mut config = shell(
        "oom",
        "echo start; yes | tail -c 200000000 | wc -c; head -c 300000000 /dev/zero | tail -c 200000000 > /dev/null; exit $?",
    );
    config.command = vec!["/bin/tail".into(), "-c".into(), "300000000".into(), "/dev/zero".into()];
    config.resources.memory_limit_in_bytes = Some(32 << 20);
    let (status, _) = host.run(&sandbox, config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let mut config = shell("limits", "echo ready; sleep 60");
    config.resources = LinuxContainerResources {
        cpu_shares: Some(256),
        cpu_quota: Some(20_000),
        cpu_period: Some(100_000),
        memory_limit_in_bytes: Some(64 << 20),
        pids_limit: Some(50),
        oom_score_adj: Some(-997),
        ..Default::default()
    };
    let id = host.start(&sandbox, config).await;
    let cgroup = |controller: &str, file: &str| {
        let path = format!("/sys/fs/cgroup/{controller}{}/pods/pod1/{id}/{file}", host.cgroup_root);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
    };
    assert_eq!(cgroup("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(cgroup("cpu", "cpu.shares"), "256");
    assert_eq!(cgroup("cpu", "cpu.cfs_quota_us"), "20000");
    assert_eq!(cgroup("pids", "pids.max"), "50");
    let update = LinuxContainerResources {
        memory_limit_in_bytes: Some(96 << 20),
        cpu_shares: Some(512),
        ..Default::default()
    };
    host.rt().update_container_resources(&id, &update).await.unwrap();
    assert_eq!(cgroup("memory", "memory.limit_in_bytes"), (96 << 20).to_string());
    assert_eq!(cgroup("cpu", "cpu.shares"), "512");
    let update = LinuxContainerResources { memory_limit_in_bytes: Some(48 << 20), ..Default::default() };
    host.rt().update_container_resources(&id, &update).await.unwrap();
    assert_eq!(cgroup("memory", "memory.limit_in_bytes"), (48 << 20).to_string());
    let stats = host
        .rt()
        .list_container_stats(&ContainerFilter { id: Some(id.clone()), ..Default::default() })
        .await
        .unwrap();
    assert_eq!(stats.len(), 1);
    assert!(
        stats[0].memory_usage_bytes > 0 && stats[0].cpu_usage_nanos > 0 && stats[0].process_count >= 1,
        "{stats:?}"
    );
    host.rt().remove_container(&id).await.unwrap();
    assert!(
        !std::path::Path::new(&format!("/sys/fs/cgroup/memory{}/pods/pod1/{id}", host.cgroup_root)).exists()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let data = host.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "from host").unwrap();
    let mut config =
        shell("m", "cat /data/file /one; touch /data/x 2>&1; touch /rw/made; mount | grep ' /dev/shm '");
    let mount = |path: &str, host_path: std::path::PathBuf, readonly| Mount {
        container_path: path.into(),
        host_path,
        readonly,
        ..Mount::default()
    };
    config.mounts = vec![
        mount("/data", data.clone(), true),
        mount("/rw", data.clone(), false),
        mount("/one", data.join("file"), true),
    ];
    let (status, log) = host.run(&sandbox, config).await;
    assert!(log.contains("from hostfrom host") && log.contains("/data/x: Read-only file system"), "{log}");
    assert!(log.contains("/dev/shm"), "{log}");
    assert!(data.join("made").exists());
    assert_eq!(status.mounts.len(), 3);
    // Through a symbolic link of the image, and a child named before its parent.
    let mut config = shell("links", "cat /run/secrets/token/file /outer/inner/file; ls /outer");
    std::fs::create_dir(data.join("inner")).unwrap();
    config.mounts = vec![
        mount("/outer/inner", data.clone(), true),
        mount("/outer", data.clone(), true),
        mount("/var/run/secrets/token", data.clone(), true),
    ];
    let (_, log) = host.run(&sandbox, config).await;
    assert!(log.contains("from hostfrom host") && log.contains("stdout:made"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn process_namespaces() {
    let host = Host::with_image().await;
    let mut config = host.sandbox_config();
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = host.rt().run_pod_sandbox(config).await.unwrap();
    let mut first = shell("first", "sleep 1000 & sleep 1000");
    first.security.namespaces.pid = NamespaceMode::Pod;
    let first = host.start(&sandbox, first).await;
    let mut second = shell("second", "ps; sleep 0");
    second.security.namespaces.pid = NamespaceMode::Pod;
    let (_, log) = host.run(&sandbox, second).await;
    assert!(log.contains("sleep 1000"), "containers of the pod see each other: {log}");
    host.rt().stop_container(&first, Duration::ZERO).await.unwrap();
    let (_, log) = host
        .run(&sandbox, {
            let mut third = shell("third", "ps");
            third.security.namespaces.pid = NamespaceMode::Pod;
            third
        })
        .await;
    assert!(!log.contains("sleep 1000"), "what a container leaves behind is killed: {log}");
    // Own namespace: alone.
    let (_, log) = host.run(&sandbox, shell("alone", "ps | wc -l")).await;
    assert!(log.contains("stdout:3") || log.contains("stdout:4"), "{log}");
    let target = host.start(&sandbox, shell("target", "sleep 1000")).await;
    let mut debug = shell("debug", "ps");
    debug.security.namespaces.pid = NamespaceMode::Target(target);
    let (_, log) = host.run(&sandbox, debug).await;
    assert!(log.contains("sleep 1000"), "{log}");
}
