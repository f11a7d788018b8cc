//! Answers to requests: `NodeMetrics` and `PodMetrics` as objects, lists, tables or metadata alone.
//!
//! Who may ask has been settled before. Which nodes and pods there are, and which of them a selector means, the API says;
//! what they use, the samples.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use kube::api::{GetParams, ListParams};
use kube::core::Request;
use orlop_api::ApiError;
use orlop_api::decode::scalar::format_duration;
use orlop_api::field::go_quote;
use orlop_api::selector::{FieldSelector, LabelSelector};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::samples::{Samples, Usage, Window};
use crate::{GROUP, MetricsServer, Source, VERSION, documents};

const JSON: &str = "application/json";

/// What is read of a pod.
#[derive(Debug, Deserialize)]
struct PodHead {
    metadata: PodMeta,
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Debug, Deserialize)]
struct PodMeta {
    name: String,
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
}

#[derive(Debug, Deserialize)]
struct PodHeads {
    items: Vec<PodHead>,
}

/// What one node or pod used.
#[derive(Clone, Debug)]
struct Metrics {
    namespace: Option<String>,
    name: String,
    labels: BTreeMap<String, String>,
    window: Window,
    used: Used,
}

#[derive(Clone, Debug)]
enum Used {
    Node(Usage),
    Pod(Vec<(String, Usage)>),
}

impl Metrics {
    fn kind(&self) -> &'static str {
        match self.used {
            Used::Node(_) => "NodeMetrics",
            Used::Pod(_) => "PodMetrics",
        }
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata["creationTimestamp"] = json!(seconds(Timestamp::now()));
        if !self.labels.is_empty() {
            metadata["labels"] = json!(self.labels);
        }
        metadata
    }

    /// The object; its kind is told when it stands alone.
    fn object(&self, alone: bool) -> Value {
        let quantities = |usage: &Usage| -> Map<String, Value> {
            usage
                .quantities()
                .into_iter()
                .map(|(name, quantity)| (name.to_owned(), json!(quantity)))
                .collect()
        };
        let mut object = json!({});
        if alone {
            object["kind"] = json!(self.kind());
            object["apiVersion"] = json!(format!("{GROUP}/{VERSION}"));
        }
        object["metadata"] = self.metadata();
        let at = Timestamp::from_nanosecond(i128::from(self.window.at)).unwrap_or(Timestamp::UNIX_EPOCH);
        object["timestamp"] = json!(seconds(at));
        object["window"] = json!(format_duration(self.window.length));
        match &self.used {
            Used::Node(usage) => object["usage"] = Value::Object(quantities(usage)),
            Used::Pod(containers) => {
                object["containers"] = containers
                    .iter()
                    .map(|(name, usage)| json!({"name": name, "usage": quantities(usage)}))
                    .collect();
            }
        }
        object
    }

    fn total(&self) -> Usage {
        match &self.used {
            Used::Node(usage) => *usage,
            Used::Pod(containers) => Usage::sum(containers.iter().map(|(_, usage)| usage)),
        }
    }
}

/// As Kubernetes writes times: whole seconds.
fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// One or many.
enum Answer {
    One(Metrics),
    Many(&'static str, Vec<Metrics>),
}

/// What a client wants to see of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Object,
    Table(&'static str),
    Metadata(&'static str),
}

impl View {
    fn negotiate(headers: &HeaderMap) -> Result<View, ApiError> {
        let all: Vec<&str> =
            headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if all.iter().all(|value| value.trim().is_empty()) {
            return Ok(View::Object);
        }
        let wanted = all.iter().flat_map(|value| value.split(',')).find_map(View::of_clause);
        wanted.ok_or_else(|| ApiError::not_acceptable(&[JSON]))
    }

    fn of_clause(clause: &str) -> Option<View> {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let version = match (parameters.get("g"), parameters.get("v")) {
            (Some(&"meta.k8s.io"), Some(&"v1")) => Some("meta.k8s.io/v1"),
            (Some(&"meta.k8s.io"), Some(&"v1beta1")) => Some("meta.k8s.io/v1beta1"),
            _ => None,
        };
        match (media.as_str(), parameters.get("as").copied()) {
            (JSON | "*/*" | "application/*", None) => Some(View::Object),
            (JSON, Some("Table")) => version.map(View::Table),
            (JSON, Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                version.map(View::Metadata)
            }
            _ => None,
        }
    }
}

/// What the rows of a table carry besides their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IncludeObject {
    Metadata,
    Object,
    None,
}

impl IncludeObject {
    fn parse(text: &str) -> Result<IncludeObject, ApiError> {
        match text {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "Object" => Ok(IncludeObject::Object),
            "None" => Ok(IncludeObject::None),
            other => {
                Err(ApiError::bad_request(format!("unrecognized includeObject value: {}", go_quote(other))))
            }
        }
    }
}

fn render(answer: &Answer, view: View, include: IncludeObject) -> Value {
    match (view, answer) {
        (View::Object, Answer::One(one)) => one.object(true),
        (View::Object, Answer::Many(kind, items)) => json!({
            "kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {},
            "items": items.iter().map(|item| item.object(false)).collect::<Vec<_>>(),
        }),
        (View::Metadata(version), Answer::One(one)) => metadata_alone(one, version),
        (View::Metadata(version), Answer::Many(_, items)) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": {},
            "items": items.iter().map(|item| metadata_alone(item, version)).collect::<Vec<_>>(),
        }),
        (View::Table(version), Answer::One(one)) => table(std::slice::from_ref(one), version, include),
        (View::Table(version), Answer::Many(_, items)) => table(items, version, include),
    }
}

fn metadata_alone(one: &Metrics, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": one.metadata()})
}

/// The columns are those of the first row: its resources, and the window.
fn table(items: &[Metrics], version: &str, include: IncludeObject) -> Value {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let names: Vec<&str> = items
        .first()
        .map(|first| first.total().quantities().into_iter().map(|(name, _)| name).collect())
        .unwrap_or_default();
    let mut columns = Vec::new();
    if !items.is_empty() {
        columns.push(column("Name", "name", "Name of the resource"));
        columns.extend(names.iter().map(|name| column(name, "quantity", "")));
        columns.push(column("Window", "duration", ""));
    }
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let used: BTreeMap<&str, String> = item.total().quantities().into_iter().collect();
            let mut cells = vec![json!(item.name)];
            cells.extend(names.iter().map(|name| json!(used.get(name).map_or("0", String::as_str))));
            cells.push(json!(format_duration(item.window.length)));
            let object = match include {
                IncludeObject::Metadata => metadata_alone(item, version),
                IncludeObject::Object => item.object(true),
                IncludeObject::None => Value::Null,
            };
            json!({"cells": cells, "object": object})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": version, "metadata": {}, "columnDefinitions": columns, "rows": rows})
}

/// The parameters of a list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selection {
    labels: String,
    fields: FieldSelector,
}

impl Selection {
    fn parse(query: &[(String, String)]) -> Result<Selection, ApiError> {
        let labels = value(query, "labelSelector");
        LabelSelector::parse(labels).map_err(|error| ApiError::bad_request(error.0))?;
        let fields = value(query, "fieldSelector");
        let fields = FieldSelector::parse(fields).map_err(|error| ApiError::bad_request(error.0))?;
        let known = ["metadata.name", "metadata.namespace"];
        match fields.requirements().iter().find(|requirement| !known.contains(&requirement.field.as_str())) {
            Some(unknown) => Err(ApiError::bad_request(format!(
                "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                go_quote(&unknown.field)
            ))),
            None => Ok(Selection { labels: labels.to_owned(), fields }),
        }
    }

    /// For a list of the API.
    fn params(&self) -> ListParams {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        ListParams {
            label_selector: some(self.labels.clone()),
            field_selector: some(self.fields.to_string()),
            ..ListParams::default()
        }
    }
}

fn value<'a>(query: &'a [(String, String)], name: &str) -> &'a str {
    query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
}

impl MetricsServer {
    /// Answers a request for a path of the group, of its discovery or of its OpenAPI documents.
    pub fn answer<'a>(
        &'a self,
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
    ) -> BoxFuture<'a, Response<Bytes>> {
        Box::pin(async move {
            match self.serve(method, uri, headers).await {
                Ok(value) => response(StatusCode::OK, &value),
                Err(error) => {
                    let code =
                        StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    response(code, &json!(error.status()))
                }
            }
        })
    }

    async fn serve(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Value, ApiError> {
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["openapi", "v2"] => return Ok(documents::openapi_v2()),
            ["openapi", "v3"] => return Ok(documents::openapi_index()),
            ["openapi", "v3", "apis", GROUP, VERSION] => return Ok(documents::openapi_v3()),
            ["apis", GROUP, VERSION] => return Ok(documents::resource_list()),
            ["apis", GROUP, VERSION, rest @ ..] => rest,
            _ => return Err(ApiError::path_not_found()),
        };
        let query: Vec<(String, String)> =
            form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect();
        let (resource, namespace, name) = match *rest {
            ["nodes"] => ("nodes", None, None),
            ["nodes", name] => ("nodes", None, Some(name)),
            ["pods"] => ("pods", None, None),
            ["namespaces", namespace, "pods"] => ("pods", Some(namespace), None),
            ["namespaces", namespace, "pods", name] => ("pods", Some(namespace), Some(name)),
            _ => return Err(ApiError::path_not_found()),
        };
        if *method != Method::GET {
            let message = "the server does not allow this method on the requested resource";
            return Err(ApiError::generic(405, "MethodNotAllowed", message));
        }
        if name.is_none() && matches!(value(&query, "watch"), "1" | "true" | "True" | "TRUE" | "t" | "T") {
            return Err(ApiError::method_not_supported(GROUP, resource, "watch"));
        }
        let view = View::negotiate(headers)?;
        let include = IncludeObject::parse(value(&query, "includeObject"))?;
        let starting = || ApiError::service_unavailable("the metrics server is starting");
        let source = self.0.source.get().ok_or_else(starting)?;
        let answer = match (resource, name) {
            ("nodes", Some(name)) => Answer::One(self.node(source, name)?),
            ("nodes", None) => Answer::Many("NodeMetrics", self.nodes(source, &Selection::parse(&query)?)?),
            (_, Some(name)) => Answer::One(self.pod(source, namespace.unwrap_or(""), name).await?),
            (_, None) => {
                Answer::Many("PodMetrics", self.pods(source, namespace, &Selection::parse(&query)?).await?)
            }
        };
        Ok(render(&answer, view, include))
    }

    fn node(&self, source: &Source, name: &str) -> Result<Metrics, ApiError> {
        let node = source.nodes.get("", name).ok_or_else(|| ApiError::not_found("", "nodes", name))?;
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let found = node_metrics(&self.0.samples.read(), name, labels);
        found.ok_or_else(|| ApiError::not_found(GROUP, "nodemetrics", name))
    }

    fn nodes(&self, source: &Source, selection: &Selection) -> Result<Vec<Metrics>, ApiError> {
        let by_labels =
            LabelSelector::parse(&selection.labels).map_err(|error| ApiError::bad_request(error.0))?;
        let samples = self.0.samples.read();
        let found = source.nodes.list().into_iter().filter_map(|node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            let labels = node.metadata.labels.clone().unwrap_or_default();
            let as_json: orlop_json::Map =
                labels.iter().map(|(key, value)| (key.into(), value.as_str().into())).collect();
            let field = |field: &str| (field == "metadata.name").then(|| name.clone());
            let wanted = by_labels.matches(Some(&as_json)) && selection.fields.matches(field);
            wanted.then(|| node_metrics(&samples, &name, labels))?
        });
        Ok(found.collect())
    }

    async fn pod(&self, source: &Source, namespace: &str, name: &str) -> Result<Metrics, ApiError> {
        let request = Request::new(Pod::url_path(&(), Some(namespace))).get(name, &GetParams::default());
        let request = request.map_err(|_| ApiError::not_found("", "pods", name))?;
        let head = source.client.request::<PodHead>(request).await.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 => ApiError::not_found("", "pods", name),
            _ => ApiError::internal(format!("failed getting pod: {error}")),
        })?;
        let found = pod_metrics(&self.0.samples.read(), head);
        found.ok_or_else(|| ApiError::not_found(GROUP, "podmetrics", &format!("{namespace}/{name}")))
    }

    async fn pods(
        &self,
        source: &Source,
        namespace: Option<&str>,
        selection: &Selection,
    ) -> Result<Vec<Metrics>, ApiError> {
        let failed = |error: String| ApiError::internal(format!("failed listing pods: {error}"));
        let request = Request::new(Pod::url_path(&(), namespace)).list(&selection.params());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let heads = source.client.request::<PodHeads>(request).await;
        let heads = heads.map_err(|error| failed(error.to_string()))?;
        let samples = self.0.samples.read();
        Ok(heads.items.into_iter().filter_map(|head| pod_metrics(&samples, head)).collect())
    }
}

fn node_metrics(samples: &Samples, name: &str, labels: BTreeMap<String, String>) -> Option<Metrics> {
    let (window, usage) = samples.node(name)?;
    Some(Metrics { namespace: None, name: name.to_owned(), labels, window, used: Used::Node(usage) })
}

fn pod_metrics(samples: &Samples, head: PodHead) -> Option<Metrics> {
    let PodMeta { name, namespace, labels } = head.metadata;
    let (window, containers) = samples.pod(&head.spec.node_name, &(namespace.clone(), name.clone()))?;
    Some(Metrics { namespace: Some(namespace), name, labels, window, used: Used::Pod(containers) })
}

fn response(code: StatusCode, value: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::exposition::{Point, Reading};
    use k8s_openapi::api::core::v1::Node;
    use orlop_client::{Informer, in_memory};
    use pretty_assertions::assert_eq;
    use std::time::Duration;

    const S: i64 = 1_000_000_000;

    /// A server that knows node `n1` with pod `default/a` on it, node `n2` of which nothing is known yet, and pod
    /// `default/b`, which has just been bound.
    fn server() -> MetricsServer {
        let server = MetricsServer::new(crate::Options::default());
        let point = |at: i64, cpu: u64, memory: u64| Point {
            start: S,
            at: at * S,
            cpu: cpu * 1_000_000,
            memory: memory << 10,
            swap: None,
        };
        for (at, cpu) in [(1_700_000_000, 100), (1_700_000_015, 1600)] {
            let containers =
                [("web".to_owned(), point(at, cpu, 2048)), ("side".to_owned(), point(at, cpu / 100, 3))];
            let pods =
                [(("default".to_owned(), "a".to_owned()), std::collections::BTreeMap::from(containers))]
                    .into();
            let reading = Reading { node: Some(point(at, cpu * 10, 4096)), pods };
            server.0.samples.write().advance(vec![("n1".to_owned(), reading)], Duration::from_secs(15));
        }
        let node = |name: &str, zone: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": zone}}})).unwrap()
        };
        let nodes = Informer::fixed([node("n1", "a"), node("n2", "b")]);
        // The API that knows the pods, as far as it is asked.
        let pods = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            let pod = |name: &str| {
                json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
                    "spec": {"nodeName": "n1", "containers": []}})
            };
            let query = request.uri().query().unwrap_or("").to_owned();
            let (code, body) = match request.uri().path() {
                "/api/v1/namespaces/default/pods" | "/api/v1/pods" => {
                    let all = ["a", "b"].into_iter();
                    let found = all.filter(|name| {
                        !query.contains("labelSelector") || query.contains(&format!("app%3D{name}"))
                    });
                    (200, json!({"items": found.map(pod).collect::<Vec<_>>()}))
                }
                "/api/v1/namespaces/default/pods/a" => (200, pod("a")),
                "/api/v1/namespaces/default/pods/b" => (200, pod("b")),
                _ => (404, json!(ApiError::not_found("", "pods", "x").status())),
            };
            let body = http_body_util::Full::new(Bytes::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
        });
        let _ = server.0.source.set(Source { client: in_memory(pods, "test"), nodes });
        server
    }

    async fn get(server: &MetricsServer, accept: &str, path: &str) -> (u16, Value) {
        let uri: Uri = format!("/apis/metrics.k8s.io/v1beta1{path}").parse().unwrap();
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(accept).unwrap())]);
        let response = server.answer(&Method::GET, &uri, &headers).await;
        let mut body: Value = serde_json::from_slice(response.body()).unwrap();
        forget_creation(&mut body);
        (response.status().as_u16(), body)
    }

    /// Metrics are made when somebody asks.
    fn forget_creation(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("creationTimestamp");
                map.values_mut().for_each(forget_creation);
            }
            Value::Array(list) => list.iter_mut().for_each(forget_creation),
            _ => {}
        }
    }

    #[tokio::test]
    async fn objects() {
        let server = server();
        let node = json!({
            "metadata": {"name": "n1", "labels": {"zone": "a"}}, "timestamp": "2023-11-14T22:13:35Z",
            "window": "15s", "usage": {"cpu": "1", "memory": "4Mi"},
        });
        let pod = json!({
            "metadata": {"name": "a", "namespace": "default", "labels": {"app": "a"}},
            "timestamp": "2023-11-14T22:13:35Z", "window": "15s",
            "containers": [
                {"name": "side", "usage": {"cpu": "1m", "memory": "3Ki"}},
                {"name": "web", "usage": {"cpu": "100m", "memory": "2Mi"}},
            ],
        });
        let alone = |kind: &str, object: &Value| {
            let mut all = json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1"});
            for (key, value) in object.as_object().unwrap() {
                all[key] = value.clone();
            }
            all
        };
        let list = |kind: &str, items: &[&Value]| json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items});
        for (path, expected) in [
            ("/nodes", list("NodeMetricsList", &[&node])),
            ("/nodes/n1", alone("NodeMetrics", &node)),
            ("/nodes?labelSelector=zone%3Da", list("NodeMetricsList", &[&node])),
            ("/nodes?labelSelector=zone%3Db", list("NodeMetricsList", &[])),
            ("/nodes?fieldSelector=metadata.name%3Dn2", list("NodeMetricsList", &[])),
            ("/pods", list("PodMetricsList", &[&pod])),
            ("/namespaces/default/pods", list("PodMetricsList", &[&pod])),
            ("/namespaces/default/pods?labelSelector=app%3Db", list("PodMetricsList", &[])),
            ("/namespaces/default/pods/a", alone("PodMetrics", &pod)),
        ] {
            assert_eq!(get(&server, "application/json", path).await, (200, expected), "{path}");
        }
    }

    #[tokio::test]
    async fn tables_and_metadata() {
        let server = server();
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let (_, got) = get(&server, table, "/pods").await;
        let names: Vec<_> = got["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["Name", "cpu", "memory", "Window"]);
        assert_eq!(got["rows"][0]["cells"], json!(["a", "101m", "2051Ki", "15s"]));
        assert_eq!(got["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let (_, got) = get(&server, table, "/nodes/n1?includeObject=Object").await;
        assert_eq!(got["rows"][0]["cells"], json!(["n1", "1", "4Mi", "15s"]));
        assert_eq!(got["rows"][0]["object"]["kind"], "NodeMetrics");
        let (_, got) = get(&server, table, "/nodes?fieldSelector=metadata.name%3Dx").await;
        assert_eq!((&got["columnDefinitions"], &got["rows"]), (&json!([]), &json!([])));
        let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        let (_, got) = get(&server, metadata, "/nodes").await;
        assert_eq!(
            (&got["kind"], &got["items"][0]["metadata"]["name"]),
            (&json!("PartialObjectMetadataList"), &json!("n1"))
        );
    }

    #[tokio::test]
    async fn refusals() {
        let server = server();
        let not_found = (404, "NotFound");
        for (path, (code, reason), message) in [
            ("/nodes/x", not_found, "nodes \"x\" not found"),
            ("/nodes/n2", not_found, "nodemetrics.metrics.k8s.io \"n2\" not found"),
            ("/namespaces/default/pods/x", not_found, "pods \"x\" not found"),
            ("/namespaces/default/pods/b", not_found, "podmetrics.metrics.k8s.io \"default/b\" not found"),
            ("/things", not_found, "the server could not find the requested resource"),
            ("/nodes/n1/status", not_found, "the server could not find the requested resource"),
            (
                "/pods?watch=true",
                (405, "MethodNotAllowed"),
                "watch is not supported on resources of kind \"pods.metrics.k8s.io\"",
            ),
            (
                "/pods?fieldSelector=spec.nodeName%3Dn1",
                (400, "BadRequest"),
                "\"spec.nodeName\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
        ] {
            let (got, status) = get(&server, "*/*", path).await;
            let told = (got, status["reason"].as_str().unwrap(), status["message"].as_str().unwrap());
            assert_eq!(told, (code, reason, message), "{path}");
        }
        assert_eq!(get(&server, "*/*", "/nodes?labelSelector=a%3D%3D%3Db").await.0, 400);
        assert_eq!(get(&server, "text/html", "/nodes").await.0, 406);
        let uri: Uri = "/apis/metrics.k8s.io/v1beta1/nodes".parse().unwrap();
        let post = server.answer(&Method::POST, &uri, &HeaderMap::new()).await;
        assert_eq!(post.status().as_u16(), 405);
        // Before it runs it knows nobody.
        let starting = MetricsServer::new(crate::Options::default());
        assert_eq!(get(&starting, "*/*", "/nodes").await.0, 503);
        assert_eq!(get(&starting, "*/*", "").await.1["kind"], "APIResourceList");
    }
}
