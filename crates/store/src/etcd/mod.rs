//! The engine for data on other machines: a real etcd v3, with upstream's key layout, so that several API servers can
//! share one store.
//!
//! Transactions are etcd transactions; history, compaction and watches are etcd's own. What the contract wants to know
//! without asking (the latest revision, the last compaction) is remembered from the answers that pass by.

mod convert;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompactionOptions, Compare, CompareOp, ConnectOptions, GetOptions, Identity,
    KvClient, TlsOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse, WatchClient,
};
use futures::future::BoxFuture;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::{
    KeyValue, Op, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream, plan,
};
use convert::KeyMap;

/// Where etcd is and how to speak to it.
#[derive(Clone)]
pub struct Options {
    /// `--etcd-servers`: URLs of the members, e.g. `https://10.0.0.5:2379`.
    pub endpoints: Vec<String>,
    /// `--etcd-prefix`: what stands for the leading `/registry` of every key in etcd.
    pub prefix: String,
    /// `--etcd-cafile`: PEM text of the CA that signed etcd's serving certificates.
    pub ca_pem: Option<String>,
    /// `--etcd-certfile` and `--etcd-keyfile`: PEM texts of the client certificate and its key.
    pub identity: Option<(String, String)>,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "/registry".to_owned(),
            ca_pem: None,
            identity: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    fn connect(&self) -> ConnectOptions {
        let connect = ConnectOptions::new()
            .with_connect_timeout(self.timeout)
            .with_keep_alive(Duration::from_secs(30), Duration::from_secs(10))
            .with_keep_alive_while_idle(true);
        if self.ca_pem.is_none() && self.identity.is_none() {
            return connect;
        }
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.ca_pem {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        connect.with_tls(tls)
    }
}

/// What every part of the engine shares.
struct Shared {
    endpoints: String,
    timeout: Duration,
    keys: KeyMap,
    revision: AtomicU64,
    compacted: AtomicU64,
    /// The revision that readers wait for; watches that have not seen it ask etcd how far they are.
    wanted: signal::Sender<u64>,
}

impl Shared {
    fn saw(&self, revision: i64) {
        self.revision.fetch_max(convert::unsigned(revision), Ordering::AcqRel);
    }

    fn saw_compaction(&self, revision: i64) {
        self.compacted.fetch_max(convert::unsigned(revision), Ordering::AcqRel);
    }

    fn error(&self, action: &'static str, error: etcd_client::Error) -> StoreError {
        StoreError::Remote { action, endpoints: self.endpoints.clone(), cause: convert::cause(&error) }
    }

    async fn in_time<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => answer.map_err(|error| self.error(action, error)),
            Err(_) => Err(StoreError::Remote {
                action,
                endpoints: self.endpoints.clone(),
                cause: format!("no answer within {:?}", self.timeout),
            }),
        }
    }
}

/// A store in etcd. Dropping it ends its watches.
pub struct EtcdStore {
    options: Options,
    kv: KvClient,
    watch: WatchClient,
    maintenance: etcd_client::MaintenanceClient,
    shared: Arc<Shared>,
    closed: CancellationToken,
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl EtcdStore {
    /// Connects, and learns where the store stands.
    ///
    /// # Errors
    /// `InvalidArgument` for an endpoint or certificate that cannot be used, `Remote` when etcd does not answer.
    pub fn connect(options: Options) -> BoxFuture<'static, Result<EtcdStore, StoreError>> {
        Box::pin(Self::connected(options))
    }

    async fn connected(options: Options) -> Result<EtcdStore, StoreError> {
        if options.endpoints.is_empty() {
            return Err(StoreError::InvalidArgument("no etcd server is named".into()));
        }
        let connect = options.connect();
        let (wanted, _) = signal::channel(0);
        let shared = Arc::new(Shared {
            endpoints: options.endpoints.join(","),
            timeout: options.timeout,
            keys: KeyMap::new("/registry", &options.prefix),
            revision: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            wanted,
        });
        let client = shared.in_time("connect", Client::connect(&options.endpoints, Some(connect))).await?;
        let store = EtcdStore {
            options,
            kv: client
                .kv_client()
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            maintenance: client.maintenance_client(),
            shared,
            closed: CancellationToken::new(),
        };
        store.latest().await?;
        store.learn_compaction().await?;
        Ok(store)
    }

    /// Finds the last compaction, which etcd tells nobody: the lowest revision that can still be read, by bisection.
    async fn learn_compaction(&self) -> Result<(), StoreError> {
        let (mut unreadable, mut readable) =
            (self.compact_revision().0.saturating_sub(1), self.latest().await?.0);
        while unreadable + 1 < readable {
            let middle = unreadable.midpoint(readable);
            if self.is_readable(middle).await? { readable = middle } else { unreadable = middle }
        }
        // Revision 1 is before the first commit: nothing was compacted.
        if readable > 1 {
            self.shared.saw_compaction(convert::signed(Revision(readable)));
        }
        Ok(())
    }

    async fn is_readable(&self, revision: u64) -> Result<bool, StoreError> {
        let options = GetOptions::new().with_count_only().with_revision(convert::signed(Revision(revision)));
        let mut client = self.kv.clone();
        match self.shared.in_time("read", client.get(&b"\0"[..], Some(options))).await {
            Ok(_) => Ok(true),
            Err(StoreError::Remote { cause, .. }) if cause.contains("has been compacted") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a refused read at `at` means.
    async fn refusal(&self, action: &'static str, at: Option<Revision>, error: StoreError) -> StoreError {
        let StoreError::Remote { cause, .. } = &error else { return error };
        let requested = at.unwrap_or_default();
        if cause.contains("has been compacted") {
            let _ = self.learn_compaction().await;
            return StoreError::Compacted { requested, compact_revision: self.compact_revision() };
        }
        if cause.contains("is a future revision") {
            let _ = self.latest().await;
            return StoreError::FutureRevision { requested, current: self.revision() };
        }
        tracing::debug!(action, %error, "etcd refused");
        error
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        plan::validate(&txn)?;
        let keys = &self.shared.keys;
        let compares: Vec<Compare> = txn
            .guards
            .iter()
            .map(|g| {
                Compare::mod_revision(
                    keys.translate(&g.key),
                    CompareOp::Equal,
                    convert::signed(g.mod_revision),
                )
            })
            .collect();
        let questions: Vec<TxnOp> =
            txn.guards.iter().map(|g| TxnOp::get(keys.translate(&g.key), None)).collect();
        let operations: Vec<TxnOp> = txn
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value } => TxnOp::put(keys.translate(key), value.to_vec(), None),
                Op::Delete { key } => TxnOp::delete(keys.translate(key), None),
            })
            .collect();
        let request = EtcdTxn::new().when(compares).and_then(operations).or_else(questions);
        let mut client = self.kv.clone();
        let answer = self.shared.in_time("commit", client.txn(request)).await.map_err(|error| {
            let StoreError::Remote { cause, .. } = &error else { return error };
            if cause.contains("too many operations") {
                // etcd's default --max-txn-ops.
                let size = txn.ops.len().max(txn.guards.len());
                return StoreError::TooLarge {
                    what: "transaction (operations; raise etcd's --max-txn-ops)",
                    size,
                    limit: 128,
                };
            }
            error
        })?;
        let revision = answer.header().map_or(0, |h| h.revision());
        self.shared.saw(revision);
        if answer.succeeded() {
            return Ok(TxnOutcome::Committed(Revision(convert::unsigned(revision))));
        }
        let current = answer
            .op_responses()
            .into_iter()
            .map(|response| match response {
                TxnOpResponse::Get(found) => found.kvs().first().map(|kv| convert::key_value(keys, kv)),
                _ => None,
            })
            .collect();
        Ok(TxnOutcome::GuardFailed { current })
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        let options = at.map(|at| GetOptions::new().with_revision(convert::signed(at)));
        let mut client = self.kv.clone();
        let answer = self.shared.in_time("read", client.get(self.shared.keys.translate(key), options)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.refusal("read", at, error).await),
        };
        self.shared.saw(answer.header().map_or(0, |h| h.revision()));
        Ok(answer.kvs().first().map(|kv| convert::key_value(&self.shared.keys, kv)))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        // etcd takes an empty end for "this key alone"; one zero byte is its way of writing "to the last key".
        let end = if range.end.is_empty() { vec![0] } else { self.shared.keys.translate(&range.end) };
        let start = if range.start.is_empty() { vec![0] } else { self.shared.keys.translate(&range.start) };
        if !range.end.is_empty() && range.start >= range.end {
            let revision = match range.at {
                Some(at) => at,
                None => self.latest().await?,
            };
            return Ok(RangeResult { kvs: Vec::new(), more: false, revision });
        }
        let mut options =
            GetOptions::new().with_range(end).with_limit(i64::try_from(range.limit).unwrap_or(0));
        if let Some(at) = range.at {
            options = options.with_revision(convert::signed(at));
        }
        let mut client = self.kv.clone();
        let answer = match self.shared.in_time("read", client.get(start, Some(options))).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.refusal("read", range.at, error).await),
        };
        let now = answer.header().map_or(0, |h| h.revision());
        self.shared.saw(now);
        Ok(RangeResult {
            kvs: answer.kvs().iter().map(|kv| convert::key_value(&self.shared.keys, kv)).collect(),
            more: answer.more(),
            revision: range.at.unwrap_or(Revision(convert::unsigned(now))),
        })
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        let compact_revision = self.compact_revision();
        if compact_revision.0 > 0 && from <= compact_revision {
            return Err(StoreError::Compacted { requested: from, compact_revision });
        }
        watch::start(self.watch.clone(), self.shared.clone(), self.closed.child_token(), prefix, from).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        if at <= self.compact_revision() {
            return Ok(());
        }
        let mut client = self.kv.clone();
        let options = CompactionOptions::new();
        match self.shared.in_time("compact", client.compact(convert::signed(at), Some(options))).await {
            Ok(_) => {
                self.shared.saw_compaction(convert::signed(at));
                Ok(())
            }
            Err(error) => match self.refusal("compact", Some(at), error).await {
                // Another API server was faster.
                StoreError::Compacted { .. } => {
                    self.shared.saw_compaction(convert::signed(at));
                    Ok(())
                }
                other => Err(other),
            },
        }
    }

    fn revision(&self) -> Revision {
        Revision(self.shared.revision.load(Ordering::Acquire))
    }

    fn compact_revision(&self) -> Revision {
        Revision(self.shared.compacted.load(Ordering::Acquire))
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn latest(&self) -> Result<Revision, StoreError> {
        let mut client = self.kv.clone();
        let options = GetOptions::new().with_count_only();
        let answer = self.shared.in_time("read", client.get(&b"\0"[..], Some(options))).await?;
        let revision = answer.header().map_or(0, |h| h.revision());
        self.shared.saw(revision);
        let revision = convert::unsigned(revision);
        self.shared.wanted.send_if_modified(|wanted| {
            let newer = *wanted < revision;
            *wanted = revision.max(*wanted);
            newer
        });
        Ok(Revision(revision))
    }

    fn servers(&self) -> usize {
        self.options.endpoints.len()
    }

    async fn check_server(&self, server: usize) -> Result<(), StoreError> {
        let Some(endpoint) = self.options.endpoints.get(server) else { return self.check().await };
        // A connection of its own: the shared one turns to whichever member answers.
        let question = async {
            let mut client = Client::connect([endpoint], Some(self.options.connect())).await?;
            client.get(self.shared.keys.translate(crate::HEALTH_KEY), None).await
        };
        self.shared.in_time("read", question).await.map(drop)
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        let mut client = self.maintenance.clone();
        let status = self.shared.in_time("ask for its status", client.status()).await?;
        Ok(convert::unsigned(status.db_size()))
    }
}
