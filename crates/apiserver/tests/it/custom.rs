//! Custom resources, from their definition to their end.

use orlop_json::{Value, json};

use crate::support::{Client, admin, server};

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition(versions: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
                 "versions": versions}})
}

fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}})
}

fn widget(api_version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{api_version}"), "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

/// Asks again until the answer is as it should be; definitions are followed, not waited for.
pub async fn until(client: &Client, path: &str, fits: impl Fn(u16, &Value) -> bool) -> Value {
    for _ in 0..200 {
        let answer = client.get(path).await;
        if fits(answer.code, &answer.body) {
            return answer.body;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{path} never became as it should be");
}

pub fn established(_code: u16, body: &Value) -> bool {
    let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
}

async fn define(client: &Client, versions: Value) {
    client.post(CRDS, definition(versions)).await.ok();
    until(client, &format!("{CRDS}/widgets.example.com"), established).await;
}

#[tokio::test]
async fn a_definition_is_served_and_goes_with_its_instances() {
    let client = admin(&server().await);
    assert_eq!(client.get(WIDGETS).await.code, 404);
    define(
        &client,
        json!([version(
            "v1",
            true,
            json!({"type": "object", "properties": {"n": {"type": "integer", "default": 3}}})
        )]),
    )
    .await;

    let made = client.post(WIDGETS, widget("v1", "a", json!({"x": 1}))).await;
    assert_eq!(made.warnings, ["299 - \"unknown field \\\"spec.x\\\"\""]);
    assert_eq!(made.ok()["spec"], json!({"n": 3}));
    client.post(WIDGETS, widget("v1", "b", json!({"n": "x"}))).await.refused(
        422,
        "Invalid",
        "Widget.example.com \"b\" is invalid: spec.n: Invalid value: \"string\": spec.n in body must be of type integer: \"string\"",
    );
    let list = client.get(WIDGETS).await.ok();
    assert_eq!(
        (list["kind"].as_str(), list["items"][0]["kind"].as_str()),
        (Some("WidgetList"), Some("Widget"))
    );

    let mut watch = client.watch(&format!("{WIDGETS}?watch=1&resourceVersion=0")).await;
    assert_eq!(watch.next_name().await, "ADDED a");
    client.delete(&format!("{CRDS}/widgets.example.com"), Value::Null).await.ok();
    assert_eq!(watch.next_name().await, "DELETED a");
    until(&client, &format!("{CRDS}/widgets.example.com"), |code, _| code == 404).await;
    until(&client, WIDGETS, |code, _| code == 404).await;
    assert_eq!(client.get("/apis/example.com").await.code, 404);
}

#[tokio::test]
async fn versions_are_views_of_one_object() {
    let client = admin(&server().await);
    let fields = |names: &[&str]| {
        let all: orlop_json::Map =
            names.iter().map(|name| ((*name).into(), json!({"type": "string"}))).collect();
        json!({"type": "object", "properties": all})
    };
    define(
        &client,
        json!([version("v1", true, fields(&["a", "b"])), version("v1beta1", false, fields(&["a"]))]),
    )
    .await;
    let beta = WIDGETS.replace("/v1/", "/v1beta1/");
    let mut watch = client.watch(&format!("{beta}?watch=1")).await;
    client.post(WIDGETS, widget("v1", "a", json!({"a": "x", "b": "y"}))).await.ok();
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["apiVersion"], "example.com/v1beta1");
    assert_eq!(event["object"]["spec"], json!({"a": "x"}));
    let seen = client.get(&format!("{beta}/a")).await.ok();
    assert_eq!(seen["spec"], json!({"a": "x"}));
    let discovery = client.get("/apis/example.com").await.ok();
    assert_eq!(discovery["preferredVersion"]["version"], "v1");
}

#[tokio::test]
async fn a_scale_needs_no_version() {
    let client = admin(&server().await);
    let mut v1 =
        version("v1", true, json!({"type": "object", "properties": {"replicas": {"type": "integer"}}}));
    v1["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}});
    define(&client, json!([v1])).await;
    client.post(WIDGETS, widget("v1", "a", json!({"replicas": 2}))).await.ok();
    let scale = format!("{WIDGETS}/a/scale");
    let patched = client.patch("merge", &scale, json!({"spec": {"replicas": 5}})).await.ok();
    assert_eq!((patched["kind"].as_str(), &patched["spec"]), (Some("Scale"), &json!({"replicas": 5})));
    assert_eq!(client.get(&format!("{WIDGETS}/a")).await.ok()["metadata"]["generation"], 2);
    let missing = client.post(WIDGETS, widget("v1", "b", json!({}))).await;
    missing.ok();
    assert_eq!(client.get(&format!("{WIDGETS}/b/scale")).await.code, 500);
}

#[tokio::test]
async fn a_new_schema_is_used_at_once_on_what_is_stored() {
    let client = admin(&server().await);
    define(&client, json!([version("v1", true, json!({"type": "object"}))])).await;
    client.post(WIDGETS, widget("v1", "a", json!({}))).await.ok();
    let mut crd = client.get(&format!("{CRDS}/widgets.example.com")).await.ok();
    crd["spec"]["versions"] = json!([version(
        "v1",
        true,
        json!({"type": "object", "properties": {"n": {"type": "integer", "default": 7}}})
    )]);
    client.put(&format!("{CRDS}/widgets.example.com"), crd).await.ok();
    let seen = until(&client, &format!("{WIDGETS}/a"), |_, body| body["spec"]["n"] == 7).await;
    assert_eq!(seen["metadata"]["generation"], 1);
}

#[tokio::test]
async fn many_definitions_are_found_quickly() {
    const COUNT: usize = 60;
    let server = server().await;
    let client = admin(&server);
    for at in 0..COUNT {
        let mut crd = definition(json!([version("v1", true, json!({"type": "object"}))]));
        crd["metadata"]["name"] = json!(format!("widget{at}s.example.com"));
        crd["spec"]["names"] = json!({"plural": format!("widget{at}s"), "kind": format!("Widget{at}")});
        client.post(CRDS, crd).await.ok();
    }
    let list = until(&client, "/apis/example.com/v1", |_, body| {
        body["resources"].as_array().is_some_and(|all| all.len() == COUNT)
    })
    .await;
    assert_eq!(list["resources"][0]["shortNames"], Value::Null);
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = client.call("GET", "/apis", &[("accept", accept)], &Value::Null).await.ok();
    let group =
        all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "example.com").unwrap();
    assert_eq!(group["versions"][0]["resources"].as_array().unwrap().len(), COUNT);
}

#[tokio::test]
async fn scales_of_custom_resources() {
    let client = admin(&server().await);
    let mut v1 =
        version("v1", true, json!({"type": "object", "properties": {"replicas": {"type": "integer"}}}));
    v1["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}});
    define(&client, json!([v1])).await;
    let unsaid = "the spec replicas field \".spec.replicas\"";
    client.post(WIDGETS, widget("v1", "a", json!({}))).await.ok();
    let scale = format!("{WIDGETS}/a/scale");
    let no_such = format!("Internal error occurred: {unsaid} does not exist");
    client.get(&scale).await.refused(500, "InternalError", &no_such);
    let patched = client.patch("merge", &scale, json!({"metadata": {}})).await;
    patched.refused(400, "BadRequest", &format!("{unsaid} cannot be empty"));
    let sent = |metadata: Value, replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {"replicas": replicas}});
    // The uid says nothing here, the version does.
    assert_eq!(
        client.put(&scale, sent(json!({"name": "a", "uid": "u"}), 2)).await.ok()["spec"]["replicas"],
        2
    );
    client.put(&scale, sent(json!({"name": "a", "resourceVersion": "1"}), 2)).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on widgets.example.com \"a\": the object has been modified; please apply your changes to the latest version and try again",
    );
    client.put(&scale, sent(json!({"name": "a"}), -1)).await.refused(
        422,
        "Invalid",
        "Widget.example.com \"a\" is invalid: .spec.replicas: Invalid value: -1: should be a non-negative integer",
    );
}

#[tokio::test]
async fn columns() {
    let client = admin(&server().await);
    let mut v1 = version("v1", true, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    v1["additionalPrinterColumns"] = json!([
        {"name": "S", "type": "string", "jsonPath": ".spec.s", "description": "what it says"},
        {"name": "D", "type": "date", "jsonPath": ".spec.d"},
        {"name": "L", "type": "string", "jsonPath": ".spec.l[0:2]"},
        {"name": "Bad", "type": "string", "jsonPath": ".spec[x"},
        {"name": "Lost", "type": "string", "jsonPath": ".spec.s"}]);
    define(&client, json!([v1])).await;
    let table = async |name: &str, spec: Value| {
        client.post(WIDGETS, widget("v1", name, spec)).await.ok();
        let accept = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
        client.call("GET", &format!("{WIDGETS}/{name}"), &accept, &Value::Null).await.ok()
    };
    let first = table("a", json!({"s": {"b": 1}, "d": "", "l": [1]})).await;
    let headings: Vec<&str> =
        first["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(headings, ["Name", "S", "D", "L"]);
    assert_eq!(first["columnDefinitions"][1]["description"], "what it says");
    assert_eq!(
        first["columnDefinitions"][2]["description"],
        "Custom resource definition column (in JSONPath format): .spec.d"
    );
    assert_eq!(first["rows"][0]["cells"], json!(["a", "{\"b\":1}", "<unknown>", null]));
    let accept = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
    let path = format!("{WIDGETS}?includeObject=All");
    client.call("GET", &path, &accept, &Value::Null).await.refused(
        400,
        "BadRequest",
        "Unable to convert to Table as requested: includeObject: Invalid value: \"All\": must be 'Metadata', 'Object', 'None', or empty",
    );
    assert_eq!(client.get(&path).await.code, 200);
    let second = table("b", json!({"s": true, "d": "yesterday", "l": ["x", "y"]})).await;
    assert_eq!(second["rows"][0]["cells"], json!(["b", "true", "<invalid>", "x"]));
}

#[tokio::test]
async fn finalizers_without_a_domain_are_warned_of() {
    let client = admin(&server().await);
    define(
        &client,
        json!([version("v1", true, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))]),
    )
    .await;
    let mut object = widget("v1", "a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/f", "foregroundDeletion", "plain"]);
    let advice = |name: &str| {
        format!(
            "299 - \"metadata.finalizers: \\\"{name}\\\": prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers\""
        )
    };
    let made = client.post(WIDGETS, object).await;
    assert_eq!(made.warnings, [advice("plain")]);
    made.ok();
    let path = format!("{WIDGETS}/a");
    let patched = client.patch("merge", &path, json!({"metadata": {"finalizers": ["plain", "other"]}})).await;
    assert_eq!(patched.warnings, [advice("other")]);
    patched.ok();
    assert_eq!(client.patch("merge", &path, json!({"spec": {"x": 1}})).await.warnings, [""; 0]);
}

#[tokio::test]
async fn rules_wait_for_the_schema() {
    let client = admin(&server().await);
    let spec = json!({"type": "object",
        "properties": {"e": {"type": "string", "enum": ["a"]}, "n": {"type": "integer", "minimum": 3}},
        "x-kubernetes-validations": [{"rule": "!has(self.n) || self.n > 9", "message": "small"}]});
    define(&client, json!([version("v1", true, spec)])).await;
    let invalid = |causes: &str| format!("Widget.example.com \"a\" is invalid: {causes}");
    let unchecked = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    client.post(WIDGETS, widget("v1", "a", json!({"e": "b", "n": 4}))).await.refused(
        422,
        "Invalid",
        &invalid(&format!("[spec.e: Unsupported value: \"b\": supported values: \"a\", {unchecked}]")),
    );
    client.post(WIDGETS, widget("v1", "a", json!({"n": 2}))).await.refused(
        422,
        "Invalid",
        &invalid("[spec.n: Invalid value: 2: spec.n in body should be greater than or equal to 3, spec: Invalid value: small]"),
    );
}
