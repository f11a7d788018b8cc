#![allow(clippy::unwrap_used)]

use orlop_json::json;
use pretty_assertions::assert_eq;

use super::*;

const T1: &str = "2020-01-01T00:00:01Z";
const T2: &str = "2020-01-01T00:00:02Z";

fn params<'a>(api_version: &'a str, kind: &str, manager: &'a str, now: &'a str) -> ManagedParams<'a> {
    let (group, version) = meta::split_api_version(api_version);
    ManagedParams {
        manager,
        api_version,
        subresource: "",
        now,
        ty: crate::schema::kind(group, version, kind).into(),
        versions: None,
    }
}

fn builtin(params: &ManagedParams) -> &'static crate::schema::Struct {
    let ObjectType::Builtin(ty) = params.ty else { panic!("a built-in kind") };
    ty
}

fn normal(value: Value, params: &ManagedParams) -> Value {
    decode::normalise(&value, builtin(params), FieldValidation::Strict).unwrap().value
}

fn config_map(data: Value) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": data})
}

/// `manager operation fields` of each entry.
fn owners(obj: &Value) -> Vec<(String, Value)> {
    meta::managed_fields(obj)
        .iter()
        .map(|entry| {
            let who =
                format!("{} {}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap());
            (who, entry["fieldsV1"].clone())
        })
        .collect()
}

fn owner(who: &str, fields: Value) -> (String, Value) {
    (who.to_owned(), fields)
}

#[test]
fn a_create_owns_what_an_empty_object_has_not() {
    let params = params("apps/v1", "Deployment", "m", T1);
    let mut obj = normal(
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d", "labels": {"x": "y"}}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "x"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [
                {"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}],
                 "args": ["x"]}]}}}}),
        &params,
    );
    on_update(None, &mut obj, &params);
    assert_eq!(
        owners(&obj),
        [owner(
            "m Update",
            json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}, "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {
                    "k:{\"name\":\"c\"}": {".": {}, "f:args": {}, "f:env": {".": {}, "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}},
                        "f:image": {}, "f:name": {}, "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                        "f:resources": {}}}}}}})
        )]
    );
    assert_eq!(obj["metadata"]["managedFields"][0]["time"], T1);
}

#[test]
fn updates_move_ownership() {
    let first = params("v1", "ConfigMap", "one", T1);
    let mut a = config_map(json!({"k": "v", "j": "v"}));
    on_update(None, &mut a, &first);
    let second = params("v1", "ConfigMap", "two", T2);
    let mut b = config_map(json!({"k": "w", "n": "v"}));
    on_update(Some(&a), &mut b, &second);
    assert_eq!(
        owners(&b),
        [
            owner("one Update", json!({"f:data": {}})),
            owner("two Update", json!({"f:data": {"f:k": {}, "f:n": {}}}))
        ]
    );
    // Nothing changes, so nothing is recorded.
    let mut c = config_map(json!({"k": "w", "n": "v"}));
    on_update(Some(&b), &mut c, &params("v1", "ConfigMap", "three", "2020-01-01T00:00:03Z"));
    assert_eq!(c["metadata"]["managedFields"], b["metadata"]["managedFields"]);
    // An empty list resets, and updates do not start anew; an apply does.
    for reset in [json!([{}]), json!([])] {
        let mut d = config_map(json!({"k": "x", "n": "v"}));
        d["metadata"]["managedFields"] = reset;
        on_update(Some(&b), &mut d, &first);
        assert_eq!(owners(&d), []);
        let mut e = config_map(json!({"k": "y", "n": "v"}));
        on_update(Some(&d), &mut e, &first);
        assert_eq!(owners(&e), []);
        let f = on_apply(Some(&e), &config_map(json!({"k": "y"})), &second, false).unwrap();
        assert_eq!(
            owners(&f),
            [
                owner("two Apply", json!({"f:data": {"f:k": {}}})),
                owner("before-first-apply Update", json!({"f:data": {".": {}, "f:k": {}, "f:n": {}}}))
            ]
        );
    }
}

#[test]
fn old_updaters_are_merged() {
    let mut obj = Value::Null;
    let mut data = Map::new();
    for at in 0..13 {
        let (manager, now) = (format!("m{at}"), format!("2020-01-01T00:00:{at:02}Z"));
        data.insert(format!("k{at}").into(), json!("v"));
        let mut next = config_map(Value::Object(data.clone()));
        let old = Some(&obj).filter(|_| at > 0);
        on_update(old, &mut next, &params("v1", "ConfigMap", &manager, &now));
        obj = next;
    }
    let owners = owners(&obj);
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes Update");
    assert_eq!(owners[0].1, json!({"f:data": {".": {}, "f:k0": {}, "f:k1": {}, "f:k2": {}, "f:k3": {}}}));
}

#[test]
fn apply_creates_merges_prunes_and_conflicts() {
    let apply = |live: Option<&Value>, body: Value, manager: &str, force: bool| {
        on_apply(live, &body, &params("v1", "ConfigMap", manager, T1), force)
    };
    let a = apply(None, config_map(json!({"k": "v", "j": "v"})), "a", false).unwrap();
    assert_eq!(owners(&a), [owner("a Apply", json!({"f:data": {"f:j": {}, "f:k": {}}}))]);
    // The same value by another is shared.
    let b = apply(Some(&a), config_map(json!({"k": "v"})), "b", false).unwrap();
    assert_eq!(
        owners(&b),
        [
            owner("b Apply", json!({"f:data": {"f:k": {}}})),
            owner("a Apply", json!({"f:data": {"f:j": {}, "f:k": {}}}))
        ]
    );
    // What is applied no more goes, unless another owns it.
    let c = apply(Some(&b), config_map(json!({"n": "v"})), "a", false).unwrap();
    assert_eq!(c["data"], json!({"k": "v", "n": "v"}));
    // Another value conflicts; force takes it.
    let error = apply(Some(&c), config_map(json!({"k": "w"})), "a", false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"b\": .data.k");
    assert_eq!(error.code(), 409);
    let d = apply(Some(&c), config_map(json!({"k": "w"})), "a", true).unwrap();
    assert_eq!(owners(&d), [owner("a Apply", json!({"f:data": {"f:k": {}}}))]);
    assert_eq!(d["data"], json!({"k": "w"}));
    // An update takes a field from an applier.
    let mut e = config_map(json!({"k": "z"}));
    on_update(Some(&d), &mut e, &params("v1", "ConfigMap", "u", T2));
    assert_eq!(owners(&e), [owner("u Update", json!({"f:data": {"f:k": {}}}))]);
    let error = apply(Some(&e), config_map(json!({"k": "v"})), "a", false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"u\" using v1: .data.k");
}

#[test]
fn apply_merges_lists_by_key_and_gives_them_back() {
    let deployment = |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
    let pod = |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    let apply = |live: Option<&Value>, body: Value, manager: &str| {
        let params = params("apps/v1", "Deployment", manager, T1);
        on_apply(live, &body, &params, false).map(|value| normal(value, &params))
    };
    let containers = |obj: &Value| -> Vec<String> {
        let list = obj["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter()
            .map(|c| format!("{}={}", c["name"].as_str().unwrap(), c["image"].as_str().unwrap()))
            .collect()
    };
    let a = apply(None, pod(json!([{"name": "c", "image": "i"}])), "a").unwrap();
    assert_eq!(
        owners(&a)[0].1,
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
    );
    let b = apply(Some(&a), pod(json!([{"name": "side", "image": "s"}])), "b").unwrap();
    assert_eq!(containers(&b), ["c=i", "side=s"]);
    let c = apply(Some(&b), pod(json!([{"name": "c", "image": "i2"}])), "a").unwrap();
    assert_eq!(containers(&c), ["c=i2", "side=s"]);
    let d = apply(
        Some(&c),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
        "b",
    )
    .unwrap();
    assert_eq!(containers(&d), ["c=i2"]);
    assert_eq!(owners(&d).len(), 1);
    let error =
        apply(Some(&d), pod(json!([{"name": "c", "env": [{"name": "A"}, {"name": "A"}]}])), "a").unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.template.spec.containers[name=\"c\"].env: duplicate entries for key [name=\"A\"]"
    );
    let error = apply(None, deployment(json!({"bogus": 1})), "a").unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.bogus: field not declared in schema"
    );
    assert_eq!((error.code(), error.reason()), (500, ""));
}

#[test]
fn a_struct_that_was_applied_goes_with_its_defaults() {
    let apply = |live: Option<&Value>, strategy: Value| {
        let params = params("apps/v1", "Deployment", "a", T1);
        let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"strategy": strategy}});
        on_apply(live, &body, &params, false).map(|value| normal(value, &params)).unwrap()
    };
    let mut a = apply(None, json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}));
    a["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = json!("25%");
    let b = apply(Some(&a), json!({"type": "Recreate"}));
    assert_eq!(b["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn an_apply_that_changes_nothing_has_no_time() {
    let update = params("v1", "ConfigMap", "u", T1);
    let mut a = config_map(json!({"k": "v"}));
    on_update(None, &mut a, &update);
    let b = on_apply(Some(&a), &config_map(json!({"k": "v"})), &params("v1", "ConfigMap", "a", T2), false)
        .unwrap();
    let entry = meta::managed_fields(&b).iter().find(|entry| entry["manager"] == "a").unwrap();
    assert_eq!(entry.get("time"), None);
    let c = on_apply(Some(&b), &config_map(json!({"k": "v"})), &params("v1", "ConfigMap", "a", T2), false)
        .unwrap();
    assert_eq!(b, c);
}

#[test]
fn custom_resources_are_read_as_they_look() {
    let params = ManagedParams {
        manager: "m",
        api_version: "x.io/v1",
        subresource: "",
        now: T1,
        ty: ObjectType::Unknown,
        versions: None,
    };
    let mut obj = json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "a", "finalizers": ["f"]}, "spec": {"a": [1, 2], "b": {"c": 1}}});
    on_update(None, &mut obj, &params);
    assert_eq!(
        owners(&obj)[0].1,
        json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"f\"": {}}}, "f:spec": {".": {}, "f:a": {}, "f:b": {".": {}, "f:c": {}}}})
    );
}
