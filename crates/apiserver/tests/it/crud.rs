use orlop_json::{Value, json};

use crate::support::{admin, config_map, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn create_get_list_update_delete() {
    let client = admin(&server().await);
    let made = client.post(MAPS, config_map("a", json!({"k": "v"}))).await;
    assert_eq!(made.code, 201);
    let made = made.ok();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    assert_eq!(client.get(&format!("{MAPS}/a")).await.ok(), made);

    let list = client.get(MAPS).await.ok();
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(list["items"][0].get("kind"), None);
    assert_eq!(list["items"][0]["data"]["k"], "v");

    let mut changed = made.clone();
    changed["data"]["k"] = json!("w");
    let updated = client.put(&format!("{MAPS}/a"), changed.clone()).await.ok();
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // Writing the same again changes nothing.
    let mut same = updated.clone();
    same["metadata"]["resourceVersion"] = json!("");
    let again = client.put(&format!("{MAPS}/a"), same).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"]);

    client.put(&format!("{MAPS}/a"), changed).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
    );
    client.post(MAPS, config_map("a", json!({}))).await.refused(
        409,
        "AlreadyExists",
        "configmaps \"a\" already exists",
    );
    let gone = client.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
    assert_eq!((gone["kind"].as_str(), gone["status"].as_str()), (Some("Status"), Some("Success")));
    client.get(&format!("{MAPS}/a")).await.refused(404, "NotFound", "configmaps \"a\" not found");
}

#[tokio::test]
async fn bad_input_is_told_as_upstream_does() {
    let client = admin(&server().await);
    client.post("/api/v1/namespaces/nope/configmaps", config_map("a", json!({}))).await.refused(
        404,
        "NotFound",
        "namespaces \"nope\" not found",
    );
    client.get("/api/v1/foos").await.refused(
        404,
        "NotFound",
        "the server could not find the requested resource",
    );
    client.put(MAPS, json!({})).await.refused(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    );
    let unknown = client
        .post(MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "u"}, "x": 1}))
        .await;
    assert_eq!(unknown.warnings, ["299 - \"unknown field \\\"x\\\"\""]);
    let strict = client
        .call(
            "POST",
            &format!("{MAPS}?fieldValidation=Strict"),
            &[],
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "x": 1}),
        )
        .await;
    assert_eq!(strict.code, 400);
    let big = config_map("big", json!({"k": "x".repeat(3 * 1024 * 1024)}));
    client.post(MAPS, big).await.refused(
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
}

#[tokio::test]
async fn every_kind_of_patch() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("p", json!({"a": "1"}))).await.ok();
    let path = format!("{MAPS}/p");
    let merged = client.patch("merge", &path, json!({"data": {"b": "2", "a": null}})).await.ok();
    assert_eq!(merged["data"], json!({"b": "2"}));
    let patched =
        client.patch("json", &path, json!([{"op": "add", "path": "/data/c", "value": "3"}])).await.ok();
    assert_eq!(patched["data"], json!({"b": "2", "c": "3"}));
    let strategic = client.patch("strategic-merge", &path, json!({"data": {"c": "4"}})).await.ok();
    assert_eq!(strategic["data"]["c"], "4");
    client.call("PATCH", &path, &[("content-type", "text/plain")], &json!({})).await.refused(
        415,
        "UnsupportedMediaType",
        "415: Unsupported Media Type",
    );

    let body = config_map("applied", json!({"x": "1"}));
    let url = format!("{MAPS}/applied?fieldManager=one");
    let first = client.patch("apply", &url, body.clone()).await;
    assert_eq!(first.code, 201, "{}", first.body);
    let again = client.patch("apply", &url, body).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], first.body["metadata"]["resourceVersion"]);
    let other = format!("{MAPS}/applied?fieldManager=two");
    let conflict = client.patch("apply", &other, config_map("applied", json!({"x": "2"}))).await;
    assert_eq!((conflict.code, conflict.body["reason"].as_str()), (409, Some("Conflict")));
    let forced =
        client.patch("apply", &format!("{other}&force=true"), config_map("applied", json!({"x": "2"}))).await;
    assert_eq!(forced.ok()["data"]["x"], "2");
}

#[tokio::test]
async fn generated_names_and_dry_runs() {
    let client = admin(&server().await);
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "g-"}});
    let made = client.post(MAPS, body).await.ok();
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("g-"));
    let dry = client.post(&format!("{MAPS}?dryRun=All"), config_map("dry", json!({}))).await;
    assert_eq!(dry.code, 201);
    assert_eq!(client.get(&format!("{MAPS}/dry")).await.code, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let client = admin(&server().await);
    let mut object = config_map("f", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/f"]);
    client.post(MAPS, object).await.ok();
    let path = format!("{MAPS}/f");
    let marked = client.delete(&path, Value::Null).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    client.post(MAPS, config_map("f", json!({}))).await.refused(
        409,
        "AlreadyExists",
        "object is being deleted: configmaps \"f\" already exists",
    );
    client.patch("merge", &path, json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(client.get(&path).await.code, 404);
}

#[tokio::test]
async fn pages_of_one_snapshot() {
    let client = admin(&server().await);
    for i in 0..7 {
        client.post(MAPS, config_map(&format!("c{i}"), json!({}))).await.ok();
    }
    let first = client.get(&format!("{MAPS}?limit=3")).await.ok();
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // What happens in between is not seen by the later pages.
    client.delete(&format!("{MAPS}/c5"), Value::Null).await.ok();
    client.post(MAPS, config_map("c55", json!({}))).await.ok();
    let mut names = Vec::new();
    let mut page = first.clone();
    loop {
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["metadata"]["name"].as_str().unwrap().to_string()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = client.get(&format!("{MAPS}?limit=3&continue={token}")).await.ok();
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
}

#[tokio::test]
async fn tables_and_partial_objects() {
    let client = admin(&server().await);
    client.post(MAPS, config_map("t", json!({"a": "1", "b": "2"}))).await.ok();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = client.call("GET", MAPS, &accept, &Value::Null).await.ok();
    assert_eq!(table["kind"], "Table");
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "t");
    assert_eq!(table["rows"][0]["cells"][1], 2);
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let partial = client.call("GET", MAPS, &accept, &Value::Null).await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0].get("data"), None);
}

#[tokio::test]
async fn a_namespace_that_ends_takes_nothing_new() {
    let client = admin(&server().await);
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    client.post("/api/v1/namespaces", body).await.ok();
    let marked = client.delete("/api/v1/namespaces/n", Value::Null).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    client.post("/api/v1/namespaces/n/configmaps", config_map("x", json!({}))).await.refused(
        403,
        "Forbidden",
        "configmaps \"x\" is forbidden: unable to create new content in namespace n because it is being terminated",
    );
    let mut finalized = marked;
    finalized["spec"]["finalizers"] = json!([]);
    client.put("/api/v1/namespaces/n/finalize", finalized).await.ok();
    assert_eq!(client.get("/api/v1/namespaces/n").await.code, 404);
    client.delete("/api/v1/namespaces/default", Value::Null).await.refused(
        403,
        "Forbidden",
        "namespaces \"default\" is forbidden: this namespace may not be deleted",
    );
}

#[tokio::test]
async fn discovery_and_openapi() {
    let client = admin(&server().await);
    let api = client.get("/api/v1").await.ok();
    assert!(api["resources"].as_array().unwrap().iter().any(|r| r["name"] == "pods/exec"));
    let accept =
        [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let all = client.call("GET", "/apis", &accept, &Value::Null).await.ok();
    assert_eq!(all["kind"], "APIGroupDiscoveryList");
    let index = client.get("/openapi/v3").await.ok();
    let path = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = client.get(path).await.ok();
    let schema = &document["components"]["schemas"]["io.k8s.api.core.v1.ConfigMap"];
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "ConfigMap");
    assert!(document["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]["patch"].is_object());
    assert_eq!(client.get("/version").await.ok()["minor"], "36");
    assert_eq!(client.get("/readyz").await.body, "ok");
}

#[tokio::test]
async fn who_creates_what_nothing_acts_on_is_warned() {
    let options = orlop_apiserver::Options {
        unattended_resources: vec!["configmaps".to_string()],
        ..orlop_apiserver::Options::default()
    };
    let store = std::sync::Arc::new(orlop_store::memory::MemoryStore::new());
    let server = orlop_apiserver::ApiServer::new(options, store).await.unwrap();
    let create = |path: &'static str, kind: &'static str| {
        let client = admin(&server);
        async move {
            let answer =
                client.post(path, json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "x"}})).await;
            assert_eq!(answer.code, 201);
            answer.warnings
        }
    };
    let warnings = create("/api/v1/namespaces/default/configmaps", "ConfigMap").await;
    let expected =
        "ConfigMap \"x\" is kept, but nothing acts on it: this cluster has no controller for configmaps yet";
    assert!(warnings.len() == 1 && warnings[0].contains(&expected.replace('"', "\\\"")), "{warnings:?}");
    assert!(create("/api/v1/namespaces/default/serviceaccounts", "ServiceAccount").await.is_empty());
}
