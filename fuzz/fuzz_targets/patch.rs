//! The four kinds of patches on a Deployment: two JSON documents, separated by a zero byte, of which the first is
//! laid over a well-formed object.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orlop_api::decode::{self, Media};
use orlop_api::managed::{self, ManagedParams, ObjectType};
use orlop_api::patch;
use orlop_json::{Value, json};

static OBJECT: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "a", "labels": {"x": "y"}, "finalizers": ["a/b"]},
        "spec": {
            "selector": {"matchLabels": {"x": "y"}},
            "template": {
                "metadata": {"labels": {"x": "y"}},
                "spec": {"containers": [
                    {"name": "c", "image": "i", "ports": [{"containerPort": 1, "protocol": "TCP"}], "args": ["a"]},
                    {"name": "d", "image": "i", "env": [{"name": "A", "value": "1"}]},
                ], "tolerations": [{"key": "k"}]},
            },
        },
    })
});

fuzz_target!(|data: &[u8]| {
    let mut halves = data.splitn(2, |b| *b == 0);
    let Some(Ok(patch)) = halves.next().map(|text| decode::parse(text, Media::Json)) else { return };
    let over = halves.next().and_then(|text| decode::parse(text, Media::Json).ok()).unwrap_or(Value::Null);
    let object = patch::merge::apply(&OBJECT, &over);
    let ty = orlop_api::schema::kind("apps", "v1", "Deployment").expect("Deployments are known");
    let merged = patch::merge::apply(&object, &patch);
    // A merge patch says what it says: applying it again changes nothing.
    assert_eq!(patch::merge::apply(&merged, &patch), merged);
    let _ = patch::json::apply(&object, &patch);
    let _ = patch::strategic::apply(&object, &patch, ty);
    let params = ManagedParams {
        manager: "fuzz",
        api_version: "apps/v1",
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        ty: ObjectType::from(Some(ty)),
        versions: None,
    };
    if let Ok(applied) = managed::on_apply(Some(&object), &patch, &params, true) {
        let _ = managed::on_apply(Some(&applied), &patch, &params, false);
        let mut again = applied.clone();
        managed::on_update(Some(&object), &mut again, &params);
    }
});
