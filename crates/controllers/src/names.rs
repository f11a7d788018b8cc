//! The names by which controllers are chosen: those of `--controllers`, and the shorter ones of earlier releases.

use crate::shell::TABLE;

/// Controllers that `*` does not mean: upstream runs them only when they are named.
const OFF_BY_DEFAULT: [&str; 2] = ["bootstrap-signer-controller", "token-cleaner-controller"];

/// Controllers of upstream that have nothing to do here: without a cloud, or because what they act on is not served by
/// default. Their names are understood all the same.
const ABSENT: [&str; 7] = [
    "cloud-node-lifecycle-controller",
    "kube-apiserver-serving-clustertrustbundle-publisher-controller",
    "node-route-controller",
    "podcertificaterequest-cleaner-controller",
    "selinux-warning-controller",
    "storage-version-migrator-controller",
    "storageversion-garbage-collector-controller",
];

/// Earlier names (`controller_names.go` upstream).
const ALIASES: &[(&str, &str)] = &[
    ("attachdetach", "persistentvolume-attach-detach-controller"),
    ("bootstrapsigner", "bootstrap-signer-controller"),
    ("clusterrole-aggregation", "clusterrole-aggregation-controller"),
    ("cronjob", "cronjob-controller"),
    ("csrapproving", "certificatesigningrequest-approving-controller"),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    ("daemonset", "daemonset-controller"),
    ("deployment", "deployment-controller"),
    ("disruption", "disruption-controller"),
    ("endpoint", "endpoints-controller"),
    ("endpointslice", "endpointslice-controller"),
    ("endpointslicemirroring", "endpointslice-mirroring-controller"),
    ("ephemeral-volume", "ephemeral-volume-controller"),
    ("garbagecollector", "garbage-collector-controller"),
    ("horizontalpodautoscaling", "horizontal-pod-autoscaler-controller"),
    ("job", "job-controller"),
    ("namespace", "namespace-controller"),
    ("nodeipam", "node-ipam-controller"),
    ("nodelifecycle", "node-lifecycle-controller"),
    ("persistentvolume-binder", "persistentvolume-binder-controller"),
    ("persistentvolume-expander", "persistentvolume-expander-controller"),
    ("podgc", "pod-garbage-collector-controller"),
    ("pv-protection", "persistentvolume-protection-controller"),
    ("pvc-protection", "persistentvolumeclaim-protection-controller"),
    ("replicaset", "replicaset-controller"),
    ("replicationcontroller", "replicationcontroller-controller"),
    ("resourcequota", "resourcequota-controller"),
    ("root-ca-cert-publisher", "root-ca-certificate-publisher-controller"),
    ("service", "service-lb-controller"),
    ("serviceaccount", "serviceaccount-controller"),
    ("serviceaccount-token", "serviceaccount-token-controller"),
    ("statefulset", "statefulset-controller"),
    ("tokencleaner", "token-cleaner-controller"),
    ("ttl", "ttl-controller"),
    ("ttl-after-finished", "ttl-after-finished-controller"),
];

/// A name that no controller has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not in the list of known controllers")]
pub struct UnknownController(String);

fn resolve(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, full)| full)
}

/// Whether every name of a `--controllers` list is known.
pub fn check_names(list: &[String]) -> Result<(), UnknownController> {
    for entry in list.iter().filter(|entry| *entry != "*") {
        let name = resolve(entry.strip_prefix('-').unwrap_or(entry));
        if !TABLE.iter().any(|controller| controller.name == name) && !ABSENT.contains(&name) {
            return Err(UnknownController(entry.clone()));
        }
    }
    Ok(())
}

/// Whether a list chooses a controller: what is said of its name counts, else whether there is a `*`.
pub(crate) fn is_enabled(name: &str, list: &[String]) -> bool {
    for entry in list {
        if resolve(entry) == name {
            return true;
        }
        if entry.strip_prefix('-').is_some_and(|without| resolve(without) == name) {
            return false;
        }
    }
    list.iter().any(|entry| entry == "*") && !OFF_BY_DEFAULT.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_choose() {
        let check = |list: &[&str], name: &str, expected: bool| {
            let list: Vec<String> = list.iter().map(|entry| (*entry).to_owned()).collect();
            assert_eq!(check_names(&list), Ok(()));
            assert_eq!(is_enabled(name, &list), expected, "{list:?} {name}");
        };
        check(&["*"], "deployment-controller", true);
        check(&["*"], "token-cleaner-controller", false);
        check(&["*", "tokencleaner"], "token-cleaner-controller", true);
        check(&["*", "-deployment"], "deployment-controller", false);
        check(&["-deployment-controller", "*"], "deployment-controller", false);
        check(&["job-controller"], "deployment-controller", false);
        check(&["job-controller"], "job-controller", true);
        check(&["*", "resourceclaim-controller"], "job-controller", true);
    }

    #[test]
    fn unknown_names() {
        let unknown = check_names(&["*".to_owned(), "-deplyoment".to_owned()]).unwrap_err();
        assert_eq!(unknown.to_string(), "\"-deplyoment\" is not in the list of known controllers");
    }
}
