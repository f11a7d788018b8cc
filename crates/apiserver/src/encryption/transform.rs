//! The ciphers, in upstream's form of stored values: `k8s:enc:CIPHER:v1:KEY:` and then the bytes.

use std::sync::Arc;

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{AesGcm, Nonce};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use crypto_secretbox::XSalsa20Poly1305;
use rand::RngCore as _;

use super::kms::Kms;

/// A way to encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM: 12 bytes of nonce first, the storage key authenticated.
    AesGcm,
    /// AES-CBC with PKCS#7 padding: 16 bytes of initialisation vector first.
    AesCbc,
    /// XSalsa20-Poly1305: 24 bytes of nonce first.
    Secretbox,
    /// Nothing.
    Identity,
}

impl Cipher {
    /// What its values begin with, before the key's name.
    fn prefix(self) -> &'static str {
        match self {
            Cipher::AesGcm => "k8s:enc:aesgcm:v1:",
            Cipher::AesCbc => "k8s:enc:aescbc:v1:",
            Cipher::Secretbox => "k8s:enc:secretbox:v1:",
            Cipher::Identity => "",
        }
    }
}

/// A named key.
pub struct Key {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub secret: Vec<u8>,
}

/// A cipher with its keys, of which the first one encrypts; or a plugin.
pub enum Provider {
    /// Keys of the configuration.
    Keys(Cipher, Vec<Key>),
    /// Keys that a plugin knows.
    Kms(Arc<Kms>),
}

/// A value in plain.
#[derive(Debug, PartialEq, Eq)]
pub struct Plain {
    /// The value.
    pub value: Vec<u8>,
    /// How it was encrypted: what [`Provider::write_mark`] says of the provider and key that did it.
    pub mark: Box<[u8]>,
}

/// The beginning of everything that is encrypted.
const ANY: &[u8] = b"k8s:enc:";

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// The value was made by something else.
    #[error("no matching prefix found")]
    NoProvider,
    /// The name of a key that is not configured.
    #[error("no matching key was found for the provided transformer")]
    NoKey,
    /// Wrong key, or the bytes were changed.
    #[error("the value cannot be decrypted with its key: {0}")]
    Broken(&'static str),
    /// A plugin did not help; it may help later.
    #[error("{0}")]
    Plugin(String),
}

impl Provider {
    /// A cipher with keys.
    pub fn new(cipher: Cipher, keys: Vec<Key>) -> Provider {
        Provider::Keys(cipher, keys)
    }

    /// Leaves values as they are.
    pub fn identity() -> Provider {
        Provider::Keys(Cipher::Identity, Vec::new())
    }

    /// What tells values that it writes now from others: what they begin with, and the plugin's key.
    pub fn write_mark(&self) -> Vec<u8> {
        match self {
            Provider::Keys(cipher, keys) => match keys.first() {
                Some(key) => format!("{}{}:", cipher.prefix(), key.name).into_bytes(),
                None => Vec::new(),
            },
            Provider::Kms(kms) => (kms.prefix() + &kms.key_id()).into_bytes(),
        }
    }

    /// Encrypts a value that is stored under `path`.
    pub fn encrypt(&self, value: &[u8], path: &[u8]) -> Result<Vec<u8>, TransformError> {
        match self {
            Provider::Keys(cipher, keys) => {
                let Some(key) = keys.first() else { return Ok(value.to_vec()) };
                let mut out = self.write_mark();
                out.extend(seal(*cipher, &key.secret, value, path)?);
                Ok(out)
            }
            Provider::Kms(kms) => kms.encrypt(value, path),
        }
    }

    /// Decrypts a value; `None` when it was not made by this provider.
    async fn decrypt(&self, value: &[u8], path: &[u8]) -> Option<Result<Plain, TransformError>> {
        let (cipher, keys) = match self {
            Provider::Keys(cipher, keys) => (*cipher, keys),
            Provider::Kms(kms) => {
                let prefix = kms.prefix();
                let stored = value.strip_prefix(prefix.as_bytes())?;
                return Some(
                    kms.decrypt(stored, path)
                        .await
                        .map(|(value, key_id)| Plain { value, mark: (prefix + &key_id).into_bytes().into() }),
                );
            }
        };
        if cipher == Cipher::Identity {
            let plain = || Ok(Plain { value: value.to_vec(), mark: Box::default() });
            return (!value.starts_with(ANY)).then(plain);
        }
        let rest = value.strip_prefix(cipher.prefix().as_bytes())?;
        let end = rest.iter().position(|byte| *byte == b':')?;
        let (name, sealed) = (&rest[..end], &rest[end + 1..]);
        let Some(key) = keys.iter().find(|key| key.name.as_bytes() == name) else {
            return Some(Err(TransformError::NoKey));
        };
        let opened = open(cipher, &key.secret, sealed, path);
        Some(opened.map(|plain| Plain { value: plain, mark: value[..value.len() - sealed.len()].into() }))
    }
}

/// Decrypts by whichever provider made the value.
pub async fn decrypt(providers: &[Provider], value: &[u8], path: &[u8]) -> Result<Plain, TransformError> {
    let mut error = TransformError::NoProvider;
    for provider in providers {
        match provider.decrypt(value, path).await {
            // Another provider of the same cipher may have the key.
            Some(Err(TransformError::NoKey)) => error = TransformError::NoKey,
            Some(result) => return result,
            None => {}
        }
    }
    Err(error)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

const LENGTH: TransformError = TransformError::Broken("the key has another length");
const CHANGED: TransformError = TransformError::Broken("message authentication failed");

/// Encrypts with one key.
pub(super) fn seal(
    cipher: Cipher,
    secret: &[u8],
    value: &[u8],
    path: &[u8],
) -> Result<Vec<u8>, TransformError> {
    let mut out;
    let sealed = match cipher {
        Cipher::AesGcm => {
            let nonce = random::<12>();
            out = nonce.to_vec();
            let (nonce, payload) = (Nonce::<U12>::from(nonce), Payload { msg: value, aad: path });
            match secret.len() {
                16 => AesGcm::<Aes128, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .encrypt(&nonce, payload),
                24 => AesGcm::<Aes192, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .encrypt(&nonce, payload),
                _ => AesGcm::<Aes256, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .encrypt(&nonce, payload),
            }
            .map_err(|_| CHANGED)?
        }
        Cipher::AesCbc => {
            let iv = random::<16>();
            out = iv.to_vec();
            match secret.len() {
                16 => cbc::Encryptor::<Aes128>::new_from_slices(secret, &iv)
                    .map_err(|_| LENGTH)?
                    .encrypt_padded_vec_mut::<Pkcs7>(value),
                24 => cbc::Encryptor::<Aes192>::new_from_slices(secret, &iv)
                    .map_err(|_| LENGTH)?
                    .encrypt_padded_vec_mut::<Pkcs7>(value),
                _ => cbc::Encryptor::<Aes256>::new_from_slices(secret, &iv)
                    .map_err(|_| LENGTH)?
                    .encrypt_padded_vec_mut::<Pkcs7>(value),
            }
        }
        Cipher::Secretbox => {
            let nonce = random::<24>();
            out = nonce.to_vec();
            XSalsa20Poly1305::new_from_slice(secret)
                .map_err(|_| LENGTH)?
                .encrypt(&nonce.into(), value)
                .map_err(|_| CHANGED)?
        }
        Cipher::Identity => return Ok(value.to_vec()),
    };
    out.extend(sealed);
    Ok(out)
}

/// Decrypts with one key.
pub(super) fn open(
    cipher: Cipher,
    secret: &[u8],
    sealed: &[u8],
    path: &[u8],
) -> Result<Vec<u8>, TransformError> {
    let short = TransformError::Broken("the stored data was shorter than the required size");
    match cipher {
        Cipher::AesGcm => {
            let (nonce, body) = sealed.split_first_chunk::<12>().ok_or(short)?;
            let (nonce, payload) = (Nonce::<U12>::from(*nonce), Payload { msg: body, aad: path });
            match secret.len() {
                16 => AesGcm::<Aes128, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .decrypt(&nonce, payload),
                24 => AesGcm::<Aes192, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .decrypt(&nonce, payload),
                _ => AesGcm::<Aes256, U12>::new_from_slice(secret)
                    .map_err(|_| LENGTH)?
                    .decrypt(&nonce, payload),
            }
            .map_err(|_| CHANGED)
        }
        Cipher::AesCbc => {
            let (iv, body) = sealed.split_first_chunk::<16>().ok_or(short)?;
            match secret.len() {
                16 => cbc::Decryptor::<Aes128>::new_from_slices(secret, iv)
                    .map_err(|_| LENGTH)?
                    .decrypt_padded_vec_mut::<Pkcs7>(body),
                24 => cbc::Decryptor::<Aes192>::new_from_slices(secret, iv)
                    .map_err(|_| LENGTH)?
                    .decrypt_padded_vec_mut::<Pkcs7>(body),
                _ => cbc::Decryptor::<Aes256>::new_from_slices(secret, iv)
                    .map_err(|_| LENGTH)?
                    .decrypt_padded_vec_mut::<Pkcs7>(body),
            }
            .map_err(|_| TransformError::Broken("invalid padding on input"))
        }
        Cipher::Secretbox => {
            let (nonce, body) = sealed.split_first_chunk::<24>().ok_or(short)?;
            XSalsa20Poly1305::new_from_slice(secret)
                .map_err(|_| LENGTH)?
                .decrypt(&(*nonce).into(), body)
                .map_err(|_| CHANGED)
        }
        Cipher::Identity => Ok(sealed.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn provider(cipher: Cipher, keys: &[(&str, usize)]) -> Provider {
        let key = |(name, length): &(&str, usize)| Key {
            name: name.to_string(),
            secret: name.bytes().cycle().take(*length).collect(),
        };
        Provider::new(cipher, keys.iter().map(key).collect())
    }

    #[tokio::test]
    async fn there_and_back() {
        for (cipher, sizes) in [
            (Cipher::AesGcm, &[16, 24, 32][..]),
            (Cipher::AesCbc, &[16, 24, 32][..]),
            (Cipher::Secretbox, &[32][..]),
            (Cipher::Identity, &[0][..]),
        ] {
            for size in sizes {
                let keys = [("one", *size)];
                let keys = if cipher == Cipher::Identity { &keys[..0] } else { &keys[..] };
                let providers = [provider(cipher, keys)];
                let stored = providers[0].encrypt(b"a value", b"/registry/secrets/a/b").unwrap();
                assert!(stored.starts_with(&providers[0].write_mark()), "{cipher:?}");
                let plain = decrypt(&providers, &stored, b"/registry/secrets/a/b").await.unwrap();
                assert_eq!(plain.mark.as_ref(), providers[0].write_mark());
                assert_eq!(plain.value, b"a value");
            }
        }
    }

    #[tokio::test]
    async fn keys_rotate() {
        let old = [provider(Cipher::AesGcm, &[("old", 32)])];
        let stored = old[0].encrypt(b"v", b"k").unwrap();
        let both = [provider(Cipher::AesGcm, &[("new", 32), ("old", 32)]), Provider::identity()];
        assert_eq!(decrypt(&both, &stored, b"k").await.unwrap().value, b"v");
        assert_eq!(decrypt(&both, b"{\"kind\":1}", b"k").await.unwrap().value, b"{\"kind\":1}");
        let new = [provider(Cipher::AesGcm, &[("new", 32)])];
        assert_eq!(decrypt(&new, &stored, b"k").await, Err(TransformError::NoKey));
        assert_eq!(decrypt(&new, b"{}", b"k").await, Err(TransformError::NoProvider));
        // A value under another key of the store is not taken for its own.
        assert_eq!(decrypt(&old, &stored, b"other").await, Err(CHANGED));
    }

    #[test]
    fn the_authenticator_of_a_secretbox_comes_first() {
        // The vector of NaCl's own tests.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let secret = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let boxed = hex(concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5"
        ));
        let sealed = [nonce, boxed].concat();
        let message = open(Cipher::Secretbox, &secret, &sealed, b"").unwrap();
        assert!(message.starts_with(&hex("be075fc53c81f2d5cf141316ebeb0c7b")));
    }
}
