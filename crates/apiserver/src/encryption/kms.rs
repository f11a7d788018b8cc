//! KMS v2 (KEP-3299): values are encrypted here with keys derived from a seed, and the seed is encrypted by a plugin that
//! alone knows its key. A new seed is drawn when the server starts and when the plugin changes its key.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac as _};
use parking_lot::Mutex;
use prost::Message;
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

use super::plugin::{DecryptRequest, Plugin, StatusResponse};
use super::transform::{Cipher, TransformError, open, seal};

/// How long values may be written after the plugin was last well; as upstream.
const WRITE_TTL: Duration = Duration::from_secs(3 * 60);
/// How often the plugin is asked how it is, when it is well and when it is not.
const POLL: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(10)];
/// How long an answer about its health is believed, good and bad.
const HEALTH_TTL: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(3)];
/// How long a plugin may take to appear when the server starts, and the pause between attempts.
const START: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);
/// Bounds of what a plugin may say, bytes.
const MAX_ANNOTATIONS: usize = 32 * 1024;
const MAX_KEY_ID: usize = 1024;
const MAX_SOURCE: usize = 1024;
/// The same of a decrypted seed or key, which is kept.
const MAX_PLAIN: usize = 1024;
/// Bytes of a seed, and of what a key is derived with.
const SEED: usize = 32;
/// Seeds that are remembered: one for each key and start of a server.
const MAX_SEEDS: usize = 4096;

/// A stored value: upstream's `EncryptedObject`.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
    /// One of [`DEK`] and [`DEK_SEED`].
    #[prost(int32, tag = "5")]
    source_type: i32,
}

/// The encrypted source is a key of AES-GCM.
const DEK: i32 = 0;
/// The encrypted source is a seed that keys are derived from.
const DEK_SEED: i32 = 1;

impl EncryptedObject {
    fn validate(&self) -> Result<(), String> {
        if !matches!(self.source_type, DEK | DEK_SEED) {
            return Err(format!("unknown encryptedDEKSourceType: {}", self.source_type));
        }
        if self.data.is_empty() {
            return Err("encrypted data is empty".to_string());
        }
        if self.source.is_empty() {
            return Err("failed to validate encrypted DEK source: encrypted DEK source is empty".to_string());
        }
        if self.source.len() > MAX_SOURCE {
            return Err(format!(
                "failed to validate encrypted DEK source: encrypted DEK source is {} bytes, which exceeds the max size of {MAX_SOURCE}",
                self.source.len()
            ));
        }
        key_id_problem(&self.key_id)
            .map_or(Ok(()), |problem| Err(format!("failed to validate key id: {problem}")))?;
        let mut size = 0;
        for (key, value) in &self.annotations {
            let mut problems = orlop_api::names::is_dns1123_subdomain(key);
            if !key.contains('.') {
                problems.push("should be a domain with at least two segments separated by dots".to_string());
            }
            if let Some(problem) = problems.first() {
                return Err(format!(
                    "failed to validate annotations: annotations: Invalid value: {key:?}: {problem}"
                ));
            }
            size += key.len() + value.len();
        }
        if size > MAX_ANNOTATIONS {
            return Err(format!(
                "failed to validate annotations: total size of annotations is {size}, which exceeds the max size of {MAX_ANNOTATIONS}"
            ));
        }
        Ok(())
    }

    /// What tells a seed from others.
    fn seed_key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        add(&self.source_type.to_be_bytes());
        add(&self.source);
        add(self.key_id.as_bytes());
        for (key, value) in &self.annotations {
            add(key.as_bytes());
            add(value);
        }
        hash.finalize().into()
    }
}

fn key_id_problem(key_id: &str) -> Option<String> {
    if key_id.is_empty() {
        return Some("keyID is empty".to_string());
    }
    (key_id.len() > MAX_KEY_ID)
        .then(|| format!("keyID is {} bytes, which exceeds the max size of {MAX_KEY_ID}", key_id.len()))
}

/// A seed in plain, or a key of an older server.
struct Source {
    bytes: Vec<u8>,
    kind: i32,
}

/// The key of one value: HKDF's expansion of the seed, of one block (RFC 5869).
fn derive(seed: &[u8], info: &[u8]) -> Result<Vec<u8>, TransformError> {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(seed)
        .map_err(|_| TransformError::Broken("the seed cannot be used"))?;
    mac.update(info);
    mac.update(&[1]);
    Ok(mac.finalize().into_bytes().to_vec())
}

impl Source {
    fn encrypt(&self, value: &[u8], path: &[u8]) -> Result<Vec<u8>, TransformError> {
        let mut out = vec![0; SEED];
        rand::rng().fill_bytes(&mut out);
        let key = derive(&self.bytes, &out)?;
        out.extend(seal(Cipher::AesGcm, &key, value, path)?);
        Ok(out)
    }

    fn decrypt(&self, sealed: &[u8], path: &[u8]) -> Result<Vec<u8>, TransformError> {
        if self.kind == DEK {
            return open(Cipher::AesGcm, &self.bytes, sealed, path);
        }
        let Some((info, sealed)) = sealed.split_at_checked(SEED) else {
            return Err(TransformError::Broken("the stored data was shorter than the required size"));
        };
        open(Cipher::AesGcm, &derive(&self.bytes, info)?, sealed, path)
    }
}

/// What values are written with.
struct State {
    /// Without data.
    template: EncryptedObject,
    source: Arc<Source>,
    expires: Instant,
}

/// What was last found about the plugin's health, and when.
type Checked = Option<(Instant, Result<(), String>)>;

/// A plugin with the seeds it has decrypted.
pub struct Kms {
    /// Its name in the configuration.
    pub name: String,
    /// Where it listens, and how long it may take; one that stays the same goes on over a change of the file.
    pub endpoint: (String, Duration),
    plugin: Plugin,
    state: Mutex<Option<State>>,
    seeds: Mutex<BTreeMap<[u8; 32], Arc<Source>>>,
    checked: tokio::sync::Mutex<Checked>,
}

impl Kms {
    /// A plugin, not yet asked for anything. `endpoint` is `unix:///path`.
    pub fn new(name: String, endpoint: String, timeout: Duration) -> Kms {
        let path = endpoint.strip_prefix("unix://").unwrap_or(&endpoint).to_string();
        Kms {
            name,
            plugin: Plugin::new(path.into(), timeout),
            endpoint: (endpoint, timeout),
            state: Mutex::default(),
            seeds: Mutex::default(),
            checked: tokio::sync::Mutex::default(),
        }
    }

    /// What its values begin with.
    pub fn prefix(&self) -> String {
        format!("k8s:enc:kms:v2:{}:", self.name)
    }

    /// The key that new values are encrypted with; empty when there is none.
    pub fn key_id(&self) -> String {
        self.state.lock().as_ref().map_or(String::new(), |state| state.template.key_id.clone())
    }

    /// Waits until the plugin has encrypted a seed: without it the server could neither read nor write.
    ///
    /// # Errors
    /// Why it did not.
    pub async fn prime(self: &Arc<Self>) -> Result<(), String> {
        let deadline = Instant::now() + START;
        loop {
            match self.look().await {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(error) => {
                    tracing::info!(name = self.name, error, "waiting for the KMS plugin");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(Kms::poll(weak));
        Ok(())
    }

    /// Asks from time to time whether the key has changed, as long as somebody uses the plugin.
    async fn poll(weak: Weak<Kms>) {
        let mut pause = POLL[0];
        loop {
            tokio::time::sleep(pause).await;
            let Some(kms) = weak.upgrade() else { return };
            pause = match kms.look().await {
                Ok(()) => POLL[0],
                Err(error) => {
                    tracing::warn!(name = kms.name, error, "the KMS plugin is not well");
                    POLL[1]
                }
            };
        }
    }

    /// How the plugin is; asks it unless it was asked just now.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub async fn check(&self) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        if let Some((at, result)) = &*checked
            && at.elapsed() < HEALTH_TTL[usize::from(result.is_err())]
        {
            return result.clone();
        }
        let result = self.look().await;
        *checked = Some((Instant::now(), result.clone()));
        result
    }

    /// Asks how it is, and follows it to another key.
    async fn look(&self) -> Result<(), String> {
        let status = self.plugin.status().await.map_err(|error| {
            format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {error}",
                self.name
            )
        })?;
        // Whatever else it says, a key that it names is the one to write with.
        let rotated = match key_id_problem(&status.key_id) {
            None => self.follow(&status.key_id).await,
            Some(_) => Ok(()),
        };
        self.judge(&status)?;
        rotated
    }

    fn judge(&self, status: &StatusResponse) -> Result<(), String> {
        let mut errors = Vec::new();
        if status.healthz != "ok" {
            errors.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            errors.push(format!("expected KMSv2 API version v2, got {}", status.version));
        }
        if let Some(problem) = key_id_problem(&status.key_id) {
            errors.push(format!("got invalid KMSv2 KeyID hash {:?}: {problem}", ""));
        }
        if errors.is_empty() {
            return Ok(());
        }
        let errors = orlop_api::status::aggregate(errors);
        Err(format!("kmsv2 Provider {} is not healthy, error: {errors}", self.name))
    }

    /// Keeps the seed while the plugin's key is the same; else draws another one.
    async fn follow(&self, key_id: &str) -> Result<(), String> {
        if let Some(state) = self.state.lock().as_mut()
            && state.template.key_id == key_id
        {
            state.expires = Instant::now() + WRITE_TTL;
            return Ok(());
        }
        let mut seed = vec![0; SEED];
        rand::rng().fill_bytes(&mut seed);
        let failed = |error: String| {
            format!(
                "failed to rotate DEK uid for KMS Provider {}, error: failed to encrypt DEK, error: {error}",
                self.name
            )
        };
        let answer = self.plugin.encrypt(seed.clone()).await.map_err(failed)?;
        let mut template = EncryptedObject {
            // Something, to be found valid.
            data: vec![0],
            key_id: answer.key_id,
            source: answer.ciphertext,
            annotations: answer.annotations,
            source_type: DEK_SEED,
        };
        template.validate().map_err(failed)?;
        template.data.clear();
        let source = Arc::new(Source { bytes: seed, kind: DEK_SEED });
        self.remember(template.seed_key(), source.clone());
        tracing::info!(name = self.name, key_id, "a new seed of the KMS plugin's key is used");
        *self.state.lock() = Some(State { template, source, expires: Instant::now() + WRITE_TTL });
        Ok(())
    }

    fn remember(&self, key: [u8; 32], source: Arc<Source>) {
        let mut seeds = self.seeds.lock();
        if seeds.len() >= MAX_SEEDS {
            seeds.pop_first();
        }
        seeds.insert(key, source);
    }

    /// Encrypts a value that is stored under `path`.
    pub fn encrypt(&self, value: &[u8], path: &[u8]) -> Result<Vec<u8>, TransformError> {
        let (mut object, source) = {
            let state = self.state.lock();
            let Some(state) = state.as_ref() else {
                return Err(TransformError::Plugin(format!(
                    "got unexpected nil transformer for {}",
                    self.name
                )));
            };
            if state.expires < Instant::now() {
                return Err(TransformError::Plugin(format!(
                    "encryptedDEKSource of KMS Provider {} expired: the plugin has not answered",
                    self.name
                )));
            }
            (state.template.clone(), state.source.clone())
        };
        object.data = source.encrypt(value, path)?;
        let mut out = self.prefix().into_bytes();
        out.extend(object.encode_to_vec());
        Ok(out)
    }

    /// Decrypts a value without its prefix; also the key that it was encrypted with. `Err` of
    /// [`TransformError::Plugin`] may pass.
    pub async fn decrypt(&self, stored: &[u8], path: &[u8]) -> Result<(Vec<u8>, String), TransformError> {
        let object = EncryptedObject::decode(stored)
            .map_err(|_| TransformError::Broken("the stored value is no encrypted object"))?;
        if object.validate().is_err() {
            return Err(TransformError::Broken("the stored value is no valid encrypted object"));
        }
        let key = object.seed_key();
        let known = self.seeds.lock().get(&key).cloned();
        let source = match known {
            Some(source) => source,
            None => {
                let request = DecryptRequest {
                    ciphertext: object.source.clone(),
                    uid: String::new(),
                    key_id: object.key_id.clone(),
                    annotations: object.annotations.clone(),
                };
                let failed =
                    |error: String| TransformError::Plugin(format!("failed to decrypt DEK, error: {error}"));
                let bytes = self.plugin.decrypt(request).await.map_err(failed)?;
                if !(SEED..=MAX_PLAIN).contains(&bytes.len()) && object.source_type == DEK_SEED {
                    return Err(failed(format!(
                        "invalid seed length {} used for key generation",
                        bytes.len()
                    )));
                }
                if bytes.len() > MAX_PLAIN {
                    return Err(failed(format!("the key is {} bytes long", bytes.len())));
                }
                let source = Arc::new(Source { bytes, kind: object.source_type });
                self.remember(key, source.clone());
                source
            }
        };
        Ok((source.decrypt(&object.data, path)?, object.key_id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_derived() {
        // RFC 5869, A.1: the first block of the expansion.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let prk = hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let info = hex("f0f1f2f3f4f5f6f7f8f9");
        let expected = hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        assert_eq!(derive(&prk, &info).unwrap(), expected);
    }

    #[test]
    fn sources() {
        let seed = Source { bytes: vec![7; 32], kind: DEK_SEED };
        let sealed = seed.encrypt(b"value", b"/registry/a").unwrap();
        assert_eq!(seed.decrypt(&sealed, b"/registry/a").unwrap(), b"value");
        assert!(seed.decrypt(&sealed, b"/registry/b").is_err());
        assert!(seed.decrypt(b"short", b"/registry/a").is_err());
        let old = Source { bytes: vec![7; 32], kind: DEK };
        let sealed = seal(Cipher::AesGcm, &old.bytes, b"value", b"p").unwrap();
        assert_eq!(old.decrypt(&sealed, b"p").unwrap(), b"value");
    }

    #[test]
    fn what_a_plugin_may_say() {
        let good = EncryptedObject {
            data: vec![1],
            key_id: "k".into(),
            source: vec![1],
            annotations: [("a.example.com".to_string(), vec![1])].into(),
            source_type: DEK_SEED,
        };
        assert_eq!(good.validate(), Ok(()));
        let check = |change: fn(&mut EncryptedObject), expected: &str| {
            let mut object = good.clone();
            change(&mut object);
            let error = object.validate().unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(|o| o.data.clear(), "encrypted data is empty");
        check(|o| o.key_id.clear(), "keyID is empty");
        check(|o| o.key_id = "k".repeat(1025), "keyID is 1025 bytes, which exceeds the max size of 1024");
        check(|o| o.source.clear(), "encrypted DEK source is empty");
        check(|o| o.source_type = 9, "unknown encryptedDEKSourceType: 9");
        check(|o| _ = o.annotations.insert("x".into(), vec![]), "failed to validate annotations");
        check(|o| _ = o.annotations.insert("b.c".into(), vec![0; 33_000]), "exceeds the max size of 32768");
    }
}
