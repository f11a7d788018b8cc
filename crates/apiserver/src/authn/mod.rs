//! Who is asking: authenticating proxies, client certificates, bearer tokens (static file, service accounts, bootstrap
//! tokens, OpenID issuers, a webhook), anonymous.
//!
//! It decides identities only; what an identity may do is `authz`'s business.

pub mod bootstrap_token;
pub mod config;
mod expressions;
pub mod jwt;
pub mod keys;
pub mod legacy_use;
pub mod peer;
pub mod request_header;
pub mod service_account;
mod token_file;
pub mod webhook;
mod x509;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use orlop_json::{Value, json};

use crate::options::RequestHeaderOptions;
use config::{AnonymousConfig, AuthenticationConfiguration};
use jwt::JwtIssuer;
use orlop_api::status::ApiError;
pub use peer::Peer;
pub use service_account::{BoundObject, SecretTokens, ServiceAccountTokens, TokenError};
pub use token_file::TokenFile;
pub use x509::user_of_certificate;

/// Group of everybody who proved an identity.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of those who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of those who did not.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// An identity, as `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name.
    pub name: String,
    /// Unique id; may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts by key.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user: `system:authenticated` is added to the groups.
    pub fn new(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.to_string(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..UserInfo::default()
        }
        .authenticated()
    }

    /// The user that nobody proved to be.
    pub fn anonymous() -> UserInfo {
        UserInfo {
            name: ANONYMOUS.to_string(),
            groups: vec![UNAUTHENTICATED.to_string()],
            ..UserInfo::default()
        }
    }

    /// The API server itself.
    pub fn loopback() -> UserInfo {
        UserInfo::new("system:apiserver", &[MASTERS])
    }

    /// A node's kubelet.
    pub fn node(name: &str) -> UserInfo {
        UserInfo::new(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> UserInfo {
        UserInfo::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        )
    }

    /// Adds the group of authenticated users.
    pub fn authenticated(mut self) -> UserInfo {
        if !self.in_group(AUTHENTICATED) && self.name != ANONYMOUS {
            self.groups.push(AUTHENTICATED.to_string());
        }
        self
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node name of a kubelet's identity.
    pub fn node_name(&self) -> Option<&str> {
        self.in_group("system:nodes").then(|| self.name.strip_prefix("system:node:")).flatten()
    }

    /// The `UserInfo` object.
    pub fn to_value(&self) -> Value {
        let mut out = orlop_json::Map::new();
        if !self.name.is_empty() {
            out.insert("username".into(), json!(self.name));
        }
        if !self.uid.is_empty() {
            out.insert("uid".into(), json!(self.uid));
        }
        if !self.groups.is_empty() {
            out.insert("groups".into(), json!(self.groups));
        }
        if !self.extra.is_empty() {
            out.insert("extra".into(), json!(self.extra));
        }
        Value::Object(out)
    }
}

/// The part of the authenticators that a file may change while the server runs.
#[derive(Default)]
pub struct Configured {
    /// Other issuers.
    pub issuers: Vec<JwtIssuer>,
    /// Requests without credentials; `None`: as the flag says.
    pub anonymous: Option<AnonymousConfig>,
}

impl Configured {
    /// From a file.
    pub fn of(config: AuthenticationConfiguration) -> Result<Configured, String> {
        let issuers =
            config.jwt.into_iter().map(|jwt| JwtIssuer::new(jwt, &[])).collect::<Result<_, String>>()?;
        Ok(Configured { issuers, anonymous: config.anonymous })
    }
}

/// Finds the identity of a request.
pub struct Authenticator {
    /// Authenticating proxies.
    pub request_header: Option<RequestHeaderOptions>,
    /// Static tokens.
    pub token_file: TokenFile,
    /// Service account tokens.
    pub service_accounts: ServiceAccountTokens,
    /// Tokens of nodes that join.
    pub bootstrap: Option<bootstrap_token::BootstrapTokens>,
    /// Other issuers, and the file's word about anonymous requests.
    pub configured: ArcSwap<Configured>,
    /// A service that knows tokens.
    pub webhook: Option<webhook::TokenWebhook>,
    /// `--anonymous-auth`.
    pub anonymous: bool,
    /// Audiences a token must be meant for.
    pub api_audiences: Vec<String>,
}

impl Authenticator {
    /// The identity behind a connection and a request's headers.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        path: &str,
    ) -> Result<UserInfo, ApiError> {
        if let (Some(options), Some(proxy)) = (&self.request_header, &peer.proxy)
            && let Some(user) = request_header::user(options, proxy, headers)
        {
            return Ok(user.authenticated());
        }
        if let Some(user) = &peer.user {
            return Ok(user.clone().authenticated());
        }
        if let Some(token) = bearer_token(headers) {
            return match self.token(token, &self.api_audiences).await {
                Ok((user, _)) => Ok(user),
                Err(error) => {
                    tracing::debug!(%error, "bearer token refused");
                    Err(ApiError::unauthorized("Unauthorized"))
                }
            };
        }
        // A certificate that proves nothing, and one of a proxy that speaks for nobody, is no missing credential.
        let proves_nothing = peer.refused || peer.proxy.is_some();
        if !proves_nothing && self.may_be_anonymous(path) {
            return Ok(UserInfo::anonymous());
        }
        Err(ApiError::unauthorized("Unauthorized"))
    }

    /// Takes away what proved the identity: nobody behind (a proxied pod, an aggregated server) shall get it.
    pub fn clear(&self, headers: &mut HeaderMap) {
        headers.remove(http::header::AUTHORIZATION);
        if let Some(options) = &self.request_header {
            request_header::remove(options, headers);
        }
        let impersonation: Vec<http::HeaderName> =
            headers.keys().filter(|key| key.as_str().starts_with("impersonate-")).cloned().collect();
        for key in impersonation {
            headers.remove(key);
        }
    }

    /// What the audit log says about a token that should have been renewed.
    pub fn stale_token(&self, headers: &HeaderMap) -> Option<String> {
        self.service_accounts.staleness(bearer_token(headers)?)
    }

    fn may_be_anonymous(&self, path: &str) -> bool {
        match &self.configured.load().anonymous {
            None => self.anonymous,
            Some(config) => {
                config.enabled
                    && (config.conditions.is_empty() || config.conditions.iter().any(|c| c.path == path))
            }
        }
    }

    /// The identity behind a bearer token meant for one of `audiences`, and those of them it is meant for.
    pub async fn token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        if let Some(user) = self.token_file.find(token) {
            return Ok((user.clone().authenticated(), audiences.to_vec()));
        }
        let mut refusal = TokenError::Invalid;
        match self.service_accounts.authenticate(token, audiences) {
            Ok((user, meant)) => return Ok((user.authenticated(), meant)),
            Err(TokenError::Invalid) => {}
            Err(error) => refusal = error,
        }
        if let Some(user) = self.bootstrap.as_ref().and_then(|tokens| tokens.authenticate(token)) {
            return Ok((user.authenticated(), audiences.to_vec()));
        }
        let configured: Arc<Configured> = self.configured.load_full();
        if !configured.issuers.is_empty()
            && let Some((_, claims)) = service_account::peek(token)
        {
            for issuer in configured.issuers.iter().filter(|issuer| issuer.issued(&claims)) {
                match issuer.authenticate(token).await {
                    // Tokens of other issuers are meant for the API as it calls itself.
                    Ok(user) => {
                        let own = |a: &&String| self.api_audiences.contains(a);
                        let meant: Vec<String> = audiences.iter().filter(own).cloned().collect();
                        if meant.is_empty() && !audiences.is_empty() {
                            return Err(TokenError::Invalid);
                        }
                        return Ok((user.authenticated(), meant));
                    }
                    Err(error) => refusal = error,
                }
            }
        }
        if let Some(webhook) = &self.webhook {
            match webhook.authenticate(token, audiences).await {
                Ok((user, meant)) => return Ok((user.authenticated(), meant)),
                Err(TokenError::Invalid) => {}
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bearer() {
        let check = |value: &str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().unwrap());
            assert_eq!(bearer_token(&headers), expected);
        };
        check("Bearer abc", Some("abc"));
        check("bearer  abc", Some("abc"));
        check("Basic abc", None);
        check("Bearer ", None);
    }
}
