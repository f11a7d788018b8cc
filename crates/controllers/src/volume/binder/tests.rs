#![allow(clippy::unwrap_used)]
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::decide::*;
use super::*;
use crate::objects::testing::object;

fn merged(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

fn claim(spec: Value, annotations: Value) -> PersistentVolumeClaim {
    let base = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""});
    object(
        json!({"metadata": {"name": "data", "namespace": "a", "uid": "c", "annotations": annotations}, "spec": merged(base, spec)}),
    )
}

fn volume(name: &str, spec: Value) -> Arc<PersistentVolume> {
    let base = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "5Gi"}});
    Arc::new(object(
        json!({"metadata": {"name": name}, "spec": merged(base, spec), "status": {"phase": "Available"}}),
    ))
}

fn class(name: &str, provisioner: &str, mode: &str, default: bool) -> Arc<StorageClass> {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
    Arc::new(object(
        json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner,
        "volumeBindingMode": mode}),
    ))
}

fn shown(step: ClaimStep) -> String {
    match step {
        ClaimStep::Bind(volume) => format!("bind {}", volume.name()),
        ClaimStep::Pending(None) => "pending".to_owned(),
        ClaimStep::Pending(Some(told)) => format!("pending {}: {}", told.reason, told.message),
        ClaimStep::Lost(told) => format!("lost {}", told.reason),
        ClaimStep::AssignClass(class) => format!("class {class}"),
        ClaimStep::Provision(by) => format!("provision by {by}"),
    }
}

fn check(what: &str, claim: PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], expected: &str) {
    assert_eq!(shown(claim_step(&claim, volumes, &[], None)), expected, "{what}");
}

#[test]
fn the_smallest_that_fits() {
    let plain = || claim(json!({}), json!({}));
    let none =
        "pending FailedBinding: no persistent volumes available for this claim and no storage class is set";
    check("nothing there", plain(), &[], none);
    let (big, small) = (volume("big", json!({})), volume("small", json!({"capacity": {"storage": "2Gi"}})));
    let tiny = volume("tiny", json!({"capacity": {"storage": "500Mi"}}));
    check("smallest", plain(), &[big.clone(), tiny.clone(), small.clone()], "bind small");
    check("too small", plain(), &[tiny], none);
    let many = volume(
        "many",
        json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "1Gi"}}),
    );
    check("fewest modes", plain(), &[many.clone(), big.clone()], "bind big");
    check(
        "needed modes",
        claim(json!({"accessModes": ["ReadOnlyMany"]}), json!({})),
        &[big.clone(), many],
        "bind many",
    );
    check("block", claim(json!({"volumeMode": "Block"}), json!({})), std::slice::from_ref(&big), none);
    let mut labelled = (*big).clone();
    labelled.metadata.labels = Some([("disk".to_owned(), "fast".to_owned())].into());
    let selecting = || claim(json!({"selector": {"matchLabels": {"disk": "fast"}}}), json!({}));
    check("selector", selecting(), &[small.clone(), Arc::new(labelled)], "bind big");
    check("selector, none", selecting(), std::slice::from_ref(&small), none);
    let mut dying = (*small).clone();
    dying.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    check("being deleted", plain(), &[Arc::new(dying)], none);
    let mut released = (*small).clone();
    released.status.as_mut().unwrap().phase = Some("Released".to_owned());
    check("not free", plain(), &[Arc::new(released)], none);
    let reserved = |name: &str| volume("kept", json!({"claimRef": {"namespace": "a", "name": name}}));
    check("reserved for it", plain(), &[small.clone(), reserved("data")], "bind kept");
    check("reserved for another", plain(), &[reserved("other")], none);
}

#[test]
fn volumes_by_name() {
    let named = || claim(json!({"volumeName": "v"}), json!({}));
    check("not there", named(), &[], "pending");
    check("free", named(), &[volume("v", json!({}))], "bind v");
    check(
        "too small",
        named(),
        &[volume("v", json!({"capacity": {"storage": "1Mi"}}))],
        "pending VolumeMismatch: Cannot bind to requested volume \"v\": requested PV is too small",
    );
    check(
        "class",
        named(),
        &[volume("v", json!({"storageClassName": "x"}))],
        "pending VolumeMismatch: Cannot bind to requested volume \"v\": storageClassName does not match",
    );
    let taken = |name: &str, uid: &str| {
        volume("v", json!({"claimRef": {"namespace": "a", "name": name, "uid": uid}}))
    };
    check("ours", named(), &[taken("data", "c")], "bind v");
    check(
        "another's",
        named(),
        &[taken("x", "x")],
        "pending FailedBinding: volume \"v\" already bound to a different claim.",
    );
    let done = || json!({BIND_COMPLETED: "yes"});
    check("bound", claim(json!({"volumeName": "v"}), done()), &[taken("data", "c")], "bind v");
    check(
        "bound, volume forgot",
        claim(json!({"volumeName": "v"}), done()),
        &[volume("v", json!({}))],
        "bind v",
    );
    check("bound, volume gone", claim(json!({"volumeName": "v"}), done()), &[], "lost ClaimLost");
    check("bound, no volume", claim(json!({}), done()), &[], "lost ClaimLost");
    check(
        "bound twice",
        claim(json!({"volumeName": "v"}), done()),
        &[taken("data", "old")],
        "lost ClaimMisbound",
    );
}

#[test]
fn classes_decide_who_makes_it() {
    let classes = [
        class("late", "example.com/disk", "WaitForFirstConsumer", true),
        class("now", "example.com/disk", "Immediate", false),
        class("none", "kubernetes.io/no-provisioner", "Immediate", false),
    ];
    let check = |name: Value, annotations: Value, pod: Option<&str>, expected: &str| {
        let claim = claim(json!({"storageClassName": name}), annotations);
        assert_eq!(shown(claim_step(&claim, &[], &classes, pod)), expected, "{name}");
    };
    check(json!(null), json!({}), None, "class late");
    check(json!("now"), json!({}), None, "provision by example.com/disk");
    check(
        json!("late"),
        json!({}),
        None,
        "pending WaitForFirstConsumer: waiting for first consumer to be created before binding",
    );
    check(
        json!("late"),
        json!({}),
        Some("p"),
        "pending WaitForPodScheduled: waiting for pod p to be scheduled",
    );
    check(
        json!("late"),
        json!({"volume.kubernetes.io/selected-node": "n"}),
        None,
        "provision by example.com/disk",
    );
    check(
        json!("gone"),
        json!({}),
        None,
        "pending ProvisioningFailed: storageclass.storage.k8s.io \"gone\" not found",
    );
    check(
        json!("none"),
        json!({}),
        None,
        "pending ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
    );
    let late = claim(json!({"storageClassName": "late"}), json!({}));
    let free = volume("v", json!({"storageClassName": "late"}));
    let step = claim_step(&late, &[free], &classes, None);
    assert!(matches!(step, ClaimStep::Pending(_)), "the scheduler chooses");
    let made = volume(
        "v",
        json!({"storageClassName": "late", "claimRef": {"namespace": "a", "name": "data", "uid": "c"}}),
    );
    assert_eq!(shown(claim_step(&late, &[made], &classes, None)), "bind v");
}

#[test]
fn volumes_follow_their_claims() {
    let check = |what: &str,
                 spec: Value,
                 annotations: Value,
                 claim: Option<PersistentVolumeClaim>,
                 expected: VolumeStep| {
        let mut volume = (*volume("v", spec)).clone();
        volume.metadata.annotations = Some(object(annotations));
        assert_eq!(volume_step(&volume, claim.as_ref()), expected, "{what}");
    };
    let reference = |uid: Value| json!({"claimRef": {"namespace": "a", "name": "data", "uid": uid}});
    let to = |volume: &str| Some(claim(json!({"volumeName": volume}), json!({})));
    check("free", json!({}), json!({}), None, VolumeStep::Phase("Available"));
    check("reserved", reference(json!(null)), json!({}), None, VolumeStep::Phase("Available"));
    check("bound", reference(json!("c")), json!({}), to("v"), VolumeStep::Phase("Bound"));
    check("half bound", reference(json!("c")), json!({}), to(""), VolumeStep::WakeClaim);
    check("claim gone", reference(json!("c")), json!({}), None, VolumeStep::Reclaim);
    check("claim anew", reference(json!("old")), json!({}), to("v"), VolumeStep::Reclaim);
    check(
        "elsewhere",
        reference(json!("c")),
        json!({BOUND_BY_CONTROLLER: "yes"}),
        to("w"),
        VolumeStep::Unbind,
    );
    let deleted = merged(reference(json!("c")), json!({"persistentVolumeReclaimPolicy": "Delete"}));
    check(
        "elsewhere, provisioned",
        deleted,
        json!({"pv.kubernetes.io/provisioned-by": "x"}),
        to("w"),
        VolumeStep::Reclaim,
    );
}

#[test]
fn reclaiming() {
    let check = |policy: &str, by: Option<&str>, expected: Option<&str>| {
        let mut volume = (*volume("v", json!({"persistentVolumeReclaimPolicy": policy}))).clone();
        volume.metadata.annotations =
            by.map(|by| [("pv.kubernetes.io/provisioned-by".to_owned(), by.to_owned())].into());
        assert_eq!(reclaim_failure(&volume).map(|told| told.reason), expected, "{policy}");
    };
    check("Retain", None, None);
    check("Delete", Some("example.com/disk"), None);
    check("Delete", None, Some("VolumeFailedDelete"));
    check("Recycle", None, Some("VolumeFailedRecycle"));
    check("Other", None, Some("VolumeUnknownReclaimPolicy"));
}
