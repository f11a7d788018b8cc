//! Who this server is to webhooks: users of a kubeconfig file, named by the hosts they are for. Upstream's
//! `util/webhook` (`AuthenticationInfoResolver`).

use std::collections::HashMap;
use std::path::Path;

use orlop_api::field::{self, go_quote};
use orlop_json::Value;

use crate::admission::fields::Fields as _;
use crate::outbound::{Credentials as Shown, Kubeconfig};

/// Credentials by the host they are for; none by default.
#[derive(Default)]
pub struct Credentials {
    users: HashMap<String, Shown>,
    /// The user of the file's current context.
    current: Option<String>,
}

impl Credentials {
    /// Reads a plugin's `WebhookAdmissionConfiguration`.
    pub fn load(configuration: Option<&Value>) -> Result<Credentials, String> {
        let Some(configuration) = configuration else { return Ok(Credentials::default()) };
        let known = matches!(
            configuration.text("apiVersion"),
            "apiserver.config.k8s.io/v1" | "apiserver.config.k8s.io/v1alpha1"
        );
        if !known || configuration.text("kind") != "WebhookAdmissionConfiguration" {
            return Err(format!(
                "no kind {} is registered for version {}",
                go_quote(configuration.text("kind")),
                go_quote(configuration.text("apiVersion"))
            ));
        }
        let file = configuration.text("kubeConfigFile");
        if file.is_empty() {
            return Ok(Credentials::default());
        }
        if !Path::new(file).is_absolute() {
            let at = field::Path::new("kubeConfigFile");
            return Err(field::invalid(&at, file, "must be an absolute file path").to_string());
        }
        let config = Kubeconfig::load(Path::new(file)).map_err(|error| error.to_string())?;
        let users = config
            .users()
            .map(|(name, user)| {
                let shown = config.credentials(user);
                shown
                    .map(|shown| (name.to_owned(), shown))
                    .map_err(|error| format!("{file}: {name}: {error}"))
            })
            .collect::<Result<_, String>>()?;
        let current = config.context().ok().and_then(|context| context["user"].as_str()).map(String::from);
        Ok(Credentials { users, current })
    }

    /// The user for a target (`host:port`): its own, that of the nearest domain with a star, each also without the port
    /// when it is 443; `*`; that of the current context.
    pub fn to(&self, target: &str) -> Option<&Shown> {
        if self.users.is_empty() {
            return None;
        }
        let exact = |target: &str| {
            let domains = target.match_indices('.').map(|(at, _)| format!("*{}", &target[at..]));
            std::iter::once(target.to_owned()).chain(domains).find_map(|name| self.users.get(&name))
        };
        exact(target)
            .or_else(|| exact(target.strip_suffix(":443")?))
            .or_else(|| self.users.get("*"))
            .or_else(|| self.users.get(self.current.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    fn configuration(file: &str) -> Value {
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": file})
    }

    #[test]
    fn users_by_host() {
        let user = |name: &str| json!({"name": name, "user": {"token": format!("for {name}")}});
        let of = |names: &[&str], current: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("kubeconfig");
            let config = json!({"users": names.iter().map(|name| user(name)).collect::<Vec<_>>(),
                "contexts": [{"name": "c", "context": {"user": current}}], "current-context": "c"});
            std::fs::write(&path, config.to_string()).unwrap();
            Credentials::load(Some(&configuration(path.to_str().unwrap()))).unwrap()
        };
        let check = |credentials: &Credentials, target: &str, expected: Option<&str>| {
            let found = credentials.to(target).map(|shown| {
                let header = shown.authorization.as_ref().unwrap().to_str().unwrap();
                header.strip_prefix("Bearer for ").unwrap()
            });
            assert_eq!(found, expected, "{target}");
        };
        let many = of(&["s.default.svc", "*.default.svc", "*.svc", "h.example:8443", "*", "me"], "me");
        check(&many, "s.default.svc:443", Some("s.default.svc"));
        check(&many, "t.default.svc:443", Some("*.default.svc"));
        check(&many, "t.other.svc:443", Some("*.svc"));
        check(&many, "s.default.svc:8443", Some("*"));
        check(&many, "h.example:8443", Some("h.example:8443"));
        check(&many, "h.example:443", Some("*"));
        check(&of(&["a", "me"], "me"), "h.example:443", Some("me"));
        check(&of(&["a", "me"], "nobody"), "h.example:443", None);
        check(&Credentials::default(), "h.example:443", None);
    }

    #[test]
    fn refusals() {
        let check = |configuration: Value, expected: &str| {
            let error = Credentials::load(Some(&configuration)).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        check(
            configuration("rel/ative"),
            "kubeConfigFile: Invalid value: \"rel/ative\": must be an absolute file path",
        );
        check(configuration("/does/not/exist"), "/does/not/exist: No such file or directory");
        check(json!({"kind": "Foo", "apiVersion": "v1"}), "no kind \"Foo\" is registered for version \"v1\"");
        assert!(Credentials::load(Some(&configuration(""))).is_ok() && Credentials::load(None).is_ok());
    }
}
