//! Service account tokens: JWTs bound to an account and optionally to a pod, secret or node (KEP-1205), which are
//! worth something only as long as what they are bound to exists.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::UserInfo;
use crate::cache::Cache;
use crate::pki::{Leaf, PkiError};

/// Why a token is refused. The client is told only `Unauthorized`; `TokenReview` shows the text.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not a token of this issuer, or its signature or times are wrong.
    #[error("invalid bearer token")]
    Invalid,
    /// It is meant for others.
    #[error("token audiences {0} is invalid for the target audiences {1}")]
    Audience(String, String),
    /// What it is bound to is gone.
    #[error("{0}")]
    Gone(String),
}

/// A named object with the uid it had when the token was issued.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct BoundObject {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<BoundObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<BoundObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<BoundObject>,
    serviceaccount: BoundObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
    nbf: i64,
    sub: String,
}

/// What a new token says.
#[derive(Clone, Debug)]
pub struct TokenSpec {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub account: BoundObject,
    /// Audiences.
    pub audiences: Vec<String>,
    /// Life time in seconds.
    pub seconds: i64,
    /// After how many seconds its use should be warned about.
    pub warn_after: Option<i64>,
    /// The pod it is bound to.
    pub pod: Option<BoundObject>,
    /// The secret it is bound to.
    pub secret: Option<BoundObject>,
    /// The node it is bound to (or that its pod runs on).
    pub node: Option<BoundObject>,
}

/// The caches that say whether what a token is bound to still exists.
pub struct Bindings {
    /// Service accounts.
    pub accounts: Option<Arc<Cache>>,
    /// Pods.
    pub pods: Option<Arc<Cache>>,
    /// Secrets.
    pub secrets: Option<Arc<Cache>>,
    /// Nodes.
    pub nodes: Option<Arc<Cache>>,
}

/// Issues and checks service account tokens.
pub struct ServiceAccountTokens {
    issuer: String,
    algorithm: Algorithm,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    public_jwk: Value,
    bindings: Bindings,
    /// Signatures already checked, by token: checking one costs more than the rest of a small request.
    verified: Mutex<HashMap<String, Arc<Claims>>>,
}

/// Signatures remembered before the memory is emptied.
const VERIFIED: usize = 8192;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// URL-safe base64 without padding.
fn b64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

impl ServiceAccountTokens {
    /// `key` holds the public key's PEM as `cert_pem` and the private key's (RSA, or EC P-256 in PKCS#8) as `key_pem`.
    pub fn new(issuer: &str, key: &Leaf, bindings: Bindings) -> Result<ServiceAccountTokens, PkiError> {
        let bad = |error: jsonwebtoken::errors::Error| PkiError::Pem(format!("service account key: {error}"));
        let private = key.key_pem.as_bytes();
        let (algorithm, signing) = match EncodingKey::from_ec_pem(private) {
            Ok(signing) => (Algorithm::ES256, signing),
            Err(_) => (Algorithm::RS256, EncodingKey::from_rsa_pem(private).map_err(bad)?),
        };
        let public = key.cert_pem.as_bytes();
        let verifying = match algorithm {
            Algorithm::ES256 => DecodingKey::from_ec_pem(public),
            _ => DecodingKey::from_rsa_pem(public),
        }
        .map_err(bad)?;
        let der = {
            use rustls_pki_types::pem::PemObject as _;
            rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(public)
                .map_err(|error| PkiError::Pem(format!("service account public key: {error}")))?
        };
        use sha2::Digest as _;
        let key_id = b64url(&sha2::Sha256::digest(der.as_ref()));
        let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&signing, algorithm)
            .ok()
            .and_then(|jwk| serde_json::to_value(jwk).ok())
            .unwrap_or_else(|| json!({}));
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(key_id);
        Ok(ServiceAccountTokens {
            issuer: issuer.to_string(),
            algorithm,
            key_id,
            signing,
            verifying,
            public_jwk: jwk,
            bindings,
            verified: Mutex::default(),
        })
    }

    /// The JSON Web Key Set by which others can check tokens (`/openid/v1/jwks`).
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.public_jwk] })
    }

    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [format!("{:?}", self.algorithm)],
        })
    }

    /// Signs a token; also the second at which it expires.
    pub fn issue(&self, spec: &TokenSpec) -> Result<(String, i64), TokenError> {
        let iat = now();
        let claims = Claims {
            aud: spec.audiences.clone(),
            exp: iat + spec.seconds,
            iat,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.account.name),
            nbf: iat,
            kubernetes: Private {
                namespace: spec.namespace.clone(),
                node: spec.node.clone(),
                pod: spec.pod.clone(),
                secret: spec.secret.clone(),
                serviceaccount: spec.account.clone(),
                warnafter: spec.warn_after.map(|after| iat + after),
            },
        };
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|_| TokenError::Invalid)?;
        Ok((token, claims.exp))
    }

    fn verify(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        if let Some(claims) = self.verified.lock().get(token) {
            return Ok(claims.clone());
        }
        let mut validation = Validation::new(self.algorithm);
        // Times and audiences are checked on each use, by the caller.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        let claims = Arc::new(claims);
        let mut verified = self.verified.lock();
        if verified.len() >= VERIFIED {
            verified.clear();
        }
        verified.insert(token.to_string(), claims.clone());
        Ok(claims)
    }

    /// Checks a token; the user, and those of `audiences` the token is meant for.
    pub fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        let claims = self.verify(token)?;
        let now = now();
        // Upstream allows a minute of clock difference.
        if claims.iss != self.issuer || claims.exp + 60 < now || claims.nbf - 60 > now {
            return Err(TokenError::Invalid);
        }
        let meant: Vec<String> = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if meant.is_empty() {
            return Err(TokenError::Audience(format!("{:?}", claims.aud), format!("{audiences:?}")));
        }
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        let gone = |what: &str, object: &BoundObject| {
            TokenError::Gone(format!("{what} {}/{} has been deleted", namespace, object.name))
        };
        let account_ok = alive(&self.bindings.accounts, Some(namespace), &bound.serviceaccount, now);
        if !account_ok {
            return Err(gone("service account", &bound.serviceaccount));
        }
        for (what, cache, scope, object) in [
            ("pod", &self.bindings.pods, Some(namespace), &bound.pod),
            ("secret", &self.bindings.secrets, Some(namespace), &bound.secret),
        ] {
            if let Some(object) = object
                && !alive(cache, scope, object, now)
            {
                return Err(gone(what, object));
            }
        }
        // A node is checked only when the token is bound to it alone; a pod's token ends with the pod.
        if let (Some(node), None) = (&bound.node, &bound.pod)
            && !alive(&self.bindings.nodes, None, node, now)
        {
            return Err(gone("node", node));
        }
        let mut user = UserInfo::service_account(namespace, &bound.serviceaccount.name);
        user.uid = bound.serviceaccount.uid.clone();
        let mut put = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        put("credential-id", format!("JTI={}", claims.jti));
        if let Some(pod) = &bound.pod {
            put("pod-name", pod.name.clone());
            put("pod-uid", pod.uid.clone());
        }
        if let Some(node) = &bound.node {
            put("node-name", node.name.clone());
            put("node-uid", node.uid.clone());
        }
        Ok((user, meant))
    }
}

/// Whether the object still exists with this uid and is not long past its deletion time.
fn alive(cache: &Option<Arc<Cache>>, namespace: Option<&str>, object: &BoundObject, now: i64) -> bool {
    let Some(cache) = cache else { return false };
    let key = match namespace {
        Some(namespace) => format!("{namespace}/{}", object.name),
        None => object.name.clone(),
    };
    let Some(entry) = cache.get(&key) else { return false };
    let value = entry.value();
    if value.pointer("/metadata/uid").and_then(Value::as_str) != Some(object.uid.as_str()) {
        return false;
    }
    // Upstream lets a token live a minute into its object's deletion.
    value
        .pointer("/metadata/deletionTimestamp")
        .and_then(Value::as_str)
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .is_none_or(|deleted| now < deleted.as_second() + 60)
}
