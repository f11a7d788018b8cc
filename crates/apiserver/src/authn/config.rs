//! `AuthenticationConfiguration` (`apiserver.config.k8s.io`): the JWT issuers and the anonymous authenticator in a file,
//! and the same made of the `--oidc-*` flags.

mod validation;

use std::path::Path;

use orlop_api::field::Path as FieldPath;
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
        validation::verdict(config.validate(disallowed))?;
        Ok(config)
    }
}

impl JwtConfig {
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
        config.validate(&FieldPath::new("jwt").index(0), &[], &mut errors);
        validation::verdict(errors)?;
        Ok(config)
    }
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
        check(&GOOD.replace("[a]", "[a, b]"), "audienceMatchPolicy must be MatchAny for multiple audiences");
        check(
            &GOOD.replace("[a]", "[]"),
            "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
        );
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
