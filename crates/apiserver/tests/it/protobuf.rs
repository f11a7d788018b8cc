//! The same objects in protobuf: bodies, answers, lists, watches, errors.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use orlop_api::protobuf;
use orlop_json::{Value, json};
use pretty_assertions::assert_eq;

use crate::support::{Client, admin, config_map, server};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Sends a value in protobuf and reads an answer in it.
async fn call(client: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let bytes = if body.is_null() { Vec::new() } else { protobuf::encode(&body).unwrap() };
    // As typed clients say it: protobuf first, JSON for what has no message.
    let accept = format!("{PROTOBUF},application/json");
    let headers = [("content-type", PROTOBUF), ("accept", accept.as_str())];
    let response = client.send(method, path, &headers, bytes).await;
    let code = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], PROTOBUF, "{method} {path} {code}");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, protobuf::decode(&bytes).unwrap())
}

async fn json_of(client: &Client, path: &str) -> Value {
    client.get(path).await.ok()
}

#[tokio::test]
async fn objects_are_written_and_read() {
    let server = server().await;
    let client = admin(&server);
    let mut map = config_map("a", json!({"k": "v"}));
    map["binaryData"] = json!({"b": "AP8="});
    let (code, created) = call(&client, "POST", MAPS, map).await;
    assert_eq!((code, &created["data"]), (201, &json!({"k": "v"})));
    assert_eq!(created, json_of(&client, &format!("{MAPS}/a")).await);
    assert_eq!(created["metadata"]["managedFields"][0]["manager"], "it");

    let mut changed = created.clone();
    changed["data"]["k"] = json!("w");
    let (code, updated) = call(&client, "PUT", &format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!((code, &updated["data"]["k"]), (200, &json!("w")));
    let (code, refused) = call(&client, "PUT", &format!("{MAPS}/a"), changed).await;
    assert_eq!((code, &refused["kind"], &refused["reason"]), (409, &json!("Status"), &json!("Conflict")));

    // What an answer has been made from is kept, and a later revision has its own.
    for _ in 0..2 {
        let (_, got) = call(&client, "GET", &format!("{MAPS}/a"), Value::Null).await;
        assert_eq!(got, updated);
    }
    let (_, list) =
        call(&client, "GET", &format!("{MAPS}?fieldSelector=metadata.name%3Da"), Value::Null).await;
    assert_eq!(list, json_of(&client, &format!("{MAPS}?fieldSelector=metadata.name%3Da")).await);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    let wrong = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "x"}});
    let (code, refused) = call(&client, "DELETE", &format!("{MAPS}/a"), wrong).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")));
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let (code, done) = call(&client, "DELETE", &format!("{MAPS}/a"), options).await;
    assert_eq!((code, &done["status"]), (200, &json!("Success")));
    let (code, missing) = call(&client, "GET", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!((code, &missing["message"]), (404, &json!("configmaps \"a\" not found")));
}

#[tokio::test]
async fn kinds_with_more_to_them() {
    let server = server().await;
    let client = admin(&server);
    let (code, namespace) = call(
        &client,
        "POST",
        "/api/v1/namespaces",
        json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}}),
    )
    .await;
    assert_eq!((code, &namespace["spec"]["finalizers"]), (201, &json!(["kubernetes"])));
    let deployment = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, created) = call(&client, "POST", path, deployment).await;
    assert_eq!((code, &created["spec"]["strategy"]["rollingUpdate"]["maxSurge"]), (201, &json!("25%")));
    assert_eq!(created, json_of(&client, &format!("{path}/d")).await);
    let (_, scale) = call(&client, "GET", &format!("{path}/d/scale"), Value::Null).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    let mut scale = scale;
    scale["spec"]["replicas"] = json!(0);
    let (code, scale) = call(&client, "PUT", &format!("{path}/d/scale"), scale).await;
    assert_eq!((code, scale["spec"].get("replicas")), (200, None));
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let (code, review) =
        call(&client, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await;
    assert_eq!((code, &review["status"]["allowed"]), (201, &json!(true)));
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {"audiences": [], "expirationSeconds": 3600}});
    client
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "t"}}),
        )
        .await
        .ok();
    let (code, token) =
        call(&client, "POST", "/api/v1/namespaces/default/serviceaccounts/t/token", request).await;
    assert_eq!((code, token["status"]["token"].as_str().unwrap().split('.').count()), (201, 3));
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
        let (code, found) = call(&client, "GET", path, Value::Null).await;
        assert_eq!(code, 200, "{path} {found}");
    }
    let (_, resources) = call(&client, "GET", "/api/v1", Value::Null).await;
    assert!(
        resources["resources"][0]["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()),
        "{resources}"
    );
}

#[tokio::test]
async fn bad_bodies_are_refused() {
    let server = server().await;
    let client = admin(&server);
    let check = async |body: &'static [u8], message: &str| {
        let response =
            client.send("POST", MAPS, &[("content-type", PROTOBUF)], Bytes::from_static(body)).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let status: Value = orlop_json::from_slice(&bytes).unwrap();
        assert_eq!((code, status["message"].as_str().unwrap()), (400, message));
    };
    check(
        b"{}",
        "the object provided is unrecognized (must be of type ConfigMap): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({})",
    )
    .await;
    check(
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x02\x0a\x09",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: unexpected EOF",
    )
    .await;
}

/// The frames of a stream.
struct Frames {
    body: orlop_apiserver::http::Body,
    buffer: Vec<u8>,
}

impl Frames {
    async fn next(&mut self) -> (String, Value) {
        loop {
            if self.buffer.len() >= 4 {
                let length = u32::from_be_bytes(self.buffer[..4].try_into().unwrap()) as usize;
                if self.buffer.len() >= 4 + length {
                    let frame: Vec<u8> = self.buffer.drain(..4 + length).skip(4).collect();
                    let name = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
                    let ty = orlop_api::schema::Schemas::get().openapi(name).unwrap();
                    let event = protobuf::decode_message(&frame, ty).unwrap();
                    return (event["type"].as_str().unwrap().to_owned(), event["object"].clone());
                }
            }
            let wait = std::time::Duration::from_secs(5);
            let frame = tokio::time::timeout(wait, self.body.frame()).await.unwrap().unwrap().unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

#[tokio::test]
async fn watches_send_frames() {
    let server = server().await;
    let client = admin(&server);
    let first = client.post(MAPS, config_map("a", json!({"k": "v"}))).await.ok();
    for accept in [PROTOBUF.to_owned(), format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1")] {
        let path = format!(
            "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        );
        let response = client.send("GET", &path, &[("accept", &accept)], Bytes::new()).await;
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        let mut frames = Frames { body: response.into_body(), buffer: Vec::new() };
        let (kind, object) = loop {
            let (kind, object) = frames.next().await;
            if object["metadata"]["name"] == "a" {
                break (kind, object);
            }
        };
        assert_eq!((kind.as_str(), &object["metadata"]), ("ADDED", &first["metadata"]));
        let partial = accept.contains("as=");
        assert_eq!(object["kind"], if partial { "PartialObjectMetadata" } else { "ConfigMap" });
        assert_eq!(object.get("data").is_some(), !partial);
        let (kind, bookmark) = frames.next().await;
        assert_eq!(
            (kind.as_str(), &bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"]),
            ("BOOKMARK", &json!("true"))
        );
        client.post(MAPS, config_map("b", json!({}))).await.ok();
        client.delete(&format!("{MAPS}/b"), Value::Null).await.ok();
        for expected in ["ADDED", "DELETED"] {
            let (kind, object) = frames.next().await;
            assert_eq!((kind.as_str(), &object["metadata"]["name"]), (expected, &json!("b")));
        }
    }
}

#[tokio::test]
async fn discovery_comes_as_messages() {
    let server = server().await;
    let client = admin(&server);
    let check = async |path: &str, parameters: &str, kind: &str| {
        let accept = format!("{PROTOBUF}{parameters}");
        let response = client.send("GET", path, &[("accept", &accept)], Bytes::new()).await;
        assert_eq!(response.headers()["content-type"], accept, "{path}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let message = protobuf::decode(&bytes).unwrap();
        assert_eq!(message["kind"], kind, "{path}");
        let accept = format!("application/json{parameters}");
        let mut expected = client.call("GET", path, &[("accept", &accept)], &Value::Null).await.ok();
        // Messages know neither null nor the absence of a version.
        expected["apiVersion"] = message["apiVersion"].clone();
        for item in expected.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            item["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        }
        let text = |value: &Value| orlop_structural::sorted(value).to_string();
        assert_eq!(text(&message), text(&expected), "{path}");
    };
    check("/api", "", "APIVersions").await;
    check("/apis", "", "APIGroupList").await;
    check("/apis/apps", "", "APIGroup").await;
    check("/api/v1", "", "APIResourceList").await;
    check("/apis/batch/v1", "", "APIResourceList").await;
    let aggregated = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    check("/api", aggregated, "APIGroupDiscoveryList").await;
    check("/apis", aggregated, "APIGroupDiscoveryList").await;
}

#[tokio::test]
async fn openapi_comes_as_a_message() {
    let server = server().await;
    let client = admin(&server);
    let content_type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    for accept in ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", content_type] {
        let response = client.send("GET", "/openapi/v2", &[("accept", accept)], Bytes::new()).await;
        assert_eq!(response.headers()["content-type"], content_type);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let mut reader = protobuf::wire::Reader::new(&bytes);
        let (mut version, mut kinds) = (String::new(), 0);
        while let Some((number, value)) = reader.next().unwrap() {
            match number {
                1 => version = value.text("swagger").unwrap().to_owned(),
                9 => {
                    let mut all = protobuf::wire::Reader::new(value.bytes("definitions").unwrap());
                    while all.next().unwrap().is_some() {
                        kinds += 1;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(version, "2.0");
        assert!(kinds > 50, "{kinds}");
    }
    let response = client.send("GET", "/openapi/v2", &[("accept", "application/json")], Bytes::new()).await;
    assert_eq!(response.headers()["content-type"], "application/json");
}
