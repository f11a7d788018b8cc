//! Users of other issuers (OpenID Connect): their tokens, checked with the keys they publish.
//!
//! Discovery and keys are fetched when they are first needed and again when a token names a key that is not known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use orlop_api::field::Path;
use orlop_json::{Map, Value};
use parking_lot::Mutex;

use super::config::{JwtConfig, Mapping};
use super::expressions::Expressions;
use super::service_account::peek;
use super::{TokenError, UserInfo};
use crate::outbound::{HttpClient, Trust};

/// How long a fetch from the issuer may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between fetches that brought nothing new: tokens with made-up key ids must not become requests.
const FETCH_PAUSE: Duration = Duration::from_secs(10);
/// Differences between clocks, seconds, for the time a token is valid from.
const NOT_BEFORE_LEEWAY: i64 = 300;
/// Key sets larger than this are cut.
const MAX_KEYS: usize = 256;

/// Algorithms that are accepted when nothing else is said.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// One issuer.
pub struct JwtIssuer {
    config: JwtConfig,
    algorithms: Vec<Algorithm>,
    client: HttpClient,
    expressions: Expressions,
    keys: Mutex<Arc<Keys>>,
    /// Fetches go one after the other.
    fetching: tokio::sync::Mutex<()>,
}

/// The issuer's keys as they were fetched last.
#[derive(Default)]
struct Keys {
    by_id: HashMap<String, DecodingKey>,
    tried: Option<Instant>,
    error: String,
}

fn refused(text: impl Into<String>) -> TokenError {
    TokenError::Refused(text.into())
}

impl JwtIssuer {
    /// Checks what can be checked without asking the issuer.
    pub fn new(config: JwtConfig, algorithms: &[String]) -> Result<JwtIssuer, String> {
        let ca = config.issuer.certificate_authority.as_str();
        let trust = if ca.is_empty() { Trust::System } else { Trust::Ca(ca) };
        let client = HttpClient::new(&trust, None, None).map_err(|error| error.to_string())?;
        let algorithms = match algorithms {
            [] => ALGORITHMS.to_vec(),
            named => named
                .iter()
                .map(|name| {
                    let known = ALGORITHMS.into_iter().find(|algorithm| format!("{algorithm:?}") == *name);
                    known.ok_or_else(|| format!("oidc: unsupported signing alg: {name:?}"))
                })
                .collect::<Result<_, _>>()?,
        };
        // Whoever wrote the configuration was told already; none must be left out silently.
        let mut errors = Vec::new();
        let expressions = Expressions::compile(&config, &Path::root(), &mut errors);
        if !errors.is_empty() {
            return Err(orlop_api::status::aggregate(errors.iter().map(ToString::to_string)));
        }
        Ok(JwtIssuer {
            config,
            algorithms,
            client,
            expressions,
            keys: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// Whether a token claims to be of this issuer.
    pub fn issued(&self, claims: &Value) -> bool {
        claims["iss"] == self.config.issuer.url.as_str()
    }

    /// The user of a token of this issuer.
    pub async fn authenticate(&self, token: &str) -> Result<UserInfo, TokenError> {
        let (header, _) = peek(token).ok_or(TokenError::Invalid)?;
        let algorithm = header["alg"].as_str().unwrap_or("");
        let Some(algorithm) = self.algorithms.iter().find(|known| format!("{known:?}") == algorithm) else {
            return Err(refused(format!(
                "oidc: verify token: oidc: malformed jwt: unexpected signature algorithm {algorithm:?}"
            )));
        };
        let claims = self.verify(token, *algorithm, header["kid"].as_str().unwrap_or("")).await?;
        self.times(&claims)?;
        self.audience(&claims)?;
        self.user(&claims)
    }

    async fn verify(&self, token: &str, algorithm: Algorithm, kid: &str) -> Result<Map, TokenError> {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let attempt = |keys: &Keys| {
            // A token without a key id is tried with every key.
            let candidates = keys.by_id.iter().filter(|(id, _)| kid.is_empty() || id.as_str() == kid);
            candidates.into_iter().find_map(|(_, key)| {
                jsonwebtoken::decode::<Map>(token, key, &validation).ok().map(|data| data.claims)
            })
        };
        let keys = self.keys.lock().clone();
        if let Some(claims) = attempt(&keys) {
            return Ok(claims);
        }
        if !keys.by_id.is_empty() && keys.by_id.contains_key(kid) {
            return Err(refused(
                "oidc: verify token: failed to verify signature: failed to verify id token signature",
            ));
        }
        let keys = self.fetch(keys.tried).await;
        if keys.by_id.is_empty() {
            tracing::warn!(
                issuer = self.config.issuer.url,
                error = keys.error,
                "the issuer's keys could not be read"
            );
            return Err(refused(format!(
                "oidc: authenticator for issuer {:?} is not initialized",
                self.config.issuer.url
            )));
        }
        attempt(&keys).ok_or_else(|| {
            refused("oidc: verify token: failed to verify signature: failed to verify id token signature")
        })
    }

    /// Fetches the keys, unless somebody else has since `seen` or it was tried just now.
    async fn fetch(&self, seen: Option<Instant>) -> Arc<Keys> {
        let _one = self.fetching.lock().await;
        let current = self.keys.lock().clone();
        let fresh = current.tried.is_some_and(|tried| tried.elapsed() < FETCH_PAUSE);
        if current.tried != seen || fresh {
            return current;
        }
        let keys = match self.key_set().await {
            Ok(by_id) => Keys { by_id, tried: Some(Instant::now()), error: String::new() },
            // The keys that were good remain so.
            Err(error) => Keys { by_id: current.by_id.clone(), tried: Some(Instant::now()), error },
        };
        let keys = Arc::new(keys);
        *self.keys.lock() = keys.clone();
        keys
    }

    async fn key_set(&self) -> Result<HashMap<String, DecodingKey>, String> {
        let issuer = &self.config.issuer;
        let discovery = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            url => url.to_string(),
        };
        let text = |error: crate::outbound::OutboundError| error.to_string();
        let (_, document) = self.client.get_json(&discovery, FETCH_TIMEOUT).await.map_err(text)?;
        if document["issuer"] != issuer.url.as_str() {
            return Err(format!(
                "oidc: issuer URL provided to client ({:?}) did not match the issuer URL returned by provider ({})",
                issuer.url, document["issuer"]
            ));
        }
        let uri = document["jwks_uri"].as_str().ok_or("the discovery document has no jwks_uri")?;
        if !uri.starts_with("https://") {
            return Err(format!("the jwks_uri {uri:?} must be https"));
        }
        let (_, set) = self.client.get_json(uri, FETCH_TIMEOUT).await.map_err(text)?;
        let keys = set["keys"].as_array().ok_or("the key set has no keys")?;
        Ok(keys.iter().take(MAX_KEYS).filter_map(decoding_key).collect())
    }

    fn times(&self, claims: &Map) -> Result<(), TokenError> {
        let now = jiff::Timestamp::now().as_second();
        let seconds = |name: &str| claims.get(name).and_then(Value::as_f64).map(|value| value as i64);
        match seconds("exp") {
            Some(expires) if expires > now => {}
            expires => {
                let at = jiff::Timestamp::from_second(expires.unwrap_or(0)).unwrap_or_default();
                return Err(refused(format!(
                    "oidc: verify token: oidc: token is expired (Token Expiry: {})",
                    at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
                )));
            }
        }
        if seconds("nbf").is_some_and(|from| from > now + NOT_BEFORE_LEEWAY) {
            return Err(refused(
                "oidc: verify token: oidc: current time is before the nbf (not before) time",
            ));
        }
        Ok(())
    }

    fn audience(&self, claims: &Map) -> Result<(), TokenError> {
        let meant = list(claims.get("aud").unwrap_or(&Value::Null)).unwrap_or_default();
        let ours = &self.config.issuer.audiences;
        if meant.iter().any(|audience| ours.contains(audience)) {
            return Ok(());
        }
        Err(refused(match ours.as_slice() {
            [one] => format!("oidc: verify token: oidc: expected audience {one:?} got {meant:?}"),
            many => format!("oidc: verify token: oidc: expected audience in {many:?} got {meant:?}"),
        }))
    }

    fn user(&self, claims: &Map) -> Result<UserInfo, TokenError> {
        let mappings = &self.config.claim_mappings;
        let evaluation = self.expressions.over_claims(claims);
        let name = match evaluation.username() {
            Some(name) => name.map_err(refused)?,
            None => self.username(claims)?,
        };
        if name.is_empty() {
            return Err(refused("oidc: the username claim cannot be empty"));
        }
        let groups = match evaluation.groups() {
            Some(groups) => groups.map_err(refused)?,
            None => self.groups(claims, &mappings.groups)?,
        };
        let uid = match (evaluation.uid(), mappings.uid.claim.as_str()) {
            (Some(uid), _) => uid.map_err(refused)?,
            (None, "") => String::new(),
            (None, claim) => match claims.get(claim) {
                Some(Value::String(value)) => value.clone(),
                _ => return Err(refused(format!("oidc: parse uid claim {claim:?}: not a string"))),
            },
        };
        let extra = evaluation.extra().map_err(refused)?.into_iter().collect();
        let mut user = UserInfo { name, uid, groups, extra };
        if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
        }
        self.required_claims(claims)?;
        evaluation.validations().map_err(refused)?;
        self.expressions.check_user(&user).map_err(refused)?;
        Ok(user)
    }

    /// `claimValidationRules` without expressions.
    fn required_claims(&self, claims: &Map) -> Result<(), TokenError> {
        for rule in self.config.claim_validation_rules.iter().filter(|rule| !rule.claim.is_empty()) {
            let claim = rule.claim.as_str();
            return Err(refused(match claims.get(claim) {
                Some(Value::String(value)) if *value == rule.required_value => continue,
                Some(Value::String(value)) => format!(
                    "oidc: required claim {claim} value does not match. Got = {value}, want = {}",
                    rule.required_value
                ),
                Some(_) => format!("oidc: parse claim {claim}: not a string"),
                None => format!("oidc: required claim {claim} not present in ID token"),
            }));
        }
        Ok(())
    }

    fn username(&self, claims: &Map) -> Result<String, TokenError> {
        let mapping = &self.config.claim_mappings.username;
        let Some(Value::String(name)) = claims.get(&mapping.claim) else {
            return Err(refused(match claims.contains_key(&mapping.claim) {
                true => format!("oidc: parse username claims {:?}: not a string", mapping.claim),
                false => format!("oidc: parse username claims {:?}: claim not present", mapping.claim),
            }));
        };
        if mapping.claim == "email" {
            // An address counts only when the issuer has not said that it is not verified.
            match claims.get("email_verified") {
                None | Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => return Err(refused("oidc: email not verified")),
                Some(_) => return Err(refused("oidc: parse 'email_verified' claim: not a boolean")),
            }
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or("")))
    }

    fn groups(&self, claims: &Map, mapping: &Mapping) -> Result<Vec<String>, TokenError> {
        if mapping.claim.is_empty() {
            return Ok(Vec::new());
        }
        let Some(value) = claims.get(&mapping.claim) else { return Ok(Vec::new()) };
        let groups = list(value).ok_or_else(|| {
            refused(format!(
                "oidc: parse groups claim {:?}: neither a string nor a list of strings",
                mapping.claim
            ))
        })?;
        let prefix = mapping.prefix.as_deref().unwrap_or("");
        Ok(groups.into_iter().map(|group| format!("{prefix}{group}")).collect())
    }
}

/// A string, or strings.
fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|item| item.as_str().map(String::from)).collect(),
        _ => None,
    }
}

/// Id and key of a JSON Web Key for signatures.
fn decoding_key(jwk: &Value) -> Option<(String, DecodingKey)> {
    if jwk["use"].as_str().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let text = |name: &str| jwk[name].as_str();
    let key = match text("kty")? {
        "RSA" => DecodingKey::from_rsa_components(text("n")?, text("e")?),
        "EC" => DecodingKey::from_ec_components(text("x")?, text("y")?),
        _ => return None,
    };
    Some((text("kid").unwrap_or("").to_string(), key.ok()?))
}
