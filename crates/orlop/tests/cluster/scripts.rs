//! `./up` and `./down` as a newcomer runs them, on a host of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{HostNamespace, NODE_IP, http_get, orlop, repository, run};

fn script(host: &HostNamespace, name: &str, data: &Path) -> String {
    let mut command: Command = host.command(repository().join(name));
    command.env("ORLOP_DATA_DIR", data).env("ORLOP_BIN", orlop()).env(
        "ORLOP_SERVER_FLAGS",
        format!("--node-ip={NODE_IP} --node-name=node-1 --eviction-hard=nodefs.available<1%"),
    );
    run(&mut command)
}

/// What a cluster may leave on a host, seen from inside its network namespace.
fn leftovers(host: &HostNamespace, data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let data = data.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(data)).map(str::to_owned));
    let links = run(host.command("ip").args(["-o", "link"]));
    found.extend(
        links.lines().filter(|line| !line.contains(": lo") && !line.contains(": ext")).map(str::to_owned),
    );
    found.extend(run(host.command("nft").args(["list", "tables"])).lines().map(str::to_owned));
    let processes = run(Command::new("ps").args(["-eo", "pid,args"]));
    found.extend(processes.lines().filter(|line| line.contains(data)).map(str::to_owned));
    if Path::new(data).exists() {
        found.push(data.to_owned());
    }
    found
}

#[test]
fn up_twice_and_down_leaves_nothing() {
    let host = HostNamespace::new();
    let directory = tempfile::Builder::new().prefix("orlop-test-").tempdir().unwrap();
    let data = directory.path().join("cluster");
    let first = script(&host, "up", &data);
    assert!(first.contains("deployment.apps/hello   3/3"), "{first}");
    let second = script(&host, "up", &data);
    assert!(second.contains("deployment.apps/hello   3/3"), "{second}");
    let node = format!("{NODE_IP}:30080").parse().unwrap();
    let namespace = std::fs::File::open(format!("/run/netns/{}", host.name)).unwrap();
    let page = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        http_get(node)
    });
    let page = page.join().unwrap().unwrap();
    assert!(page.contains("<h1>Hello from Orlop</h1>"), "{page}");
    let instance = std::fs::read_to_string(data.join("instance")).unwrap();
    assert!(!cgroups(&instance).is_empty(), "the cluster's pods have cgroups");
    script(&host, "down", &data);
    assert_eq!(leftovers(&host, &data), Vec::<String>::new());
    assert_eq!(cgroups(&instance), Vec::<PathBuf>::new());
    script(&host, "down", &data);
}

/// The cgroups of a cluster, at the top of every hierarchy.
fn cgroups(instance: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    let all = std::iter::once(root.to_owned()).chain(hierarchies);
    all.map(|hierarchy| hierarchy.join(instance.trim())).filter(|path| path.exists()).collect()
}
