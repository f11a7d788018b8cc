//! What happens to pods as they change: updates, generations, warnings, fields of disabled features.

use orlop_api::field::Path;
use orlop_json::{Value, json};

use super::super::warnings::pod_warnings;
use super::{container, pod};
use crate::Strategy as _;
use crate::testing::check_update;

#[test]
fn fields_of_disabled_features_are_dropped() {
    let mut pod = pod(
        json!({"schedulingGroup": {"podGroupName": "g"}, "volumes": [{"name": "v", "projected": {"sources": [
        {"clusterTrustBundle": {"path": "a"}}, {"podCertificate": {"keyType": "k"}}, {"secret": {"name": "s"}}]}}]}),
    );
    super::super::Pod.prepare_create(&mut pod);
    assert!(pod["spec"].get("schedulingGroup").is_none());
    assert_eq!(pod["spec"]["volumes"][0]["projected"]["sources"], json!([{}, {}, {"secret": {"name": "s"}}]));
}

#[test]
fn updates() {
    let update =
        |new: Value, old: Value, expected: &[&str]| check_update("", "Pod", pod(new), pod(old), expected);
    update(json!({"containers": [container(json!({"image": "x:2"}))]}), json!({}), &[]);
    update(json!({"activeDeadlineSeconds": 5}), json!({"activeDeadlineSeconds": 9}), &[]);
    update(
        json!({"activeDeadlineSeconds": 500}),
        json!({"activeDeadlineSeconds": 100}),
        &["spec.activeDeadlineSeconds: Invalid value: 500: must be less than or equal to previous value"],
    );
    update(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}), json!({}), &[]);
    update(
        json!({}),
        json!({"tolerations": [{"key": "a", "operator": "Exists"}]}),
        &[
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ],
    );
    update(
        json!({"schedulingGates": [{"name": "a"}]}),
        json!({}),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a'",
        ],
    );
    let gated = json!([{"name": "a"}]);
    update(
        json!({"schedulingGates": gated, "nodeSelector": {"a": "c"}}),
        json!({"schedulingGates": gated, "nodeSelector": {"a": "b"}}),
        &[
            "spec.nodeSelector: Invalid value: {\"a\":\"c\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ],
    );
    let pinned = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}});
    update(json!({"schedulingGates": gated, "affinity": pinned}), json!({"schedulingGates": gated}), &[]);
    update(
        json!({"containers": [container(json!({})), {"name": "d", "image": "x"}]}),
        json!({}),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    update(
        json!({"hostname": "b"}),
        json!({"hostname": "a"}),
        &[
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n@@ -1 +1 @@\n-hostname: \"a\"\n+hostname: \"b\"\n",
        ],
    );
}

#[test]
fn generation_counts_changes_of_the_spec() {
    let mut old = pod(json!({}));
    super::super::Pod.defaults(&mut old);
    super::super::Pod.prepare_create(&mut old);
    assert_eq!(old["metadata"]["generation"], 1);
    assert_eq!(old["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let mut same = old.clone();
    same["metadata"]["labels"] = json!({"a": "b"});
    super::super::Pod.prepare_update(&mut same, &old);
    assert_eq!(same["metadata"]["generation"], 1);
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "x".into();
    new["status"]["phase"] = "Failed".into();
    super::super::Pod.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    assert_eq!(new["status"]["phase"], "Pending");
}

#[test]
fn warnings() {
    for (pod, expected) in [
        (
            json!({"spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}}),
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
        ),
        (
            json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "runtime/default"}}}),
            "metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead",
        ),
        (
            json!({"spec": {"volumes": [{"gitRepo": {}}]}}),
            "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        ),
        (
            json!({"spec": {"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}}),
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ),
    ] {
        assert_eq!(pod_warnings(&Path::root(), &pod), [expected]);
    }
}
