//! Which authorizers there are: by `--authorization-mode` and its flags, or by an `AuthorizationConfiguration` file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::field::{self, ErrorList, Path as FieldPath};
use orlop_api::names;
use serde::Deserialize;

use super::Step;
use super::abac::Abac;
use super::webhook::{Settings, WebhookAuthorizer};
use crate::expressions::MatchConditions;
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
                        conditions: MatchConditions::default(),
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
    let (mut errs, root) = (ErrorList::new(), FieldPath::new("authorizers"));
    if config.authorizers.is_empty() {
        errs.push(field::required(&root, "at least one authorization mode must be defined"));
    }
    let (mut steps, mut seen, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (at, authorizer) in config.authorizers.iter().enumerate() {
        let (path, kind) = (root.index(at), authorizer.r#type.as_str());
        if !TYPES.contains(&kind) {
            errs.push(unsupported(&path.child("type"), kind, &TYPES));
            continue;
        }
        if kind != "Webhook" && seen.contains(&kind) {
            errs.push(field::duplicate(&path.child("type"), kind));
            continue;
        }
        seen.push(kind);
        validate_name(&mut errs, &path.child("name"), &authorizer.name, &names);
        names.push(authorizer.name.as_str());
        if kind != "Webhook" && authorizer.webhook.is_some() {
            let detail = "may only be specified when type=Webhook";
            errs.push(field::invalid(&path.child("webhook"), "non-null", detail));
        }
        match (kind, &authorizer.webhook) {
            ("AlwaysAllow", _) => steps.push(Step::AlwaysAllow),
            ("AlwaysDeny", _) => steps.push(Step::AlwaysDeny),
            ("Node", _) => steps.push(Step::Node),
            ("RBAC", _) => steps.push(Step::Rbac),
            (_, Some(config)) => {
                let webhook = webhook(&authorizer.name, config, &path, &mut errs);
                steps.extend(webhook.map(|webhook| Step::Webhook(Box::new(webhook))));
            }
            (_, None) => errs.push(field::required(&path.child("webhook"), "required when type=Webhook")),
        }
    }
    match errs.is_empty() {
        true => Ok(steps),
        false => Err(orlop_api::status::aggregate(errs.iter().map(ToString::to_string))),
    }
}

const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];

fn validate_name(errs: &mut ErrorList, path: &FieldPath, name: &str, names: &[&str]) {
    if name.is_empty() {
        errs.push(field::required(path, ""));
    } else if names.contains(&name) {
        errs.push(field::duplicate(path, name));
    } else {
        let wrong = names::is_dns1123_subdomain(name);
        if !wrong.is_empty() {
            errs.push(field::invalid(
                path,
                name,
                format!("authorizer name is invalid: {}", wrong.join(", ")),
            ));
        }
    }
}

fn unsupported(path: &FieldPath, value: &str, supported: &[&str]) -> field::FieldError {
    match value {
        "" => field::required(path, ""),
        _ => field::not_supported(path, value, supported),
    }
}

/// The length a text gives; without a text the default, and without one of those it is required.
fn duration(
    errs: &mut ErrorList,
    path: &FieldPath,
    text: &str,
    default: Option<Duration>,
    longest: Option<Duration>,
) -> Duration {
    let nanoseconds = match text {
        "" => Ok(0),
        text => orlop_api::decode::scalar::parse_duration(text),
    };
    let nanoseconds = match nanoseconds {
        Ok(nanoseconds) => nanoseconds,
        Err(error) => {
            errs.push(field::invalid(path, text, error.to_string()));
            return Duration::ZERO;
        }
    };
    let limit = longest.map_or(String::new(), |longest| format!(" and <= {}s", longest.as_secs()));
    match u64::try_from(nanoseconds).map(Duration::from_nanos) {
        Ok(Duration::ZERO) => match default {
            Some(default) => return default,
            None => errs.push(field::required(path, "")),
        },
        Ok(given) if longest.is_none_or(|longest| given <= longest) => return given,
        _ => errs.push(field::invalid(path, text, format!("must be > 0s{limit}"))),
    }
    Duration::ZERO
}

/// The service of a webhook authorizer. Upstream gives the paths of its fields without `webhook`.
fn webhook(
    name: &str,
    config: &WebhookConfig,
    path: &FieldPath,
    errs: &mut ErrorList,
) -> Option<WebhookAuthorizer> {
    let before = errs.len();
    let one_of = |errs: &mut ErrorList, field: &str, value: &str, supported: &[&str]| {
        if !supported.contains(&value) {
            errs.push(unsupported(&path.child(field), value, supported));
        }
    };
    let timeout = duration(errs, &path.child("timeout"), &config.timeout, None, Some(LONGEST_TIMEOUT));
    let mut ttl = |field: &str, text: &str, default: u64| {
        duration(errs, &path.child(field), text, Some(Duration::from_secs(default)), None)
    };
    let authorized = ttl("authorizedTTL", &config.authorized_ttl, 300);
    let unauthorized = ttl("unauthorizedTTL", &config.unauthorized_ttl, 30);
    one_of(errs, "subjectAccessReviewVersion", &config.subject_access_review_version, &["v1", "v1beta1"]);
    match config.match_condition_subject_access_review_version.as_str() {
        "" if config.match_conditions.is_empty() => {}
        "" => errs.push(field::required(
            &path.child("matchConditionSubjectAccessReviewVersion"),
            "required if match conditions are specified",
        )),
        version => one_of(errs, "matchConditionSubjectAccessReviewVersion", version, &["v1"]),
    }
    one_of(errs, "failurePolicy", &config.failure_policy, &["NoOpinion", "Deny"]);
    let service = connection(&config.connection_info, &path.child("connectionInfo"), errs);
    let expressions: Vec<String> = config.match_conditions.iter().map(|c| c.expression.clone()).collect();
    let conditions = MatchConditions::compile(&path.child("matchConditions"), &expressions, errs);
    let service = service.filter(|_| errs.len() == before)?;
    let remembered =
        |flag: Option<bool>, ttl: Duration| if flag == Some(false) { Duration::ZERO } else { ttl };
    let settings = Settings {
        name: name.to_string(),
        version: config.subject_access_review_version.clone(),
        timeout,
        authorized_ttl: remembered(config.cache_authorized_requests, authorized),
        unauthorized_ttl: remembered(config.cache_unauthorized_requests, unauthorized),
        fails_closed: config.failure_policy == "Deny",
        conditions,
    };
    Some(WebhookAuthorizer::new(service, settings))
}

fn connection(info: &ConnectionInfo, path: &FieldPath, errs: &mut ErrorList) -> Option<Webhook> {
    let (kind, file) = (path.child("type"), path.child("kubeConfigFile"));
    let given = info.kube_config_file.as_deref().filter(|given| !given.as_os_str().is_empty());
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    match (info.r#type.as_str(), given) {
        ("KubeConfigFile", None) => errs.push(field::required(&file, "")),
        ("KubeConfigFile", Some(given)) if !given.is_absolute() => {
            errs.push(field::invalid(&file, shown(given), "must be an absolute path"));
        }
        ("KubeConfigFile", Some(given)) => match Webhook::load(given) {
            Ok(service) => return Some(service),
            Err(error) => {
                errs.push(field::invalid(&file, shown(given), format!("error loading file: {error}")));
            }
        },
        ("InClusterConfig", Some(given)) => {
            errs.push(field::invalid(&file, shown(given), "can only be set when type=KubeConfigFile"));
        }
        ("InClusterConfig", None) => errs.push(field::invalid(
            &kind,
            "InClusterConfig",
            "an API server outside the cluster needs KubeConfigFile",
        )),
        (other, _) => errs.push(unsupported(&kind, other, &["InClusterConfig", "KubeConfigFile"])),
    }
    None
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
        check("- {type: Webhook, name: n, webhook: {timeout: 60s}}", "must be > 0s and <= 30s");
        check("- {type: RBAC, name: n, extra: 1}", "extra");
    }
}
