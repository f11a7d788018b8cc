//! Laws of patches and of server-side apply, on generated objects.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use orlop_api::decode::{self, FieldValidation};
use orlop_api::managed::{self, ManagedParams, ObjectType};
use orlop_api::patch;
use orlop_api::schema::Struct;
use orlop_json::{Map, Value, json};
use proptest::prelude::*;

fn deployment() -> &'static Struct {
    orlop_api::schema::kind("apps", "v1", "Deployment").unwrap()
}

fn params(manager: &str) -> ManagedParams<'_> {
    ManagedParams {
        manager,
        api_version: "apps/v1",
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        ty: ObjectType::from(Some(deployment())),
        versions: None,
    }
}

/// Any JSON without nulls, a few levels deep.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (-3i64..3).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

/// The same with nulls in objects, as merge patches have them.
fn json_patch_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..3).prop_map(Value::from),
        proptest::collection::vec((-3i64..3).prop_map(Value::from), 0..3).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        proptest::collection::btree_map("[abc]", inner, 0..4)
            .prop_map(|map| map.into_iter().collect::<Value>())
    })
}

/// A part of a Deployment: what one manager might care about. Containers are named from a small set, so that managers
/// meet.
fn intent() -> impl Strategy<Value = Value> {
    let labels = proptest::option::of(proptest::collection::btree_map("[abc]", "[xy]", 1..3));
    let env = proptest::collection::btree_map("[AB]", "[12]", 0..3);
    let ports = proptest::collection::btree_set(1u16..4, 0..3);
    let container = (proptest::option::of("[ij]"), env, ports);
    let containers = proptest::collection::btree_map("[cd]", container, 0..3);
    let options = (proptest::option::of(0i64..4), any::<bool>());
    (labels, options, containers).prop_map(|(labels, (replicas, paused), containers)| {
        let mut spec = Map::new();
        if let Some(replicas) = replicas {
            spec.insert("replicas".into(), replicas.into());
        }
        // False is as good as absent, which then differs from what is stored.
        if paused {
            spec.insert("paused".into(), true.into());
        }
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, env, ports))| {
                let mut container = json!({"name": name});
                if let Some(image) = image {
                    container["image"] = image.into();
                }
                if !env.is_empty() {
                    container["env"] = env.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
                }
                if !ports.is_empty() {
                    let port = |p: &u16| json!({"containerPort": p, "protocol": "TCP"});
                    container["ports"] = ports.iter().map(port).collect();
                }
                container
            })
            .collect();
        if !containers.is_empty() {
            spec.insert("template".into(), json!({"spec": {"containers": containers}}));
        }
        let mut object =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec});
        if let Some(labels) = labels {
            object["metadata"]["labels"] = json!(labels);
        }
        object
    })
}

fn normalised(object: &Value) -> Value {
    decode::normalise(object, deployment(), FieldValidation::Ignore).unwrap().value
}

/// Applies, and normalises as the registry does.
fn apply(live: Option<&Value>, intent: &Value, manager: &str) -> Value {
    normalised(&managed::on_apply(live, intent, &params(manager), true).unwrap())
}

/// The object without its record of managers, and with lists in the order of their keys: the order of elements that
/// different managers add is not owned by any.
fn content(object: &Value) -> Value {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect(),
            Value::Array(list) => {
                let mut list: Vec<Value> = list.iter().map(sorted).collect();
                list.sort_by_key(|v| (v["name"].to_string(), v["containerPort"].to_string(), v.to_string()));
                list.into()
            }
            other => other.clone(),
        }
    }
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    sorted(&object)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// RFC 7396: applying a merge patch twice is applying it once, and a document without nulls laid over nothing is
    /// itself.
    #[test]
    fn merge_patches(document in json_value(), patch in json_patch_value()) {
        let once = patch::merge::apply(&document, &patch);
        prop_assert_eq!(patch::merge::apply(&once, &patch), once.clone());
        prop_assert_eq!(patch::merge::apply(&Value::Null, &document), document);
    }

    /// A strategic merge patch without directives can be repeated.
    #[test]
    fn strategic_patches(document in intent(), patch in intent()) {
        let document = normalised(&document);
        let once = patch::strategic::apply(&document, &patch, deployment()).unwrap();
        prop_assert_eq!(patch::strategic::apply(&once, &patch, deployment()).unwrap(), once);
    }

    /// Applying the same again changes nothing, not even a time.
    #[test]
    fn apply_is_idempotent(first in intent(), second in intent()) {
        let live = apply(None, &first, "one");
        let live = apply(Some(&live), &second, "two");
        prop_assert_eq!(&apply(Some(&live), &second, "two"), &live);
    }

    /// What a manager applies is there afterwards.
    #[test]
    fn intents_come_true(first in intent(), second in intent()) {
        let live = apply(None, &first, "one");
        let live = apply(Some(&live), &second, "two");
        let again = normalised(&patch::strategic::apply(&live, &second, deployment()).unwrap());
        prop_assert_eq!(content(&again), content(&live));
    }

    /// A manager that gives up everything leaves what the others own, and nothing else.
    #[test]
    fn giving_up_leaves_the_others(first in intent(), second in intent()) {
        let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        let alone = apply(None, &first, "one");
        let both = apply(Some(&apply(None, &second, "two")), &first, "one");
        let after = apply(Some(&both), &nothing, "two");
        prop_assert_eq!(content(&after), content(&alone));
    }

    /// Managers that agree do not conflict; those that differ conflict unless forced, and force takes the fields over.
    #[test]
    fn conflicts(first in intent(), second in intent()) {
        let live = apply(None, &first, "one");
        prop_assert!(managed::on_apply(Some(&live), &first, &params("two"), false).is_ok());
        if let Err(refused) = managed::on_apply(Some(&live), &second, &params("two"), false) {
            prop_assert_eq!(refused.code(), 409);
            let taken = apply(Some(&live), &second, "two");
            // Now the first manager would have to force to get them back.
            prop_assert!(managed::on_apply(Some(&taken), &first, &params("one"), false).is_err());
            prop_assert!(managed::on_apply(Some(&taken), &second, &params("two"), false).is_ok());
        }
    }
}
