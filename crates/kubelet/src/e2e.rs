//! Whole pods against a fake runtime and the real API server, both in memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use orlop_apiserver::{ApiServer, UserInfo};
use orlop_client::SharedInformerFactory;
use orlop_store::memory::MemoryStore;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

mod claims;

use crate::testing::{Behaviour, FakeRuntime};
use crate::{Kubelet, Options, ServingTls};

struct Cluster {
    admin: Client,
    server: Arc<ApiServer>,
    runtime: Arc<FakeRuntime>,
    dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        // Volumes of pods that are still there: tmpfs mounts must not stay behind.
        let _ = crate::volumes::unmount_below(self.dir.path());
    }
}

const IMAGES: [(&str, Behaviour); 4] = [
    ("web:1", Behaviour::Run),
    ("ok:1", Behaviour::Exit(0)),
    ("bad:1", Behaviour::Exit(3)),
    ("stubborn:1", Behaviour::Stubborn),
];

async fn cluster() -> Cluster {
    let server =
        ApiServer::new(orlop_apiserver::Options::default(), Arc::new(MemoryStore::new())).await.unwrap();
    let admin = client(&server, "admin", &["system:masters"]);
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &account).await.unwrap();
    let ca: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}}))
            .unwrap();
    Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &ca).await.unwrap();
    let cluster = Cluster {
        admin,
        server,
        runtime: FakeRuntime::new(&IMAGES),
        dir: tempfile::tempdir().unwrap(),
        stop: CancellationToken::new(),
    };
    cluster.start_kubelet(&cluster.stop);
    cluster.wait_node("True").await;
    cluster
}

fn client(server: &Arc<ApiServer>, name: &str, groups: &[&str]) -> Client {
    Client::new(server.in_memory(UserInfo::new(name, groups)), "default")
}

impl Cluster {
    fn options(&self) -> Options {
        let mut options = Options::new("n1", "127.0.0.1".parse().unwrap());
        options.root_dir = self.dir.path().join("kubelet");
        options.log_dir = self.dir.path().join("logs");
        options.listen = "127.0.0.1:0".parse().unwrap();
        options.initial_container_backoff = Duration::from_millis(1500);
        let subject = orlop_apiserver::pki::Subject::server("system:node:n1", vec!["127.0.0.1".to_owned()]);
        let leaf = self.server.ca().issue(&subject, 1).unwrap();
        let client_ca_pem = self.server.ca().cert_pem().to_owned();
        options.tls = Some(ServingTls { cert_pem: leaf.cert_pem, key_pem: leaf.key_pem, client_ca_pem });
        options
    }

    fn start_kubelet(&self, stop: &CancellationToken) {
        let own = client(&self.server, "system:node:n1", &["system:nodes"]);
        let factory = SharedInformerFactory::new(own.clone(), stop.clone());
        let kubelet = Kubelet::new(self.options(), own, factory, self.runtime.clone());
        let stop = stop.clone();
        tokio::spawn(async move { kubelet.run(stop).await.unwrap() });
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    /// Waits until the pod looks as wanted and returns it.
    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1500 {
            if let Some(pod) = self.pods().get_opt(name).await.unwrap() {
                last = serde_json::to_value(pod).unwrap();
                if wanted(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let events = self.events(name).await;
        panic!(
            "pod {name} never {what}: {:#}\nevents {events:#?}\ncalls {:?}",
            last["status"],
            self.runtime.calls()
        );
    }

    async fn until_gone(&self, name: &str) {
        for _ in 0..1500 {
            if self.pods().get_opt(name).await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("pod {name} never went; calls {:?}", self.runtime.calls());
    }

    async fn events(&self, name: &str) -> Vec<String> {
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = Api::<Event>::namespaced(self.admin.clone(), "default").list(&params).await.unwrap();
        let shown = events
            .items
            .into_iter()
            .map(|e| format!("{}: {}", e.reason.unwrap_or_default(), e.message.unwrap_or_default()));
        shown.collect()
    }

    async fn until_event(&self, name: &str, wanted: &str) {
        for _ in 0..1000 {
            if self.events(name).await.iter().any(|event| event.starts_with(wanted)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no event {wanted:?} about {name}: {:#?}", self.events(name).await);
    }

    async fn wait_node(&self, ready: &str) {
        let nodes = Api::<Node>::all(self.admin.clone());
        for _ in 0..1500 {
            if let Some(node) = nodes.get_opt("n1").await.unwrap()
                && condition(&serde_json::to_value(&node).unwrap(), "Ready") == ready
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("node is not {ready}");
    }
}

fn condition(object: &Value, kind: &str) -> String {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found =
        all.iter().find(|c| c["type"] == kind).map(|c| c["status"].as_str().unwrap_or_default().to_owned());
    found.unwrap_or_default()
}

fn state(pod: &Value, index: usize) -> &Value {
    &pod["status"]["containerStatuses"][index]["state"]
}

#[tokio::test]
async fn a_pod_runs_becomes_ready_and_goes() {
    let cluster = cluster().await;
    cluster.create("web", json!({"containers": [{"name": "c", "image": "web:1", "env": [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, {"name": "ME", "value": "$(IP)/x"},
    ], "args": ["--at=$(ME)"], "resources": {"limits": {"cpu": "100m", "memory": "32Mi"}}}]})).await;
    let pod = cluster.until("web", "ready", |p| condition(p, "Ready") == "True").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["containerID"].as_str().unwrap().split("://").next(), Some("fake"));
    assert_eq!(
        (&status["ready"], &status["started"], &status["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let (config, _) = cluster.runtime.container("c").unwrap();
    assert_eq!(config.args, ["--at=127.0.0.1/x"]);
    assert_eq!(config.resources.cpu_quota, Some(10_000));
    let token =
        config.mounts.iter().find(|m| m.container_path.ends_with("kubernetes.io/serviceaccount")).unwrap();
    assert!(std::fs::read_to_string(token.host_path.join("token")).unwrap().starts_with("ey"));
    assert_eq!(std::fs::read_to_string(token.host_path.join("ca.crt")).unwrap(), "CA");
    let hosts = config.mounts.iter().find(|m| m.container_path.ends_with("hosts")).unwrap();
    assert!(std::fs::read_to_string(&hosts.host_path).unwrap().ends_with("127.0.0.1\tweb\n"));
    for event in [
        "Pulled: Container image \"web:1\" already present",
        "Created: Container created",
        "Started: Container started",
    ] {
        cluster.until_event("web", event).await;
    }
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    cluster.pods().delete("web", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("web").await;
    assert!(cluster.runtime.calls().contains(&"stop c 30".to_owned()), "{:?}", cluster.runtime.calls());
    assert!(!cluster.dir.path().join("kubelet/pods").join(uid).exists());
    cluster.until_event("web", "Killing: Stopping container c").await;
}

#[tokio::test]
async fn ended_containers_are_restarted_with_back_off_or_end_the_pod() {
    let cluster = cluster().await;
    let container = |image: &str| json!([{"name": "c", "image": image}]);
    cluster.create("done", json!({"restartPolicy": "Never", "containers": container("ok:1")})).await;
    cluster.create("failed", json!({"restartPolicy": "Never", "containers": container("bad:1")})).await;
    cluster.create("job", json!({"restartPolicy": "OnFailure", "containers": container("ok:1")})).await;
    cluster.create("loop", json!({"containers": container("bad:1")})).await;
    let done = cluster.until("done", "succeeded", |p| p["status"]["phase"] == "Succeeded").await;
    assert_eq!(state(&done, 0)["terminated"]["reason"], "Completed");
    assert_eq!(
        done["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["reason"],
        "PodCompleted"
    );
    let failed = cluster.until("failed", "failed", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(state(&failed, 0)["terminated"]["exitCode"], 3);
    cluster.until("job", "succeeded", |p| p["status"]["phase"] == "Succeeded").await;
    let crashing =
        cluster.until("loop", "backed off", |p| state(p, 0)["waiting"]["reason"] == "CrashLoopBackOff").await;
    assert_eq!(crashing["status"]["phase"], "Running");
    let message = state(&crashing, 0)["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("back-off 1.5s restarting failed container=c pod=loop_default("),
        "{message}"
    );
    assert_eq!(crashing["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    cluster.until_event("loop", "BackOff: Back-off restarting failed container c in pod loop_default(").await;
    cluster
        .until("loop", "restarted", |p| {
            p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(2)
        })
        .await;
    cluster.pods().delete("loop", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("loop").await;
    cluster.pods().delete("done", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("done").await;
}

#[tokio::test]
async fn init_containers_and_sidecars_run_in_order() {
    let cluster = cluster().await;
    cluster.create("p", json!({
        "initContainers": [{"name": "first", "image": "ok:1"}, {"name": "side", "image": "web:1", "restartPolicy": "Always"}, {"name": "last", "image": "ok:1"}],
        "containers": [{"name": "main", "image": "web:1"}],
    })).await;
    let pod = cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["ready"], true);
    let created: Vec<String> =
        cluster.runtime.calls().into_iter().filter(|c| c.starts_with("create")).collect();
    assert_eq!(created, ["create first", "create side", "create last", "create main"]);
    cluster
        .create(
            "q",
            json!({
                "restartPolicy": "Never",
                "initContainers": [{"name": "broken", "image": "bad:1"}],
                "containers": [{"name": "main", "image": "web:1"}],
            }),
        )
        .await;
    let pod = cluster.until("q", "failed", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(condition(&pod, "Initialized"), "False");
    cluster.pods().delete("p", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("p").await;
    let stopped: Vec<String> = cluster
        .runtime
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("stop main") || c.starts_with("stop side"))
        .collect();
    assert_eq!(stopped.len(), 2);
    assert!(stopped[0].starts_with("stop main"), "sidecars go last: {stopped:?}");
}

#[tokio::test]
async fn what_keeps_a_container_from_starting_is_shown() {
    let cluster = cluster().await;
    let one = |image: &str, policy: &str| json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]});
    cluster.create("nosuch", one("nosuch:1", "IfNotPresent")).await;
    cluster.create("never", one("nosuch:2", "Never")).await;
    cluster.create("invalid", one("Web:1", "IfNotPresent")).await;
    cluster.create("config", json!({"containers": [{"name": "c", "image": "web:1", "envFrom": [{"configMapRef": {"name": "late"}}]}]})).await;
    cluster.create("mount", json!({"containers": [{"name": "c", "image": "web:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "late"}}]})).await;
    let waits = |reason: &'static str| move |p: &Value| state(p, 0)["waiting"]["reason"] == reason;
    cluster.until("nosuch", "ErrImagePull", waits("ErrImagePull")).await;
    let pod = cluster.until("nosuch", "ImagePullBackOff", waits("ImagePullBackOff")).await;
    assert_eq!(
        state(&pod, 0)["waiting"]["message"],
        "Back-off pulling image \"nosuch:1\": ErrImagePull: nosuch:1: not found"
    );
    cluster.until_event("nosuch", "Failed: Failed to pull image \"nosuch:1\": nosuch:1: not found").await;
    cluster.until("never", "ErrImageNeverPull", waits("ErrImageNeverPull")).await;
    cluster.until("invalid", "InvalidImageName", waits("InvalidImageName")).await;
    let pod =
        cluster.until("config", "CreateContainerConfigError", waits("CreateContainerConfigError")).await;
    assert_eq!(state(&pod, 0)["waiting"]["message"], "configmap \"late\" not found");
    cluster
        .until_event(
            "mount",
            "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found",
        )
        .await;
    let pod = cluster.until("mount", "waiting", waits("ContainerCreating")).await;
    assert_eq!(pod["status"]["phase"], "Pending");
    // What was missing appears: both go on at once, woken by their watch.
    let late: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "late"}, "data": {"k": "one"}})).unwrap();
    let maps = Api::<ConfigMap>::namespaced(cluster.admin.clone(), "default");
    maps.create(&PostParams::default(), &late).await.unwrap();
    cluster.until("mount", "ready", |p| condition(p, "Ready") == "True").await;
    cluster.until("config", "ready", |p| condition(p, "Ready") == "True").await;
    // And its files follow the object.
    let volume = cluster
        .runtime
        .sandbox_configs()
        .iter()
        .find(|c| c.metadata.name == "mount")
        .unwrap()
        .metadata
        .uid
        .clone();
    let file =
        cluster.dir.path().join("kubelet/pods").join(volume).join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    maps.patch("late", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "two"}}))).await.unwrap();
    for _ in 0..500 {
        if std::fs::read_to_string(&file).is_ok_and(|text| text == "two") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
    cluster.runtime.add_image("nosuch:1", Behaviour::Run);
    for name in ["nosuch", "never", "invalid", "config", "mount"] {
        cluster.pods().delete(name, &DeleteParams::default()).await.unwrap();
        cluster.until_gone(name).await;
    }
}

#[tokio::test]
async fn probes_make_ready_and_restart() {
    let cluster = cluster().await;
    let probe =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.runtime.set_command("is-ready", 1);
    cluster.create("p", json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "c", "image": "web:1",
        "startupProbe": probe("is-started"), "readinessProbe": probe("is-ready"), "livenessProbe": probe("is-alive"),
        "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}, "postStart": {"exec": {"command": ["hi"]}}}}]})).await;
    cluster.until("p", "started", |p| p["status"]["containerStatuses"][0]["started"] == true).await;
    cluster.until_event("p", "Unhealthy: Readiness probe failed: said so").await;
    cluster.runtime.set_command("is-ready", 0);
    cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
    cluster.runtime.set_command("is-alive", 1);
    cluster.until_event("p", "Killing: Container c failed liveness probe, will be restarted").await;
    cluster.runtime.set_command("is-alive", 0);
    cluster.until("p", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    cluster.until("p", "ready again", |p| condition(p, "Ready") == "True").await;
    cluster.pods().delete("p", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("p").await;
    let calls = cluster.runtime.calls();
    assert!(calls.iter().any(|c| c == "exec hi") && calls.iter().any(|c| c == "exec bye"), "{calls:?}");
}

#[tokio::test]
async fn rejected_and_overdue_pods_fail() {
    let cluster = cluster().await;
    let one = json!([{"name": "c", "image": "web:1"}]);
    cluster.create("picky", json!({"nodeSelector": {"disk": "ssd"}, "containers": one})).await;
    cluster.create("big", json!({"containers": [{"name": "c", "image": "web:1", "resources": {"requests": {"cpu": "500"}}}]})).await;
    cluster.create("late", json!({"activeDeadlineSeconds": 1, "containers": one})).await;
    let pod = cluster.until("picky", "failed", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(
        (&pod["status"]["reason"], &pod["status"]["message"]),
        (&json!("NodeAffinity"), &json!("Pod was rejected: Predicate NodeAffinity failed"))
    );
    let pod = cluster.until("big", "failed", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    let pod = cluster
        .until("late", "failed", |p| {
            p["status"]["phase"] == "Failed" && state(p, 0)["terminated"].is_object()
        })
        .await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    for name in ["picky", "big", "late"] {
        cluster.pods().delete(name, &DeleteParams::default()).await.unwrap();
        cluster.until_gone(name).await;
    }
}

#[tokio::test]
async fn a_shorter_grace_period_counts_at_once() {
    let cluster = cluster().await;
    cluster.create("p", json!({"terminationGracePeriodSeconds": 600, "containers": [{"name": "c", "image": "stubborn:1"}]})).await;
    cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
    cluster.pods().delete("p", &DeleteParams::default()).await.unwrap();
    cluster.until("p", "terminating", |p| p["metadata"]["deletionTimestamp"].is_string()).await;
    for _ in 0..500 {
        if cluster.runtime.calls().contains(&"stop c 600".to_owned()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster
        .pods()
        .delete("p", &DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() })
        .await
        .unwrap();
    cluster.until_gone("p").await;
}

#[tokio::test]
async fn a_new_kubelet_adopts_what_runs_and_removes_orphans() {
    let cluster = cluster().await;
    for name in ["stays", "goes"] {
        cluster.create(name, json!({"containers": [{"name": name, "image": "web:1"}]})).await;
        cluster.until(name, "ready", |p| condition(p, "Ready") == "True").await;
    }
    let before = cluster.runtime.container("stays").unwrap().1.container.id;
    cluster.stop.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster
        .pods()
        .delete("goes", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    cluster.start_kubelet(&stop);
    for _ in 0..1000 {
        if cluster.runtime.containers_len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(cluster.runtime.container("goes").is_none(), "the orphan was removed");
    let pod = cluster.until("stays", "ready", |p| condition(p, "Ready") == "True").await;
    assert_eq!(cluster.runtime.container("stays").unwrap().1.container.id, before);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.runtime.exit("stays", 1);
    cluster.until("stays", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    cluster.pods().delete("stays", &DeleteParams::default()).await.unwrap();
    cluster.until_gone("stays").await;
}

#[tokio::test]
async fn the_node_follows_the_network() {
    let cluster = cluster().await;
    cluster.runtime.set_network(Some("no pod CIDR"));
    // Health is looked at every ten seconds; nothing hurries bad news.
    cluster.wait_node("False").await;
    cluster
        .create(
            "p",
            json!({"containers": [{"name": "c", "image": "web:1"}], "tolerations": [{"operator": "Exists"}]}),
        )
        .await;
    cluster.until_event("p", "NetworkNotReady: network is not ready: no pod CIDR").await;
    cluster.runtime.set_network(None);
    cluster.wait_node("True").await;
    cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
}

#[tokio::test]
async fn logs_and_exec_through_the_api_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = cluster().await;
    cluster.create("p", json!({"containers": [{"name": "c", "image": "web:1"}]})).await;
    cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
    let logs = cluster.pods().logs("p", &kube::api::LogParams::default()).await.unwrap();
    assert_eq!(logs, "hello from c\n");
    let previous =
        cluster.pods().logs("p", &kube::api::LogParams { previous: true, ..Default::default() }).await;
    assert!(
        previous
            .unwrap_err()
            .to_string()
            .contains("previous terminated container \"c\" in pod \"p\" not found")
    );
    cluster.runtime.set_command("fail", 7);
    let params = kube::api::AttachParams::default().stdin(true).stderr(false);
    let mut process = cluster.pods().exec("p", ["fail", "now "], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(b"typed").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let mut out = String::new();
    process.stdout().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "fail now typed");
    let status = process.take_status().unwrap().await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container() {
    use futures::AsyncReadExt;
    use std::io::Write;
    let cluster = cluster().await;
    cluster
        .create("p", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "web:1"}]}))
        .await;
    cluster.until("p", "ready", |p| condition(p, "Ready") == "True").await;
    let log = cluster.runtime.container("c").unwrap().1.log_path;
    let params = kube::api::LogParams { follow: true, timestamps: true, ..Default::default() };
    let mut stream = Box::pin(cluster.pods().log_stream("p", &params).await.unwrap());
    let mut buffer = vec![0; 200];
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"2026-01-01T00:00:00.000000001Z hello from c\n");
    // Rotated, then written on.
    std::fs::rename(&log, log.with_extension("log.20260101-000000")).unwrap();
    let mut file = std::fs::File::create(&log).unwrap();
    file.write_all(b"2026-01-01T00:00:01.000000001Z stderr F more\n").unwrap();
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"2026-01-01T00:00:01.000000001Z more\n");
    cluster.runtime.exit("c", 0);
    let rest = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(rest, 0, "the stream ends with the container");
}

#[tokio::test]
async fn an_idle_pod_costs_nothing() {
    let cluster = cluster().await;
    cluster.create("p", json!({"containers": [{"name": "c", "image": "web:1"}]})).await;
    let ready = |p: &Value| condition(p, "Ready") == "True";
    cluster.until("p", "ready", ready).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let version = |p: Value| p["metadata"]["resourceVersion"].clone();
    let (before, calls) = (version(cluster.until("p", "ready", ready).await), cluster.runtime.calls());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(version(cluster.until("p", "ready", ready).await), before);
    assert_eq!(cluster.runtime.calls(), calls);
}

#[tokio::test]
async fn strangers_are_refused_by_the_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = cluster().await;
    let node = Api::<Node>::all(cluster.admin.clone()).get("n1").await.unwrap();
    let port = node.status.unwrap().daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port;
    let ca = cluster.server.ca();
    let nobody = ca.issue(&orlop_apiserver::pki::Subject::client("nobody", &["team"]), 1).unwrap();
    let master = ca.issue(&orlop_apiserver::pki::Subject::client("root", &["system:masters"]), 1).unwrap();
    for (leaf, path, expected) in [
        (None, "/healthz", "HTTP/1.1 200"),
        (None, "/pods", "HTTP/1.1 401"),
        (Some(&nobody), "/pods", "HTTP/1.1 403"),
        (Some(&master), "/pods", "HTTP/1.1 200"),
        (Some(&master), "/stats/summary", "HTTP/1.1 200"),
        (Some(&master), "/metrics/resource", "HTTP/1.1 200"),
        (Some(&master), "/portForward/default/none", "HTTP/1.1 404"),
        (Some(&master), "/containerLogs/default/none/c", "HTTP/1.1 404"),
        (Some(&master), "/exec/default/none/c?command=x&output=1", "HTTP/1.1 404"),
    ] {
        let mut config = orlop_apiserver::pki::client_config(ca.cert_pem(), leaf).unwrap();
        config.alpn_protocols = vec![];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream =
            tokio::net::TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
}
