//! The runtime goes, containers stay.

use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use orlop_cri::{ContainerState, PodSandboxState, Runtime};

use crate::support::{Host, log_text, shell};

fn start_ticks(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn reopening_adopts() {
    let mut host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let runs = host.start(&sandbox, shell("runs", "while :; do sleep 0.05; done")).await;
    let ends = host.start(&sandbox, shell("ends", "sleep 0.3; exit 6")).await;
    let created = host.rt().create_container(&sandbox, shell("created", "exit 2")).await.unwrap();
    let before = host.rt().container_status(&runs).await.unwrap();
    let ticks = start_ticks(before.pid.unwrap());
    host.runtime = None;
    tokio::time::sleep(Duration::from_millis(600)).await;
    host.reopen().await;
    let after = host.rt().container_status(&runs).await.unwrap();
    assert_eq!(after, before);
    assert_eq!(start_ticks(after.pid.unwrap()), ticks);
    // What ended meanwhile is known with its code.
    let status = host.rt().container_status(&ends).await.unwrap();
    assert_eq!((status.container.state, status.exit_code), (ContainerState::Exited, 6));
    assert_eq!(host.rt().pod_sandbox_status(&sandbox).await.unwrap().sandbox.state, PodSandboxState::Ready);
    // Everything still works.
    host.rt().start_container(&created).await.unwrap();
    assert_eq!(host.wait(&created).await.exit_code, 2);
    assert_eq!(host.rt().exec_sync(&runs, &["true".into()], Duration::ZERO).await.unwrap().exit_code, 0);
    host.rt().stop_container(&runs, Duration::ZERO).await.unwrap();
    assert_eq!(host.rt().container_status(&runs).await.unwrap().exit_code, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shim_is_noticed() {
    use futures::StreamExt;
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    let id = host.start(&sandbox, shell("c", "sleep 1000")).await;
    let pid = host.rt().container_status(&id).await.unwrap().pid.unwrap();
    let record =
        std::fs::read(host.dir.path().join("root/sandboxes").join(&sandbox).join("sandbox.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let shim = record["shim"]["pid"].as_i64().unwrap();
    let rss: u64 = std::fs::read_to_string(format!("/proc/{shim}/status"))
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok())
        .unwrap();
    println!("shim RSS: {rss} KiB");
    // In none of our cgroups (but the root), our process group or our session: nothing that ends us ends it.
    let ours = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let theirs = std::fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap();
    for line in ours.lines().filter(|line| !line.ends_with(":/")) {
        assert!(!theirs.lines().any(|their| their == line), "{theirs}");
    }
    let stat = std::fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(
        (fields[2], fields[3]),
        (shim.to_string().as_str(), shim.to_string().as_str()),
        "group and session"
    );
    let mut events = host.rt().container_events();
    let killed = std::process::Command::new("kill").args(["-9", &shim.to_string()]).status().unwrap();
    assert!(killed.success());
    let down = async {
        while host.rt().pod_sandbox_status(&sandbox).await.unwrap().sandbox.state == PodSandboxState::Ready {
            events.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), down).await.expect("the sandbox stays ready");
    let status = host.rt().container_status(&id).await.unwrap();
    assert_eq!((status.container.state, status.exit_code), (ContainerState::Exited, 137));
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
            || std::fs::read_link(format!("/proc/{pid}/exe")).is_err()
    );
    host.rt().remove_pod_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_whole_process_group_stops_nothing() {
    let mut host = Host::new().await;
    let archive = host.dir.path().join("image.tar");
    std::fs::write(&archive, crate::archive::busybox(crate::support::IMAGE)).unwrap();
    host.runtime = None;
    let path = host.dir.path().to_owned();
    let mut parent = std::process::Command::new(env!("CARGO_BIN_EXE_orlop-shim-test"))
        .arg("host")
        .args([path.join("root"), path.join("run"), host.cgroup_root.clone().into(), archive])
        .stdout(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut id = String::new();
    std::io::BufReader::new(parent.stdout.take().unwrap()).read_line(&mut id).unwrap();
    let id = id.trim();
    assert_eq!(id.len(), 64, "{id:?}");
    let group = format!("-{}", parent.id());
    assert!(std::process::Command::new("kill").args(["-9", "--", &group]).status().unwrap().success());
    parent.wait().unwrap();
    let log = path.join("run/logs/c.log");
    let lines = log_text(&log).lines().count();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(log_text(&log).lines().count() > lines, "the container and its log go on");
    host.reopen().await;
    let status = host.rt().container_status(id).await.unwrap();
    assert_eq!(status.container.state, ContainerState::Running);
    host.rt().stop_container(id, Duration::ZERO).await.unwrap();
}

/// Kills the process that owns the runtime at arbitrary moments; whatever it was doing, the next one starts clean.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    let mut host = Host::new().await;
    let archive = host.dir.path().join("image.tar");
    std::fs::write(&archive, crate::archive::busybox(crate::support::IMAGE)).unwrap();
    let path = host.dir.path().to_owned();
    for round in 0..12_u64 {
        host.runtime = None;
        let mut parent = std::process::Command::new(env!("CARGO_BIN_EXE_orlop-shim-test"))
            .arg("host")
            .args([path.join("root"), path.join("run"), host.cgroup_root.clone().into(), archive.clone()])
            .stdout(std::process::Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(5 + round * 17)).await;
        parent.kill().unwrap();
        parent.wait().unwrap();
        host.reopen().await;
        for container in host.rt().list_containers(&Default::default()).await.unwrap() {
            let sandbox = host.rt().pod_sandbox_status(&container.pod_sandbox_id).await.unwrap();
            assert_eq!(sandbox.sandbox.state, PodSandboxState::Ready);
            if container.state == ContainerState::Created {
                // The shim may have been told already; either way it runs afterwards.
                host.rt().start_container(&container.id).await.unwrap();
            }
            let status = host.rt().container_status(&container.id).await.unwrap();
            assert_eq!(status.container.state, ContainerState::Running, "{status:?}");
        }
        for sandbox in host.rt().list_pod_sandboxes(&Default::default()).await.unwrap() {
            host.rt().remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
    }
}

/// Who asked for a start may be gone before the answer; whoever asks again gets that start, not a second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_given_up_is_joined_by_the_next() {
    let host = Host::with_image().await;
    let sandbox = host.sandbox().await;
    for round in 0..12_u64 {
        let config = shell(&format!("c{round}"), "while :; do sleep 0.05; done");
        let id = host.rt().create_container(&sandbox, config).await.unwrap();
        let patience = Duration::from_micros(500 + round * 1_500);
        let first = tokio::time::timeout(patience, host.rt().start_container(&id)).await;
        if first.is_err() {
            host.rt().start_container(&id).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = host.rt().container_status(&id).await.unwrap();
        assert_eq!(status.container.state, ContainerState::Running, "round {round}: {status:?}");
    }
}
