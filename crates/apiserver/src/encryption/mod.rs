//! Encryption at rest: a store that keeps the values of some resources encrypted and shows them in plain.
//!
//! Upstream's counterpart is `storage/value` with its transformers; the form of stored values is the same. What cannot
//! be decrypted is shown as it is stored: whoever reads it finds that it is no object and says so.

mod config;
mod transform;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use orlop_store::{
    Event, KeyValue, Op, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};
use parking_lot::Mutex;

use config::Rule;

/// A store with encrypted values.
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

/// What the store and its streams share.
struct Shared {
    rules: ArcSwap<Vec<Rule>>,
    /// Storage prefixes of resources, longest first, with group and plural.
    prefixes: Vec<(String, String, String)>,
    /// How the values that were seen were encrypted, of resources with a rule: they must be written again when the
    /// first key is another one.
    written: Mutex<HashMap<Bytes, Box<[u8]>>>,
}

impl EncryptedStore {
    /// Encrypts what goes to `inner` by the file's rules; `prefixes` are storage prefix, group and plural of resources.
    pub fn new(
        inner: Arc<dyn Store>,
        path: &Path,
        mut prefixes: Vec<(String, String, String)>,
    ) -> Result<EncryptedStore, String> {
        prefixes.sort_by_key(|(prefix, _, _)| std::cmp::Reverse(prefix.len()));
        let rules = ArcSwap::from_pointee(config::load(path)?);
        Ok(EncryptedStore { inner, shared: Arc::new(Shared { rules, prefixes, written: Mutex::default() }) })
    }

    /// Takes in a changed file.
    pub fn reload(&self, path: &Path) -> Result<(), String> {
        self.shared.rules.store(Arc::new(config::load(path)?));
        Ok(())
    }

    /// Whether a value should be written again, because its key is not the first one any more.
    pub fn is_stale(&self, key: &[u8]) -> bool {
        let rules = self.shared.rules.load();
        let Some(rule) = self.shared.rule(&rules, key) else { return false };
        let Some(provider) = rule.providers.first() else { return false };
        let written = self.shared.written.lock();
        written.get(key).is_some_and(|prefix| prefix.as_ref() != provider.write_prefix().as_bytes())
    }
}

impl Shared {
    fn rule<'a>(&self, rules: &'a [Rule], key: &[u8]) -> Option<&'a Rule> {
        let key = std::str::from_utf8(key).ok()?;
        let known = self.prefixes.iter().find(|(prefix, _, _)| key.starts_with(prefix.as_str()));
        let (group, plural) = match known {
            Some((_, group, plural)) => (group.as_str(), plural.as_str()),
            // A custom resource: /registry/GROUP/PLURAL/...
            None => {
                let mut parts = key.strip_prefix("/registry/")?.split('/');
                (parts.next()?, parts.next()?)
            }
        };
        rules.iter().find(|rule| rule.covers(group, plural))
    }

    fn encrypt(&self, key: &Bytes, value: Bytes) -> Result<Bytes, StoreError> {
        let rules = self.rules.load();
        let Some(provider) = self.rule(&rules, key).and_then(|rule| rule.providers.first()) else {
            return Ok(value);
        };
        provider
            .encrypt(&value, key)
            .map(Bytes::from)
            .map_err(|error| StoreError::InvalidArgument(format!("encryption: {error}")))
    }

    fn decrypt(&self, mut kv: KeyValue) -> KeyValue {
        let rules = self.rules.load();
        let Some(rule) = self.rule(&rules, &kv.key) else { return kv };
        match transform::decrypt(&rule.providers, &kv.value, &kv.key) {
            Ok(plain) => {
                let prefix = transform::prefix_of(&kv.value).into();
                self.written.lock().insert(kv.key.clone(), prefix);
                kv.value = plain.into();
            }
            Err(error) => {
                tracing::error!(key = %String::from_utf8_lossy(&kv.key), %error, "stored value cannot be decrypted");
            }
        }
        kv
    }

    fn event(&self, mut event: Event) -> Event {
        // The value before goes first, so that what is remembered about the key is how it is written now.
        event.prev = event.prev.map(|kv| self.decrypt(kv));
        match event.kind {
            orlop_store::EventKind::Put => event.kv = self.decrypt(event.kv),
            orlop_store::EventKind::Delete => {
                self.written.lock().remove(&event.kv.key);
            }
            orlop_store::EventKind::Progress => {}
        }
        event
    }
}

#[async_trait]
impl Store for EncryptedStore {
    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        for op in &mut txn.ops {
            if let Op::Put { key, value } = op {
                *value = self.shared.encrypt(key, std::mem::take(value))?;
            }
        }
        Ok(match self.inner.txn(txn).await? {
            TxnOutcome::GuardFailed { current } => TxnOutcome::GuardFailed {
                current: current.into_iter().map(|kv| kv.map(|kv| self.shared.decrypt(kv))).collect(),
            },
            committed => committed,
        })
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.inner.get(key, at).await?.map(|kv| self.shared.decrypt(kv)))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let mut result = self.inner.range(range).await?;
        result.kvs = result.kvs.into_iter().map(|kv| self.shared.decrypt(kv)).collect();
        Ok(result)
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        let shared = self.shared.clone();
        let stream = self.inner.watch(prefix, from).await?;
        let plain = move |batch: Result<Vec<Event>, StoreError>| {
            batch.map(|events| events.into_iter().map(|event| shared.event(event)).collect())
        };
        Ok(stream.map(plain).boxed())
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.inner.compact(at).await
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn compact_revision(&self) -> Revision {
        self.inner.compact_revision()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn latest(&self) -> Result<Revision, StoreError> {
        self.inner.latest().await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.inner.check().await
    }

    fn servers(&self) -> usize {
        self.inner.servers()
    }

    async fn check_server(&self, server: usize) -> Result<(), StoreError> {
        self.inner.check_server(server).await
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.inner.size_bytes().await
    }
}
