//! Encryption at rest: a store that keeps the values of some resources encrypted and shows them in plain.
//!
//! Upstream's counterpart is `storage/value` with its transformers; the form of stored values is the same. What cannot
//! be decrypted is shown as it is stored: whoever reads it finds that it is no object and says so.

mod config;
mod kms;
mod plugin;
mod transform;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use orlop_store::{
    Event, KeyValue, Op, Range, RangeResult, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};
use parking_lot::Mutex;

use config::Rule;
use kms::Kms;
use transform::TransformError;

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
        let rules = ArcSwap::from_pointee(config::load(path, &[])?);
        Ok(EncryptedStore { inner, shared: Arc::new(Shared { rules, prefixes, written: Mutex::default() }) })
    }

    /// Waits for the plugins of the configuration.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub async fn prime(&self) -> Result<(), String> {
        futures::future::try_join_all(self.plugins().iter().map(Kms::prime)).await.map(drop)
    }

    /// The plugins of the configuration.
    fn plugins(&self) -> Vec<Arc<Kms>> {
        config::plugins(&self.shared.rules.load())
    }

    /// How many plugins there are.
    pub fn plugin_count(&self) -> usize {
        self.plugins().len()
    }

    /// How a plugin is, counted from 0.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check_plugin(&self, at: usize) -> Result<(), String> {
        match self.plugins().get(at) {
            Some(plugin) => plugin.check().await,
            None => Ok(()),
        }
    }

    /// Takes in a changed file, as soon as its new plugins have answered.
    pub fn reload(&self, path: &Path) -> Result<(), String> {
        let known = self.plugins();
        let rules = Arc::new(config::load(path, &known)?);
        let new: Vec<Arc<Kms>> = config::plugins(&rules)
            .into_iter()
            .filter(|plugin| !known.iter().any(|other| Arc::ptr_eq(other, plugin)))
            .collect();
        if new.is_empty() {
            self.shared.rules.store(rules);
            return Ok(());
        }
        let shared = self.shared.clone();
        tokio::spawn(async move {
            match futures::future::try_join_all(new.iter().map(Kms::prime)).await {
                Ok(_) => shared.rules.store(rules),
                Err(error) => {
                    tracing::error!(
                        error,
                        "the new encryption configuration is not used: a KMS plugin is not well"
                    );
                }
            }
        });
        Ok(())
    }

    /// Whether a value should be written again, because its key is not the first one any more.
    pub fn is_stale(&self, key: &[u8]) -> bool {
        let rules = self.shared.rules.load();
        let Some(rule) = self.shared.rule(&rules, key) else { return false };
        let Some(provider) = rule.providers.first() else { return false };
        let written = self.shared.written.lock();
        written.get(key).is_some_and(|mark| mark.as_ref() != provider.write_mark())
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
        provider.encrypt(&value, key).map(Bytes::from).map_err(|error| match error {
            TransformError::Plugin(cause) => {
                StoreError::Remote { action: "encrypt", endpoints: "the KMS plugin".to_string(), cause }
            }
            error => StoreError::InvalidArgument(format!("encryption: {error}")),
        })
    }

    /// What cannot be decrypted now but perhaps later is an error.
    async fn decrypt(&self, mut kv: KeyValue) -> Result<KeyValue, StoreError> {
        let rules = self.rules.load_full();
        let Some(rule) = self.rule(&rules, &kv.key) else { return Ok(kv) };
        match transform::decrypt(&rule.providers, &kv.value, &kv.key).await {
            Ok(plain) => {
                self.written.lock().insert(kv.key.clone(), plain.mark);
                kv.value = plain.value.into();
            }
            Err(TransformError::Plugin(cause)) => {
                let endpoints = "the KMS plugin".to_string();
                return Err(StoreError::Remote { action: "decrypt", endpoints, cause });
            }
            Err(error) => {
                tracing::error!(key = %String::from_utf8_lossy(&kv.key), %error, "stored value cannot be decrypted");
            }
        }
        Ok(kv)
    }

    async fn decrypt_all(&self, kvs: Vec<KeyValue>) -> Result<Vec<KeyValue>, StoreError> {
        let mut plain = Vec::with_capacity(kvs.len());
        for kv in kvs {
            plain.push(self.decrypt(kv).await?);
        }
        Ok(plain)
    }

    /// Decrypts what a watch tells of, which cannot be told later: it waits for the plugin.
    async fn decrypt_in_time(&self, kv: KeyValue) -> KeyValue {
        loop {
            match self.decrypt(kv.clone()).await {
                Ok(plain) => return plain,
                Err(error) => {
                    tracing::error!(%error, "changes are held back");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    }

    async fn event(&self, mut event: Event) -> Event {
        match event.kind {
            orlop_store::EventKind::Put => event.kv = self.decrypt_in_time(event.kv).await,
            orlop_store::EventKind::Delete => {
                self.written.lock().remove(&event.kv.key);
            }
            orlop_store::EventKind::Progress => {}
        }
        event
    }

    async fn events(self: Arc<Self>, batch: WatchBatch) -> WatchBatch {
        let mut plain = Vec::new();
        for event in batch? {
            plain.push(self.event(event).await);
        }
        Ok(plain)
    }
}

/// What a watch sends.
type WatchBatch = Result<Vec<Event>, StoreError>;

/// Pause before a plugin is asked again for a value that must be told.
const PATIENCE: Duration = Duration::from_secs(1);

#[async_trait]
impl Store for EncryptedStore {
    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        for op in &mut txn.ops {
            if let Op::Put { key, value } = op {
                *value = self.shared.encrypt(key, std::mem::take(value))?;
            }
        }
        Ok(match self.inner.txn(txn).await? {
            TxnOutcome::GuardFailed { current } => {
                let mut plain = Vec::with_capacity(current.len());
                for kv in current {
                    plain.push(match kv {
                        Some(kv) => Some(self.shared.decrypt(kv).await?),
                        None => None,
                    });
                }
                TxnOutcome::GuardFailed { current: plain }
            }
            committed => committed,
        })
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        match self.inner.get(key, at).await? {
            Some(kv) => self.shared.decrypt(kv).await.map(Some),
            None => Ok(None),
        }
    }

    async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
        let mut result = self.inner.range(range).await?;
        result.kvs = self.shared.decrypt_all(result.kvs).await?;
        Ok(result)
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<WatchStream, StoreError> {
        let shared = self.shared.clone();
        let stream = self.inner.watch(prefix, from).await?;
        Ok(stream.then(move |batch| shared.clone().events(batch)).boxed())
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

#[cfg(test)]
mod tests;
