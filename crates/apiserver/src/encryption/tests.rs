//! An encrypted store with a plugin that speaks gRPC on a socket, as plugins do.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_store::memory::MemoryStore;
use orlop_store::{Revision, Store as _, Txn};
use parking_lot::Mutex;
use prost::Message;

use super::EncryptedStore;
use super::plugin::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};

/// What the plugin knows and is asked.
#[derive(Default)]
struct Plugin {
    key_id: Mutex<String>,
    healthz: Mutex<String>,
    encrypted: Mutex<usize>,
    decrypted: Mutex<usize>,
    hostility: Mutex<Option<Hostility>>,
}

/// How a plugin that means no good answers.
#[derive(Clone, Copy, Debug)]
enum Hostility {
    /// Says that megabytes will follow.
    Long,
    /// Begins an answer and never ends it.
    Endless,
    /// No message.
    Garbage,
    /// A seed that is none.
    ShortSeed,
    /// A seed that is much too long.
    LongSeed,
}

type Frame = Result<http_body::Frame<Bytes>, std::convert::Infallible>;

impl Plugin {
    fn answer(&self, method: &str, question: &[u8]) -> Vec<u8> {
        let key_id = self.key_id.lock().clone();
        // "Encryption" by a byte of the key, so that the wrong key gives something else.
        let turn =
            |bytes: &[u8], key: &str| -> Vec<u8> { bytes.iter().map(|b| b ^ key.as_bytes()[0]).collect() };
        match method {
            "/v2.KeyManagementService/Status" => {
                let healthz = self.healthz.lock().clone();
                StatusResponse { version: "v2".into(), healthz, key_id }.encode_to_vec()
            }
            "/v2.KeyManagementService/Encrypt" => {
                *self.encrypted.lock() += 1;
                let request = EncryptRequest::decode(question).unwrap();
                let annotations = [("kek.example.com".to_string(), b"1".to_vec())].into();
                let ciphertext = turn(&request.plaintext, &key_id);
                EncryptResponse { ciphertext, key_id, annotations }.encode_to_vec()
            }
            _ => {
                *self.decrypted.lock() += 1;
                let request = DecryptRequest::decode(question).unwrap();
                assert_eq!(request.annotations["kek.example.com"], b"1");
                let hostility = *self.hostility.lock();
                let plaintext = match hostility {
                    Some(Hostility::ShortSeed) => vec![1; 31],
                    Some(Hostility::LongSeed) => vec![1; 60_000],
                    _ => turn(&request.ciphertext, &request.key_id),
                };
                DecryptResponse { plaintext }.encode_to_vec()
            }
        }
    }

    /// The answer to a question, in frames of gRPC: whether it is compressed, its length, itself.
    fn frames(&self, method: &str, question: &[u8]) -> BoxStream<'static, Frame> {
        let hostility = *self.hostility.lock();
        let (length, answer) = match hostility {
            Some(Hostility::Long) => (8 << 20, vec![0; 1024]),
            Some(Hostility::Endless) => (60_000, Vec::new()),
            Some(Hostility::Garbage) => (3, vec![0xff; 3]),
            _ => {
                let answer = self.answer(method, question);
                (answer.len(), answer)
            }
        };
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(length).unwrap());
        framed.put_slice(&answer);
        let first = futures::stream::iter([http_body::Frame::data(framed.freeze())]);
        if matches!(hostility, Some(Hostility::Endless)) {
            return first.chain(futures::stream::pending()).map(Ok).boxed();
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        first.chain(futures::stream::iter([http_body::Frame::trailers(trailers)])).map(Ok).boxed()
    }

    async fn serve(self: Arc<Self>, socket: PathBuf) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let plugin = self.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let plugin = plugin.clone();
                async move {
                    let method = request.uri().path().to_string();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let body = StreamBody::new(plugin.frames(&method, &body[5..]));
                    http::Response::builder().header("content-type", "application/grpc").body(body)
                }
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}

const KEY: &[u8] = b"/registry/secrets/n/s";

fn store(inner: &Arc<MemoryStore>, config: &std::path::Path) -> EncryptedStore {
    let prefixes = vec![("/registry/secrets/".to_string(), String::new(), "secrets".to_string())];
    EncryptedStore::new(inner.clone(), config, prefixes).unwrap()
}

async fn put(store: &EncryptedStore, value: &'static str) {
    let current = store.get(KEY, None).await.unwrap().map_or(Revision::NONE, |kv| kv.mod_revision);
    store.txn(Txn::put(KEY, value, current)).await.unwrap();
}

async fn value(store: &dyn orlop_store::Store) -> Bytes {
    store.get(KEY, None).await.unwrap().unwrap().value
}

/// Where the plugin listens and the configuration that says so.
fn configured(directory: &std::path::Path) -> (PathBuf, PathBuf) {
    let (socket, config) = (directory.join("kms.sock"), directory.join("config.yaml"));
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - kms: {{apiVersion: v2, name: test, timeout: 1s, endpoint: 'unix://{}'}}\n  - identity: {{}}\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    (socket, config)
}

#[tokio::test]
async fn hostile_answers_of_a_plugin_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, config) = configured(directory.path());
    let plugin = Arc::new(Plugin::default());
    *plugin.key_id.lock() = "one".into();
    *plugin.healthz.lock() = "ok".into();
    tokio::spawn(plugin.clone().serve(socket.clone()));
    let inner = Arc::new(MemoryStore::new());
    let first = store(&inner, &config);
    first.prime().await.unwrap();
    put(&first, "secret").await;

    // Another server, which must ask for the seed; and its plugin is not what it was.
    let second = store(&inner, &config);
    second.prime().await.unwrap();
    for (hostility, expected) in [
        (Hostility::Long, "decoded message length too large: found 8388608 bytes, the limit is: 65536 bytes"),
        (Hostility::Endless, "context deadline exceeded"),
        (Hostility::Garbage, "invalid"),
        (Hostility::ShortSeed, "invalid seed length 31 used for key generation"),
        (Hostility::LongSeed, "invalid seed length 60000 used for key generation"),
    ] {
        *plugin.hostility.lock() = Some(hostility);
        let begun = std::time::Instant::now();
        let error = format!("{:?}", second.get(KEY, None).await.unwrap_err());
        assert!(error.contains(expected), "{hostility:?}: {error}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{hostility:?}");
    }
    // Nothing of it has stayed.
    *plugin.hostility.lock() = None;
    assert_eq!(value(&second).await, "secret");
}

/// What listens is no plugin at all.
#[tokio::test]
async fn what_is_no_plugin_is_an_error() {
    use tokio::io::AsyncWriteExt as _;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kms.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        // Silence first, garbage without end afterwards.
        let _silent = listener.accept().await.unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} });
        }
    });
    let ask = async || {
        let plugin = super::plugin::Plugin::new(socket.clone(), std::time::Duration::from_millis(500));
        let begun = std::time::Instant::now();
        let error = plugin.status().await.unwrap_err();
        assert!(begun.elapsed() < std::time::Duration::from_secs(5) && error.len() < 500, "{error}");
        error
    };
    assert_eq!(ask().await, "context deadline exceeded");
    assert!(!ask().await.is_empty());
}

#[tokio::test]
async fn values_of_a_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, config) = configured(directory.path());
    let plugin = Arc::new(Plugin::default());
    *plugin.key_id.lock() = "one".into();
    *plugin.healthz.lock() = "ok".into();

    let inner = Arc::new(MemoryStore::new());
    // What was written before the encryption is still read, and found to be stale.
    inner.txn(Txn::put(KEY, "plain", Revision::NONE)).await.unwrap();
    let encrypted = store(&inner, &config);
    // The plugin comes later than the server.
    tokio::spawn(plugin.clone().serve(socket));
    encrypted.prime().await.unwrap();
    assert_eq!(value(&encrypted).await, "plain");
    assert!(encrypted.is_stale(KEY));

    put(&encrypted, "secret").await;
    let stored = value(inner.as_ref()).await;
    assert!(stored.starts_with(b"k8s:enc:kms:v2:test:"), "{stored:?}");
    assert!(!stored.windows(6).any(|window| window == b"secret"));
    assert_eq!(value(&encrypted).await, "secret");
    assert!(!encrypted.is_stale(KEY));
    assert_eq!((*plugin.encrypted.lock(), *plugin.decrypted.lock()), (1, 0));

    // Another server asks the plugin once for the seed of the first.
    let second = store(&inner, &config);
    second.prime().await.unwrap();
    for _ in 0..3 {
        assert_eq!(value(&second).await, "secret");
    }
    assert_eq!(*plugin.decrypted.lock(), 1);

    // Another key: a new seed, and what was written with the old one is stale but readable.
    *plugin.key_id.lock() = "two".into();
    assert_eq!(second.check_plugin(0).await, Ok(()));
    assert_eq!(value(&second).await, "secret");
    assert!(second.is_stale(KEY));
    put(&second, "rotated").await;
    assert_eq!(value(&second).await, "rotated");
    assert!(!second.is_stale(KEY));
    assert_eq!(value(&encrypted).await, "rotated");

    // A plugin that is not well says so on the health checks.
    *plugin.healthz.lock() = "sick".into();
    let error = encrypted.check_plugin(0).await.unwrap_err();
    assert_eq!(error, "kmsv2 Provider test is not healthy, error: got unexpected healthz status: sick");
}
