//! `AuthenticationConfiguration` (`apiserver.config.k8s.io`): the JWT issuers and the anonymous authenticator in a file,
//! and the same made of the `--oidc-*` flags.

use std::path::Path;

use serde::Deserialize;

use crate::options::OidcOptions;

/// The file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    /// `apiserver.config.k8s.io/v1`, `v1beta1` or `v1alpha1`.
    #[serde(default)]
    pub api_version: String,
    /// `AuthenticationConfiguration`
    #[serde(default)]
    pub kind: String,
    /// The issuers.
    #[serde(default)]
    pub jwt: Vec<JwtConfig>,
    /// Requests without credentials.
    pub anonymous: Option<AnonymousConfig>,
}

/// One issuer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtConfig {
    /// Who issues, and for whom.
    pub issuer: IssuerConfig,
    /// What tokens must say.
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    /// How a user is made of claims.
    #[serde(default)]
    pub claim_mappings: ClaimMappings,
    /// What users must be.
    #[serde(default)]
    pub user_validation_rules: Vec<UserRule>,
}

/// Who issues, and for whom.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerConfig {
    /// The `iss` claim; discovery is below it.
    pub url: String,
    /// Where discovery is instead.
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM text of the CA; the system's when empty.
    #[serde(default)]
    pub certificate_authority: String,
    /// One of them must be in the `aud` claim.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// `MatchAny` when there are several audiences.
    #[serde(default)]
    pub audience_match_policy: String,
    /// `controlplane` or `cluster`.
    #[serde(default)]
    pub egress_selector_type: String,
}

/// A claim's value, or an expression.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimRule {
    /// The claim.
    pub claim: String,
    /// What it must be.
    pub required_value: String,
    /// An expression over `claims`.
    pub expression: String,
    /// What is said when it is false.
    pub message: String,
}

/// An expression over `user`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserRule {
    /// The expression.
    pub expression: String,
    /// What is said when it is false.
    pub message: String,
}

/// How a user is made of claims.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimMappings {
    /// The user name.
    pub username: Mapping,
    /// The groups.
    pub groups: Mapping,
    /// The uid.
    pub uid: Mapping,
    /// Further facts.
    pub extra: Vec<ExtraMapping>,
}

/// A claim with a prefix, or an expression.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mapping {
    /// The claim.
    pub claim: String,
    /// Put before it.
    pub prefix: Option<String>,
    /// An expression over `claims`.
    pub expression: String,
}

/// One further fact.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtraMapping {
    /// Its key: a domain-prefixed path in lower case.
    pub key: String,
    /// An expression over `claims`.
    pub value_expression: String,
}

/// Requests without credentials.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnonymousConfig {
    /// Whether they are served at all.
    pub enabled: bool,
    /// On which paths; all when empty.
    #[serde(default)]
    pub conditions: Vec<AnonymousCondition>,
}

/// A path.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnonymousCondition {
    /// The exact path.
    pub path: String,
}

/// Most issuers of a file.
const MAX_ISSUERS: usize = 64;

impl AuthenticationConfiguration {
    /// Reads and checks a file; `disallowed` are issuers that the file may not name.
    pub fn load(path: &Path, disallowed: &[String]) -> Result<AuthenticationConfiguration, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        AuthenticationConfiguration::parse(&text, disallowed)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads and checks the text of such a file.
    pub fn parse(text: &str, disallowed: &[String]) -> Result<AuthenticationConfiguration, String> {
        let config: AuthenticationConfiguration =
            serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|v| format!("apiserver.config.k8s.io/{v}"));
        if config.kind != "AuthenticationConfiguration" || !versions.contains(&config.api_version) {
            return Err(format!(
                "no kind \"{}\" is registered for version \"{}\": use AuthenticationConfiguration of {}",
                config.kind, config.api_version, versions[0]
            ));
        }
        let errors = config.problems(disallowed);
        match errors.is_empty() {
            true => Ok(config),
            false => Err(orlop_api::status::aggregate(errors)),
        }
    }

    /// What is wrong with it, with upstream's paths.
    fn problems(&self, disallowed: &[String]) -> Vec<String> {
        let mut errors = Vec::new();
        if self.jwt.len() > MAX_ISSUERS {
            errors.push(format!("jwt: Too many: {}: must have at most {MAX_ISSUERS} items", self.jwt.len()));
        }
        let mut seen = std::collections::HashSet::new();
        for (at, jwt) in self.jwt.iter().enumerate() {
            let path = format!("jwt[{at}]");
            jwt.problems(&path, disallowed, &mut errors);
            if !seen.insert(jwt.issuer.url.as_str()) {
                errors.push(format!("{path}.issuer.url: Duplicate value: {:?}", jwt.issuer.url));
            }
        }
        if let Some(anonymous) = &self.anonymous {
            if !anonymous.enabled && !anonymous.conditions.is_empty() {
                errors.push("anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined".into());
            }
            for (at, condition) in anonymous.conditions.iter().enumerate() {
                if !condition.path.starts_with('/') {
                    errors.push(format!(
                        "anonymous.conditions[{at}].path: Invalid value: {:?}: path must start with /",
                        condition.path
                    ));
                }
            }
        }
        errors
    }
}

impl JwtConfig {
    fn problems(&self, path: &str, disallowed: &[String], errors: &mut Vec<String>) {
        let issuer = &self.issuer;
        let mut url = |field: &str, url: &str| {
            if !url.starts_with("https://") {
                errors
                    .push(format!("{path}.issuer.{field}: Invalid value: {url:?}: URL scheme must be https"));
            } else if url.contains(['?', '#', '@']) {
                errors.push(format!(
                    "{path}.issuer.{field}: Invalid value: {url:?}: URL must not contain a username, query or fragment"
                ));
            }
        };
        match issuer.url.as_str() {
            "" => errors.push(format!("{path}.issuer.url: Required value: URL is required")),
            text => {
                url("url", text);
                if disallowed.iter().any(|other| other == text) {
                    errors.push(format!(
                        "{path}.issuer.url: Invalid value: {text:?}: URL must not overlap with disallowed issuers: {disallowed:?}"
                    ));
                }
            }
        }
        if !issuer.discovery_url.is_empty() {
            let mut url = |text: &str| {
                if !text.starts_with("https://") {
                    errors.push(format!(
                        "{path}.issuer.discoveryURL: Invalid value: {text:?}: URL scheme must be https"
                    ));
                }
            };
            url(&issuer.discovery_url);
            if issuer.discovery_url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
                errors.push(format!(
                    "{path}.issuer.discoveryURL: Invalid value: {:?}: discoveryURL must be different from URL",
                    issuer.discovery_url
                ));
            }
        }
        if issuer.audiences.is_empty() {
            errors.push(format!("{path}.issuer.audiences: Required value: at least one jwt[{path}].issuer.audiences is required"));
        }
        match issuer.audience_match_policy.as_str() {
            "MatchAny" => {}
            "" if issuer.audiences.len() < 2 => {}
            other => errors.push(format!(
                "{path}.issuer.audienceMatchPolicy: Invalid value: {other:?}: audienceMatchPolicy must be set to MatchAny if multiple audiences are specified"
            )),
        }
        if !issuer.egress_selector_type.is_empty() {
            errors.push(format!(
                "{path}.issuer.egressSelectorType: Invalid value: {:?}: egress selectors are not built",
                issuer.egress_selector_type
            ));
        }
        for (at, rule) in self.claim_validation_rules.iter().enumerate() {
            let rule_path = format!("{path}.claimValidationRules[{at}]");
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (true, true) => {
                    errors.push(format!("{rule_path}: Required value: claim or expression is required"))
                }
                (false, false) => errors.push(format!(
                    "{rule_path}: Invalid value: {:?}: claim and expression can't both be set",
                    rule.claim
                )),
                _ => {}
            }
        }
        let names = &self.claim_mappings;
        for (field, mapping, required) in [
            ("username", &names.username, true),
            ("groups", &names.groups, false),
            ("uid", &names.uid, false),
        ] {
            let field = format!("{path}.claimMappings.{field}");
            match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
                (true, true) if required => {
                    errors.push(format!("{field}: Required value: claim or expression is required"));
                }
                (false, false) => errors
                    .push(format!("{field}: Invalid value: \"\": claim and expression can't both be set")),
                (false, true) if field.ends_with("uid") => {}
                (false, true) if mapping.prefix.is_none() => errors.push(format!(
                    "{field}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
                )),
                (true, _) if mapping.prefix.is_some() => errors.push(format!(
                    "{field}.prefix: Invalid value: {:?}: prefix can't be set when expression is set",
                    mapping.prefix.as_deref().unwrap_or("")
                )),
                _ => {}
            }
        }
        let mut keys = std::collections::HashSet::new();
        for (at, extra) in names.extra.iter().enumerate() {
            let field = format!("{path}.claimMappings.extra[{at}]");
            if extra.key.is_empty() {
                errors.push(format!("{field}.key: Required value"));
            } else if extra.key != extra.key.to_lowercase() {
                errors.push(format!("{field}.key: Invalid value: {:?}: key must be lowercase", extra.key));
            } else if !extra.key.contains('/') {
                errors.push(format!(
                    "{field}.key: Invalid value: {:?}: must be a domain-prefixed path (such as \"acme.io/foo\")",
                    extra.key
                ));
            } else if reserved(&extra.key) {
                errors.push(format!(
                    "{field}.key: Invalid value: {:?}: k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
                    extra.key
                ));
            }
            if !keys.insert(extra.key.as_str()) {
                errors.push(format!("{field}.key: Duplicate value: {:?}", extra.key));
            }
            if extra.value_expression.is_empty() {
                errors.push(format!("{field}.valueExpression: Required value: valueExpression is required"));
            }
        }
    }

    /// What the `--oidc-*` flags mean.
    pub fn of_flags(flags: &OidcOptions) -> Result<JwtConfig, String> {
        let certificate_authority = match &flags.ca_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("--oidc-ca-file {}: {error}", path.display()))?,
            None => String::new(),
        };
        // Without a prefix names other than addresses are prefixed by the issuer, so that two issuers' users differ.
        let prefix = match flags.username_prefix.as_str() {
            "-" => String::new(),
            "" if flags.username_claim == "email" => String::new(),
            "" => format!("{}#", flags.issuer_url),
            given => given.to_string(),
        };
        let groups = match flags.groups_claim.as_str() {
            "" => Mapping::default(),
            claim => Mapping {
                claim: claim.to_string(),
                prefix: Some(flags.groups_prefix.clone()),
                ..Mapping::default()
            },
        };
        let config = JwtConfig {
            issuer: IssuerConfig {
                url: flags.issuer_url.clone(),
                certificate_authority,
                audiences: vec![flags.client_id.clone()],
                ..IssuerConfig::default()
            },
            claim_validation_rules: flags
                .required_claims
                .iter()
                .map(|(claim, value)| ClaimRule {
                    claim: claim.clone(),
                    required_value: value.clone(),
                    ..ClaimRule::default()
                })
                .collect(),
            claim_mappings: ClaimMappings {
                username: Mapping {
                    claim: flags.username_claim.clone(),
                    prefix: Some(prefix),
                    ..Mapping::default()
                },
                groups,
                ..ClaimMappings::default()
            },
            user_validation_rules: Vec::new(),
        };
        let mut errors = Vec::new();
        config.problems("jwt[0]", &[], &mut errors);
        match errors.is_empty() {
            true => Ok(config),
            false => Err(orlop_api::status::aggregate(errors)),
        }
    }
}

/// Whether a key belongs to Kubernetes.
fn reserved(key: &str) -> bool {
    let domain = key.split('/').next().unwrap_or("");
    ["k8s.io", "kubernetes.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: https://idp.example\n    audiences: [a]\n  claimMappings:\n    username: {claim: sub, prefix: 'x:'}\n";

    #[test]
    fn files() {
        let check = |text: &str, expected: &str| {
            let error = AuthenticationConfiguration::parse(text, &["https://own".to_string()]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        assert_eq!(AuthenticationConfiguration::parse(GOOD, &[]).unwrap().jwt.len(), 1);
        check(&GOOD.replace("url: https", "url: http"), "URL scheme must be https");
        check(&GOOD.replace("https://idp.example", "https://own"), "must not overlap");
        check(&GOOD.replace("[a]", "[a, b]"), "must be set to MatchAny");
        check(&GOOD.replace("[a]", "[]"), "audiences: Required value");
        check(&GOOD.replace(", prefix: 'x:'", ""), "prefix is required when claim is set");
        check(&GOOD.replace("claim: sub, prefix: 'x:'", "prefix: a"), "username: Required value");
        check(&GOOD.replace("issuer:\n", "issuers:\n"), "issuer");
        check(&GOOD.replace("/v1\n", "/v9\n"), "is registered for version");
        check(
            &format!("{GOOD}anonymous: {{enabled: false, conditions: [{{path: /livez}}]}}\n"),
            "enabled should be set",
        );
    }

    #[test]
    fn flags() {
        let flags = OidcOptions {
            issuer_url: "https://idp.example".into(),
            client_id: "me".into(),
            username_claim: "sub".into(),
            ..OidcOptions::default()
        };
        let config = JwtConfig::of_flags(&flags).unwrap();
        assert_eq!(config.claim_mappings.username.prefix.as_deref(), Some("https://idp.example#"));
        let email = OidcOptions { username_claim: "email".into(), ..flags };
        assert_eq!(JwtConfig::of_flags(&email).unwrap().claim_mappings.username.prefix.as_deref(), Some(""));
    }
}
