#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use orlop_json::{Value, json};
use pretty_assertions::assert_eq;

use super::definitions::{Scope, Version, closure};
use super::{routes, v2, v3};
use crate::resources::Resource;

/// The resources of a default server, without their objects.
fn resources(wanted: impl Fn(&orlop_api::resources::Resource) -> bool) -> Vec<Arc<Resource>> {
    orlop_api::resources::all()
        .iter()
        .filter(|facts| wanted(facts))
        .map(|facts| {
            Arc::new(Resource {
                facts: facts.clone(),
                strategy: None,
                cache: None,
                conversion: None,
                versions: None,
                schema: None,
                custom: None,
            })
        })
        .collect()
}

fn group_version(group: &str, version: &str) -> Value {
    let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
    v3(&path, &resources(|facts| facts.group == group && facts.version == version))
}

/// `kubectl explain` finds a kind by the definition of its resource.
#[test]
fn every_kind_and_its_list_have_definitions() {
    for facts in orlop_api::resources::all() {
        let own = routes::builtin_name(&facts.group, &facts.version, &facts.kind);
        let mut names = vec![(own.clone(), facts.kind.clone())];
        if facts.verbs.iter().any(|verb| verb == "list") {
            names.push((format!("{own}List"), format!("{}List", facts.kind)));
        }
        for (name, kind) in names {
            let found = closure([name.clone()], Version::V3, Scope::Everything);
            let kinds = json!([{"group": facts.group, "kind": kind, "version": facts.version}]);
            assert_eq!(found[&name]["x-kubernetes-group-version-kind"], kinds, "{name}");
            assert!(found[&name]["description"].is_string(), "{name}");
        }
    }
}

/// No reference leads nowhere, and no operation shares its id with another.
#[test]
fn documents_are_whole() {
    fn check(document: &Value, definitions: &Value) {
        fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    out.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| references(value, out));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, out)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(document, &mut found);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        let mut ids: Vec<&str> = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|item| item.as_object().unwrap().values())
            .filter_map(|operation| operation.get("operationId")?.as_str())
            .collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert!(!definitions.as_object().unwrap().is_empty());
    }
    let all = resources(|_| true);
    let whole: Value = v2(&all, &[]);
    check(&whole, &whole["definitions"]);
    let versions: std::collections::BTreeSet<(&str, &str)> =
        orlop_api::resources::all().iter().map(|r| (r.group.as_str(), r.version.as_str())).collect();
    for (group, version) in versions {
        let document = group_version(group, version);
        check(&document, &document["components"]["schemas"]);
    }
    for path in super::PLAIN.into_iter().chain(["apis/apps"]) {
        let document = v3(path, &[]);
        assert!(document["paths"][format!("/{path}/")]["get"].is_object(), "{path}");
    }
}

#[test]
fn operations() {
    let documents =
        [("", "v1"), ("apps", "v1"), ("rbac.authorization.k8s.io", "v1"), ("batch", "v1"), ("policy", "v1")]
            .map(|(group, version)| group_version(group, version));
    let check = |path: &str, method: &str, id: &str, action: &str, description: &str, answer: &str| {
        let item = documents.iter().find_map(|document| document["paths"].get(path)).unwrap();
        let operation = &item[method];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(
            (
                operation["operationId"].as_str(),
                operation["x-kubernetes-action"].as_str(),
                operation["description"].as_str(),
                schema.as_str().and_then(|text| text.rsplit('.').next()),
            ),
            (Some(id), Some(action), Some(description), Some(answer).filter(|answer| !answer.is_empty())),
            "{method} {path}"
        );
    };
    let pods = "/api/v1/namespaces/{namespace}/pods";
    check(pods, "get", "listCoreV1NamespacedPod", "list", "list or watch objects of kind Pod", "PodList");
    check(pods, "post", "createCoreV1NamespacedPod", "post", "create a Pod", "Pod");
    check(
        pods,
        "delete",
        "deleteCoreV1CollectionNamespacedPod",
        "deletecollection",
        "delete collection of Pod",
        "Status",
    );
    check(
        "/api/v1/pods",
        "get",
        "listCoreV1PodForAllNamespaces",
        "list",
        "list or watch objects of kind Pod",
        "PodList",
    );
    let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
    check(pod, "delete", "deleteCoreV1NamespacedPod", "delete", "delete a Pod", "Pod");
    check(pod, "patch", "patchCoreV1NamespacedPod", "patch", "partially update the specified Pod", "Pod");
    let at = |sub: &str| format!("{pod}/{sub}");
    check(
        &at("status"),
        "put",
        "replaceCoreV1NamespacedPodStatus",
        "put",
        "replace status of the specified Pod",
        "Pod",
    );
    check(&at("log"), "get", "readCoreV1NamespacedPodLog", "get", "read log of the specified Pod", "");
    check(
        &at("exec"),
        "post",
        "connectCoreV1PostNamespacedPodExec",
        "connect",
        "connect POST requests to exec of Pod",
        "",
    );
    check(
        &at("eviction"),
        "post",
        "createCoreV1NamespacedPodEviction",
        "post",
        "create eviction of a Pod",
        "Eviction",
    );
    let proxy = "/api/v1/nodes/{name}/proxy/{path}";
    check(
        proxy,
        "head",
        "connectCoreV1HeadNodeProxyWithPath",
        "connect",
        "connect HEAD requests to proxy of Node",
        "",
    );
    check(
        "/api/v1/watch/pods",
        "get",
        "watchCoreV1PodListForAllNamespaces",
        "watchlist",
        "watch individual changes to a list of Pod. deprecated: use the 'watch' parameter with a list operation instead.",
        "WatchEvent",
    );
    check(
        "/api/v1/watch/nodes",
        "get",
        "watchCoreV1NodeList",
        "watchlist",
        "watch individual changes to a list of Node. deprecated: use the 'watch' parameter with a list operation instead.",
        "WatchEvent",
    );
    check(
        "/api/v1/namespaces/{name}/finalize",
        "put",
        "replaceCoreV1NamespaceFinalize",
        "put",
        "replace finalize of the specified Namespace",
        "Namespace",
    );
    check(
        "/api/v1/namespaces/{namespace}/endpoints",
        "post",
        "createCoreV1NamespacedEndpoints",
        "post",
        "create Endpoints",
        "Endpoints",
    );
    check(
        "/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
        "post",
        "createCoreV1NamespacedServiceAccountToken",
        "post",
        "create token of a ServiceAccount",
        "TokenRequest",
    );
    let scale = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale";
    check(
        scale,
        "patch",
        "patchAppsV1NamespacedDeploymentScale",
        "patch",
        "partially update scale of the specified Deployment",
        "Scale",
    );
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}";
    check(
        roles,
        "get",
        "readRbacAuthorizationV1ClusterRole",
        "get",
        "read the specified ClusterRole",
        "ClusterRole",
    );
    check(
        roles,
        "delete",
        "deleteRbacAuthorizationV1ClusterRole",
        "delete",
        "delete a ClusterRole",
        "Status",
    );

    let item = &documents[1]["paths"][scale];
    assert_eq!(item["get"]["x-kubernetes-group-version-kind"]["kind"], "Scale");
    assert_eq!(item["get"]["tags"], json!(["apps_v1"]));
    let descriptions: Vec<&Value> =
        item["parameters"].as_array().unwrap().iter().map(|p| &p["description"]).collect();
    assert_eq!(descriptions[0], "name of the Scale");
    assert_eq!(item["put"]["requestBody"]["required"], true);
    assert!(item["patch"]["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
    assert_eq!(documents[1]["paths"]["/apis/apps/v1/"]["get"]["operationId"], "getAppsV1APIResources");
    let watch = &documents[0]["paths"][pods]["get"]["responses"]["200"]["content"];
    assert!(watch["application/vnd.kubernetes.protobuf;stream=watch"].is_object());
}

#[test]
fn parameters_stand_where_all_share_them() {
    let document = group_version("", "v1");
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|p| p["name"].as_str().unwrap().to_string()).collect()
    };
    let check = |path: &str, method: &str, own: &[&str], common: &[&str]| {
        let item = &document["paths"][path];
        assert_eq!(names(&item[method]["parameters"]), own, "{method} {path}");
        assert_eq!(names(&item["parameters"]), common, "{path}");
    };
    let configmaps = "/api/v1/namespaces/{namespace}/configmaps";
    check(configmaps, "post", &["dryRun", "fieldManager", "fieldValidation"], &["namespace", "pretty"]);
    let one = "/api/v1/namespaces/{namespace}/configmaps/{name}";
    check(one, "get", &[], &["name", "namespace", "pretty"]);
    check(
        one,
        "patch",
        &["dryRun", "fieldManager", "fieldValidation", "force"],
        &["name", "namespace", "pretty"],
    );
    let exec = "/api/v1/namespaces/{namespace}/pods/{name}/exec";
    check(
        exec,
        "get",
        &[],
        &["command", "container", "name", "namespace", "stderr", "stdin", "stdout", "tty"],
    );
    let proxy = "/api/v1/nodes/{name}/proxy/{path}";
    check(proxy, "get", &[], &["name", "path", "path"]);
}

#[test]
fn definitions() {
    let document = group_version("apps", "v1");
    let schemas = &document["components"]["schemas"];
    let at = |name: &str, pointer: &str| schemas[name].pointer(pointer).cloned().unwrap_or_default();
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1";
    let check = |name: &str, pointer: &str, expected: Value| {
        assert_eq!(at(name, pointer), expected, "{name}{pointer}")
    };
    let list = "io.k8s.api.apps.v1.DeploymentList";
    check(list, "/required", json!(["items"]));
    check(
        list,
        "/properties/items/items",
        json!({"$ref": "#/components/schemas/io.k8s.api.apps.v1.Deployment"}),
    );
    check(list, "/properties/metadata/allOf/0/$ref", json!(format!("#/components/schemas/{meta}.ListMeta")));
    check(list, "/properties/metadata/default", json!({}));
    let container = "io.k8s.api.core.v1.Container";
    check(container, "/properties/imagePullPolicy/enum", json!(["Always", "IfNotPresent", "Never"]));
    check(container, "/properties/ports/x-kubernetes-list-map-keys", json!(["containerPort", "protocol"]));
    check(container, "/properties/env/x-kubernetes-patch-merge-key", json!("name"));
    check(container, "/properties/args/x-kubernetes-list-type", json!("atomic"));
    check(container, "/properties/name/default", json!(""));
    check("io.k8s.api.core.v1.SecretKeySelector", "/x-kubernetes-map-type", json!("atomic"));
    check("io.k8s.api.core.v1.SeccompProfile", "/x-kubernetes-unions/0/discriminator", json!("type"));
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    check("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "/oneOf", either);
    check("io.k8s.api.autoscaling.v1.Scale", "/required", Value::Null);
    let options = json!([
        {"group": "", "kind": "DeleteOptions", "version": "v1"},
        {"group": "apps", "kind": "DeleteOptions", "version": "v1"},
    ]);
    check(&format!("{meta}.DeleteOptions"), "/x-kubernetes-group-version-kind", options);
    let status = json!([{"group": "", "kind": "Status", "version": "v1"}]);
    check(&format!("{meta}.Status"), "/x-kubernetes-group-version-kind", status);

    let whole: Value = v2(&resources(|_| true), &[]);
    let definitions = &whole["definitions"];
    let metadata = &definitions[list]["properties"]["metadata"];
    assert_eq!(metadata["$ref"], format!("#/definitions/{meta}.ListMeta"));
    assert_eq!(metadata["default"], Value::Null);
    let quantity = &definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"];
    assert_eq!((&quantity["type"], &quantity["oneOf"]), (&json!("string"), &Value::Null));
    let kinds =
        definitions[format!("{meta}.DeleteOptions")]["x-kubernetes-group-version-kind"].as_array().unwrap();
    assert!(kinds.len() > 50 && kinds.iter().any(|kind| kind["group"] == "imagepolicy.k8s.io"));
}
