//! What clients see when others are faster: a store that lets something happen just before a removal.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use orlop_apiserver::{ApiServer, Options};
use orlop_json::{Value, json};
use orlop_store::memory::MemoryStore;
use orlop_store::{
    KeyValue, Op, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};

use crate::support::{Client, admin};

/// What becomes of a pod just before the server removes it.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    /// Somebody else (its kubelet) has removed it.
    Removed,
    /// And another one of the same name has come.
    Replaced,
    /// Somebody has changed it, once.
    Changed,
}

struct Racing {
    store: MemoryStore,
    meanwhile: Meanwhile,
    done: std::sync::atomic::AtomicBool,
}

impl Racing {
    async fn interfere(&self, key: &Bytes) -> Result<(), StoreError> {
        let first = !self.done.swap(true, std::sync::atomic::Ordering::SeqCst);
        let Some(now) = self.store.get(key, None).await?.filter(|_| first) else { return Ok(()) };
        let mut pod: Value = orlop_json::from_slice(&now.value).unwrap();
        if !matches!(self.meanwhile, Meanwhile::Changed) {
            self.store.txn(Txn::delete(key.clone(), now.mod_revision)).await?;
        }
        let expected = match self.meanwhile {
            Meanwhile::Removed => return Ok(()),
            Meanwhile::Replaced => {
                pod["metadata"]["uid"] = json!("the-next-one");
                for mark in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
                    pod["metadata"].as_object_mut().unwrap().remove(mark);
                }
                Revision::NONE
            }
            Meanwhile::Changed => {
                pod["metadata"]["labels"] = json!({"changed": "yes"});
                now.mod_revision
            }
        };
        self.store.txn(Txn::put(key.clone(), pod.to_string(), expected)).await?;
        Ok(())
    }
}

#[async_trait]
impl Store for Racing {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        for op in &txn.ops {
            if let Op::Delete { key } = op
                && key.starts_with(b"/registry/pods/")
            {
                self.interfere(key).await?;
            }
        }
        self.store.txn(txn).await
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        self.store.get(key, at).await
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        self.store.range(range).await
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.store.compact(at).await
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.store.size_bytes().await
    }

    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn compact_revision(&self) -> Revision {
        self.store.compact_revision()
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A server with a pod on a node, something about to happen to it, and the pod's UID.
async fn with_pod(meanwhile: Meanwhile) -> (Client, String) {
    let store = Racing { store: MemoryStore::new(), meanwhile, done: false.into() };
    let client = admin(&ApiServer::new(Options::default(), Arc::new(store)).await.unwrap());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.post("/api/v1/namespaces/default/serviceaccounts", account).await.ok();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let made = client.post(PODS, pod).await.ok();
    (client, made["metadata"]["uid"].as_str().unwrap().to_string())
}

#[tokio::test]
async fn who_deletes_without_grace_succeeds_though_another_is_faster() {
    for (meanwhile, left) in
        [(Meanwhile::Removed, None), (Meanwhile::Replaced, Some("the-next-one")), (Meanwhile::Changed, None)]
    {
        let (client, uid) = with_pod(meanwhile).await;
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        let gone = client.delete(&format!("{PODS}/p"), options).await;
        assert_eq!((gone.code, gone.body["metadata"]["uid"].as_str()), (200, Some(&*uid)), "{meanwhile:?}");
        let now = client.get(&format!("{PODS}/p")).await;
        assert_eq!(now.body["metadata"]["uid"].as_str(), left, "{meanwhile:?}");
    }
}
