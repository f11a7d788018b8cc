//! A cluster in memory: the API server, the controllers, and in place of scheduler and kubelets one task that binds
//! pods, makes them ready, and lets them go.
// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_apiserver::{ApiServer, Options, UserInfo};
use orlop_client::{ObjectKey, SharedInformerFactory, WorkQueue, run_workers};
use orlop_controllers::TokenSigner;
use orlop_store::memory::MemoryStore;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running cluster; it ends when this is dropped.
pub struct Cluster {
    pub admin: Client,
    pub stop: CancellationToken,
    server: Arc<ApiServer>,
    options: orlop_controllers::Options,
    _guard: DropGuard,
}

/// Controllers that run; they end when this is dropped.
pub struct Controllers {
    stop: DropGuard,
    ended: JoinHandle<()>,
}

impl Controllers {
    /// Ends them, and waits until nothing of them is left.
    pub async fn end(self) {
        drop(self.stop);
        self.ended.await.unwrap();
    }
}

fn client(server: &Arc<ApiServer>, user: UserInfo) -> Client {
    orlop_client::in_memory(server.in_memory(user.authenticated()), "kube-controller-manager")
}

/// Starts everything but the fake node.
pub async fn start(options: orlop_controllers::Options) -> Cluster {
    let cluster = start_server(options).await;
    // They end with the cluster.
    drop(cluster.start_controllers().stop.disarm());
    cluster
}

/// Starts the API server alone.
pub async fn start_server(options: orlop_controllers::Options) -> Cluster {
    let _ = tracing_subscriber::fmt()
        .with_test_writer()
        .with_env_filter("orlop_controllers=debug,warn")
        .try_init();
    let server = ApiServer::new(Options::default(), Arc::new(MemoryStore::new())).await.unwrap();
    let admin = client(&server, UserInfo::new("admin", &["system:masters"]));
    let stop = CancellationToken::new();
    let tokens = server.clone();
    let signer = TokenSigner::new(move |token| {
        let account = (token.account, token.account_uid);
        tokens.secret_token(token.namespace, account, token.secret).map_err(|error| error.to_string())
    });
    let options = orlop_controllers::Options { token_signer: Some(signer), ..options };
    Cluster { admin, server, options, _guard: stop.clone().drop_guard(), stop }
}

impl Cluster {
    pub fn start_controllers(&self) -> Controllers {
        let (server, stop) = (self.server.clone(), self.stop.child_token());
        let context = orlop_controllers::Context {
            client_for: Arc::new(move |name: &str| {
                let user = if name.starts_with("system:") {
                    UserInfo::new(name, &[])
                } else {
                    UserInfo::service_account("kube-system", name)
                };
                client(&server, user)
            }),
            options: self.options.clone(),
            informers: None,
            shutdown: stop.clone(),
        };
        let ended = tokio::spawn(orlop_controllers::run(context));
        Controllers { stop: stop.drop_guard(), ended }
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), namespace)
    }

    pub async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let object = serde_json::from_value(object).unwrap();
        self.api::<K>(namespace).create(&PostParams::default(), &object).await.unwrap()
    }

    /// A ready node.
    pub async fn add_node(&self, name: &str) {
        let api = Api::<Node>::all(self.admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        api.create(&PostParams::default(), &node).await.unwrap();
        self.heartbeat(name, "True").await;
    }

    /// The status a kubelet posts.
    pub async fn heartbeat(&self, name: &str, ready: &str) {
        let now = jiff::Timestamp::now().to_string();
        let body = json!({"status": {"conditions": [{"type": "Ready", "status": ready, "reason": "KubeletReady",
            "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        let api = Api::<Node>::all(self.admin.clone());
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(body)).await.unwrap();
    }

    /// Binds pods to `node`, those of a DaemonSet to their own, and acts as the kubelet.
    pub fn run_pods(&self, node: &'static str) {
        let factory = SharedInformerFactory::new(self.admin.clone(), self.stop.clone());
        let pods = factory.informer::<Pod>();
        let queue = WorkQueue::new();
        let own = queue.clone();
        pods.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
        let (admin, stop) = (self.admin.clone(), self.stop.clone());
        tokio::spawn(async move {
            let (admin, pods) = (&admin, &pods);
            run_workers("fake kubelet", queue, 8, stop, |key: ObjectKey| async move {
                let Some(pod) = pods.get_key(&key) else { return Ok(None) };
                let api = Api::<Pod>::namespaced(admin.clone(), &key.namespace);
                let spec = pod.spec.clone().unwrap_or_default();
                if pod.metadata.deletion_timestamp.is_some() {
                    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                    api.delete(&key.name, &at_once).await?;
                } else if spec.node_name.is_none() {
                    let spec = serde_json::to_value(&spec).unwrap();
                    let terms = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
                    let own = spec.pointer(&format!("{terms}/matchFields/0/values/0")).and_then(Value::as_str);
                    let node = own.unwrap_or(node);
                    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": key.name},
                        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
                    let request = http::Request::post(format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name))
                        .header("content-type", "application/json").body(binding.to_string().into_bytes()).unwrap();
                    admin.request::<Value>(request).await?;
                } else if matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), None | Some("Pending")) {
                    let ip = format!("10.244.0.{}", 2 + key.name.bytes().map(u32::from).sum::<u32>() % 250);
                    let body = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": jiff::Timestamp::now().to_string()}]}});
                    api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(body)).await?;
                }
                Ok::<_, kube::Error>(None::<Duration>)
            })
            .await;
        });
    }

    /// All objects of a resource, as JSON; `path` is `api/v1/namespaces/default/pods`.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        let request = http::Request::get(format!("/{path}")).body(Vec::new()).unwrap();
        let list: Value = self.admin.request(request).await.unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// One object as JSON; `Null` when it is not there.
    pub async fn get(&self, path: &str) -> Value {
        let request = http::Request::get(format!("/{path}")).body(Vec::new()).unwrap();
        self.admin.request(request).await.unwrap_or(Value::Null)
    }

    /// The newest revision of the store.
    pub async fn revision(&self) -> String {
        let request = http::Request::get("/api/v1/configmaps?limit=1").body(Vec::new()).unwrap();
        let list: Value = self.admin.request(request).await.unwrap();
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }
}

/// Waits until `seen` answers something; shows `last` when it never does.
pub async fn eventually<T, F, Fut>(what: &str, mut seen: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Value>>,
{
    let mut last = Value::Null;
    for _ in 0..600 {
        match seen().await {
            Ok(found) => return found,
            Err(now) => last = now,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}; last seen: {last:#}");
}

pub fn web(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "web:1",
            "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

/// Reasons and messages of an object's conditions, by type.
pub fn conditions(object: &Value) -> BTreeMap<String, String> {
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|c| (text(&c["type"]), format!("{} {}", text(&c["status"]), text(&c["reason"]))))
        .collect()
}
