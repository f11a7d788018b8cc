//! `PodSecurityConfiguration`: what namespaces without labels get, and who is exempt.

use orlop_api::field::go_quote;
use orlop_json::Value;

use super::policy::{Level, LevelVersion, Policy, Version};
use crate::admission::fields::Fields as _;

const GROUP: &str = "pod-security.admission.config.k8s.io";

pub(super) struct Configuration {
    pub(super) defaults: Policy,
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl Configuration {
    /// Reads and checks a configuration; without one, everything is allowed where labels do not say otherwise.
    pub(super) fn parse(value: Option<&Value>) -> Result<Configuration, String> {
        let none = Value::Null;
        let value = value.unwrap_or(&none);
        if !value.is_null() {
            let version = value.text("apiVersion").strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
            if value.text("kind") != "PodSecurityConfiguration"
                || !matches!(version, Some("v1" | "v1beta1" | "v1alpha1"))
            {
                return Err(format!(
                    "no kind {} is registered for version {}",
                    go_quote(value.text("kind")),
                    go_quote(value.text("apiVersion"))
                ));
            }
        }
        let mut errors = Vec::new();
        let defaults = &value["defaults"];
        let mut mode = |name: &str| -> LevelVersion {
            let version_name = format!("{name}-version");
            let level = match defaults.text(name) {
                "" => Ok(Level::Privileged),
                text => Level::parse(text)
                    .map_err(|m| format!("defaults.{name}: Invalid value: {}: {m}", go_quote(text))),
            };
            let version = match defaults.text(&version_name) {
                "" => Ok(Version::Latest),
                text => Version::parse(text)
                    .map_err(|m| format!("defaults.{version_name}: Invalid value: {}: {m}", go_quote(text))),
            };
            errors.extend([level.clone().err(), version.clone().err()].into_iter().flatten());
            LevelVersion {
                level: level.unwrap_or(Level::Restricted),
                version: version.unwrap_or(Version::Latest),
            }
        };
        let defaults = Policy { enforce: mode("enforce"), audit: mode("audit"), warn: mode("warn") };
        let exemptions = &value["exemptions"];
        let mut list = |name: &str, check: fn(&str) -> Vec<String>| -> Vec<String> {
            let mut out: Vec<String> = Vec::new();
            for (index, text) in exemptions.items(name).iter().filter_map(Value::as_str).enumerate() {
                let at = format!("exemptions.{name}[{index}]");
                if out.iter().any(|own| own == text) {
                    errors.push(format!("{at}: Duplicate value: {}", go_quote(text)));
                } else if let Some(message) = check(text).first() {
                    errors.push(format!("{at}: Invalid value: {}: {message}", go_quote(text)));
                }
                out.push(text.to_string());
            }
            out
        };
        let not_empty = |text: &str| {
            if text.is_empty() { vec!["username must not be empty".to_string()] } else { Vec::new() }
        };
        let configuration = Configuration {
            defaults,
            usernames: list("usernames", not_empty),
            namespaces: list("namespaces", orlop_api::names::is_dns1123_label),
            runtime_classes: list("runtimeClasses", orlop_api::names::is_dns1123_subdomain),
        };
        if errors.is_empty() { Ok(configuration) } else { Err(orlop_api::status::aggregate(errors)) }
    }

    pub(super) fn exempts_user(&self, name: &str) -> bool {
        !name.is_empty() && self.usernames.iter().any(|own| own == name)
    }

    pub(super) fn exempts_namespace(&self, name: &str) -> bool {
        !name.is_empty() && self.namespaces.iter().any(|own| own == name)
    }

    pub(super) fn exempts_runtime_class(&self, name: &str) -> bool {
        !name.is_empty() && self.runtime_classes.iter().any(|own| own == name)
    }
}
