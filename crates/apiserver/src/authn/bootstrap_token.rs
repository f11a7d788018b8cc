//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, for nodes that join.

use std::sync::Arc;

use base64::Engine as _;
use orlop_json::Value;

use super::UserInfo;
use crate::cache::Cache;

/// Group of everybody with a bootstrap token.
const GROUP: &str = "system:bootstrappers";
/// Longest name of a further group, after `system:bootstrappers:`.
const LONGEST_GROUP: usize = 256;

/// Believes bootstrap tokens.
pub struct BootstrapTokens {
    secrets: Arc<Cache>,
}

/// Id and secret of a token of the right form: `abcdef.0123456789abcdef`.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// Compares in a time that does not tell how much is equal.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn is_group(name: &str) -> bool {
    name.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        !rest.is_empty()
            && rest.len() <= LONGEST_GROUP
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'-'))
            && rest.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
    })
}

impl BootstrapTokens {
    /// Reads tokens from this cache of Secrets.
    pub fn new(secrets: Arc<Cache>) -> BootstrapTokens {
        BootstrapTokens { secrets }
    }

    /// The identity behind a token; `None` when it is none, not (any more) valid, or not for authentication.
    pub fn authenticate(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = split(token)?;
        let entry = self.secrets.get(&format!("kube-system/bootstrap-token-{id}"))?;
        user(&entry.value(), id, secret, jiff::Timestamp::now())
    }
}

fn user(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<UserInfo> {
    if object["type"] != "bootstrap.kubernetes.io/token"
        || object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
    {
        return None;
    }
    let data = |key: &str| -> Option<String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(object["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if data("token-id")? != id || !same(data("token-secret")?.as_bytes(), secret.as_bytes()) {
        return None;
    }
    if let Some(expiration) = data("expiration").filter(|text| !text.is_empty()) {
        // A time that cannot be read counts as past.
        if expiration.parse::<jiff::Timestamp>().ok()? <= now {
            return None;
        }
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    let mut groups = vec![GROUP.to_string()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').map(str::trim) {
        if group.is_empty() {
            continue;
        }
        if !is_group(group) {
            return None;
        }
        groups.push(group.to_string());
    }
    groups.sort();
    groups.dedup();
    Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn secrets_and_tokens() {
        let check = |change: &[(&str, &str)], expected: Option<&[&str]>| {
            let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
                "usage-bootstrap-authentication": "true"});
            for (key, value) in change {
                data[*key] = json!(value);
            }
            for value in data.as_object_mut().unwrap().values_mut() {
                *value = json!(base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap()));
            }
            let secret = json!({"type": "bootstrap.kubernetes.io/token", "data": data});
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let groups = user(&secret, "abcdef", "0123456789abcdef", now).map(|user| user.groups);
            let expected = expected.map(|list| list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
            assert_eq!(groups, expected, "{change:?}");
        };
        check(&[], Some(&["system:bootstrappers"]));
        check(&[("token-secret", "x")], None);
        check(&[("usage-bootstrap-authentication", "false")], None);
        check(&[("expiration", "2025-01-01T00:00:00Z")], None);
        check(&[("expiration", "2027-01-01T00:00:00Z")], Some(&["system:bootstrappers"]));
        check(&[("expiration", "soon")], None);
        check(
            &[("auth-extra-groups", "system:bootstrappers:a-b")],
            Some(&["system:bootstrappers", "system:bootstrappers:a-b"]),
        );
        check(&[("auth-extra-groups", "system:masters")], None);
    }

    #[test]
    fn forms() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for wrong in
            ["abcdef0123456789abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.short"]
        {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
