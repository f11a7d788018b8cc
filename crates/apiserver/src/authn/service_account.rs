//! Service account tokens: JWTs bound to an account and optionally to a pod, secret or node (KEP-1205), which are
//! worth something only as long as what they are bound to exists; and the older ones that live in Secrets.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use jsonwebtoken::{Algorithm, Header, Validation};
use orlop_json::{Value, json};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::UserInfo;
use super::keys::{SigningKey, VerifyingKey};
use super::legacy_use;
use crate::cache::Cache;
use crate::pki::{Leaf, PkiError};

/// Why a token is refused. The client is told only `Unauthorized`; `TokenReview` shows the text.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not a token of this authenticator.
    #[error("invalid bearer token")]
    Invalid,
    /// It is meant for others.
    #[error("token audiences {0} is invalid for the target audiences {1}")]
    Audience(String, String),
    /// Its times, its claims, or what it is bound to.
    #[error("{0}")]
    Refused(String),
}

impl TokenError {
    fn refused(text: impl Into<String>) -> TokenError {
        TokenError::Refused(text.into())
    }
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
    #[serde(default)]
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

/// How tokens are issued and checked.
pub struct Settings<'a> {
    /// Who issues.
    pub issuer: &'a str,
    /// Others whose tokens are accepted.
    pub further_issuers: &'a [String],
    /// Private key in `key_pem`; `cert_pem` may hold further public keys.
    pub signing: &'a Leaf,
    /// PEM texts of further keys.
    pub keys: &'a [String],
    /// Audiences of tokens that name none.
    pub api_audiences: &'a [String],
    /// Whether what a token is bound to must exist.
    pub lookup: bool,
}

/// Issues and checks service account tokens.
pub struct ServiceAccountTokens {
    issuers: Vec<String>,
    signing: SigningKey,
    keys: Vec<VerifyingKey>,
    api_audiences: Vec<String>,
    lookup: bool,
    bindings: Bindings,
    /// Signatures already checked, by token: checking one costs more than the rest of a small request.
    verified: Mutex<HashMap<String, Arc<Checked>>>,
    /// Secrets whose tokens were used.
    pub(crate) used: Arc<legacy_use::Used>,
}

/// A token whose signature is good.
enum Checked {
    Bound(Box<Claims>),
    Legacy(LegacyClaims),
}

/// Claims of a token that lives in a Secret.
#[derive(Clone, Debug, Deserialize)]
struct LegacyClaims {
    #[serde(rename = "kubernetes.io/serviceaccount/namespace", default)]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name", default)]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name", default)]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid", default)]
    uid: String,
    #[serde(default)]
    sub: String,
}

/// Issuer of the tokens in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Seconds a token outlives what it is bound to, and clocks may differ.
const LEEWAY: i64 = 60;

/// Signatures remembered before the memory is emptied.
const VERIFIED: usize = 8192;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A part of a token, before anything about it is known to be true.
fn unverified(part: &str) -> Option<Value> {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok()?;
    orlop_json::from_slice(&bytes).ok()
}

/// Header and claims of a token, unverified.
pub(super) fn peek(token: &str) -> Option<(Value, Value)> {
    let mut parts = token.split('.');
    let (header, claims) = (unverified(parts.next()?)?, unverified(parts.next()?)?);
    (parts.next().is_some() && parts.next().is_none()).then_some((header, claims))
}

impl ServiceAccountTokens {
    /// Reads the keys.
    pub fn new(settings: &Settings<'_>, bindings: Bindings) -> Result<ServiceAccountTokens, PkiError> {
        let signing = SigningKey::of_pem(&settings.signing.key_pem)?;
        let mut keys = VerifyingKey::of_pem(&settings.signing.key_pem)?;
        let extra = Some(&settings.signing.cert_pem).filter(|pem| !pem.is_empty());
        for pem in extra.into_iter().chain(settings.keys) {
            keys.extend(VerifyingKey::of_pem(pem)?);
        }
        let mut seen = std::collections::HashSet::new();
        keys.retain(|key| seen.insert(key.id.clone()));
        let mut issuers = vec![settings.issuer.to_string()];
        issuers.extend(settings.further_issuers.iter().cloned());
        Ok(ServiceAccountTokens {
            issuers,
            signing,
            keys,
            api_audiences: settings.api_audiences.to_vec(),
            lookup: settings.lookup,
            bindings,
            verified: Mutex::default(),
            used: Arc::default(),
        })
    }

    /// The JSON Web Key Set by which others can check tokens (`/openid/v1/jwks`).
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys.iter().map(|key| &key.jwk).collect::<Vec<_>>() })
    }

    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        let mut algorithms: Vec<String> =
            self.keys.iter().map(|key| format!("{:?}", key.algorithm)).collect();
        algorithms.sort();
        algorithms.dedup();
        json!({
            "issuer": self.issuers[0],
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// Signs a token; also the second at which it expires, and its id.
    pub fn issue(&self, spec: &TokenSpec) -> Result<(String, i64, String), TokenError> {
        let iat = now();
        let claims = Claims {
            aud: spec.audiences.clone(),
            exp: iat + spec.seconds,
            iat,
            iss: self.issuers[0].clone(),
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
        let mut header = Header::new(self.signing.public.algorithm);
        header.kid = Some(self.signing.public.id.clone());
        header.typ = None;
        let token =
            jsonwebtoken::encode(&header, &claims, &self.signing.key).map_err(|_| TokenError::Invalid)?;
        Ok((token, claims.exp, claims.jti))
    }

    /// Signs a token that lives in a Secret, for as long as that Secret holds it.
    pub fn issue_legacy(
        &self,
        namespace: &str,
        account: &BoundObject,
        secret: &str,
    ) -> Result<String, TokenError> {
        sign_legacy(&self.signing, namespace, (&account.name, &account.uid), secret)
    }

    /// Whether a token claims to be of a service account; nothing is checked.
    pub fn is_ours(&self, token: &str) -> bool {
        peek(token).is_some_and(|(_, claims)| {
            claims["iss"]
                .as_str()
                .is_some_and(|iss| iss == LEGACY_ISSUER || self.issuers.iter().any(|i| i == iss))
        })
    }

    fn verify(&self, token: &str) -> Result<Arc<Checked>, TokenError> {
        if let Some(checked) = self.verified.lock().get(token) {
            return Ok(checked.clone());
        }
        let (header, claims) = peek(token).ok_or(TokenError::Invalid)?;
        let issuer = claims["iss"].as_str().unwrap_or("");
        let legacy = issuer == LEGACY_ISSUER;
        if !legacy && !self.issuers.iter().any(|known| known == issuer) {
            return Err(TokenError::Invalid);
        }
        let kid = header["kid"].as_str().unwrap_or("");
        // A key id that is known names the key; without one every key is tried.
        let named = self.keys.iter().any(|key| key.id == kid);
        let mut error = TokenError::Invalid;
        for key in self.keys.iter().filter(|key| !named || key.id == kid) {
            match decode(token, key, legacy) {
                Ok(checked) => {
                    let checked = Arc::new(checked);
                    let mut verified = self.verified.lock();
                    if verified.len() >= VERIFIED {
                        verified.clear();
                    }
                    verified.insert(token.to_string(), checked.clone());
                    return Ok(checked);
                }
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    /// Checks a token; the user, and those of `audiences` the token is meant for.
    pub fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        let checked = self.verify(token)?;
        let meant = |own: &[String]| -> Result<Vec<String>, TokenError> {
            let meant: Vec<String> = audiences.iter().filter(|a| own.contains(a)).cloned().collect();
            if meant.is_empty() {
                return Err(TokenError::Audience(go_list(own), go_list(audiences)));
            }
            Ok(meant)
        };
        match checked.as_ref() {
            Checked::Bound(claims) => {
                let meant = meant(&claims.aud)?;
                Ok((self.bound_user(claims)?, meant))
            }
            Checked::Legacy(claims) => {
                let meant = meant(&self.api_audiences)?;
                Ok((self.legacy_user(token, claims)?, meant))
            }
        }
    }

    fn bound_user(&self, claims: &Claims) -> Result<UserInfo, TokenError> {
        let now = now();
        if claims.exp + LEEWAY < now {
            return Err(TokenError::refused("service account token has expired"));
        }
        if claims.nbf - LEEWAY > now {
            return Err(TokenError::refused("service account token is not valid yet"));
        }
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        if self.lookup {
            self.account(namespace, &bound.serviceaccount.name, &bound.serviceaccount.uid)?;
            // A node is checked only when the token is bound to it alone; a pod's token ends with the pod.
            let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
            for (what, cache, scope, object) in [
                ("secret", &self.bindings.secrets, Some(namespace), bound.secret.as_ref()),
                ("pod", &self.bindings.pods, Some(namespace), bound.pod.as_ref()),
                ("node", &self.bindings.nodes, None, node),
            ] {
                let Some(object) = object else { continue };
                let Some(found) = live(cache, scope, &object.name, now) else {
                    return Err(TokenError::refused("service account token has been invalidated"));
                };
                let uid = uid(&found);
                if uid != object.uid {
                    return Err(TokenError::refused(format!(
                        "{what} UID ({uid}) does not match service account {what} ref claim ({})",
                        object.uid
                    )));
                }
            }
        }
        let mut user = UserInfo::service_account(namespace, &bound.serviceaccount.name);
        user.uid = bound.serviceaccount.uid.clone();
        let mut put = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if !claims.jti.is_empty() {
            put("credential-id", format!("JTI={}", claims.jti));
        }
        if let Some(pod) = &bound.pod {
            put("pod-name", pod.name.clone());
            put("pod-uid", pod.uid.clone());
        }
        if let Some(node) = &bound.node {
            put("node-name", node.name.clone());
            put("node-uid", node.uid.clone());
        }
        Ok(user)
    }

    /// The account a token speaks for, if it is the one that got it.
    fn account(&self, namespace: &str, name: &str, claimed: &str) -> Result<(), TokenError> {
        let Some(account) = live(&self.bindings.accounts, Some(namespace), name, now()) else {
            return Err(TokenError::refused(format!("serviceaccounts \"{name}\" not found")));
        };
        let uid = uid(&account);
        if uid != claimed {
            return Err(TokenError::refused(format!(
                "service account UID ({uid}) does not match claim ({claimed})"
            )));
        }
        Ok(())
    }

    /// A token in a Secret is good as long as the Secret holds it.
    fn legacy_user(&self, token: &str, claims: &LegacyClaims) -> Result<UserInfo, TokenError> {
        for (value, what) in [
            (&claims.sub, "sub claim is missing"),
            (&claims.namespace, "namespace is missing"),
            (&claims.secret, "secretName is missing"),
            (&claims.account, "serviceAccountName is missing"),
            (&claims.uid, "serviceAccountUID is missing"),
        ] {
            if value.is_empty() {
                return Err(TokenError::refused(what));
            }
        }
        if claims.sub != format!("system:serviceaccount:{}:{}", claims.namespace, claims.account) {
            return Err(TokenError::refused("token subject does not match expected username"));
        }
        if self.lookup {
            let secret = live(&self.bindings.secrets, Some(&claims.namespace), &claims.secret, now());
            let held =
                secret.as_ref().and_then(|secret| secret.pointer("/data/token")).and_then(Value::as_str);
            let held = held.and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
            match (secret.is_some(), held) {
                (false, _) => return Err(TokenError::refused("service account token has been invalidated")),
                (true, held) if held.as_deref() != Some(token.as_bytes()) => {
                    return Err(TokenError::refused("token does not match server's copy"));
                }
                _ => {}
            }
            self.account(&claims.namespace, &claims.account, &claims.uid)?;
            let secret = secret.unwrap_or_default();
            self.used.note(&claims.namespace, &claims.secret, &secret);
            if legacy_use::is_invalid(&secret) {
                return Err(TokenError::Refused(legacy_use::invalid(
                    &claims.namespace,
                    &claims.secret,
                    &claims.account,
                )));
            }
        }
        let mut user = UserInfo::service_account(&claims.namespace, &claims.account);
        user.uid = claims.uid.clone();
        Ok(user)
    }

    /// What is said about a bound token that is used after the time its account was told to ask for a new one.
    pub fn staleness(&self, token: &str) -> Option<String> {
        let verified = self.verified.lock();
        let Checked::Bound(claims) = verified.get(token)?.as_ref() else { return None };
        let late = now() - claims.kubernetes.warnafter?;
        (late > 0).then(|| format!("subject: {}, seconds after warning threshold: {late}", claims.sub))
    }
}

fn decode(token: &str, key: &VerifyingKey, legacy: bool) -> Result<Checked, TokenError> {
    let mut validation = Validation::new(key.algorithm);
    if key.algorithm == Algorithm::RS256 {
        validation.algorithms = vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];
    }
    // Times and audiences are checked on each use.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let refused = |_| TokenError::Invalid;
    if legacy {
        let data = jsonwebtoken::decode::<LegacyClaims>(token, &key.key, &validation).map_err(refused)?;
        Ok(Checked::Legacy(data.claims))
    } else {
        let data = jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(refused)?;
        Ok(Checked::Bound(Box::new(data.claims)))
    }
}

/// A list as Go prints it with `%q`.
fn go_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| orlop_api::field::go_quote(item)).collect();
    format!("[{}]", quoted.join(" "))
}

fn uid(object: &Value) -> String {
    object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or("").to_string()
}

/// The object, unless it is gone or long past its deletion time.
fn live(cache: &Option<Arc<Cache>>, namespace: Option<&str>, name: &str, now: i64) -> Option<Value> {
    let key = match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_string(),
    };
    let value = cache.as_ref()?.get(&key)?.value();
    // Upstream lets a token live a minute into its object's deletion.
    let alive = value
        .pointer("/metadata/deletionTimestamp")
        .and_then(Value::as_str)
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .is_none_or(|deleted| now < deleted.as_second() + LEEWAY);
    alive.then_some(value)
}

/// Signs the tokens of Secrets without knowing any other token: what a controller manager in another process does.
pub struct SecretTokens(SigningKey);

impl SecretTokens {
    /// With the PEM text of the key (`--service-account-private-key-file`).
    pub fn new(key_pem: &str) -> Result<SecretTokens, PkiError> {
        SigningKey::of_pem(key_pem).map(SecretTokens)
    }

    /// The token of an account (name and uid) that is to be kept in a Secret.
    pub fn issue(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, TokenError> {
        sign_legacy(&self.0, namespace, account, secret)
    }
}

fn sign_legacy(
    key: &SigningKey,
    namespace: &str,
    (account, uid): (&str, &str),
    secret: &str,
) -> Result<String, TokenError> {
    let claims = json!({
        "iss": LEGACY_ISSUER,
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": secret,
        "kubernetes.io/serviceaccount/service-account.name": account,
        "kubernetes.io/serviceaccount/service-account.uid": uid,
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
    });
    let mut header = Header::new(key.public.algorithm);
    header.kid = Some(key.public.id.clone());
    header.typ = None;
    jsonwebtoken::encode(&header, &claims, &key.key).map_err(|_| TokenError::Invalid)
}
