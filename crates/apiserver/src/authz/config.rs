//! Which authorizers there are: by `--authorization-mode` and its flags, or by an `AuthorizationConfiguration` file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::Step;
use super::abac::Abac;
use super::webhook::{Settings, WebhookAuthorizer};
use crate::expressions::Conditions;
use crate::options::{AuthorizationMode, Options};
use crate::outbound::Webhook;

/// How long a webhook named by flags may take.
const FLAG_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time a file may give a webhook.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Configuration {
    api_version: String,
    kind: String,
    authorizers: Vec<Configured>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Configured {
    r#type: String,
    name: String,
    webhook: Option<WebhookConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WebhookConfig {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: String,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    match_conditions: Vec<MatchCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConnectionInfo {
    r#type: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchCondition {
    expression: String,
}

/// The authorizers that the options ask for.
pub fn chain(options: &Options) -> Result<Vec<Step>, String> {
    if let Some(path) = &options.authorization_config {
        return load(path);
    }
    options
        .authorization_modes
        .iter()
        .map(|mode| {
            Ok(match mode {
                AuthorizationMode::AlwaysAllow => Step::AlwaysAllow,
                AuthorizationMode::AlwaysDeny => Step::AlwaysDeny,
                AuthorizationMode::Node => Step::Node,
                AuthorizationMode::Rbac => Step::Rbac,
                AuthorizationMode::Abac => {
                    let path = options
                        .authorization_policy_file
                        .as_deref()
                        .ok_or("the ABAC mode needs a policy file")?;
                    Step::Abac(Abac::load(path)?)
                }
                AuthorizationMode::Webhook => {
                    let webhook = options
                        .authorization_webhook
                        .as_ref()
                        .ok_or("the Webhook mode needs a kubeconfig file")?;
                    let service = Webhook::load(&webhook.config_file).map_err(|error| error.to_string())?;
                    let settings = Settings {
                        name: "default".to_string(),
                        version: webhook.version.clone(),
                        timeout: FLAG_TIMEOUT,
                        authorized_ttl: webhook.authorized_ttl,
                        unauthorized_ttl: webhook.unauthorized_ttl,
                        fails_closed: false,
                        conditions: Conditions::default(),
                    };
                    Step::Webhook(Box::new(WebhookAuthorizer::new(service, settings)))
                }
            })
        })
        .collect()
}

/// Reads a file.
pub fn load(path: &Path) -> Result<Vec<Step>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Step>, String> {
    let config: Configuration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let versions = ["v1", "v1beta1", "v1alpha1"].map(|v| format!("apiserver.config.k8s.io/{v}"));
    if config.kind != "AuthorizationConfiguration" || !versions.contains(&config.api_version) {
        return Err(format!(
            "no kind \"{}\" is registered for version \"{}\": use AuthorizationConfiguration of {}",
            config.kind, config.api_version, versions[0]
        ));
    }
    if config.authorizers.is_empty() {
        return Err(
            "authorizers: Required value: at least one authorization mode must be defined".to_string()
        );
    }
    let mut errors = Vec::new();
    let (mut steps, mut seen, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (at, authorizer) in config.authorizers.iter().enumerate() {
        let path = format!("authorizers[{at}]");
        let kind = authorizer.r#type.as_str();
        if kind != "Webhook" && seen.contains(&kind) {
            errors.push(format!("{path}.type: Duplicate value: {kind:?}"));
        }
        seen.push(kind);
        if authorizer.name.is_empty() {
            errors.push(format!("{path}.name: Required value"));
        } else if names.contains(&authorizer.name) {
            errors.push(format!("{path}.name: Duplicate value: {:?}", authorizer.name));
        }
        names.push(authorizer.name.clone());
        if kind != "Webhook" && authorizer.webhook.is_some() {
            errors.push(format!("{path}.webhook: Invalid value: may only be specified when type=Webhook"));
        }
        match kind {
            "AlwaysAllow" => steps.push(Step::AlwaysAllow),
            "AlwaysDeny" => steps.push(Step::AlwaysDeny),
            "Node" => steps.push(Step::Node),
            "RBAC" => steps.push(Step::Rbac),
            "Webhook" => match &authorizer.webhook {
                None => errors.push(format!("{path}.webhook: Required value: required when type=Webhook")),
                Some(config) => match webhook(&authorizer.name, config) {
                    Ok(webhook) => steps.push(Step::Webhook(Box::new(webhook))),
                    Err(error) => errors.push(format!("{path}.webhook.{error}")),
                },
            },
            "" => errors.push(format!("{path}.type: Required value")),
            other => errors.push(format!(
                "{path}.type: Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
            )),
        }
    }
    match errors.is_empty() {
        true => Ok(steps),
        false => Err(orlop_api::status::aggregate(errors)),
    }
}

fn duration(field: &str, text: &str, default: Option<Duration>) -> Result<Duration, String> {
    if text.is_empty() {
        return default.ok_or(format!("{field}: Required value"));
    }
    let nanoseconds = orlop_api::decode::scalar::parse_duration(text)
        .map_err(|error| format!("{field}: Invalid value: {text:?}: {error}"))?;
    match u64::try_from(nanoseconds) {
        Ok(0) | Err(_) => Err(format!("{field}: Invalid value: {text:?}: must be > 0s")),
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
    }
}

fn one_of(field: &str, value: &str, supported: &[&str]) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("{field}: Required value"));
    }
    if supported.contains(&value) {
        return Ok(());
    }
    let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    Err(format!("{field}: Unsupported value: {value:?}: supported values: {}", quoted.join(", ")))
}

fn webhook(name: &str, config: &WebhookConfig) -> Result<WebhookAuthorizer, String> {
    let timeout = duration("timeout", &config.timeout, None)?;
    if timeout > LONGEST_TIMEOUT {
        return Err(format!("timeout: Invalid value: {:?}: must be <= 30s", config.timeout));
    }
    let remembered =
        |flag: Option<bool>, ttl: Duration| if flag == Some(false) { Duration::ZERO } else { ttl };
    let authorized = duration("authorizedTTL", &config.authorized_ttl, Some(Duration::from_secs(300)))?;
    let unauthorized = duration("unauthorizedTTL", &config.unauthorized_ttl, Some(Duration::from_secs(30)))?;
    one_of("subjectAccessReviewVersion", &config.subject_access_review_version, &["v1", "v1beta1"])?;
    one_of("failurePolicy", &config.failure_policy, &["Deny", "NoOpinion"])?;
    if !config.match_conditions.is_empty() {
        one_of(
            "matchConditionSubjectAccessReviewVersion",
            &config.match_condition_subject_access_review_version,
            &["v1"],
        )?;
    }
    one_of("connectionInfo.type", &config.connection_info.r#type, &["InClusterConfig", "KubeConfigFile"])?;
    let path = match (config.connection_info.r#type.as_str(), &config.connection_info.kube_config_file) {
        ("KubeConfigFile", Some(path)) => path,
        ("KubeConfigFile", None) => return Err("connectionInfo.kubeConfigFile: Required value".to_string()),
        _ => {
            return Err("connectionInfo.type: Invalid value: \"InClusterConfig\": an API server outside the cluster needs KubeConfigFile".to_string());
        }
    };
    if !path.is_absolute() {
        return Err(format!(
            "connectionInfo.kubeConfigFile: Invalid value: {path:?}: must be an absolute path"
        ));
    }
    let service = Webhook::load(path)
        .map_err(|error| format!("connectionInfo.kubeConfigFile: Invalid value: {error}"))?;
    let expressions: Vec<String> = config.match_conditions.iter().map(|c| c.expression.clone()).collect();
    let conditions = Conditions::compile("request", &expressions)?;
    let settings = Settings {
        name: name.to_string(),
        version: config.subject_access_review_version.clone(),
        timeout,
        authorized_ttl: remembered(config.cache_authorized_requests, authorized),
        unauthorized_ttl: remembered(config.cache_unauthorized_requests, unauthorized),
        fails_closed: config.failure_policy == "Deny",
        conditions,
    };
    Ok(WebhookAuthorizer::new(service, settings))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str =
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n";

    #[test]
    fn files() {
        let check = |rest: &str, expected: &str| {
            let error = parse(&format!("{HEAD}{rest}")).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        assert_eq!(
            parse(&format!("{HEAD}- {{type: Node, name: n}}\n- {{type: RBAC, name: r}}\n")).unwrap().len(),
            2
        );
        check("  []\n", "at least one authorization mode");
        check("- {type: Foo, name: n}", "Unsupported value: \"Foo\"");
        check("- {type: RBAC, name: n}\n- {type: RBAC, name: m}", "[1].type: Duplicate value: \"RBAC\"");
        check("- {type: RBAC, name: n, webhook: {timeout: 1s}}", "may only be specified when type=Webhook");
        check("- {type: Webhook, name: n}", "required when type=Webhook");
        check("- {type: Webhook, name: n, webhook: {}}", "timeout: Required value");
        check("- {type: Webhook, name: n, webhook: {timeout: 60s}}", "must be <= 30s");
        check("- {type: RBAC, name: n, extra: 1}", "extra");
    }
}
