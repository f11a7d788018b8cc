//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use std::time::Duration;

use orlop_apiserver::UserInfo;
use orlop_json::{Value, json};

use crate::support::{Answer, Client, admin, config_map, server};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn constraints() -> Value {
    json!({"resourceRules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}]})
}

fn with(mut base: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().into_iter().flatten() {
        base[key] = value.clone();
    }
    base
}

/// Installs a policy and a binding of it, and waits until they are in force: they are compiled beside the requests.
async fn install(client: &Client, kind: &str, name: &str, spec: Value, binding: Value) {
    let plural = match kind {
        "Mutating" => "mutatingadmissionpolicies",
        _ => "validatingadmissionpolicies",
    };
    let binding = with(json!({"policyName": name}), binding);
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}AdmissionPolicy"),
        "metadata": {"name": name}, "spec": spec});
    client.post(&format!("{GROUP}/{plural}"), policy).await.ok();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}AdmissionPolicyBinding"), "metadata": {"name": format!("{name}-b")}, "spec": binding});
    let plural = plural.replace("policies", "policybindings");
    client.post(&format!("{GROUP}/{plural}"), binding).await.ok();
    tokio::time::sleep(Duration::from_millis(80)).await;
}

async fn validating(client: &Client, name: &str, spec: Value, binding: Value) {
    let spec = with(json!({"matchConstraints": constraints()}), spec);
    let binding = with(json!({"validationActions": ["Deny"]}), binding);
    install(client, "Validating", name, spec, binding).await;
}

async fn mutating(client: &Client, name: &str, mutation: Value, more: Value) {
    let rules = json!({"resourceRules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]});
    let spec = with(
        json!({"matchConstraints": rules, "reinvocationPolicy": "Never", "mutations": [mutation]}),
        more,
    );
    install(client, "Mutating", name, spec, json!({})).await;
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

async fn create(client: &Client, name: &str, k: &str) -> Answer {
    client.post(MAPS, config_map(name, json!({"k": k}))).await
}

#[tokio::test]
async fn a_validation_that_is_not_true_refuses() {
    let server = server().await;
    let client = admin(&server);
    let spec = json!({
        "variables": [{"name": "k", "expression": "object.data['k']"}],
        "matchConditions": [{"name": "m", "expression": "request.operation != 'DELETE' && !has(request.subResource)"}],
        "validations": [
            {"expression": "variables.k != 'bad'", "messageExpression": "'not ' + variables.k + ' in ' + request.namespace + ' of ' + namespaceObject.metadata.name", "reason": "Forbidden"},
            {"expression": "variables.k != 'worse'"},
            {"expression": "object.data.nope == 'x' || true"}],
    });
    validating(&client, "p", spec, json!({})).await;
    create(&client, "a", "good").await.ok();
    create(&client, "b", "bad").await.refused(
        403,
        "Forbidden",
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p-b' denied request: not bad in default of default",
    );
    create(&client, "c", "worse").await.refused(
        422,
        "Invalid",
        "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p-b' denied request: failed expression: variables.k != 'worse'",
    );
    client.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
}

#[tokio::test]
async fn errors_follow_the_failure_policy() {
    let server = server().await;
    let client = admin(&server);
    let validations = json!([{"expression": "object.data.nope == 'x'"}]);
    validating(&client, "i", json!({"validations": validations, "failurePolicy": "Ignore"}), json!({})).await;
    create(&client, "a", "x").await.ok();
    validating(&client, "f", json!({"validations": validations}), json!({})).await;
    create(&client, "b", "x").await.refused(
        422,
        "Invalid",
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'f' with binding 'f-b' denied request: expression 'object.data.nope == 'x'' resulted in error: no such key: nope",
    );
}

#[tokio::test]
async fn warnings_do_not_refuse() {
    let server = server().await;
    let client = admin(&server);
    let spec = json!({"validations": [{"expression": "false", "message": " careful "}]});
    validating(&client, "p", spec, json!({"validationActions": ["Warn", "Audit"]})).await;
    let answer = create(&client, "a", "x").await;
    assert_eq!(
        answer.warnings,
        ["299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p-b': careful\""]
    );
    answer.ok();
}

#[tokio::test]
async fn parameters_are_found_by_name_and_selector() {
    let server = server().await;
    let client = admin(&server);
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "Secret"},
        "validations": [{"expression": "object.data.k != params.metadata.labels['not']",
            "messageExpression": "'refused by ' + params.metadata.name"}],
    });
    let reference = |more: Value| with(json!({"parameterNotFoundAction": "Deny"}), more);
    validating(&client, "n", spec.clone(), json!({"paramRef": reference(json!({"name": "s"}))})).await;
    create(&client, "a", "x").await.refused(
        422,
        "Invalid",
        "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'n' with binding 'n-b' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction",
    );
    let secret = |name: &str, not: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"not": not, "a": "b"}}});
    client.post("/api/v1/namespaces/default/secrets", secret("s", "x")).await.ok();
    let message = create(&client, "a", "x").await.body["message"].as_str().unwrap().to_string();
    assert!(message.ends_with("denied request: refused by s"), "{message}");
    create(&client, "b", "y").await.ok();
    let selector = json!({"selector": {"matchLabels": {"a": "b"}}, "namespace": "default"});
    validating(&client, "s", spec, json!({"paramRef": reference(selector)})).await;
    client.post("/api/v1/namespaces/default/secrets", secret("t", "z")).await.ok();
    let message = create(&client, "c", "z").await.body["message"].as_str().unwrap().to_string();
    assert!(message.ends_with("'s' with binding 's-b' denied request: refused by t"), "{message}");
}

#[tokio::test]
async fn a_kind_that_is_not_served_is_a_configuration_error() {
    let server = server().await;
    let client = admin(&server);
    let spec = json!({"paramKind": {"apiVersion": "x.example.com/v1", "kind": "Limit"}, "validations": [{"expression": "true"}]});
    validating(&client, "p", spec, json!({})).await;
    create(&client, "a", "x").await.refused(
        422,
        "Invalid",
        "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'x.example.com/v1, Kind=Limit'",
    );
}

#[tokio::test]
async fn expressions_may_ask_the_authorizer() {
    let server = server().await;
    let client = admin(&server);
    let spec = json!({"validations": [{
        "expression": "authorizer.group('').resource('secrets').namespace('x').check('get').allowed() && !authorizer.serviceAccount('default', 'default').requestResource_absent()"}]});
    // An expression that does not compile is refused when it is written.
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "bad"}, "spec": with(json!({"matchConstraints": constraints()}), spec)});
    let answer = client.post(&format!("{GROUP}/validatingadmissionpolicies"), policy).await;
    assert_eq!(answer.code, 422, "{}", answer.body);
    let spec = json!({"validations": [{
        "expression": "authorizer.requestResource.check('create').allowed() && !authorizer.serviceAccount('default', 'default').group('').resource('secrets').check('get').allowed()"}]});
    validating(&client, "p", spec, json!({})).await;
    create(&client, "a", "x").await.ok();
}

#[tokio::test]
async fn bindings_narrow_policies() {
    let server = server().await;
    let client = admin(&server);
    let other = json!({"matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}});
    validating(&client, "p", json!({"validations": [{"expression": "false"}]}), other).await;
    create(&client, "a", "x").await.ok();
    let there = client.post("/api/v1/namespaces/kube-system/configmaps", config_map("a", json!({}))).await;
    assert_eq!(there.code, 422);
}

#[tokio::test]
async fn apply_configurations_are_merged() {
    let server = server().await;
    let client = admin(&server);
    let variables = json!({"variables": [{"name": "n", "expression": "object.metadata.name"}]});
    let expression =
        "Object{metadata: Object.metadata{labels: {'name': variables.n}}, data: {'copy': object.data.k}}";
    mutating(&client, "p", apply(expression), variables).await;
    let object = create(&client, "a", "v").await.ok();
    assert_eq!(object["data"], json!({"k": "v", "copy": "v"}));
    assert_eq!(object["metadata"]["labels"], json!({"name": "a"}));
}

#[tokio::test]
async fn json_patches_are_applied_and_tests_skip_them() {
    let server = server().await;
    let client = admin(&server);
    let expression = "[JSONPatch{op: 'test', path: '/data/k', value: 'v'}, JSONPatch{op: 'add', path: '/data/new.key', value: 'yes'}]";
    mutating(&client, "p", patch(expression), json!({})).await;
    assert_eq!(create(&client, "a", "v").await.ok()["data"], json!({"k": "v", "new.key": "yes"}));
    assert_eq!(create(&client, "b", "w").await.ok()["data"], json!({"k": "w"}));
}

#[tokio::test]
async fn mutations_that_fail_refuse() {
    let server = server().await;
    let client = admin(&server);
    mutating(&client, "p", patch("[JSONPatch{op: 'replace', path: '/nope/x', value: 'yes'}]"), json!({}))
        .await;
    let answer = create(&client, "a", "v").await;
    let message = "policy 'p' with binding 'p-b' denied request: JSON Patch: replace operation does not apply: doc is missing path: /nope/x: missing value";
    assert_eq!(answer.body["details"]["causes"], json!([{"message": message}]));
    answer.refused(403, "Invalid", message);
}

#[tokio::test]
async fn policies_run_again_when_others_change_the_object() {
    let server = server().await;
    let client = admin(&server);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    mutating(&client, "a", apply("Object{data: {'seen': has(object.data.b) ? 'yes' : 'no'}}"), again).await;
    mutating(&client, "b", apply("Object{data: {'b': '1'}}"), json!({})).await;
    assert_eq!(create(&client, "m", "v").await.ok()["data"], json!({"k": "v", "seen": "yes", "b": "1"}));
}

#[tokio::test]
async fn parameters_are_for_those_who_may_read_them() {
    let server = server().await;
    let admin = admin(&server);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let grant = |name: &str, groups: Value, resources: Value, verbs: Value| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": groups, "resources": resources, "verbs": verbs}]});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
        [(format!("{rbac}/clusterroles"), role), (format!("{rbac}/clusterrolebindings"), binding)]
    };
    let policies = json!(["validatingadmissionpolicies"]);
    for (path, object) in grant("policies", json!(["admissionregistration.k8s.io"]), policies, json!(["*"])) {
        admin.post(&path, object).await.ok();
    }
    let jane = Client::new(&server, UserInfo::new("jane", &["system:authenticated"]));
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "with-secrets"},
        "spec": {"paramKind": {"apiVersion": "v1", "kind": "Secret"}, "validations": [{"expression": "true"}],
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["configmaps"]}]}}});
    let refused = jane.post(path, policy.clone()).await;
    assert_eq!(
        (refused.code, &refused.body["details"]["causes"][0]["field"]),
        (422, &json!("spec.paramKind"))
    );
    let message = refused.body["message"].as_str().unwrap_or("");
    let wanted = "must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
    assert!(message.contains(wanted), "{message}");
    for (path, object) in grant("secrets", json!([""]), json!(["secrets"]), json!(["get"])) {
        admin.post(&path, object).await.ok();
    }
    jane.post(path, policy).await.ok();
}
