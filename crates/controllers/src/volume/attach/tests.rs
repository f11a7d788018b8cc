#![allow(clippy::unwrap_used)]
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::decide::*;
use super::*;
use crate::objects::testing::object;

fn attachable(modes: Value, driver: Value) -> Option<Attachable> {
    let volume = object(json!({"metadata": {"name": "v"}, "spec": {"accessModes": modes,
        "csi": {"driver": "d.example.com", "volumeHandle": "h"}}}));
    let driver: Option<CSIDriver> =
        (!driver.is_null()).then(|| object(json!({"metadata": {"name": "d.example.com"}, "spec": driver})));
    Attachable::of(&volume, driver.as_ref())
}

#[test]
fn what_is_attached() {
    let check = |modes: Value, driver: Value, exclusive: Option<bool>| {
        assert_eq!(
            attachable(modes.clone(), driver.clone()).map(|one| one.exclusive),
            exclusive,
            "{modes} {driver}"
        );
    };
    check(json!(["ReadWriteOnce"]), json!(null), Some(true));
    check(json!(["ReadWriteOncePod"]), json!({}), Some(true));
    check(json!(["ReadWriteOnce", "ReadOnlyMany"]), json!({"attachRequired": true}), Some(false));
    check(json!(["ReadWriteMany"]), json!(null), Some(false));
    check(json!(null), json!(null), Some(false));
    check(json!(["ReadWriteOnce"]), json!({"attachRequired": false}), None);
    let local = object(json!({"metadata": {"name": "v"}, "spec": {"local": {"path": "/x"}}}));
    assert_eq!(Attachable::of(&local, None), None);
}

#[test]
fn names_are_those_that_attachers_know() {
    let volume = attachable(json!(null), json!(null)).unwrap();
    // printf 'hd.example.comn' | sha256sum
    assert_eq!(
        volume.attachment_name("n"),
        "csi-6f50f41227a8b176bdb8f16917f5785c6f29d47af0c6e4fb07ef999717e5cb6d"
    );
    assert_eq!(volume.unique_name(), "kubernetes.io/csi/d.example.com^h");
}

#[test]
fn pods_need_their_volumes_until_they_have_ended() {
    let check = |what: &str, deleted: bool, status: Value, expected: bool| {
        let time = deleted.then_some("2026-01-01T00:00:00Z");
        let pod: Pod =
            object(json!({"metadata": {"name": "p", "deletionTimestamp": time}, "status": status}));
        assert_eq!(needs_volumes(&pod, false), expected, "{what}");
        assert!(needs_volumes(&pod, true));
    };
    let container = |state: Value| json!({"containerStatuses": [{"name": "c", "state": state}]});
    check("new", false, json!({}), true);
    check("ended", false, json!({"phase": "Succeeded"}), false);
    check("failed", false, json!({"phase": "Failed"}), false);
    check("deleted, runs", true, container(json!({"running": {}})), true);
    check("deleted, ended", true, container(json!({"terminated": {"exitCode": 0}})), false);
    check("deleted, never ran", true, json!({}), false);
}

#[test]
fn nodes() {
    let check = |node: Value, was_mounted: bool, expected: (bool, bool, bool, bool)| {
        let node: Option<Node> = (!node.is_null()).then(|| object(node.clone()));
        let seen = NodeView::of(node.as_ref(), "kubernetes.io/csi/d^h", was_mounted);
        assert_eq!((seen.managed, seen.mounted, seen.healthy, seen.out_of_service), expected, "{node:?}");
    };
    check(json!(null), true, (false, true, false, false));
    check(json!(null), false, (false, false, false, false));
    check(json!({"metadata": {}}), true, (false, false, false, false));
    let managed = json!({"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}});
    let status = json!({"volumesInUse": ["kubernetes.io/csi/d^h"], "conditions": [{"type": "Ready", "status": "True"}]});
    check(json!({"metadata": managed, "status": status}), false, (true, true, true, false));
    let taints = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    check(json!({"metadata": {}, "spec": {"taints": taints}}), false, (false, false, false, true));
}

#[test]
fn volumes_move() {
    struct Case {
        exclusive: bool,
        wanted: &'static [&'static str],
        attached: &'static [(&'static str, u64)],
        mounted: &'static [&'static str],
        unhealthy: &'static [&'static str],
        out_of_service: &'static [&'static str],
    }
    const PLAIN: Case = Case {
        exclusive: true,
        wanted: &[],
        attached: &[],
        mounted: &[],
        unhealthy: &[],
        out_of_service: &[],
    };
    let check = |what: &str, case: Case, expected: &[Step]| {
        let wanted: Vec<String> = case.wanted.iter().map(|&node| node.to_owned()).collect();
        let attachments: Vec<_> = case
            .attached
            .iter()
            .map(|(node, unwanted)| Attachment {
                node: node.trim_end_matches('!').to_owned(),
                deleting: node.ends_with('!'),
                unwanted: Duration::from_secs(*unwanted),
            })
            .collect();
        let view = |node: &str| NodeView {
            managed: !node.starts_with("foreign"),
            mounted: case.mounted.contains(&node),
            healthy: !case.unhealthy.contains(&node),
            out_of_service: case.out_of_service.contains(&node),
        };
        assert_eq!(steps(case.exclusive, &wanted, &attachments, view), expected, "{what}");
    };
    let attach = |node: &str| Step::Attach(node.to_owned());
    let detach = |node: &str, safely| Step::Detach { node: node.to_owned(), safely };
    let refuse = |node: &str, others: &[&str]| Step::Refuse {
        node: node.to_owned(),
        others: others.iter().map(|&other| other.to_owned()).collect(),
    };
    check("nothing", PLAIN, &[]);
    check("first", Case { wanted: &["a"], ..PLAIN }, &[attach("a")]);
    check("node of another", Case { wanted: &["foreign"], ..PLAIN }, &[]);
    check("there", Case { wanted: &["a"], attached: &[("a", 0)], ..PLAIN }, &[]);
    check("two want it", Case { wanted: &["a", "b"], ..PLAIN }, &[attach("a"), refuse("b", &["a"])]);
    check("shared", Case { exclusive: false, wanted: &["a", "b"], ..PLAIN }, &[attach("a"), attach("b")]);
    check("unwanted", Case { attached: &[("a", 0)], ..PLAIN }, &[detach("a", true)]);
    check("going", Case { attached: &[("a!", 0)], ..PLAIN }, &[]);
    check(
        "moves",
        Case { wanted: &["b"], attached: &[("a", 0)], ..PLAIN },
        &[detach("a", true), refuse("b", &["a"])],
    );
    check("moving", Case { wanted: &["b"], attached: &[("a!", 0)], ..PLAIN }, &[refuse("b", &["a"])]);
    check("still mounted", Case { attached: &[("a", 1000)], mounted: &["a"], ..PLAIN }, &[]);
    let silent = || Case { attached: &[("a", 60)], mounted: &["a"], unhealthy: &["a"], ..PLAIN };
    check("node silent", silent(), &[Step::Wait(Duration::from_secs(301))]);
    check("node silent for long", Case { attached: &[("a", 361)], ..silent() }, &[detach("a", false)]);
    check("node out of service", Case { out_of_service: &["a"], ..silent() }, &[detach("a", false)]);
}

#[test]
fn what_waiting_pods_are_told() {
    let check = |users: &[(&str, &str)], expected: &str| {
        let users: Vec<_> = users.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let text = multi_attach("v", "ns1", &users);
        assert_eq!(text, format!("Multi-Attach error for volume \"v\" {expected}"));
    };
    check(&[], "Volume is already exclusively attached to one node and can't be attached to another");
    check(&[("ns1", "pod2")], "Volume is already used by pod(s) pod2");
    check(&[("ns2", "pod2")], "Volume is already used by 1 pod(s) in different namespaces");
    check(
        &[("ns2", "pod2"), ("ns1", "pod3")],
        "Volume is already used by pod(s) pod3 and 1 pod(s) in different namespaces",
    );
}
