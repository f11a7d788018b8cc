//! OpenAPI documents, as clients fetch them.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use orlop_apiserver::http::Body;
use orlop_json::{Value, json};

use crate::custom::{CRDS, established, until};
use crate::support::{Client, admin, server};

fn definition(number: usize, spec: Value) -> Value {
    let (plural, kind) = (format!("things{number}s"), format!("Thing{number}"));
    let group = format!("g{}.example.com", number % 50);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
            }],
        },
    })
}

async fn send(client: &Client, path: &str, headers: &[(&str, &str)]) -> http::Response<Body> {
    client.send("GET", path, headers, Bytes::new()).await
}

async fn url(client: &Client, path: &str) -> String {
    let index = client.get("/openapi/v3").await.ok();
    index["paths"][path]["serverRelativeURL"].as_str().unwrap_or_default().to_string()
}

#[tokio::test]
async fn documents_have_addresses_that_change_with_them() {
    let client = admin(&server().await);
    let found = url(&client, "api/v1").await;
    let response = send(&client, &found, &[]).await;
    let headers = response.headers();
    assert_eq!(
        (response.status().as_u16(), &headers["cache-control"], &headers["vary"]),
        (200, &"public, immutable".parse().unwrap(), &"Accept".parse().unwrap())
    );
    let etag = headers["etag"].to_str().unwrap().to_string();
    assert_eq!(found, format!("/openapi/v3/api/v1?hash={}", etag.trim_matches('"')));
    let check = async |path: &str, headers: &[(&str, &str)], code: u16, location: &str| {
        let response = send(&client, path, headers).await;
        let found = response.headers().get("location").map_or("", |value| value.to_str().unwrap());
        assert_eq!((response.status().as_u16(), found), (code, location), "{path} {headers:?}");
    };
    check("/openapi/v3/api/v1?hash=OLD", &[], 301, &found).await;
    check(&found, &[("if-none-match", &etag)], 304, "").await;
    check("/openapi/v3/api/v1", &[], 200, "").await;
    check("/openapi/v3/api/v1", &[("accept", "text/plain")], 406, "").await;
    check("/openapi/v3/apis/apps", &[], 200, "").await;
    let message = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    for accept in ["application/com.github.proto-openapi.spec.v3@v1.0+protobuf", message] {
        let response = send(&client, &found, &[("accept", accept)]).await;
        assert_eq!(
            (&response.headers()["content-type"], &response.headers()["etag"]),
            (&message.parse().unwrap(), &etag.parse().unwrap())
        );
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let mut reader = orlop_api::protobuf::wire::Reader::new(&bytes);
        let (mut version, mut numbers) = (String::new(), Vec::new());
        while let Some((number, value)) = reader.next().unwrap() {
            numbers.push(number);
            if number == 1 {
                version = value.text("openapi").unwrap().to_owned();
            }
        }
        assert_eq!((version.as_str(), numbers.as_slice()), ("3.0.0", &[1, 2, 4, 5][..]));
    }
    check("/openapi/v3/apis/nowhere/v1", &[], 404, "").await;
    check("/openapi/v2", &[("accept", "text/plain")], 406, "").await;
}

#[tokio::test]
async fn custom_resources_are_described() {
    let client = admin(&server().await);
    let path = "apis/g1.example.com/v1";
    assert_eq!(url(&client, path).await, "");
    let first = definition(
        1,
        json!({"type": "object", "properties": {"size": {"x-kubernetes-int-or-string": true}}}),
    );
    let name = format!("{CRDS}/things1s.g1.example.com");
    client.post(CRDS, first).await.ok();
    let mut object = until(&client, &name, established).await;
    let before = url(&client, path).await;

    let document = client.get(&before).await.ok();
    let schemas = &document["components"]["schemas"];
    let list = &schemas["com.example.g1.v1.Thing1List"];
    assert_eq!(
        list["x-kubernetes-group-version-kind"],
        json!([{"group": "g1.example.com", "version": "v1", "kind": "Thing1List"}])
    );
    assert_eq!(
        list["properties"]["metadata"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
    );
    let item = "#/components/schemas/com.example.g1.v1.Thing1";
    assert_eq!(list["properties"]["items"]["items"]["$ref"], item);
    let own = &schemas["com.example.g1.v1.Thing1"];
    assert_eq!(own["properties"]["spec"]["properties"]["size"]["anyOf"][0]["type"], "integer");
    let collection = "/apis/g1.example.com/v1/namespaces/{namespace}/things1s";
    let operations = &document["paths"][collection];
    assert_eq!(operations["get"]["operationId"], "listG1ExampleComV1NamespacedThing1");
    assert_eq!(
        operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/com.example.g1.v1.Thing1List"
    );
    assert!(document["paths"][format!("{collection}/{{name}}/status")]["put"].is_object());

    let whole = client.get("/openapi/v2").await.ok();
    assert_eq!(
        whole["definitions"]["com.example.g1.v1.Thing1"]["properties"]["spec"]["properties"]["size"],
        json!({"x-kubernetes-int-or-string": true})
    );
    assert!(whole["paths"]["/apis/g1.example.com/v1/things1s"]["get"].is_object());
    assert!(whole["definitions"]["io.k8s.api.core.v1.PodList"].is_object());

    // What is no change of the definition changes nothing of what is said.
    object["metadata"]["labels"] = json!({"a": "b"});
    let mut object = client.put(&name, object).await.ok();
    assert_eq!(url(&client, path).await, before);
    object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "object"});
    client.put(&name, object).await.ok();
    for _ in 0..200 {
        if url(&client, path).await != before {
            let document = client.get(&url(&client, path).await).await.ok();
            let spec = &document["components"]["schemas"]["com.example.g1.v1.Thing1"]["properties"]["spec"];
            assert_eq!(*spec, json!({"type": "object"}));
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the document never changed");
}

/// How long the first request for each document takes with many definitions of real size: run with `--ignored --nocapture`,
/// and in release mode for figures that mean something.
#[tokio::test]
#[ignore = "a measurement"]
async fn many_definitions() {
    fn schema(depth: usize) -> Value {
        if depth == 0 {
            return json!({"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
                "description": "A field with a description of the usual length, which says what it is for."});
        }
        let fields: orlop_json::Map =
            (0..6).map(|number| (format!("field{number}").into(), schema(depth - 1))).collect();
        json!({"type": "object", "properties": fields,
            "description": "An object that holds more fields, described in a sentence or two."})
    }
    let client = admin(&server().await);
    for number in 0..500 {
        client.post(CRDS, definition(number, schema(3))).await.ok();
    }
    until(&client, "/apis/g49.example.com/v1/things499s", |code, _| code == 200).await;
    for path in ["/openapi/v3", "/openapi/v3/apis/g1.example.com/v1", "/openapi/v2"] {
        for turn in ["first", "again"] {
            let begun = std::time::Instant::now();
            let response = send(&client, path, &[]).await;
            let size = response.into_body().collect().await.unwrap().to_bytes().len();
            println!("{path} {turn}: {:?}, {size} bytes", begun.elapsed());
        }
    }
}
