//! Two API servers on one real etcd: what one is told, the other knows.

use std::process::{Child, Command, Stdio};

use crate::support::{Server, eventually, free_port, tool};

struct Etcd {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    fn start() -> Etcd {
        let directory = tempfile::tempdir().unwrap();
        let (url, peer) =
            (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        let child = Command::new(tool("etcd"))
            .arg(format!("--data-dir={}", directory.path().display()))
            .args(["--name=one", "--log-level=error", &format!("--initial-cluster=one={peer}")])
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Etcd { child, url, _directory: directory }
    }
}

#[test]
fn two_servers_on_one_etcd() {
    let etcd = Etcd::start();
    let servers = format!("--etcd-servers={}", etcd.url);
    let one = Server::with(&[&servers]);
    one.ok(&["create", "configmap", "before", "--from-literal=a=1"]);
    let two = Server::with(&[&servers]);
    assert_eq!(two.json(&["configmap", "before"])["data"]["a"], "1");
    for n in 0..10 {
        let name = format!("c{n}");
        // Read at once on the other side: a consistent read is never behind.
        one.ok(&["create", "configmap", &name, "--from-literal=a=1"]);
        two.ok(&["patch", "configmap", &name, "-p", r#"{"data":{"a":"2"}}"#]);
        assert_eq!(one.json(&["configmap", &name])["data"]["a"], "2");
        two.ok(&["delete", "configmap", &name]);
        assert!(one.refused(&["get", "configmap", &name]).contains("not found"));
    }
    drop(one);
    two.ok(&["create", "configmap", "after"]);
    let three = Server::with(&[&servers]);
    eventually("a third server knows all", || {
        three.kubectl(&["get", "configmap", "after"]).status.success().then_some(())
    });
}
