//! OpenAPI documents: definitions of types and the operations on the resources that are served. A document is built when
//! it is first asked for and kept until what it says changes; the index of version 3 names the documents by their hashes
//! and builds none of those of custom resources.
//!
//! Answers to `kube-openapi`'s `handler`, `handler3` and `builder`, and to `apiextensions`' `controller/openapi`.

mod definitions;
mod descriptions;
mod message;
mod parameters;
mod paths;
mod routes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use orlop_api::status::ApiError;
use orlop_json::{Map, Value, json};
use parking_lot::Mutex;

use super::body::{self, Response};
use super::pipeline::Request;
use crate::ApiServer;
use crate::custom::CustomKind;
use crate::resources::Resource;
pub use definitions::Version;
use definitions::{META, Scope, closure};
pub use descriptions::{API_VERSION, KIND, LIST_METADATA};
use routes::prefix;

/// The resources that each document of version 3 is about, by its path: `api/v1`, `apis/apps`, `apis/apps/v1`.
type Sources = BTreeMap<String, Vec<Arc<Resource>>>;

/// The documents made so far.
#[derive(Default)]
pub struct Documents {
    made: Mutex<HashMap<String, Document>>,
    /// Of one generation of the resource table.
    sources: Mutex<Option<(u64, Arc<Sources>)>>,
    v2: Mutex<V2>,
}

/// What version 2 is put together from: so a definition that comes or changes costs no more than itself.
#[derive(Default)]
struct V2 {
    head: Option<(u64, Arc<Head>)>,
    /// What is said of each version of a definition, by its identity.
    parts: HashMap<String, Arc<Part>>,
}

/// What is said of built-in resources and of other servers' resources.
struct Head {
    text: Part,
    /// The document but for paths and definitions.
    rest: String,
    hash: String,
}

/// The insides of `paths` and of `definitions`, as text.
struct Part {
    paths: String,
    definitions: String,
}

struct Document {
    stamp: u64,
    bytes: Bytes,
    hash: String,
}

/// Whether this is a path of OpenAPI.
pub fn is_path(path: &str) -> bool {
    path == "/openapi/v2" || path == "/openapi/v3" || path.starts_with("/openapi/v3/")
}

/// Answers it.
pub async fn serve(server: Arc<ApiServer>, request: &Request) -> Result<Response, ApiError> {
    let path = request.info.path.trim_end_matches('/');
    if path == "/openapi/v3" {
        return Ok(body::json(200, &beside(move || index(&server)).await?));
    }
    if path == "/openapi/v2" {
        let Some((form, content_type)) = negotiate(request, &V2_FORMS) else {
            return Ok(varying(body::text(406, "")));
        };
        let known = request.parts.headers.get(header::IF_NONE_MATCH).cloned();
        let (bytes, hash) = beside(move || {
            let hash = v2_hash(&server, form);
            let is_known = known.is_some_and(|known| known.as_bytes() == format!("\"{hash}\"").as_bytes());
            let bytes = if is_known { Bytes::new() } else { v2_document(&server, form) };
            (bytes, hash)
        })
        .await?;
        return Ok(varying(with_etag(request, content_type, bytes, &hash)));
    }
    let name = path.strip_prefix(V3).unwrap_or(path).to_string();
    let form = negotiate(request, &V3_FORMS);
    let as_message = form.is_some_and(|(suffix, _)| suffix == PROTOBUF);
    let Some((bytes, hash)) = beside(move || v3_document_at(&server, &name, as_message)).await? else {
        return Ok(body::text(404, "404 page not found\n"));
    };
    let Some((_, content_type)) = form else {
        return Ok(varying(body::text(406, "")));
    };
    let asked = request.query.get("hash").filter(|asked| !asked.is_empty());
    if asked.is_some_and(|asked| asked != hash) {
        return Ok(moved(&format!("{path}?hash={hash}")));
    }
    let mut response = varying(with_etag(request, content_type, bytes, &hash));
    if asked.is_some() {
        // What is behind a hash never changes.
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("public, immutable"));
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        if let Ok(value) = expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().parse() {
            headers.insert(header::EXPIRES, value);
        }
    }
    Ok(response)
}

/// Documents may be many megabytes: what makes one holds up nobody else.
async fn beside<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(make).await.map_err(|error| ApiError::internal(error.to_string()))
}

/// What clients accept, under which suffix the form is kept, and the content type of the answer. Media types have no `@`,
/// but clients of old ask with one.
type Form = (&'static str, &'static str, &'static str);

const PROTOBUF: &str = "#protobuf";
const V2_MESSAGE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const V2_FORMS: [Form; 3] = [
    ("application/json", "", "application/json"),
    ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF, V2_MESSAGE),
    (V2_MESSAGE, PROTOBUF, V2_MESSAGE),
];

const V3_MESSAGE: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

const V3_FORMS: [Form; 3] = [
    ("application/json", "", "application/json"),
    ("application/com.github.proto-openapi.spec.v3@v1.0+protobuf", PROTOBUF, V3_MESSAGE),
    (V3_MESSAGE, PROTOBUF, V3_MESSAGE),
];

/// The form that the `Accept` header asks for; `None` = none of them is accepted.
fn negotiate(request: &Request, forms: &[Form]) -> Option<(&'static str, &'static str)> {
    let header: Vec<&str> =
        request.parts.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let header = header.join(",");
    let header = if header.trim().is_empty() { "*/*" } else { &header };
    header.split(',').find_map(|clause| {
        let wanted = clause.split(';').next().unwrap_or("").trim();
        let accepts = |form: &&Form| wanted == form.0 || matches!(wanted, "*/*" | "application/*");
        forms.iter().find(accepts).map(|(_, suffix, content_type)| (*suffix, *content_type))
    })
}

fn varying(mut response: Response) -> Response {
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    response
}

fn moved(url: &str) -> Response {
    let mut response = varying(body::text(301, ""));
    if let Ok(value) = url.parse() {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

fn with_etag(request: &Request, content_type: &'static str, bytes: Bytes, hash: &str) -> Response {
    let etag = format!("\"{hash}\"");
    let same =
        request.parts.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response =
        if same { body::response(304, content_type, "") } else { body::response(200, content_type, bytes) };
    if let Ok(value) = etag.parse() {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// Paths of the server that are about no resource.
const PLAIN: [&str; 5] = [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"];

/// What documents there are now.
fn sources(server: &ApiServer) -> Arc<Sources> {
    let table = server.registry.resources.table();
    let mut kept = server.openapi.sources.lock();
    if let Some((_, sources)) = kept.as_ref().filter(|(generation, _)| *generation == table.generation) {
        return sources.clone();
    }
    let mut sources: Sources = PLAIN.iter().map(|path| ((*path).to_string(), Vec::new())).collect();
    for resource in &table.list {
        if resource.custom.is_none() && !resource.group.is_empty() {
            sources.entry(format!("apis/{}", resource.group)).or_default();
        }
        sources.entry(prefix(resource)).or_default().push(resource.clone());
    }
    let sources = Arc::new(sources);
    server.openapi.made.lock().retain(|path, _| match path.strip_prefix(V3) {
        Some(path) => sources.contains_key(path),
        None => true,
    });
    let identities: HashSet<String> =
        table.list.iter().filter_map(|resource| Some(resource.custom.as_ref()?.identity())).collect();
    server.openapi.v2.lock().parts.retain(|identity, _| identities.contains(identity));
    *kept = Some((table.generation, sources.clone()));
    sources
}

/// What paths of version 3 begin with.
const V3: &str = "/openapi/v3/";

fn index(server: &ApiServer) -> Value {
    let mut found: BTreeMap<String, String> = sources(server)
        .iter()
        .map(|(path, resources)| (path.clone(), hash_of(server, path, resources)))
        .collect();
    for remote in server.aggregator.published().remotes.values() {
        if let Some((_, hash)) = &remote.openapi.v3 {
            found.insert(format!("apis/{}/{}", remote.group, remote.version), hash.clone());
        }
    }
    let paths: Map = found
        .into_iter()
        .map(|(path, hash)| {
            let url = format!("{V3}{path}?hash={hash}");
            (path.into(), json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths })
}

/// The document of another server.
fn remote(server: &ApiServer, path: &str) -> Option<(Bytes, String)> {
    let (group, version) = path.strip_prefix("apis/")?.split_once('/')?;
    let published = server.aggregator.published();
    let remote = published.remotes.get(&(group.to_string(), version.to_string()))?;
    remote.openapi.v3.clone()
}

/// The document of version 3 with this path, whoever it comes from; `None` when there is none. Messages are not kept: who
/// asks for one keeps it by its hash, which is that of the text.
fn v3_document_at(server: &ApiServer, path: &str, as_message: bool) -> Option<(Bytes, String)> {
    let (bytes, hash) = remote(server, path).or_else(|| {
        let sources = sources(server);
        sources.get(path).map(|resources| v3_document(server, path, resources))
    })?;
    let bytes = match as_message {
        true => Bytes::from(message::v3(&orlop_json::from_slice(&bytes).ok()?)),
        false => bytes,
    };
    Some((bytes, hash))
}

fn all_custom(resources: &[Arc<Resource>]) -> bool {
    !resources.is_empty() && resources.iter().all(|resource| resource.custom.is_some())
}

/// The hash of a document of this server. What is said of custom resources follows from their definitions, so that it is
/// known before it is said; built-in resources are hashed by what is said of them.
fn hash_of(server: &ApiServer, path: &str, resources: &[Arc<Resource>]) -> String {
    if !all_custom(resources) {
        return v3_document(server, path, resources).1;
    }
    // The type of definitions stands for what documents of custom resources have from this program.
    const PROGRAM: &str = "apis/apiextensions.k8s.io/v1";
    let mut text = env!("CARGO_PKG_VERSION").to_string();
    if let Some(definitions) = sources(server).get(PROGRAM).filter(|resources| !all_custom(resources)) {
        text.push_str(&v3_document(server, PROGRAM, definitions).1);
    }
    for kind in resources.iter().filter_map(|resource| resource.custom.as_ref()) {
        text.push_str(&kind.identity());
    }
    hex(text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02X}")).collect()
}

/// What a document is made from, in short: it is made again when this differs.
fn stamp(resources: &[Arc<Resource>], published: u64) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    published.hash(&mut hasher);
    for resource in resources {
        (&resource.group, &resource.version, &resource.plural).hash(&mut hasher);
        resource.custom.as_ref().map(|kind| kind.identity()).hash(&mut hasher);
    }
    hasher.finish()
}

/// A document from memory, or made now.
fn kept(
    server: &ApiServer,
    path: &str,
    stamp: u64,
    make: impl FnOnce() -> (Bytes, String),
) -> (Bytes, String) {
    if let Some(found) = server.openapi.made.lock().get(path).filter(|found| found.stamp == stamp) {
        return (found.bytes.clone(), found.hash.clone());
    }
    let (bytes, hash) = make();
    let document = Document { stamp, bytes: bytes.clone(), hash: hash.clone() };
    server.openapi.made.lock().insert(path.to_string(), document);
    (bytes, hash)
}

/// The document of version 3 with this path.
fn v3_document(server: &ApiServer, path: &str, resources: &[Arc<Resource>]) -> (Bytes, String) {
    kept(server, &format!("{V3}{path}"), stamp(resources, 0), || {
        let bytes = Bytes::from(v3(path, resources).to_string());
        let hash = if all_custom(resources) { hash_of(server, path, resources) } else { hex(&bytes) };
        (bytes, hash)
    })
}

/// The hash of the document of version 2, one for all servers, as text or as a message.
fn v2_hash(server: &ApiServer, form: &str) -> String {
    let mut text = format!("{}{form}", v2_head(server).hash);
    let table = server.registry.resources.table();
    for kind in table.list.iter().filter_map(|resource| resource.custom.as_ref()) {
        text.push_str(&kind.identity());
    }
    hex(text.as_bytes())
}

/// The document.
fn v2_document(server: &ApiServer, form: &str) -> Bytes {
    if form == PROTOBUF {
        let (table, published) = (server.registry.resources.table(), server.aggregator.published());
        let stamp = stamp(&table.list, published.generation);
        return kept(server, &format!("/openapi/v2{form}"), stamp, || {
            let json = v2_document(server, "");
            let message = message::document(&orlop_json::from_slice(&json).unwrap_or_default());
            (Bytes::from(message), String::new())
        })
        .0;
    }
    let head = v2_head(server);
    let mut parts = Vec::new();
    for resource in server.registry.resources.table().list.iter() {
        parts.extend(resource.custom.as_ref().map(|kind| v2_part(server, resource, kind)));
    }
    let all = || std::iter::once(&head.text).chain(parts.iter().map(Arc::as_ref));
    let size: usize = all().map(|part| part.paths.len() + part.definitions.len() + 2).sum();
    let mut out = String::with_capacity(size + head.rest.len() + 64);
    out.push('{');
    out.push_str(&head.rest);
    for (name, part) in [
        ("paths", (|part: &Part| part.paths.as_str()) as fn(&Part) -> &str),
        ("definitions", |part| part.definitions.as_str()),
    ] {
        out.push_str(&format!(",\"{name}\":{{"));
        for (at, text) in all().map(part).filter(|text| !text.is_empty()).enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(text);
        }
        out.push('}');
    }
    out.push('}');
    Bytes::from(out)
}

/// What the document says of one version of a definition, from memory or made now.
fn v2_part(server: &ApiServer, resource: &Resource, kind: &CustomKind) -> Arc<Part> {
    let identity = kind.identity();
    if let Some(part) = server.openapi.v2.lock().parts.get(&identity) {
        return part.clone();
    }
    let (items, _) = paths::items(&routes::of_resource(resource), Version::V2);
    let definitions = crate::custom::openapi::schemas(kind, Version::V2).into_iter().collect();
    let part = Part { paths: inside(Value::Object(items)), definitions: inside(Value::Object(definitions)) };
    let part = Arc::new(part);
    server.openapi.v2.lock().parts.insert(identity, part.clone());
    part
}

/// What the document says of everything else.
fn v2_head(server: &ApiServer) -> Arc<Head> {
    let (table, published) = (server.registry.resources.table(), server.aggregator.published());
    let builtin: Vec<Arc<Resource>> = table.list.iter().filter(|r| r.custom.is_none()).cloned().collect();
    let stamp = stamp(&builtin, published.generation);
    if let Some((_, head)) = server.openapi.v2.lock().head.as_ref().filter(|(of, _)| *of == stamp) {
        return head.clone();
    }
    let remotes: Vec<&Value> =
        published.remotes.values().filter_map(|remote| remote.openapi.v2.as_ref()).collect();
    let mut rest = v2(&builtin, &remotes);
    let hash = hex(rest.to_string().as_bytes());
    let mut take = |section: &str| {
        let value = rest.as_object_mut().and_then(|map| map.remove(section));
        inside(value.unwrap_or_else(|| json!({})))
    };
    let text = Part { paths: take("paths"), definitions: take("definitions") };
    let head = Arc::new(Head { text, rest: inside(rest), hash });
    server.openapi.v2.lock().head = Some((stamp, head.clone()));
    head
}

fn security() -> Value {
    let scheme = json!({
        "description": "Bearer Token authentication",
        "in": "header",
        "name": "authorization",
        "type": "apiKey",
    });
    json!({ "BearerToken": scheme })
}

/// What a document says besides: which program it describes.
fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

/// The document of a group and version, of a group, or of a path that is about no resource.
fn v3(path: &str, resources: &[Arc<Resource>]) -> Value {
    let custom = all_custom(resources);
    let mut all: Vec<routes::Route> = routes::plain(path).filter(|_| !custom).into_iter().collect();
    all.extend(resources.iter().flat_map(|resource| routes::of_resource(resource)));
    let (items, mut names) = paths::items(&all, Version::V3);
    names.extend(
        ["ObjectMeta", "ListMeta"].map(|name| format!("{META}{name}")).into_iter().filter(|_| custom),
    );
    let scope = match resources.first() {
        _ if custom => Scope::Custom,
        Some(resource) => Scope::GroupVersion(&resource.group, &resource.version),
        None => Scope::GroupVersion("", "v1"),
    };
    let mut schemas = closure(names, Version::V3, scope);
    for kind in resources.iter().filter_map(|resource| resource.custom.as_ref()) {
        schemas.extend(crate::custom::openapi::schemas(kind, Version::V3));
    }
    let mut components = json!({ "schemas": schemas });
    if !custom {
        components["securitySchemes"] = security();
    }
    let info = if custom { json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"}) } else { info() };
    json!({"openapi": "3.0.0", "info": info, "paths": items, "components": components})
}

/// The document of built-in resources and of other servers.
fn v2(resources: &[Arc<Resource>], remotes: &[&Value]) -> Value {
    let groups: BTreeSet<String> = resources
        .iter()
        .flat_map(|resource| match resource.group.as_str() {
            "" => vec![prefix(resource)],
            group => vec![format!("apis/{group}"), prefix(resource)],
        })
        .collect();
    let plain = PLAIN.into_iter().map(String::from).chain(groups);
    let mut all: Vec<routes::Route> = plain.filter_map(|path| routes::plain(&path)).collect();
    all.extend(resources.iter().flat_map(|resource| routes::of_resource(resource)));
    let (items, names) = paths::items(&all, Version::V2);
    let mut document = json!({
        "swagger": "2.0",
        "info": info(),
        "paths": items,
        "definitions": closure(names, Version::V2, Scope::Everything),
        "parameters": parameters::v2_shared(),
        "securityDefinitions": security(),
        "security": [{"BearerToken": []}],
    });
    for other in remotes {
        crate::aggregation::documents::merge_v2(&mut document, other);
    }
    document
}

/// An object's text without its braces.
fn inside(object: Value) -> String {
    let mut text = object.to_string();
    text.pop();
    if !text.is_empty() {
        text.remove(0);
    }
    text
}

#[cfg(test)]
mod tests;
