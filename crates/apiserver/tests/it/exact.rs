//! Answers whose texts and details clients rely on, each a line of a table.

use orlop_json::{Value, json};

use crate::support::{Client, admin, config_map, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn deployment(client: &Client, name: &str) {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(client.post(DEPLOYMENTS, object).await.code, 201);
}

#[tokio::test]
async fn parameters() {
    let client = admin(&server().await);
    let bad = |text: &str| format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
    for (query, message) in [
        ("limit=abc", bad("abc")),
        ("timeoutSeconds=1s", bad("1s")),
        ("limit=", bad("")),
        (
            "limit=99999999999999999999",
            "strconv.ParseInt: parsing \"99999999999999999999\": value out of range".into(),
        ),
    ] {
        client.get(&format!("{MAPS}?{query}")).await.refused(400, "BadRequest", &message);
    }
    assert_eq!(client.get(&format!("{MAPS}?limit=-1")).await.code, 200);
    client.post(MAPS, config_map("a", json!({}))).await.ok();
    client.delete(&format!("{MAPS}/a?gracePeriodSeconds=x"), Value::Null).await.refused(
        400,
        "BadRequest",
        &bad("x"),
    );
    // A flag is false when it says so, and true whatever else it says.
    client.get(&format!("{MAPS}?sendInitialEvents=x")).await.refused(
        422,
        "Invalid",
        "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
    );
}

#[tokio::test]
async fn options_of_a_deletion() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("a", json!({}))).await.ok();
    for (body, message) in [
        (
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": "a"}),
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
        ),
        (
            json!({"kind": "Pod", "apiVersion": "v1"}),
            "no kind \"Pod\" is registered for version \"v1\" in scheme \"pkg/apis/meta/internalversion/scheme/register.go:27\"",
        ),
    ] {
        client.delete(&format!("{MAPS}/a"), body).await.refused(500, "", message);
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "bogus": 1});
    assert_eq!(client.delete(&format!("{MAPS}/a"), options).await.code, 200);
}

#[tokio::test]
async fn bodies_of_patches() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("a", json!({}))).await.ok();
    let map = "json: cannot unmarshal array into Go value of type map[string]interface {}";
    for (kind, body, message) in [
        (
            "json",
            json!({}),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp".to_owned(),
        ),
        ("merge", json!([]), format!("error decoding patch: {map}")),
        // No body at all.
        ("merge", Value::Null, "error decoding patch: unexpected end of JSON input".to_owned()),
        ("strategic-merge", json!([]), map.to_owned()),
    ] {
        client.patch(kind, &format!("{MAPS}/a"), body.clone()).await.refused(400, "BadRequest", &message);
        // Of what does not exist, the patch is not read.
        client.patch(kind, &format!("{MAPS}/b"), body).await.refused(404, "NotFound", "configmaps \"b\" not found");
    }
    assert_eq!(client.patch("json", &format!("{MAPS}/a"), json!([])).await.code, 200);
    for (body, message) in [
        (
            json!({"apiVersion": "v2", "kind": "ConfigMap"}),
            "invalid object type: /v2, Kind=ConfigMap".to_owned(),
        ),
        (json!({"apiVersion": "v1", "kind": "Secret"}), "invalid object type: /v1, Kind=Secret".to_owned()),
        (json!([1]), format!("error decoding YAML: error unmarshaling JSON: while decoding JSON: {map}")),
    ] {
        let path = format!("{MAPS}/a?fieldManager=m");
        client.patch("apply", &path, body).await.refused(400, "BadRequest", &message);
    }
}

#[tokio::test]
async fn scales() {
    let client = admin(&server().await);
    deployment(&client, "d").await;
    let scale = format!("{DEPLOYMENTS}/d/scale");
    let sent = |metadata: Value, replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {"replicas": replicas}});
    client.put(&scale, sent(json!({}), 1)).await.refused(
        400,
        "BadRequest",
        "the name of the object (d based on URL) was undeterminable: name must be provided",
    );
    let uid = client.get(&scale).await.ok()["metadata"]["uid"].as_str().unwrap().to_owned();
    client.put(&scale, sent(json!({"name": "d", "uid": "u"}), 1)).await.refused(
        409,
        "Conflict",
        &format!(
            "Operation cannot be fulfilled on deployments/scale.apps \"d\": Precondition failed: UID in precondition: u, UID in object meta: {uid}"
        ),
    );
    let wrong = json!([{"op": "replace", "path": "/spec/replicas", "value": "a"}]);
    assert_eq!(client.patch("json", &scale, wrong).await.code, 422);

    // Whoever made the workload owns its replicas, and whoever wrote its Scale since then.
    let apply = |manager: &str| format!("{scale}?fieldManager={manager}");
    let applied = |replicas: i64| sent(json!({"name": "d"}), replicas);
    let conflict = client.patch("apply", &apply("m"), applied(5)).await;
    assert_eq!(conflict.code, 409);
    let forced = client.patch("apply", &format!("{}&force=true", apply("m")), applied(5)).await.ok();
    assert_eq!(forced["spec"]["replicas"], 5);
    client.patch("apply", &apply("n"), applied(6)).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"m\" with subresource \"scale\": .spec.replicas",
    );
    let owners = client.get(&format!("{DEPLOYMENTS}/d")).await.ok()["metadata"]["managedFields"].clone();
    let of_m = owners.as_array().unwrap().iter().find(|entry| entry["manager"] == "m").unwrap();
    assert_eq!(
        of_m,
        &json!({"manager": "m", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}}}, "subresource": "scale"})
    );
}

#[tokio::test]
async fn empty_lists_are_owned_and_stored_as_none() {
    let client = admin(&server().await);
    let node = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "n"}, "spec": {"drivers": []}});
    let made = client.post("/apis/storage.k8s.io/v1/csinodes", node).await.ok();
    assert_eq!(made["spec"], json!({"drivers": null}));
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:spec": {"f:drivers": {}}}));
}

#[tokio::test]
async fn token_requests_and_evictions() {
    let client = admin(&server().await);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    let uid = client.post(accounts, account).await.ok()["metadata"]["uid"].as_str().unwrap().to_owned();
    let request = |metadata: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": metadata, "spec": {}});
    let path = format!("{accounts}/s/token");
    client.post(&path, request(json!({"name": "t"}))).await.refused(
        422,
        "Invalid",
        "TokenRequest.authentication.k8s.io \"s\" is invalid: metadata.name: Invalid value: \"t\": must match the service account name if specified",
    );
    client.post(&path, request(json!({"uid": "u"}))).await.refused(
        409,
        "Conflict",
        &format!(
            "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"s\": the UID in the token request (u) does not match the UID of the service account ({uid})"
        ),
    );
    let pods = "/api/v1/namespaces/default/pods";
    let mut bound = request(json!({}));
    bound["spec"]["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "ServiceAccount", "name": "s"});
    client.post(&path, bound.clone()).await.refused(
        400,
        "BadRequest",
        "cannot bind token to object of type /v1, Kind=ServiceAccount",
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "s", "containers": [{"name": "c", "image": "i"}]}});
    let uid = client.post(pods, pod).await.ok()["metadata"]["uid"].as_str().unwrap().to_owned();
    bound["spec"]["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"});
    client.post(&path, bound).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on Pod \"p\": the UID in the bound object reference (u) does not match the UID in record. The object might have been deleted and then recreated",
    );
    let eviction = |version: &str, options: Value| json!({"apiVersion": version, "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": options});
    let path = format!("{pods}/p/eviction");
    client.post(&path, eviction("policy/v1", json!({"preconditions": {"uid": "u"}}))).await.refused(
        409,
        "Conflict",
        &format!(
            "Operation cannot be fulfilled on Pod \"p\": the UID in the precondition (u) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ),
    );
    assert_eq!(client.post(&path, eviction("policy/v1beta1", Value::Null)).await.code, 201);
}

#[tokio::test]
async fn owners_speak_their_own_versions() {
    let client = admin(&server().await);
    let path =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers/h");
    let applied = |version: &str, own: Value| {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
        let mut spec = json!({"scaleTargetRef": target, "maxReplicas": 5});
        spec.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": spec})
    };
    let metrics = |percent: u32| {
        json!([{"type": "Resource", "resource":
        {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}])
    };
    let first = applied("v2", json!({"metrics": metrics(50)}));
    client.patch("apply", &format!("{}?fieldManager=a", path("v2")), first).await.ok();
    let second = applied("v1", json!({"targetCPUUtilizationPercentage": 60}));
    let to = format!("{}?fieldManager=b", path("v1"));
    // What the other owns is said in its words.
    client.patch("apply", &to, second.clone()).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"a\": .spec.metrics",
    );
    client.patch("apply", &format!("{to}&force=true"), second).await.ok();
    let stored = client.get(&path("v2")).await.ok();
    assert_eq!(stored["spec"]["metrics"], metrics(60));
    let owned: Vec<Value> = stored["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| json!([entry["manager"], entry["apiVersion"], entry["fieldsV1"]["f:spec"]]))
        .collect();
    // The reference is one value in v1, and its fields are owned each in v2.
    let fields = json!({"f:apiVersion": {}, "f:kind": {}, "f:name": {}});
    let in_v2 = json!({"f:maxReplicas": {}, "f:scaleTargetRef": fields});
    let in_v1 = json!({"f:maxReplicas": {}, "f:scaleTargetRef": {}, "f:targetCPUUtilizationPercentage": {}});
    assert_eq!(owned, [json!(["a", "autoscaling/v2", in_v2]), json!(["b", "autoscaling/v1", in_v1])]);
}
