//! Who is asking: client certificates, bearer tokens (static file, service accounts), anonymous.
//!
//! It decides identities only; what an identity may do is `authz`'s business.

pub mod service_account;
mod x509;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use http::HeaderMap;
use serde_json::{Value, json};

use orlop_api::status::ApiError;
pub use service_account::{BoundObject, ServiceAccountTokens, TokenError};
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
        let mut out = serde_json::Map::new();
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

/// Bearer tokens of a `--token-auth-file`: lines of `token,user,uid,"group,group"`.
#[derive(Default)]
pub struct TokenFile(HashMap<String, UserInfo>);

impl TokenFile {
    /// Reads the file.
    pub fn load(path: &Path) -> std::io::Result<TokenFile> {
        Ok(TokenFile::parse(&std::fs::read_to_string(path)?))
    }

    /// Reads the text of such a file; lines without three columns are left out.
    pub fn parse(text: &str) -> TokenFile {
        TokenFile(
            text.lines()
                .filter_map(|line| {
                    let columns = csv_columns(line);
                    let [token, name, uid, rest @ ..] = columns.as_slice() else { return None };
                    let groups = rest.first().map(String::as_str).unwrap_or("");
                    let user = UserInfo {
                        name: name.clone(),
                        uid: uid.clone(),
                        groups: groups
                            .split(',')
                            .map(str::trim)
                            .filter(|g| !g.is_empty())
                            .map(String::from)
                            .collect(),
                        extra: BTreeMap::new(),
                    };
                    (!token.is_empty()).then(|| (token.clone(), user))
                })
                .collect(),
        )
    }
}

/// Splits one line of comma-separated values; double quotes protect commas.
fn csv_columns(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            c => {
                if let Some(column) = columns.last_mut() {
                    column.push(c);
                }
            }
        }
    }
    columns.into_iter().map(|c| c.trim().to_string()).collect()
}

/// Finds the identity of a request.
pub struct Authenticator {
    /// Static tokens.
    pub token_file: TokenFile,
    /// Service account tokens.
    pub service_accounts: ServiceAccountTokens,
    /// `--anonymous-auth`.
    pub anonymous: bool,
    /// Audiences a token must be meant for.
    pub api_audiences: Vec<String>,
}

impl Authenticator {
    /// The identity behind a verified client certificate and the request's headers.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&UserInfo>,
    ) -> Result<UserInfo, ApiError> {
        if let Some(user) = certificate {
            return Ok(user.clone().authenticated());
        }
        if let Some(token) = bearer_token(headers) {
            return self.token(token, &self.api_audiences).map(|(user, _)| user).map_err(|error| {
                tracing::debug!(%error, "bearer token refused");
                ApiError::unauthorized("Unauthorized")
            });
        }
        if self.anonymous { Ok(UserInfo::anonymous()) } else { Err(ApiError::unauthorized("Unauthorized")) }
    }

    /// The identity behind a bearer token meant for one of `audiences`, and those of them it is meant for.
    pub fn token(&self, token: &str, audiences: &[String]) -> Result<(UserInfo, Vec<String>), TokenError> {
        if let Some(user) = self.token_file.0.get(token) {
            return Ok((user.clone().authenticated(), audiences.to_vec()));
        }
        let (user, audiences) = self.service_accounts.authenticate(token, audiences)?;
        Ok((user.authenticated(), audiences))
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
    fn token_file_lines() {
        let file = TokenFile::parse("t1,alice,u1,\"a,b\"\nt2,bob,u2\nbroken\n");
        assert_eq!(file.0["t1"].groups, ["a", "b"]);
        assert!(file.0["t2"].groups.is_empty());
        assert_eq!(file.0.len(), 2);
    }

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
