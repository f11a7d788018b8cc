//! Attribute based access control: one JSON object a line (`--authorization-policy-file`).

use std::path::Path;

use serde::Deserialize;

use super::{Attributes, Decision};
use crate::authn::{AUTHENTICATED, UNAUTHENTICATED};

/// One line.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    #[serde(rename = "apiGroup")]
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Line {
    api_version: String,
    kind: String,
    spec: Policy,
}

/// The policies of a file.
#[derive(Debug, Default)]
pub struct Abac(Vec<Policy>);

impl Abac {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Abac, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Abac::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Abac, String> {
        let mut policies = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed: Line =
                orlop_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
            if parsed.kind != "Policy" || parsed.api_version != "abac.authorization.kubernetes.io/v1beta1" {
                return Err(format!(
                    "line {}: must be a Policy of abac.authorization.kubernetes.io/v1beta1",
                    at + 1
                ));
            }
            policies.push(parsed.spec);
        }
        Ok(Abac(policies))
    }

    /// Whether some policy allows it.
    pub fn decide(&self, a: &Attributes<'_>) -> Decision {
        if self.0.iter().any(|policy| policy.allows(a)) {
            return Decision::Allow(String::new());
        }
        Decision::NoOpinion("No policy matched.".to_string())
    }
}

impl Policy {
    fn allows(&self, a: &Attributes<'_>) -> bool {
        self.is_about(a) && self.has_verb(a) && (self.resource_fits(a) || self.path_fits(a))
    }

    fn is_about(&self, a: &Attributes<'_>) -> bool {
        let mut named = false;
        if self.user == "*" {
            if !a.user.in_group(AUTHENTICATED) && !a.user.in_group(UNAUTHENTICATED) {
                return false;
            }
            named = true;
        } else if !self.user.is_empty() {
            if self.user != a.user.name {
                return false;
            }
            named = true;
        }
        if self.group == "*" {
            named = true;
        } else if !self.group.is_empty() {
            if !a.user.in_group(&self.group) {
                return false;
            }
            named = true;
        }
        named
    }

    fn has_verb(&self, a: &Attributes<'_>) -> bool {
        !self.readonly || matches!(a.verb, "get" | "list" | "watch")
    }

    fn resource_fits(&self, a: &Attributes<'_>) -> bool {
        let fits = |wanted: &str, given: &str| wanted == "*" || wanted == given;
        a.is_resource
            && fits(&self.namespace, a.namespace)
            && fits(&self.resource, a.resource)
            && fits(&self.api_group, a.group)
    }

    fn path_fits(&self, a: &Attributes<'_>) -> bool {
        !a.is_resource
            && (self.non_resource_path == "*"
                || self.non_resource_path == a.path
                || self.non_resource_path.strip_suffix('*').is_some_and(|prefix| a.path.starts_with(prefix)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::authn::UserInfo;

    #[test]
    fn policies() {
        let line = |spec: &str| {
            format!(
                "{{\"apiVersion\":\"abac.authorization.kubernetes.io/v1beta1\",\"kind\":\"Policy\",\"spec\":{spec}}}\n"
            )
        };
        let text = line(r#"{"user":"jane","namespace":"*","resource":"pods","readonly":true}"#)
            + "# a comment\n"
            + &line(r#"{"group":"ops","namespace":"*","resource":"*","apiGroup":"*"}"#)
            + &line(r#"{"user":"*","nonResourcePath":"/version*"}"#);
        let abac = Abac::parse(&text).unwrap();
        let (jane, ops) = (UserInfo::new("jane", &[]), UserInfo::new("joe", &["ops"]));
        let check = |a: Attributes<'_>, expected: bool| {
            assert_eq!(matches!(abac.decide(&a), Decision::Allow(_)), expected, "{a:?}");
        };
        check(Attributes { namespace: "n", ..Attributes::resource(&jane, "get", "", "pods") }, true);
        check(Attributes::resource(&jane, "delete", "", "pods"), false);
        check(Attributes::resource(&jane, "get", "", "secrets"), false);
        check(Attributes::resource(&ops, "delete", "apps", "deployments"), true);
        check(Attributes::path(&jane, "get", "/version"), true);
        check(Attributes::path(&jane, "get", "/metrics"), false);
        assert!(Abac::parse("{}").is_err());
    }
}
