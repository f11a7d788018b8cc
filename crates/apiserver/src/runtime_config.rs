//! `--runtime-config`: which groups, versions and resources are served. Upstream's `resourceconfig`.

use std::collections::BTreeMap;

use orlop_api::resources::Resource;

/// A key that stands for many versions, and for which.
type Matcher = (&'static str, fn(&str) -> bool);

/// Keys that stand for many versions, in the order in which they are applied.
const MATCHERS: [Matcher; 4] = [
    ("api/all", |_| true),
    ("api/ga", |version| !version.contains("alpha") && !version.contains("beta")),
    ("api/beta", |version| version.contains("beta")),
    ("api/alpha", |version| version.contains("alpha")),
];

/// Versions of upstream that are off by default and not built here.
const UNBUILT: [(&str, &str); 21] = [
    ("admissionregistration.k8s.io", "v1alpha1 v1beta1"),
    ("apps", "v1beta1 v1beta2"),
    ("authentication.k8s.io", "v1alpha1 v1beta1"),
    ("authorization.k8s.io", "v1beta1"),
    ("batch", "v1beta1"),
    ("certificates.k8s.io", "v1alpha1 v1beta1"),
    ("coordination.k8s.io", "v1alpha2 v1beta1"),
    ("discovery.k8s.io", "v1beta1"),
    ("events.k8s.io", "v1beta1"),
    ("extensions", "v1beta1"),
    ("flowcontrol.apiserver.k8s.io", "v1beta1 v1beta2 v1beta3"),
    ("imagepolicy.k8s.io", "v1alpha1"),
    ("internal.apiserver.k8s.io", "v1alpha1"),
    ("networking.k8s.io", "v1beta1"),
    ("node.k8s.io", "v1alpha1 v1beta1"),
    ("policy", "v1beta1"),
    ("rbac.authorization.k8s.io", "v1alpha1 v1beta1"),
    ("resource.k8s.io", "v1alpha3 v1beta1 v1beta2"),
    ("scheduling.k8s.io", "v1alpha2 v1beta1"),
    ("storage.k8s.io", "v1alpha1 v1beta1"),
    ("storagemigration.k8s.io", "v1beta1"),
];

/// What is served and what is not.
#[derive(Clone, Debug, Default)]
pub struct RuntimeConfig {
    /// By [`MATCHERS`].
    matchers: [Option<bool>; 4],
    /// By group and version.
    versions: BTreeMap<(String, String), bool>,
    /// By group, version and plural.
    resources: BTreeMap<(String, String, String), bool>,
}

fn is_group(group: &str) -> bool {
    orlop_api::resources::all().iter().any(|row| row.group == group)
        || UNBUILT.iter().any(|(known, _)| *known == group)
}

fn is_built(group: &str, version: &str) -> bool {
    orlop_api::resources::all().iter().any(|row| row.group == group && row.version == version)
}

fn is_version(group: &str, version: &str) -> bool {
    is_built(group, version)
        || UNBUILT
            .iter()
            .any(|(known, versions)| *known == group && versions.split(' ').any(|known| known == version))
}

impl RuntimeConfig {
    /// Reads the flag's pairs.
    ///
    /// # Errors
    /// Upstream's texts about keys that mean nothing; and what is asked for but not built.
    pub fn parse(set: &BTreeMap<String, bool>) -> Result<RuntimeConfig, String> {
        if set.len() == 1 && set.get("api/all") == Some(&false) {
            return Err("invalid key with only api/all=false".to_string());
        }
        let mut config = RuntimeConfig::default();
        let mut unknown: Vec<&str> = Vec::new();
        for (key, enabled) in set {
            if let Some(at) = MATCHERS.iter().position(|(name, _)| name == key) {
                config.matchers[at] = Some(*enabled);
                continue;
            }
            let parts: Vec<&str> = key.split('/').collect();
            let (group, version, plural) = match parts.as_slice() {
                [group, version] => (*group, *version, None),
                [group, version, plural] => (*group, *version, Some(*plural)),
                _ => return Err(format!("runtime-config invalid key {key}")),
            };
            if !is_group(group) {
                unknown.push(group);
                continue;
            }
            if !is_version(group, version) {
                return Err(format!("group version {group}/{version} that has not been registered"));
            }
            if *enabled && !is_built(group, version) {
                return Err(format!(
                    "--runtime-config {key}=true: {group}/{version} is not built; leave it out"
                ));
            }
            match plural {
                None => _ = config.versions.insert((group.into(), version.into()), *enabled),
                Some(plural) if plural.to_lowercase() != plural => {
                    return Err(format!(
                        "invalid key {key}: group/version/resource and resource is always lowercase plural, found {plural:?}"
                    ));
                }
                Some(plural) => {
                    _ = config.resources.insert((group.into(), version.into(), plural.into()), *enabled)
                }
            }
        }
        if !unknown.is_empty() {
            return Err(format!("unknown api groups {}", unknown.join(",")));
        }
        Ok(config)
    }

    /// Whether a resource is served.
    pub fn serves(&self, row: &Resource) -> bool {
        if self.resources.is_empty() && self.versions.is_empty() && self.matchers == [None; 4] {
            return true;
        }
        let version = (row.group.clone(), row.version.clone());
        let resource = (version.0.clone(), version.1.clone(), row.plural.clone());
        if let Some(enabled) = self.resources.get(&resource) {
            return *enabled;
        }
        if let Some(enabled) = self.versions.get(&version) {
            return *enabled;
        }
        let matching = self.matchers.iter().zip(MATCHERS).filter(|(_, (_, fits))| fits(&row.version));
        matching.filter_map(|(enabled, _)| *enabled).next_back().unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<RuntimeConfig, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        RuntimeConfig::parse(&pairs.map(|(key, value)| (key.to_string(), value == "true")).collect())
    }

    #[test]
    fn what_is_served() {
        let check = |config: &str, (group, version, plural): (&str, &str, &str), expected: bool| {
            let row = orlop_api::resources::find(group, version, plural).unwrap();
            assert_eq!(parse(config).unwrap().serves(row), expected, "{config} {plural}");
        };
        let (pods, jobs, deployments) =
            (("", "v1", "pods"), ("batch", "v1", "jobs"), ("apps", "v1", "deployments"));
        check("", pods, true);
        check("batch/v1=false", jobs, false);
        check("batch/v1=false", pods, true);
        check("api/all=false,/v1=true", pods, true);
        check("api/all=false,/v1=true", jobs, false);
        check("api/all=false,batch/v1/jobs=true", jobs, true);
        check("api/all=false,batch/v1/jobs=true", ("batch", "v1", "cronjobs"), false);
        check("api/all=false,api/ga=true", deployments, true);
        check("api/beta=false", deployments, true);
        check("apps/v1/deployments=false", deployments, false);
        check("apps/v1/deployments=false", ("apps", "v1", "daemonsets"), true);
        check("apps/v1beta1=false", deployments, true);
    }

    #[test]
    fn refusals() {
        let check = |config: &str, expected: &str| {
            let error = parse(config).unwrap_err();
            assert!(error.contains(expected), "{config}: {error}");
        };
        check("api/all=false", "invalid key with only api/all=false");
        check("v1=true", "runtime-config invalid key v1");
        check("a/b/c/d=true", "runtime-config invalid key a/b/c/d");
        check("nope/v1=true,other/v1=false", "unknown api groups nope,other");
        check("autoscaling/v2beta2=true", "autoscaling/v2beta2 that has not been registered");
        check("apps/v9=true", "group version apps/v9 that has not been registered");
        check("apps/v1/Deployments=true", "always lowercase plural");
        check("resource.k8s.io/v1beta1=true", "resource.k8s.io/v1beta1 is not built");
    }
}
