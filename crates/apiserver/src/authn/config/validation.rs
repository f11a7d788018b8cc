//! What is wrong with an `AuthenticationConfiguration`, with upstream's paths and texts
//! (`apiserver/pkg/apis/apiserver/validation`). The texts of expressions are those of `super::super::expressions`.

use std::collections::HashSet;

use orlop_api::field::{self, ErrorList, Path, go_quote};
use orlop_json::json;
use orlop_kinds::networking::ingressclass::domain_prefixed_path;

use super::{AuthenticationConfiguration, IssuerConfig, JwtConfig, Mapping};
use crate::authn::expressions::Expressions;

/// Most issuers of a file.
const MAX_ISSUERS: usize = 64;
const RESERVED_DOMAINS: [&str; 2] = ["k8s.io", "kubernetes.io"];

/// The errors in one text, if there are any.
pub(super) fn verdict(errors: ErrorList) -> Result<(), String> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(orlop_api::status::aggregate(errors.iter().map(ToString::to_string))),
    }
}

impl AuthenticationConfiguration {
    /// `disallowed` are issuers that the file may not name.
    pub(super) fn validate(&self, disallowed: &[String]) -> ErrorList {
        let (mut errs, root) = (ErrorList::new(), Path::new("jwt"));
        if self.jwt.len() > MAX_ISSUERS {
            errs.push(field::too_many(&root, self.jwt.len(), MAX_ISSUERS));
            return errs;
        }
        let (mut issuers, mut discoveries) = (HashSet::new(), HashSet::new());
        for (at, jwt) in self.jwt.iter().enumerate() {
            let path = root.index(at);
            jwt.validate(&path, disallowed, &mut errs);
            let (issuer, path) = (&jwt.issuer, path.child("issuer"));
            if !issuers.insert(issuer.url.as_str()) {
                errs.push(field::duplicate(&path.child("url"), issuer.url.as_str()));
            }
            if !issuer.discovery_url.is_empty() && !discoveries.insert(issuer.discovery_url.as_str()) {
                errs.push(field::duplicate(&path.child("discoveryURL"), issuer.discovery_url.as_str()));
            }
        }
        if let Some(anonymous) = &self.anonymous
            && !anonymous.enabled
            && !anonymous.conditions.is_empty()
        {
            let shown: Vec<_> = anonymous.conditions.iter().map(|c| json!({"Path": c.path})).collect();
            errs.push(field::invalid(
                &Path::new("anonymous").child("conditions"),
                shown,
                "enabled should be set to true when conditions are defined",
            ));
        }
        errs
    }
}

impl JwtConfig {
    pub(super) fn validate(&self, path: &Path, disallowed: &[String], errs: &mut ErrorList) {
        self.issuer.validate(&path.child("issuer"), disallowed, errs);
        self.validate_claim_rules(&path.child("claimValidationRules"), errs);
        self.validate_mappings(&path.child("claimMappings"), errs);
        self.validate_user_rules(&path.child("userValidationRules"), errs);
        Expressions::compile(self, path, errs);
    }

    fn validate_claim_rules(&self, path: &Path, errs: &mut ErrorList) {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        for (at, rule) in self.claim_validation_rules.iter().enumerate() {
            let path = path.index(at);
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => errs.push(field::required(&path, "claim or expression is required")),
                ("", expression) => {
                    if !rule.required_value.is_empty() {
                        errs.push(field::invalid(
                            &path.child("requiredValue"),
                            rule.required_value.as_str(),
                            "may not be specified when expression is set",
                        ));
                    }
                    if !expressions.insert(expression) {
                        errs.push(field::duplicate(&path.child("expression"), expression));
                    }
                }
                (claim, "") => {
                    if !rule.message.is_empty() {
                        errs.push(field::invalid(
                            &path.child("message"),
                            rule.message.as_str(),
                            "may not be specified when claim is set",
                        ));
                    }
                    if !claims.insert(claim) {
                        errs.push(field::duplicate(&path.child("claim"), claim));
                    }
                }
                (claim, _) => {
                    errs.push(field::invalid(&path, claim, "claim and expression can't both be set"))
                }
            }
        }
    }

    fn validate_mappings(&self, path: &Path, errs: &mut ErrorList) {
        let mappings = &self.claim_mappings;
        prefixed(&mappings.username, &path.child("username"), true, errs);
        prefixed(&mappings.groups, &path.child("groups"), false, errs);
        if !mappings.uid.claim.is_empty() && !mappings.uid.expression.is_empty() {
            errs.push(field::invalid(&path.child("uid"), "", "claim and expression can't both be set"));
        }
        let mut keys = HashSet::new();
        for (at, extra) in mappings.extra.iter().enumerate() {
            let (path, key) = (path.child("extra").index(at), extra.key.as_str());
            let at = path.child("key");
            domain_prefixed_path(errs, &at, key);
            if key != key.to_lowercase() {
                errs.push(field::invalid(&at, key, "must be lowercase"));
            }
            if reserved(key) {
                let detail = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                errs.push(field::invalid(&at, key, detail));
            }
            if !keys.insert(key) {
                errs.push(field::duplicate(&at, key));
            } else if extra.value_expression.is_empty() {
                errs.push(field::required(&path.child("valueExpression"), ""));
            }
        }
    }

    fn validate_user_rules(&self, path: &Path, errs: &mut ErrorList) {
        let mut expressions = HashSet::new();
        for (at, rule) in self.user_validation_rules.iter().enumerate() {
            let (path, expression) = (path.index(at).child("expression"), rule.expression.as_str());
            if expression.is_empty() {
                errs.push(field::required(&path, ""));
            } else if !expressions.insert(expression) {
                errs.push(field::duplicate(&path, expression));
            }
        }
    }
}

impl IssuerConfig {
    fn validate(&self, path: &Path, disallowed: &[String], errs: &mut ErrorList) {
        match self.url.as_str() {
            "" => errs.push(field::required(&path.child("url"), "")),
            issuer => url(issuer, disallowed, &path.child("url"), errs),
        }
        if !self.discovery_url.is_empty() {
            let (at, discovery) = (path.child("discoveryURL"), self.discovery_url.as_str());
            if !self.url.is_empty() && self.url.trim_end_matches('/') == discovery.trim_end_matches('/') {
                errs.push(field::invalid(&at, discovery, "discoveryURL must be different from URL"));
            }
            url(discovery, &[], &at, errs);
        }
        self.validate_audiences(path, errs);
        let ca = self.certificate_authority.as_str();
        if !ca.is_empty() && !crate::pki::certificates(ca).is_ok_and(|found| !found.is_empty()) {
            errs.push(field::invalid(
                &path.child("certificateAuthority"),
                "<omitted>",
                "data does not contain any valid RSA or ECDSA certificates",
            ));
        }
        // There are no egress selectors: whatever the network is called, it is reached directly.
        if !matches!(self.egress_selector_type.as_str(), "" | "controlplane" | "cluster") {
            errs.push(field::invalid(
                &path.child("egressSelectorType"),
                self.egress_selector_type.as_str(),
                "egress selector must be either controlplane or cluster",
            ));
        }
    }

    fn validate_audiences(&self, path: &Path, errs: &mut ErrorList) {
        let at = path.child("audiences");
        if self.audiences.is_empty() {
            errs.push(field::required(&at, &format!("at least one {at} is required")));
            return;
        }
        let mut seen = HashSet::new();
        for (i, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() {
                errs.push(field::required(&at.index(i), ""));
            }
            if !seen.insert(audience) {
                errs.push(field::duplicate(&at.index(i), audience.as_str()));
            }
        }
        let policy = self.audience_match_policy.as_str();
        let detail = match (self.audiences.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        errs.push(field::invalid(&path.child("audienceMatchPolicy"), policy, detail));
    }
}

fn url(text: &str, disallowed: &[String], path: &Path, errs: &mut ErrorList) {
    let mut refuse = |detail: String| errs.push(field::invalid(path, text, detail));
    if disallowed.iter().any(|other| other == text) {
        let mut sorted = disallowed.to_vec();
        sorted.sort();
        refuse(format!("URL must not overlap with disallowed issuers: [{}]", sorted.join(" ")));
    }
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.bytes().any(|b| b.is_ascii_control()) {
        refuse(format!("parse {}: net/url: invalid control character in URL", go_quote(text)));
        return;
    }
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    for (wrong, detail) in [
        (!scheme.eq_ignore_ascii_case("https"), "URL scheme must be https"),
        (
            rest.split('/').next().is_some_and(|host| host.contains('@')),
            "URL must not contain a username or password",
        ),
        (!query.is_empty(), "URL must not contain a query"),
        (!fragment.is_empty(), "URL must not contain a fragment"),
    ] {
        if wrong {
            refuse(detail.to_string());
        }
    }
}

fn prefixed(mapping: &Mapping, path: &Path, required: bool, errs: &mut ErrorList) {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => errs.push(field::invalid(path, "", "claim and expression can't both be set")),
        (true, true) if required => errs.push(field::required(path, "claim or expression is required")),
        (true, true) => {}
        (true, false) => {
            if let Some(prefix) = &mapping.prefix {
                let detail = "may not be specified when expression is set";
                errs.push(field::invalid(&path.child("prefix"), prefix.as_str(), detail));
            }
        }
        (false, true) if mapping.prefix.is_none() => errs.push(field::required(
            &path.child("prefix"),
            "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
        )),
        (false, true) => {}
    }
}

/// Whether a key belongs to Kubernetes.
fn reserved(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    RESERVED_DOMAINS
        .iter()
        .any(|own| domain.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}
