//! `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`): which resources are encrypted at rest, and with which keys.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use super::kms::Kms;
use super::transform::{Cipher, Key, Provider};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Entry {
    resources: Vec<String>,
    providers: Vec<ProviderConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProviderConfig {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<orlop_json::Value>,
    kms: Option<KmsConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct KmsConfig {
    api_version: String,
    name: String,
    cachesize: Option<i64>,
    endpoint: String,
    timeout: String,
}

impl Default for KmsConfig {
    fn default() -> KmsConfig {
        KmsConfig {
            api_version: "v1".to_string(),
            name: String::new(),
            cachesize: None,
            endpoint: String::new(),
            timeout: "3s".to_string(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    keys: Vec<KeyConfig>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeyConfig {
    name: String,
    secret: String,
}

// Secrets never reach a log.
impl std::fmt::Debug for KeyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// Providers of some resources.
pub struct Rule {
    /// `secrets`, `deployments.apps`, `*.`, `*.apps`, `*.*`
    resources: Vec<String>,
    /// The first one encrypts, all decrypt.
    pub providers: Vec<Provider>,
}

impl Rule {
    /// Whether the rule is about a resource.
    pub fn covers(&self, group: &str, plural: &str) -> bool {
        self.resources.iter().any(|entry| match entry.split_once('.') {
            Some(("*", "*")) => true,
            Some(("*", wanted)) => wanted == group,
            Some((resource, wanted)) => resource == plural && wanted == group,
            None => entry == plural && group.is_empty(),
        })
    }
}

/// The plugins that rules use, each once.
pub fn plugins(rules: &[Rule]) -> Vec<Arc<Kms>> {
    let mut all: Vec<Arc<Kms>> = Vec::new();
    for provider in rules.iter().flat_map(|rule| &rule.providers) {
        if let Provider::Kms(kms) = provider
            && !all.iter().any(|other| Arc::ptr_eq(other, kms))
        {
            all.push(kms.clone());
        }
    }
    all
}

/// Reads a file. Plugins that are `known` and did not change go on.
pub fn load(path: &Path, known: &[Arc<Kms>]) -> Result<Vec<Rule>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text, known).map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads the text of such a file.
pub fn parse(text: &str, known: &[Arc<Kms>]) -> Result<Vec<Rule>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if file.kind != "EncryptionConfiguration" || file.api_version != "apiserver.config.k8s.io/v1" {
        return Err(format!(
            "no kind \"{}\" is registered for version \"{}\": use EncryptionConfiguration of apiserver.config.k8s.io/v1",
            file.kind, file.api_version
        ));
    }
    if file.resources.is_empty() {
        return Err("resources: Required value: at least one resource is required".to_string());
    }
    let mut errors = Vec::new();
    let mut rules = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    let mut plugins: Vec<&str> = Vec::new();
    for (at, entry) in file.resources.iter().enumerate() {
        let path = format!("resources[{at}]");
        if entry.resources.is_empty() {
            errors.push(format!("{path}.resources: Required value: at least one resource is required"));
        }
        for (at, resource) in entry.resources.iter().enumerate() {
            if let Some(problem) = resource_problem(resource) {
                errors.push(format!("{path}.resources[{at}]: Invalid value: {resource:?}: {problem}"));
            }
            if seen.contains(&resource.as_str()) {
                errors.push(format!(
                    "{path}.resources[{at}]: Invalid value: {resource:?}: the same resource cannot be specified multiple times"
                ));
            } else if let Some(hiding) = seen.iter().find(|earlier| hides(earlier, resource)) {
                errors.push(format!(
                    "{path}.resources[{at}]: Invalid value: {resource:?}: resource is masked by earlier rule {hiding:?}"
                ));
            }
            seen.push(resource);
        }
        let mut providers = Vec::new();
        for (at, config) in entry.providers.iter().enumerate() {
            if let Some(kms) = &config.kms {
                if plugins.contains(&kms.name.as_str()) {
                    errors.push(format!(
                        "{path}.providers[{at}].kms.name: Invalid value: {0:?}: duplicate KMS provider name {0}, names must be unique",
                        kms.name
                    ));
                }
                plugins.push(&kms.name);
            }
            match provider(config, known) {
                Ok(provider) => providers.push(provider),
                Err(error) => errors.push(format!("{path}.providers[{at}]{error}")),
            }
        }
        if entry.providers.is_empty() {
            errors.push(format!("{path}.providers: Required value: at least one provider is required"));
        }
        rules.push(Rule { resources: entry.resources.clone(), providers });
    }
    match errors.is_empty() {
        true => Ok(rules),
        false => Err(orlop_api::status::aggregate(errors)),
    }
}

fn hides(earlier: &str, later: &str) -> bool {
    match earlier {
        "*.*" => true,
        _ => earlier.strip_prefix("*.").is_some_and(|group| {
            later.split_once('.').map_or("", |(_, group)| group) == group && !later.starts_with('*')
        }),
    }
}

fn resource_problem(resource: &str) -> Option<&'static str> {
    if resource.is_empty() {
        return Some("resource name should not be empty");
    }
    if resource == "*" {
        return Some(
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        );
    }
    if resource.starts_with("*.*") && resource != "*.*" || resource.contains('/') {
        return Some("is no resource");
    }
    if resource.chars().any(char::is_uppercase) {
        return Some("resource name should be lowercase");
    }
    // Virtual kinds and events of the other group are stored nowhere.
    matches!(resource, "events.events.k8s.io")
        .then_some("'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file")
}

/// Upstream's refusal of the old form, unless its feature gate is on.
const KMS_V1: &str = "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.";

/// A plugin; one that is known goes on.
fn kms(config: &KmsConfig, known: &[Arc<Kms>]) -> Result<Provider, String> {
    let KmsConfig { api_version, name, cachesize, endpoint, timeout } = config;
    let invalid = |field: &str, value: &str, why: String| {
        Err(format!(".kms.{field}: Invalid value: {}: {why}", orlop_api::field::go_quote(value)))
    };
    if name.is_empty() {
        return Err(".kms.name: Required value: name is a mandatory field for a provider".to_string());
    }
    match api_version.as_str() {
        "v2" => {}
        "v1" => return Err(format!(".kms: {KMS_V1}")),
        other => {
            let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
            return invalid("apiVersion", other, why.to_string());
        }
    }
    if name.contains(':') {
        return invalid("name", name, format!("invalid KMS provider name {name}, must not contain ':'"));
    }
    if let Some(size) = cachesize {
        return Err(format!(".kms.cachesize: Invalid value: {size}: cachesize is not supported in v2"));
    }
    let time = orlop_api::decode::scalar::parse_duration(timeout).ok().and_then(|n| u64::try_from(n).ok());
    let Some(time) = time.filter(|time| *time > 0).map(Duration::from_nanos) else {
        return invalid("timeout", timeout, "timeout should be a positive value".to_string());
    };
    if endpoint.is_empty() {
        return invalid("endpoint", "", "endpoint is a mandatory field for a kms".to_string());
    }
    let scheme = endpoint.split_once(':').map_or("", |(scheme, _)| scheme);
    if scheme != "unix" {
        let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        return invalid("endpoint", endpoint, why);
    }
    let key = (endpoint.clone(), time);
    let same = known.iter().find(|plugin| plugin.name == *name && plugin.endpoint == key);
    let plugin = same.cloned().unwrap_or_else(|| Arc::new(Kms::new(name.clone(), key.0, time)));
    Ok(Provider::Kms(plugin))
}

fn provider(config: &ProviderConfig, known: &[Arc<Kms>]) -> Result<Provider, String> {
    let given = [
        config.aesgcm.is_some(),
        config.aescbc.is_some(),
        config.secretbox.is_some(),
        config.identity.is_some(),
        config.kms.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => return Err(": Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity".to_string()),
        1 => {}
        _ => return Err(": Invalid value: more than one provider specified in a single element, should split into different list elements".to_string()),
    }
    if let Some(config) = &config.kms {
        return kms(config, known);
    }
    for (name, cipher, keys, sizes) in [
        ("aesgcm", Cipher::AesGcm, &config.aesgcm, &[16, 24, 32][..]),
        ("aescbc", Cipher::AesCbc, &config.aescbc, &[16, 24, 32][..]),
        ("secretbox", Cipher::Secretbox, &config.secretbox, &[32][..]),
    ] {
        let Some(keys) = keys else { continue };
        return keys_of(name, cipher, keys, sizes);
    }
    Ok(Provider::identity())
}

fn keys_of(name: &str, cipher: Cipher, keys: &Keys, sizes: &[usize]) -> Result<Provider, String> {
    if keys.keys.is_empty() {
        return Err(format!(".{name}.keys: Required value: at least one key is required"));
    }
    let mut read: Vec<Key> = Vec::new();
    for (at, key) in keys.keys.iter().enumerate() {
        let path = format!(".{name}.keys[{at}]");
        if key.name.is_empty() || key.name.contains(':') {
            return Err(format!("{path}.name: Required value: a name without a colon"));
        }
        if read.iter().any(|other| other.name == key.name) {
            return Err(format!("{path}.name: Duplicate value: {:?}", key.name));
        }
        let secret = base64::engine::general_purpose::STANDARD.decode(key.secret.trim()).map_err(|_| {
            format!("{path}.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded")
        })?;
        if !sizes.contains(&secret.len()) {
            return Err(format!(
                "{path}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of {sizes:?}",
                secret.len()
            ));
        }
        read.push(Key { name: key.name.clone(), secret });
    }
    Ok(Provider::new(cipher, read))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n";

    #[test]
    fn files() {
        let check = |rest: &str, expected: &str| {
            let error = parse(&format!("{HEAD}{rest}"), &[]).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let good = format!(
            "- resources: [secrets, '*.apps']\n  providers:\n  - aesgcm: {{keys: [{{name: k, secret: {key}}}]}}\n  - identity: {{}}\n"
        );
        let rules = parse(&format!("{HEAD}{good}"), &[]).unwrap();
        assert!(rules[0].covers("", "secrets") && rules[0].covers("apps", "deployments"));
        assert!(!rules[0].covers("", "configmaps") && !rules[0].covers("batch", "jobs"));
        check(&good.replace("secrets,", "'*',"), "use '*.' to encrypt");
        check(&good.replace(key, "c2hvcnQ="), "expected length, got 5");
        check(&good.replace(key, "'%'"), "must be base64");
        let kms = |fields: &str| good.replace("identity: {}", &format!("kms: {{{fields}}}"));
        check(&kms("name: a, endpoint: 'unix:///a'"), "KMSv1 is deprecated");
        check(&kms("apiVersion: v2, endpoint: 'unix:///a'"), "name is a mandatory field for a provider");
        check(&kms("apiVersion: v2, name: 'a:b', endpoint: 'unix:///a'"), "must not contain ':'");
        check(&kms("apiVersion: v2, name: a"), "endpoint is a mandatory field for a kms");
        check(&kms("apiVersion: v2, name: a, endpoint: 'tcp://a'"), "only unix is supported");
        check(&kms("apiVersion: v2, name: a, endpoint: 'unix:///a', cachesize: 1"), "not supported in v2");
        check(&kms("apiVersion: v2, name: a, endpoint: 'unix:///a', timeout: 0s"), "a positive value");
        check(&kms("apiVersion: v3, name: a, endpoint: 'unix:///a'"), "only v1 and v2 are supported");
        check(&good.replace("identity: {}", "{}"), "does not contain any");
        check(
            &format!("{good}- {{resources: [deployments.apps], providers: [{{identity: {{}}}}]}}\n"),
            "masked by earlier",
        );
        check(
            &format!("{good}- {{resources: [secrets], providers: [{{identity: {{}}}}]}}\n"),
            "multiple times",
        );
        check("- {resources: [secrets], providers: []}\n", "at least one provider");
    }
}
