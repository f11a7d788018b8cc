//! `orlop controller-manager` and `orlop scheduler` as processes of their own beside an API server, which does not know
//! whose they are.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{Server, eventually, free_port, run, text, tool};

/// How long a lease holds here, and how long its holder tries to renew it.
pub const LEASE_DURATION: Duration = Duration::from_secs(3);
pub const RENEW_DEADLINE: Duration = Duration::from_secs(2);

/// One process; it dies with this value.
pub struct Component {
    pub child: Child,
    port: u16,
    log: PathBuf,
    /// Where it may leave temporary files.
    temporary: PathBuf,
}

impl Component {
    pub fn start(server: &Server, name: &str, arguments: &[&str]) -> Component {
        let port = free_port();
        let log = server.directory.path().join(format!("{name}-{port}.log"));
        let output = File::create(&log).unwrap();
        let temporary = server.directory.path().join(format!("{name}-{port}-tmp"));
        std::fs::create_dir(&temporary).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .arg(name)
            .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")])
            .arg(format!("--leader-elect-lease-duration={LEASE_DURATION:?}"))
            .arg(format!("--leader-elect-renew-deadline={RENEW_DEADLINE:?}"))
            .arg("--leader-elect-retry-period=200ms")
            .args(arguments)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Component { child, port, log, temporary }
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn get(&self, path: &str, more: &[&str]) -> String {
        let mut curl = Command::new(tool("curl"));
        curl.args(["--silent", "--insecure"])
            .args(more)
            .arg(format!("https://127.0.0.1:{}{path}", self.port));
        text(&curl.output().unwrap())
    }

    /// As an operator does it: what is done comes to its end, and the lease is given back.
    fn terminate(&mut self) {
        run(Command::new("kill").arg(self.child.id().to_string()));
        assert!(self.child.wait().unwrap().success(), "{}", self.log_text());
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

pub fn holder(server: &Server, lease: &str) -> String {
    let output = server.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "lease",
        lease,
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Nodes without kubelets: ready, and large.
pub fn add_node(server: &Server) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}).to_string();
    server.ok_stdin(&["create", "-f", "-"], &node);
    let size = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    let status = json!({"status": {"capacity": size, "allocatable": size,
        "conditions": [{"type": "Ready", "status": "True"}]}});
    server.ok(&["patch", "node", "n1", "--subresource=status", "--type=merge", "-p", &status.to_string()]);
}

pub fn bound(server: &Server, app: &str) -> usize {
    let pods = server.json(&["pods", "-l", &format!("app={app}")]);
    let pods = pods["items"].as_array().unwrap();
    pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count()
}

#[test]
fn a_control_plane_of_three_processes() {
    let server = Server::start();
    let mut controllers = Component::start(
        &server,
        "controller-manager",
        &["--use-service-account-credentials", "--controllers=*,-cronjob", "--concurrent_deployment_syncs=9"],
    );
    let mut first = Component::start(&server, "scheduler", &[]);
    add_node(&server);
    server.ok(&["create", "deployment", "web", "--image=web:1", "--replicas=3"]);
    eventually("the pods of the Deployment are bound", || (bound(&server, "web") == 3).then_some(()));
    // Who did it acted under a name of its own.
    let manager = server.json(&["replicasets", "--show-managed-fields"]);
    assert_eq!(manager["items"][0]["metadata"]["ownerReferences"][0]["kind"], "Deployment");

    // Health is for everybody, all else for those who may.
    assert_eq!(first.get("/healthz", &[]), "ok");
    assert!(first.get("/readyz?verbose", &[]).contains("[+]leaderElection ok"));
    assert!(first.get("/metrics", &[]).contains("cannot get path"), "{}", first.get("/metrics", &[]));
    server.ok(&["create", "serviceaccount", "monitor"]);
    server.ok(&["create", "clusterrole", "monitor", "--verb=get", "--non-resource-url=/metrics"]);
    server.ok(&[
        "create",
        "clusterrolebinding",
        "monitor",
        "--clusterrole=monitor",
        "--serviceaccount=default:monitor",
    ]);
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let token = server.ok(&["create", "token", "monitor"]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "huge"}, "spec": {"containers": [
        {"name": "a", "image": "a:1", "resources": {"requests": {"cpu": "1000"}}}]}});
    server.ok_stdin(&["create", "-f", "-"], &pod.to_string());
    eventually("the huge pod is refused", || {
        let pod = server.json(&["pods", "huge"]);
        (pod["status"]["conditions"][0]["reason"] == "Unschedulable").then_some(())
    });
    let metrics = first.get("/metrics", &["--header", &bearer(token.trim())]);
    for expected in [
        "leader_election_master_status{name=\"kube-scheduler\"} 1\n",
        "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 3\n",
        "scheduler_scheduling_attempt_duration_seconds_count{profile=\"default-scheduler\",result=\"unschedulable\"}",
        "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"",
        "scheduler_pod_scheduling_attempts_count 3\n",
        "scheduler_pending_pods{queue=\"active\"} 0\n",
        "scheduler_pending_pods{queue=\"unschedulable\"} 1\n",
        "scheduler_preemption_victims_count 0\n",
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }
    let metrics = controllers.get("/metrics", &["--header", &bearer(token.trim())]);
    for expected in [
        "workqueue_depth{name=\"deployment\"} 0\n",
        "workqueue_work_duration_seconds_bucket{name=\"replicaset\",le=\"9.999999999999999e-06\"}",
        "workqueue_adds_total{name=\"job\"} 0\n",
        &format!(
            "rest_client_requests_total{{code=\"201\",host=\"127.0.0.1:{}\",method=\"POST\"}}",
            server.port
        ),
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }
    // Nothing is told of a scheduler that does not run here.
    assert!(!metrics.contains("scheduler_pending_pods"), "{metrics}");
    assert!(first.get("/configz", &["--header", &bearer(token.trim())]).contains("cannot get path"));
    assert!(first.get("/metrics", &["--header", &bearer("nonsense")]).contains("Unauthorized"));

    // A second one waits, and takes over when the first is killed.
    let leader = holder(&server, "kube-scheduler");
    let mut second = Component::start(&server, "scheduler", &[]);
    eventually("the second answers", || (second.get("/healthz", &[]) == "ok").then_some(()));
    assert_eq!(holder(&server, "kube-scheduler"), leader);
    let waits = second.get("/metrics", &["--header", &bearer(token.trim())]);
    assert!(waits.contains("leader_election_master_status{name=\"kube-scheduler\"} 0"), "{waits}");
    first.child.kill().unwrap();
    server.ok(&["create", "deployment", "later", "--image=web:1"]);
    eventually("the second schedules", || (bound(&server, "later") == 1).then_some(()));
    assert_ne!(holder(&server, "kube-scheduler"), leader);

    // Who is asked to stop gives the lease back.
    second.terminate();
    assert_eq!(holder(&server, "kube-scheduler"), "");

    // A controller whose account goes gets another one, and a token of it.
    server.ok(&["-n", "kube-system", "delete", "serviceaccount", "replicaset-controller"]);
    server.ok(&["scale", "deployment", "web", "--replicas=5"]);
    eventually("two more pods", || {
        let pods = server.json(&["pods", "-l", "app=web"]);
        (pods["items"].as_array().unwrap().len() == 5).then_some(())
    });
    // No token touches the disk, so that none is left however the process ends.
    assert_eq!(std::fs::read_dir(&controllers.temporary).unwrap().count(), 0);
    controllers.child.kill().unwrap();
    controllers.child.wait().unwrap();
    assert_eq!(std::fs::read_dir(&controllers.temporary).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_is_said() {
    let server = Server::start();
    let check = |name: &str, arguments: &[&str], expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .arg(name)
            .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
            .arg("--secure-port=0")
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    };
    let missing = server.directory.path().join("nothing");
    let missing = missing.display().to_string();
    check(
        "scheduler",
        &["--kubeconfig", &missing],
        "pass --kubeconfig with a file that names a cluster and a user",
    );
    check("scheduler", &["--config", &missing], "--config");
    check(
        "scheduler",
        &["--leader-elect-renew-deadline=20s"],
        "leaseDuration must be greater than renewDeadline",
    );
    check("scheduler", &["--leader-elect-resource-lock=endpoints"], "resourceLock value must be \"leases\"");
    check(
        "controller-manager",
        &["--controllers=*,-deplyoment"],
        "\"-deplyoment\" is not in the list of known controllers",
    );
    check("controller-manager", &["--allocate-node-cidrs"], "--cluster-cidr is not");
    check("controller-manager", &["--cloud-provider=aws"], "--cloud-provider is not built");
    check(
        "controller-manager",
        &["--node-monitor-grace-period=soon"],
        "invalid argument \"soon\" for \"--node-monitor-grace-period\" flag",
    );
}

#[test]
fn a_configuration_file() {
    let server = Server::start();
    let file = server.directory.path().join("scheduler.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nleaderElection:\n  leaderElect: false\n\
         profiles:\n- schedulerName: packing\n  pluginConfig:\n  - name: NodeResourcesFit\n    args:\n      scoringStrategy:\n        \
         type: MostAllocated\n        resources:\n        - name: cpu\n          weight: 1\n",
    )
    .unwrap();
    let config = format!("--config={}", file.display());
    let written = server.directory.path().join("defaulted.yaml");
    let mut write = Command::new(env!("CARGO_BIN_EXE_orlop"));
    run(write.args(["scheduler", &config, &format!("--write-config-to={}", written.display())]));
    let text = std::fs::read_to_string(&written).unwrap();
    assert!(text.contains("MostAllocated") && text.contains("percentageOfNodesToScore"), "{text}");

    let _scheduler = Component::start(&server, "scheduler", &[&config]);
    add_node(&server);
    // What the node life cycle controller would do.
    server.ok(&["taint", "node", "n1", "node.kubernetes.io/not-ready-"]);
    server.ok(&["create", "serviceaccount", "default"]);
    for scheduler in ["packing", "default-scheduler"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": scheduler, "labels": {"app": scheduler}},
            "spec": {"schedulerName": scheduler, "containers": [{"name": "c", "image": "x"}]}});
        server.ok_stdin(&["create", "-f", "-"], &pod.to_string());
    }
    eventually("its own profile's pod is bound", || (bound(&server, "packing") == 1).then_some(()));
    assert_eq!(bound(&server, "default-scheduler"), 0);
    assert_eq!(holder(&server, "kube-scheduler"), "");
}
