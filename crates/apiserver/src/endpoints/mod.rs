//! Requests to registry operations and back: which handler answers a path, decoding of bodies, encoding of answers.

mod backend;
mod binding;
mod component_status;
mod eviction;
mod health;
mod kubelet;
mod plain;
mod proxy;
mod reviews;
mod scale;
mod scrape;
mod token;
mod zpages;

use bytes::Bytes;
use http::Method;
use orlop_api::decode::{self, Gvk, Media};
use orlop_api::status::{ApiError, Status};
use orlop_json::Value;
use std::sync::Arc;

use crate::ApiServer;
use crate::admission::{self, ObjectKind, Operation};
use crate::http::body::{self, Response};
use crate::http::negotiate::{Format, View, content_format, media_type};
use crate::http::pipeline::Request;
use crate::registry::delete::Deleted;
use crate::registry::list::{self, ListOptions};
use crate::registry::options::{DeleteOptions, WriteOptions};
use crate::registry::patch::{Patch, PatchKind};
use crate::registry::render::{IncludeObject, Renderer};
use crate::registry::selection::Selection;
use crate::registry::update::Replace;
use crate::registry::{Call, CallOptions, Written, object, watch};
use crate::request_info::RequestInfo;
use crate::resources::Resource;

pub use plain::{is_plain_path, plain};

/// The 405 of upstream's router.
pub fn method_not_allowed() -> ApiError {
    let mut error = ApiError::generic(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    );
    error.0.details = Some(Default::default());
    error
}

/// What a request to a resource is served with.
struct Endpoint<'a> {
    server: Arc<ApiServer>,
    request: &'a Request,
    resource: &'a Arc<Resource>,
    renderer: Renderer,
}

/// Answers a request for a resource.
pub fn resource(
    server: Arc<ApiServer>,
    request: &Request,
    body: Bytes,
) -> futures::future::BoxFuture<'_, Result<Response, ApiError>> {
    // Boxed: the futures behind it are large and of many kinds.
    Box::pin(serve(server, request, body))
}

async fn serve(server: Arc<ApiServer>, request: &Request, body: Bytes) -> Result<Response, ApiError> {
    let info = &request.info;
    let resource = server.registry.resources.find(&info.group, &info.version, &info.resource);
    let Some(resource) = resource else { return unknown_resource(&server, info) };
    if let Some(kind) = &resource.custom {
        if let Some(warning) = &kind.version().deprecation {
            request.warnings.add(warning.as_str());
        }
        if request.accept.format == Format::Protobuf && request.accept.view == View::Object {
            return Err(ApiError::generic(406, "NotAcceptable", CUSTOM_PROTOBUF));
        }
    }
    // A namespaced object needs its namespace in the path, and a cluster-scoped one must not have one.
    let in_namespace =
        !info.namespace.is_empty() && (resource.plural != "namespaces" || !resource.group.is_empty());
    if resource.namespaced != in_namespace {
        let across =
            resource.namespaced && request_name_in_path(request).is_empty() && info.subresource.is_empty();
        let allowed =
            across && matches!(info.verb.as_str(), "list" | "watch" | "create" | "deletecollection");
        if !allowed {
            return Err(ApiError::path_not_found());
        }
        if !matches!(info.verb.as_str(), "list" | "watch") {
            return Err(method_not_allowed());
        }
    }
    if resource.group.is_empty() {
        match resource.plural.as_str() {
            "endpoints" => request
                .warnings
                .add("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            "componentstatuses" => request.warnings.add("v1 ComponentStatus is deprecated in v1.19+"),
            _ => {}
        }
    }
    let include = match request.accept.view {
        View::Table(_) => IncludeObject::parse(request.query.value("includeObject"))?,
        _ => IncludeObject::Metadata,
    };
    let renderer = Renderer::new(resource.clone(), request.accept, include);
    // A list or watch from a given revision says itself how old its answer may be.
    let from_revision =
        matches!(info.verb.as_str(), "list" | "watch") && !request.query.value("resourceVersion").is_empty();
    if !from_revision {
        server.registry.freshen().await?;
    }
    let endpoint = Endpoint { server, request, resource: &resource, renderer };
    if info.subresource.is_empty() { endpoint.main(body).await } else { endpoint.subresource(body).await }
}

/// Custom resources have no messages.
const CUSTOM_PROTOBUF: &str = "object *unstructured.Unstructured does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message";

/// A built-in group says in the API's form that it has no such resource; where there is no group, or one whose
/// resources are defined, a plain web server answers.
fn unknown_resource(server: &ApiServer, info: &RequestInfo) -> Result<Response, ApiError> {
    let table = server.registry.resources.table();
    let builtin = |r: &Arc<Resource>| r.custom.is_none() && r.group == info.group;
    if table.list.iter().any(builtin) {
        return Err(ApiError::path_not_found());
    }
    Ok(body::text(404, "404 page not found\n"))
}

/// The name in the path; a `metadata.name` field selector does not count.
fn request_name_in_path(request: &Request) -> &str {
    match request.info.verb.as_str() {
        "list" | "watch" | "deletecollection" => "",
        _ => &request.info.name,
    }
}

impl<'a> Endpoint<'a> {
    fn call(&'a self, dry_run: bool, field_manager: &'a str) -> Call<'a> {
        let info = &self.request.info;
        Call {
            user: &self.request.user,
            resource: self.resource,
            namespace: if self.resource.namespaced { &info.namespace } else { "" },
            name: request_name_in_path(self.request),
            subresource: &info.subresource,
            dry_run,
            field_manager,
            warnings: &self.request.warnings,
            annotations: Some(&self.request.annotations),
            options: CallOptions::None,
        }
    }

    /// The call of a write with these options.
    fn write_call(&'a self, options: &'a WriteOptions, field_manager: &'a str) -> Call<'a> {
        Call { options: CallOptions::Write(options), ..self.call(options.dry_run, field_manager) }
    }

    /// The call of a deletion with these options.
    fn delete_call(&'a self, options: &'a DeleteOptions) -> Call<'a> {
        Call { options: CallOptions::Delete(options), ..self.call(options.dry_run, "") }
    }

    /// Admission of a subresource that is an action with an object of its own kind.
    async fn admit_action(
        &self,
        call: &Call<'_>,
        object: &mut Value,
        kind: ObjectKind<'static>,
    ) -> Result<(), ApiError> {
        let request = admission::Request::new(call, Operation::Create, object, None);
        self.server.registry.admit(&mut request.of_kind(Some(kind))).await
    }

    /// The recorded field manager: named, or the user agent.
    fn manager(&self, options: &WriteOptions) -> String {
        if !options.field_manager.is_empty() {
            return options.field_manager.clone();
        }
        let agent = self.request.parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok());
        object::manager_of_agent(agent.unwrap_or(""))
    }

    fn answer(&self, code: u16, bytes: Bytes) -> Response {
        body::response(code, self.request.accept.format.content_type(), bytes)
    }

    fn written(&self, code: u16, written: &Written) -> Response {
        self.answer(code, self.renderer.written(written))
    }

    fn media(&self) -> Result<Media, ApiError> {
        Ok(match content_format(&self.request.parts.headers)? {
            Format::Json => Media::Json,
            Format::Yaml => Media::Yaml,
            Format::Protobuf => Media::Protobuf,
        })
    }

    /// The answer of an action that has no object to show.
    fn done(&self, status: Status) -> Response {
        let value = orlop_json::to_value(status).unwrap_or_default();
        self.answer(201, crate::registry::render::encode(&value, self.request.accept))
    }

    /// Decodes a body as an object of a kind, with warnings taken note of and defaults filled in.
    fn decode(&self, body: &[u8], gvk: &Gvk<'_>, options: &WriteOptions) -> Result<Value, ApiError> {
        let media = self.media()?;
        let decoded = decode::decode(body, media, gvk, options.field_validation)?;
        for warning in decoded.warnings {
            self.request.warnings.add(warning);
        }
        Ok(decoded.value)
    }

    /// Decodes the resource's own kind.
    fn decode_own(&self, body: &[u8], options: &WriteOptions) -> Result<Value, ApiError> {
        if let Some(kind) = &self.resource.custom {
            let media = self.media()?;
            if media == Media::Protobuf {
                return Err(ApiError::unsupported_media_type(&["application/json", "application/yaml"]));
            }
            let decoded = crate::custom::decode::body(kind, body, media, options.field_validation)?;
            decoded.warnings.into_iter().for_each(|warning| self.request.warnings.add(warning));
            let mut value = decoded.value;
            object::dedup_owner_references(&mut value, &self.request.warnings);
            return Ok(value);
        }
        let gvk =
            Gvk { group: &self.resource.group, version: &self.resource.version, kind: &self.resource.kind };
        let mut value = self.decode(body, &gvk, options)?;
        if let Some(strategy) = self.resource.strategy() {
            strategy.defaults(&mut value);
        }
        object::dedup_owner_references(&mut value, &self.request.warnings);
        Ok(value)
    }

    async fn main(&self, body: Bytes) -> Result<Response, ApiError> {
        let info = &self.request.info;
        let has_name = !request_name_in_path(self.request).is_empty();
        let method_fits = match self.request.parts.method {
            Method::POST => !has_name,
            Method::PUT | Method::PATCH => has_name,
            Method::HEAD | Method::OPTIONS => false,
            _ => true,
        };
        if !method_fits || !self.resource.allows(&info.verb) {
            return Err(method_not_allowed());
        }
        if self.resource.cache.is_none() {
            return match self.resource.kind.as_str() {
                "ComponentStatus" => component_status::serve(self).await,
                _ => reviews::create(self, body).await,
            };
        }
        match info.verb.as_str() {
            "get" => self.get().await,
            "list" => self.list().await,
            "watch" => self.watch(),
            "create" => self.create(body).await,
            "update" => self.update(body).await,
            "patch" => self.patch(body).await,
            "delete" => self.delete(body).await,
            "deletecollection" => self.delete_collection(body).await,
            _ => Err(method_not_allowed()),
        }
    }

    async fn subresource(&self, body: Bytes) -> Result<Response, ApiError> {
        let info = &self.request.info;
        let missing = || match self.resource.custom {
            Some(_) => ApiError::not_found(&self.resource.group, &self.resource.plural, &info.name),
            None => ApiError::path_not_found(),
        };
        let subresource = self.resource.subresource(&info.subresource).ok_or_else(missing)?;
        let connects =
            matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "log" | "proxy");
        if !info.rest.is_empty() && info.subresource != "proxy" {
            return Err(ApiError::path_not_found());
        }
        if !connects && !subresource.verbs.contains(&info.verb) {
            return Err(method_not_allowed());
        }
        match (self.resource.kind.as_str(), info.subresource.as_str()) {
            (_, "status") => match info.verb.as_str() {
                "get" => self.get().await,
                "update" => self.update(body).await,
                _ => self.patch(body).await,
            },
            (_, "scale") => scale::serve(self, body).await,
            ("Namespace", "finalize") => self.update(body).await,
            ("Pod", "binding") => binding::create(self, body, &info.name).await,
            ("Pod", "eviction") => eviction::create(self, body).await,
            ("Pod", "ephemeralcontainers" | "resize") | ("CertificateSigningRequest", "approval") => {
                match info.verb.as_str() {
                    "get" => self.get().await,
                    "update" => self.update(body).await,
                    _ => self.patch(body).await,
                }
            }
            ("Pod", "log" | "exec" | "attach" | "portforward") => kubelet::connect(self).await,
            ("Pod" | "Service" | "Node", "proxy") => proxy::serve(self).await,
            ("ServiceAccount", "token") => token::create(self, body).await,
            _ => Err(ApiError::path_not_found()),
        }
    }

    async fn get(&self) -> Result<Response, ApiError> {
        list::parse_revision(self.request.query.value("resourceVersion"))?;
        let entry = self.server.registry.get(&self.call(false, ""))?;
        let entry = self.server.registry.entry(self.resource, entry).await?;
        Ok(self.answer(200, self.renderer.entry(&entry)))
    }

    fn namespace(&self) -> &str {
        if self.resource.namespaced { &self.request.info.namespace } else { "" }
    }

    async fn list(&self) -> Result<Response, ApiError> {
        let options = ListOptions::parse(&self.request.query, false)?;
        let selection = Selection::parse(&self.request.query, self.resource)?;
        let registry = &self.server.registry;
        let cache = registry.cache(self.resource)?;
        let mut page = list::page(&registry.caches, cache, self.namespace(), &options, &selection).await?;
        page.entries = registry.entries(self.resource, page.entries).await?;
        Ok(self.answer(200, self.renderer.page(&page)))
    }

    fn watch(&self) -> Result<Response, ApiError> {
        let options = ListOptions::parse(&self.request.query, true)?;
        let mut selection = Selection::parse(&self.request.query, self.resource)?;
        // The old form `/watch/…/name` names the object in the path.
        if self.request.parts.uri.path().contains("/watch/") && !self.request.info.name.is_empty() {
            selection = selection.named(&self.request.info.name);
        }
        let registry = &self.server.registry;
        let cache = registry.cache(self.resource)?;
        let format = self.request.accept.format;
        let started = watch::start(
            self.server.clone(),
            registry.caches.clone(),
            cache,
            self.namespace(),
            &options,
            selection,
            self.renderer.clone(),
            self.server.options.min_request_timeout,
            self.server.watch_end(),
        );
        use futures::StreamExt as _;
        use http_body_util::BodyExt as _;
        let body = match started {
            Ok(watch) => {
                let counted = cache.clone();
                let frames = watch.into_stream().map(move |bytes| {
                    counted.reads.watch_events.number(bytes.len() as u64);
                    Ok::<_, crate::http::BoxError>(http_body::Frame::data(bytes))
                });
                http_body_util::StreamBody::new(frames).boxed_unsync()
            }
            // The watch begins, and its first event says that it cannot go on.
            Err(error) if error.code() == 410 => body::full(watch::error_frame(&error, format)),
            Err(error) => return Err(error),
        };
        let mut response = Response::new(body);
        let content_type = match format {
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        };
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        Ok(response)
    }

    async fn create(&self, body: Bytes) -> Result<Response, ApiError> {
        let options = WriteOptions::parse(&self.request.query, "CreateOptions", false)?;
        content_format(&self.request.parts.headers)?;
        let object = self.decode_own(&body, &options)?;
        let manager = self.manager(&options);
        let written = self.server.registry.create(&self.write_call(&options, &manager), object).await?;
        Ok(self.written(201, &written))
    }

    async fn update(&self, body: Bytes) -> Result<Response, ApiError> {
        let options = WriteOptions::parse(&self.request.query, "UpdateOptions", false)?;
        content_format(&self.request.parts.headers)?;
        let object = self.decode_own(&body, &options)?;
        let manager = self.manager(&options);
        let call = self.write_call(&options, &manager);
        let exists = self.server.registry.get(&call).is_ok();
        let creates = self.resource.strategy().is_some_and(|s| s.allow_create_on_update());
        if !exists && creates && call.subresource.is_empty() {
            if object::meta(&object, "name") != call.name {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({})",
                    object::meta(&object, "name"),
                    call.name
                )));
            }
            self.may_create().await?;
            let written = self.server.registry.create(&call, object).await?;
            return Ok(self.written(201, &written));
        }
        let written = self.server.registry.update(&call, &Replace(object)).await?;
        Ok(self.written(200, &written))
    }

    /// Whether the user may create what a PUT or apply would create.
    async fn may_create(&self) -> Result<(), ApiError> {
        let mut info = self.request.info.clone();
        info.verb = "create".to_string();
        let attributes = crate::http::pipeline::attributes(&self.request.user, &info, &self.request.query);
        self.server.authorizer.check(&attributes).await
    }

    async fn patch(&self, body: Bytes) -> Result<Response, ApiError> {
        let media_type = media_type(&self.request.parts.headers);
        let kind = match self.resource.custom {
            Some(_) => PatchKind::of_custom_media_type(&media_type)?,
            None => PatchKind::of_media_type(&media_type)?,
        };
        let options = WriteOptions::parse(&self.request.query, "PatchOptions", kind == PatchKind::Apply)?;
        let manager = self.manager(&options);
        let call = self.write_call(&options, &manager);
        let current = self.server.registry.get(&call);
        let creates = current.is_err() && kind == PatchKind::Apply && call.subresource.is_empty();
        if !creates {
            // Of what does not exist it does not matter what the patch is.
            current?;
        }
        let patch = Patch::new(&call, kind, &body, options.field_validation, options.force)?;
        if creates {
            self.may_create().await?;
            let written = self.server.registry.create_applied(&call, &patch).await?;
            return Ok(self.written(201, &written));
        }
        let written = self.server.registry.update(&call, &patch).await?;
        Ok(self.written(200, &written))
    }

    fn delete_options(&self, body: Bytes) -> Result<DeleteOptions, ApiError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return DeleteOptions::parse(None, &self.request.query);
        }
        // Upstream passes on what its decoder says: a failure without a reason.
        let refused = |text: String| ApiError::generic(500, "", text);
        let schema = orlop_api::schema::kind("meta.k8s.io", "v1", "DeleteOptions")
            .ok_or_else(|| ApiError::internal("no type is known for DeleteOptions"))?;
        let value = decode::parse(&body, self.media()?)
            .map_err(|error| refused(format!("couldn't get version/kind; json parse error: {error}")))?;
        // Of any group: clients sent the options of the group they spoke to.
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("");
        let (kind, version) = (text("kind"), text("apiVersion"));
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(refused(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        let decoded = decode::normalise(&value, schema, decode::FieldValidation::Ignore)
            .map_err(|error| refused(error.to_string()))?;
        DeleteOptions::parse(Some(&decoded.value), &self.request.query)
    }

    /// Some kinds leave their dependents when nothing is said about them, which surprises.
    fn warn_of_deletion(&self, options: &DeleteOptions) {
        let silent = options.propagation_policy.is_none() && options.orphan_dependents.is_none();
        let warning = self.resource.strategy().map_or("", |strategy| strategy.deletion_warning());
        if silent && !warning.is_empty() {
            self.request.warnings.add(warning);
        }
    }

    async fn delete(&self, body: Bytes) -> Result<Response, ApiError> {
        let options = self.delete_options(body)?;
        self.warn_of_deletion(&options);
        let call = self.delete_call(&options);
        match self.server.registry.delete(&call, &options).await? {
            Deleted::Object(value) => Ok(self.answer(200, self.renderer.value(&value))),
            Deleted::Status(status) => {
                let value = orlop_json::to_value(status.as_ref()).unwrap_or_default();
                Ok(self.answer(200, crate::registry::render::encode(&value, self.request.accept)))
            }
        }
    }

    async fn delete_collection(&self, body: Bytes) -> Result<Response, ApiError> {
        let list_options = ListOptions::parse(&self.request.query, false)?;
        let selection = Selection::parse(&self.request.query, self.resource)?;
        let options = self.delete_options(body)?;
        self.warn_of_deletion(&options);
        let call = self.delete_call(&options);
        let registry = &self.server.registry;
        let cache = registry.cache(self.resource)?;
        let mut page =
            list::page(&registry.caches, cache, self.namespace(), &list_options, &selection).await?;
        registry.delete_collection(&call, &options, &page.entries).await?;
        page.entries = registry.entries(self.resource, page.entries).await?;
        Ok(self.answer(200, self.renderer.page(&page)))
    }
}
