//! A real etcd for the suite, and what only several writers can show.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use orlop_store::etcd::{EtcdStore, Options};
use orlop_store::{EventKind, Range, Revision, Store, StoreError};

use crate::{Subject, put};

/// An etcd server with a directory of its own; it dies with this value.
pub struct Process {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start() -> Process {
        let dir = tempfile::tempdir().unwrap();
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (url, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let child = Command::new("etcd")
            .args(["--name=one", "--log-level=error", "--max-txn-ops=1024", "--max-request-bytes=2000000"])
            .args(["--unsafe-no-fsync", &format!("--data-dir={}", dir.path().display())])
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=one={peer}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd must be installed: scripts/fetch-tools --dev");
        Process { child, url, _dir: dir }
    }

    fn options(&self) -> Options {
        Options { endpoints: vec![self.url.clone()], timeout: Duration::from_secs(5), ..Options::default() }
    }

    pub async fn client(&self) -> EtcdStore {
        let mut last = None;
        for _ in 0..200 {
            match EtcdStore::connect(self.options()).await {
                Ok(store) => return store,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer: {last:?}");
    }
}

pub async fn start() -> Subject {
    connect(Process::start()).await
}

pub async fn connect(process: Process) -> Subject {
    let store: Arc<dyn Store> = Arc::new(process.client().await);
    Subject { store, dir: None, etcd: Some(process) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_writer_is_heard_of() {
    let s = start().await;
    let other = s.etcd.as_ref().unwrap().client().await;
    assert!(s.store.is_shared());
    let mut watch = s.store.watch(Bytes::from("/registry/"), Revision(2)).await.unwrap();
    // A key outside the prefix: no event, but the revision is told as soon as somebody asks for the latest.
    let revision = put(&other, "/elsewhere", "1").await;
    assert_eq!(s.store.latest().await.unwrap(), Revision(revision));
    let told = async {
        loop {
            let batch = watch.next().await.unwrap().unwrap();
            assert_eq!(batch.len(), 1);
            assert_eq!(batch[0].kind, EventKind::Progress);
            if batch[0].revision == Revision(revision) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("progress was not told");
    put(&other, "/registry/a", "1").await;
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!((batch[0].kind, &batch[0].kv.key[..]), (EventKind::Put, &b"/registry/a"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_prefix_in_etcd() {
    let s = start().await;
    let process = s.etcd.as_ref().unwrap();
    let options = Options { prefix: "/clusters/one".into(), ..process.options() };
    let one = EtcdStore::connect(options).await.unwrap();
    put(&one, "/registry/pods/a/b", "1").await;
    assert_eq!(one.range(Range::prefix("/registry/pods/")).await.unwrap().kvs[0].key, "/registry/pods/a/b");
    assert_eq!(s.store.range(Range::prefix("/registry/")).await.unwrap().kvs, vec![]);
    let all = s.store.range(Range::prefix("/clusters/")).await.unwrap().kvs;
    assert_eq!(all[0].key, "/clusters/one/pods/a/b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone() {
    let s = start().await;
    let mut watch = s.store.watch(Bytes::new(), Revision(2)).await.unwrap();
    let Subject { store, etcd, .. } = s;
    drop(etcd);
    let error = store.get(b"a", None).await.unwrap_err();
    assert!(matches!(error, StoreError::Remote { .. }), "{error}");
    assert!(error.is_retriable());
    assert!(error.to_string().starts_with("etcd (http://127.0.0.1:"), "{error}");
    assert!(watch.next().await.unwrap().is_err());
    assert!(watch.next().await.is_none());
}
