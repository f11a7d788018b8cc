//! The audit policy (`audit.k8s.io/v1` `Policy`): how much is recorded about which requests.

use serde::Deserialize;

use crate::authn::UserInfo;
use crate::request_info::RequestInfo;

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

/// When an event is recorded.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum Stage {
    /// The request has come in.
    RequestReceived,
    /// The answer begins; only for requests that take long.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// The server failed.
    Panic,
}

/// A policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(rename = "metadata")]
    _metadata: Option<orlop_json::Value>,
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How much.
    pub level: Level,
    /// Not at these stages.
    pub omit_stages: Vec<Stage>,
    /// Whether `managedFields` are left out of objects.
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads the text of a policy file.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let policy: Policy = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(format!(
                "no kind \"{}\" is registered for version \"{}\": use Policy of audit.k8s.io/v1",
                policy.kind, policy.api_version
            ));
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_string());
        }
        let mut errors = Vec::new();
        for (at, rule) in policy.rules.iter().enumerate() {
            rule.problems(&format!("rules[{at}]"), &mut errors);
        }
        match errors.is_empty() {
            true => Ok(policy),
            false => Err(orlop_api::status::aggregate(errors)),
        }
    }

    /// What the first rule that fits says; nothing is recorded when none does.
    pub fn verdict(&self, user: Option<&UserInfo>, info: &RequestInfo) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(user, info)) else {
            return Verdict::default();
        };
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(&rule.omit_stages);
        Verdict {
            level: rule.level.unwrap_or_default(),
            omit_stages,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn problems(&self, path: &str, errors: &mut Vec<String>) {
        if self.level.is_none() {
            errors.push(format!("{path}.level: Required value"));
        }
        if !self.non_resource_urls.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            errors.push(format!(
                "{path}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
            ));
        }
        for (at, url) in self.non_resource_urls.iter().enumerate() {
            let problem = match url.as_str() {
                "*" => continue,
                url if !url.starts_with('/') => "non-resource URL rules must begin with a '/' character",
                url if url[..url.len() - 1].contains('*') => {
                    "non-resource URL wildcards '*' must be the final character of the rule"
                }
                _ => continue,
            };
            errors.push(format!("{path}.nonResourceURLs[{at}]: Invalid value: {url:?}: {problem}"));
        }
        for (at, group) in self.resources.iter().enumerate() {
            if group.group.contains('/') {
                errors.push(format!(
                    "{path}.resources[{at}].group: Invalid value: {:?}: a group has no version",
                    group.group
                ));
            }
            if !group.resource_names.is_empty() && group.resources.is_empty() {
                errors.push(format!(
                    "{path}.resources[{at}].resourceNames: Invalid value: {:?}: using resourceNames requires at least one resource",
                    group.resource_names
                ));
            }
        }
    }

    fn fits(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        if !self.users.is_empty() && !user.is_some_and(|user| self.users.contains(&user.name)) {
            return false;
        }
        if !self.user_groups.is_empty()
            && !user.is_some_and(|user| user.groups.iter().any(|group| self.user_groups.contains(group)))
        {
            return false;
        }
        if !self.verbs.is_empty() && !self.verbs.contains(&info.verb) {
            return false;
        }
        if self.namespaces.is_empty() && self.resources.is_empty() && self.non_resource_urls.is_empty() {
            return true;
        }
        if info.is_resource { self.fits_resource(info) } else { self.fits_path(&info.path) }
    }

    fn fits_path(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => url == path,
        })
    }

    fn fits_resource(&self, info: &RequestInfo) -> bool {
        if !self.non_resource_urls.is_empty() {
            return false;
        }
        if !self.namespaces.is_empty() && !self.namespaces.contains(&info.namespace) {
            return false;
        }
        let combined = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        let entry_fits = |entry: &String| {
            let wild = |pattern: &str| match pattern.split_once('/') {
                // "*/status" is that subresource of all, "pods/*" all subresources of one.
                Some(("*", sub)) => sub == info.subresource,
                Some((main, "*")) => main == info.resource && !info.subresource.is_empty(),
                _ => false,
            };
            *entry == combined || (entry == "*" && info.subresource.is_empty()) || wild(entry)
        };
        self.resources.is_empty()
            || self.resources.iter().any(|group| {
                group.group == info.group
                    && (group.resources.is_empty()
                        || (group.resources.iter().any(entry_fits)
                            && (group.resource_names.is_empty()
                                || group.resource_names.contains(&info.name))))
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request_info::Query;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
  verbs: [watch]
- level: None
  nonResourceURLs: ['/healthz*', /version]
- level: RequestResponse
  resources: [{group: '', resources: [pods]}]
- level: Metadata
  resources: [{group: '', resources: [pods/log, '*/status']}]
  omitStages: [ResponseStarted]
- level: Request
  namespaces: [kube-system]
  resources: [{group: '', resources: [configmaps], resourceNames: [a]}]
- level: Metadata
  resources: [{group: apps}]
";

    #[test]
    fn rules() {
        let policy = Policy::parse(POLICY).unwrap();
        let check = |user: &str, method: http::Method, path: &str, expected: Level| {
            let user = UserInfo::new(user, &[]);
            let info = RequestInfo::parse(&method, path, &Query::parse(""));
            assert_eq!(policy.verdict(Some(&user), &info).level, expected, "{path}");
        };
        let get = || http::Method::GET;
        check("jane", get(), "/healthz/ping", Level::None);
        check("jane", get(), "/metrics", Level::None);
        check("jane", get(), "/api/v1/namespaces/a/pods/p", Level::RequestResponse);
        check("jane", get(), "/api/v1/namespaces/a/pods/p/log", Level::Metadata);
        check("jane", get(), "/api/v1/nodes/n/status", Level::Metadata);
        check("jane", get(), "/api/v1/namespaces/kube-system/configmaps/a", Level::Request);
        check("jane", get(), "/api/v1/namespaces/kube-system/configmaps/b", Level::None);
        check("jane", get(), "/apis/apps/v1/namespaces/a/deployments", Level::Metadata);
        let info = RequestInfo::parse(&get(), "/api/v1/nodes/n/status", &Query::parse(""));
        let verdict = policy.verdict(None, &info);
        assert_eq!(verdict.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
    }

    #[test]
    fn wrong_policies() {
        let check = |text: &str, expected: &str| {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        check(&format!("{head}rules: []\n"), "0 rules");
        check(&format!("{head}rules: [{{}}]\n"), "rules[0].level: Required value");
        check(&format!("{head}rules: [{{level: Loud}}]\n"), "Loud");
        check(&format!("{head}rules: [{{level: None, nonResourceURLs: ['/a*b']}}]\n"), "final character");
        check(
            &format!("{head}rules: [{{level: None, nonResourceURLs: [/a], namespaces: [b]}}]\n"),
            "both regular",
        );
        check("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\n", "is registered for version");
    }
}
