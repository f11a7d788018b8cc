//! Two nodes' provisioners in one cluster in memory: each answers for its own node.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_apiserver::{ApiServer, UserInfo};
use orlop_client::SharedInformerFactory;
use orlop_provisioner::{Options, PROVISIONER, Provisioner};
use orlop_store::memory::MemoryStore;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

struct Cluster {
    admin: Client,
    disks: tempfile::TempDir,
    _guard: DropGuard,
}

async fn start() -> Cluster {
    let store = Arc::new(MemoryStore::new());
    let server = ApiServer::new(orlop_apiserver::Options::default(), store).await.unwrap();
    let client = {
        let server = server.clone();
        move |user: UserInfo| orlop_client::in_memory(server.in_memory(user.authenticated()), "test")
    };
    let admin = client(UserInfo::new("admin", &["system:masters"]));
    let stop = CancellationToken::new();
    let context = orlop_controllers::Context {
        client_for: Arc::new(move |name: &str| {
            let system = name.starts_with("system:");
            client(if system {
                UserInfo::new(name, &[])
            } else {
                UserInfo::service_account("kube-system", name)
            })
        }),
        options: orlop_controllers::Options::default(),
        informers: None,
        shutdown: stop.clone(),
    };
    tokio::spawn(orlop_controllers::run(context));
    let cluster = Cluster { admin, disks: tempfile::tempdir().unwrap(), _guard: stop.clone().drop_guard() };
    for node_name in ["n1", "n2"] {
        cluster
            .create(Api::<Node>::all(cluster.admin.clone()), json!({"metadata": {"name": node_name}}))
            .await;
        let options = Options { node_name: node_name.to_owned(), root: cluster.disks.path().join(node_name) };
        let informers = SharedInformerFactory::new(cluster.admin.clone(), stop.clone());
        tokio::spawn(Provisioner::new(options, &informers).run(stop.clone()));
    }
    for (name, mode) in [("later", "WaitForFirstConsumer"), ("now", "Immediate")] {
        let class = json!({"metadata": {"name": name}, "provisioner": PROVISIONER, "volumeBindingMode": mode,
            "allowVolumeExpansion": true});
        cluster.create(Api::<StorageClass>::all(cluster.admin.clone()), class).await;
    }
    cluster
}

impl Cluster {
    async fn create<K: Clone + std::fmt::Debug + Serialize + DeserializeOwned>(
        &self,
        api: Api<K>,
        object: Value,
    ) {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn claim(&self, name: &str, class: &str, annotations: Value) {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}});
        let claim = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
        self.create(self.claims(), claim).await;
    }

    /// The volume of a claim, once the two are bound.
    async fn bound(&self, name: &str) -> Value {
        eventually(|| async {
            let claim = serde_json::to_value(self.claims().get(name).await.unwrap()).unwrap();
            if claim["status"]["phase"] != "Bound" {
                return Err(claim);
            }
            let volume = claim["spec"]["volumeName"].as_str().unwrap();
            let volume = Api::<PersistentVolume>::all(self.admin.clone()).get(volume).await.unwrap();
            Ok(serde_json::to_value(volume).unwrap())
        })
        .await
    }

    fn directories(&self, node: &str) -> usize {
        std::fs::read_dir(self.disks.path().join(node)).map_or(0, Iterator::count)
    }
}

async fn eventually<T, Fut: Future<Output = Result<T, Value>>>(mut seen: impl FnMut() -> Fut) -> T {
    let mut last = Value::Null;
    for _ in 0..600 {
        match seen().await {
            Ok(found) => return found,
            Err(now) => last = now,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never; last seen: {last:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_where_its_pod_will_be() {
    let cluster = start().await;
    cluster.claim("data", "later", json!({"volume.kubernetes.io/selected-node": "n2"})).await;
    let volume = cluster.bound("data").await;
    let path = volume["spec"]["local"]["path"].as_str().unwrap().to_owned();
    assert!(
        Path::new(&path).is_dir() && path.starts_with(cluster.disks.path().join("n2").to_str().unwrap()),
        "{path}"
    );
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["n2"]));
    assert_eq!((cluster.directories("n1"), cluster.directories("n2")), (0, 1));

    let more = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    cluster.claims().patch("data", &PatchParams::default(), &more).await.unwrap();
    eventually(|| async {
        let claim = serde_json::to_value(cluster.claims().get("data").await.unwrap()).unwrap();
        let grown = claim["status"]["capacity"]["storage"] == "2Gi";
        if grown && claim["status"]["allocatedResources"]["storage"] == "2Gi" { Ok(()) } else { Err(claim) }
    })
    .await;

    cluster.claims().delete("data", &DeleteParams::default()).await.unwrap();
    eventually(|| async {
        let left =
            Api::<PersistentVolume>::all(cluster.admin.clone()).list(&Default::default()).await.unwrap();
        if left.items.is_empty() && !Path::new(&path).exists() { Ok(()) } else { Err(json!(left.items)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_takes_what_does_not_wait_for_a_pod() {
    let cluster = start().await;
    for name in ["a", "b", "c"] {
        cluster.claim(name, "now", json!({})).await;
    }
    for name in ["a", "b", "c"] {
        cluster.bound(name).await;
    }
    assert_eq!(cluster.directories("n1") + cluster.directories("n2"), 3);
}
