//! Public keys of service account tokens: read from any PEM upstream reads, and shown as JSON Web Keys.

use base64::Engine as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use orlop_json::{Value, json};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::pki::PkiError;

/// A key that signatures are checked with.
pub struct VerifyingKey {
    /// Upstream's key id: the hash of the key's SubjectPublicKeyInfo.
    pub id: String,
    /// The only algorithm that is accepted with it.
    pub algorithm: Algorithm,
    /// For checking.
    pub key: DecodingKey,
    /// The JSON Web Key.
    pub jwk: Value,
}

/// URL-safe base64 without padding.
pub fn b64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn bad(error: impl std::fmt::Display) -> PkiError {
    PkiError::Pem(format!("service account key: {error}"))
}

impl VerifyingKey {
    /// From a DER SubjectPublicKeyInfo: RSA, or EC on P-256 or P-384.
    pub fn of_spki(der: &[u8]) -> Result<VerifyingKey, PkiError> {
        use sha2::Digest as _;
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(bad)?;
        let id = b64url(&sha2::Sha256::digest(der));
        let (algorithm, key, mut jwk) = match info.parsed().map_err(bad)? {
            Parsed::RSA(rsa) => {
                let strip = |bytes: &[u8]| -> Vec<u8> {
                    bytes[bytes.iter().take_while(|b| **b == 0).count()..].to_vec()
                };
                let (n, e) = (b64url(&strip(rsa.modulus)), b64url(&strip(rsa.exponent)));
                let key = DecodingKey::from_rsa_components(&n, &e).map_err(bad)?;
                (Algorithm::RS256, key, json!({"kty": "RSA", "n": n, "e": e}))
            }
            Parsed::EC(point) => {
                let (curve, algorithm) = match point.key_size() {
                    256 => ("P-256", Algorithm::ES256),
                    384 => ("P-384", Algorithm::ES384),
                    size => {
                        return Err(bad(format!("a curve of {size} bits is not built, use P-256 or P-384")));
                    }
                };
                let coordinates = point.data().get(1..).unwrap_or_default();
                let (x, y) = coordinates.split_at(coordinates.len() / 2);
                let (x, y) = (b64url(x), b64url(y));
                let key = DecodingKey::from_ec_components(&x, &y).map_err(bad)?;
                (algorithm, key, json!({"kty": "EC", "crv": curve, "x": x, "y": y}))
            }
            _ => return Err(bad("neither an RSA nor an EC key")),
        };
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(id);
        jwk["alg"] = json!(format!("{algorithm:?}"));
        Ok(VerifyingKey { id, algorithm, key, jwk })
    }

    /// Every key of a PEM text: public keys, certificates, and the public halves of private keys.
    pub fn of_pem(pem: &str) -> Result<Vec<VerifyingKey>, PkiError> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
            let (kind, der) = section.map_err(bad)?;
            match kind {
                SectionKind::PublicKey => keys.push(VerifyingKey::of_spki(&der)?),
                SectionKind::Certificate => {
                    let (_, certificate) =
                        x509_parser::certificate::X509Certificate::from_der(&der).map_err(bad)?;
                    keys.push(VerifyingKey::of_spki(certificate.public_key().raw)?);
                }
                SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
                    keys.push(SigningKey::of_pem(pem)?.public);
                }
                _ => {}
            }
        }
        // PKCS#1 public keys have a label of their own that the PEM reader does not know.
        for der in pkcs1_public(pem) {
            keys.push(VerifyingKey::of_spki(&rsa_spki(&der))?);
        }
        if keys.is_empty() {
            return Err(bad("data does not contain any valid RSA or ECDSA public keys"));
        }
        Ok(keys)
    }
}

/// The key that tokens are signed with.
pub struct SigningKey {
    /// For signing.
    pub key: EncodingKey,
    /// Its public half.
    pub public: VerifyingKey,
}

impl SigningKey {
    /// From the PEM text of a private key: RSA (PKCS#1 or PKCS#8) or EC P-256 or P-384 (PKCS#8 or SEC1).
    pub fn of_pem(pem: &str) -> Result<SigningKey, PkiError> {
        let pkcs8 = ec_pkcs8(pem);
        let pem = pkcs8.as_deref().unwrap_or(pem);
        let candidates = [
            (Algorithm::ES256, EncodingKey::from_ec_pem(pem.as_bytes())),
            (Algorithm::ES384, EncodingKey::from_ec_pem(pem.as_bytes())),
            (Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes())),
        ];
        for (algorithm, key) in candidates {
            let Ok(key) = key else { continue };
            let Ok(jwk) = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, algorithm) else { continue };
            let jwk = orlop_json::to_value(jwk).map_err(bad)?;
            if let Some(spki) = spki_of_jwk(&jwk) {
                let public = VerifyingKey::of_spki(&spki)?;
                if public.algorithm == algorithm {
                    return Ok(SigningKey { key, public });
                }
            }
        }
        Err(bad("data does not contain a valid RSA or ECDSA private key"))
    }
}

/// Contents of the blocks with this label.
fn blocks(pem: &str, label: &str) -> Vec<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    pem.split(&begin)
        .skip(1)
        .filter_map(|rest| {
            let text: String = rest.split(&end).next()?.chars().filter(|c| !c.is_whitespace()).collect();
            base64::engine::general_purpose::STANDARD.decode(text).ok()
        })
        .collect()
}

fn pkcs1_public(pem: &str) -> Vec<Vec<u8>> {
    blocks(pem, "RSA PUBLIC KEY")
}

/// A SEC1 private key (`EC PRIVATE KEY`) in the PKCS#8 form.
fn ec_pkcs8(pem: &str) -> Option<String> {
    let sec1 = blocks(pem, "EC PRIVATE KEY").into_iter().next()?;
    // The curve is named inside, by its object identifier.
    let curve = [P256, P384].into_iter().find(|oid| sec1.windows(oid.len()).any(|window| window == *oid))?;
    let algorithm = der(0x30, &[EC_PUBLIC_KEY, curve].concat());
    let whole = der(0x30, &[&[0x02, 0x01, 0x00][..], &algorithm, &der(0x04, &sec1)].concat());
    let text = base64::engine::general_purpose::STANDARD.encode(whole);
    Some(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
}

/// Object identifiers, encoded.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA_ENCRYPTION: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// One DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
            out.push(0x80 | bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend_from_slice(key);
    der(0x30, &[der(0x30, algorithm), der(0x03, &bits)].concat())
}

fn rsa_spki(pkcs1: &[u8]) -> Vec<u8> {
    spki(RSA_ENCRYPTION, pkcs1)
}

/// The SubjectPublicKeyInfo of a JSON Web Key.
pub fn spki_of_jwk(jwk: &Value) -> Option<Vec<u8>> {
    let part = |name: &str| -> Option<Vec<u8>> {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(jwk[name].as_str()?.trim_end_matches('='))
            .ok()
    };
    match jwk["kty"].as_str()? {
        "RSA" => {
            let integer = |name: &str| -> Option<Vec<u8>> {
                let mut bytes = part(name)?;
                // A leading zero keeps the number positive.
                if bytes.first().is_some_and(|first| first & 0x80 != 0) {
                    bytes.insert(0, 0);
                }
                Some(der(0x02, &bytes))
            };
            Some(rsa_spki(&der(0x30, &[integer("n")?, integer("e")?].concat())))
        }
        "EC" => {
            let (curve, length) = match jwk["crv"].as_str()? {
                "P-256" => (P256, 32),
                "P-384" => (P384, 48),
                _ => return None,
            };
            let padded = |name: &str| -> Option<Vec<u8>> {
                let bytes = part(name)?;
                let missing = usize::checked_sub(length, bytes.len())?;
                Some([vec![0; missing], bytes].concat())
            };
            let point = [vec![0x04], padded("x")?, padded("y")?].concat();
            Some(spki(&[EC_PUBLIC_KEY, curve].concat(), &point))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_private_key_has_the_public_key_beside_it() {
        let leaf = crate::pki::generate_signing_key().unwrap();
        let signing = SigningKey::of_pem(&leaf.key_pem).unwrap();
        let public = VerifyingKey::of_pem(&leaf.cert_pem).unwrap();
        assert_eq!(signing.public.id, public[0].id);
        assert_eq!(signing.public.jwk, public[0].jwk);
        assert_eq!(VerifyingKey::of_pem(&leaf.key_pem).unwrap()[0].id, public[0].id);
        assert!(VerifyingKey::of_pem("nonsense").is_err());
        assert!(SigningKey::of_pem(&leaf.cert_pem).is_err());
    }

    #[test]
    fn certificates_hold_keys() {
        let ca = crate::pki::CertificateAuthority::generate("ca").unwrap();
        assert_eq!(VerifyingKey::of_pem(ca.cert_pem()).unwrap()[0].algorithm, Algorithm::ES256);
    }
}
