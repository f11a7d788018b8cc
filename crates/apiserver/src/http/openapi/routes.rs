//! What can be done with the resources of a server: the operations of documents, with upstream's names and descriptions.
//!
//! Answers to `endpoints/installer.go`, for custom resources to `controller/openapi/builder`.

use super::definitions::{META, gvk};
use super::parameters::{self, Parameter};
use crate::registry::delete::returns_object;
use crate::resources::Resource;
use orlop_api::resources::Subresource;
use orlop_json::Value;

/// Content types in which objects are sent.
const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// Those in which they are sent one after another, too.
const STREAMS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const CUSTOM: &[&str] = &["application/json", "application/yaml"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const LOGS: &[&str] =
    &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const JSON: &[&str] = &["application/json"];
const ANY: &[&str] = &["*/*"];

/// What an answer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// The definition with this name.
    Named(String),
    /// Text.
    Text,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Route {
    pub path: String,
    /// As documents write it: `get`.
    pub method: &'static str,
    /// The name of the operation before group and version are put into it; it begins with a verb.
    pub operation: String,
    pub description: String,
    /// `x-kubernetes-action`; empty = none.
    pub action: &'static str,
    pub kind: Option<Value>,
    pub parameters: Vec<Parameter>,
    /// The definition of the request's body, and whether there must be one.
    pub body: Option<(String, bool)>,
    pub answers: Vec<(u16, Model)>,
    pub consumes: &'static [&'static str],
    pub produces: &'static [&'static str],
}

/// The verbs that names of operations begin with.
const VERBS: [&str; 10] =
    ["get", "log", "read", "replace", "patch", "delete", "watch", "connect", "list", "create"];

/// Text as a part of a name: what is no letter, digit or `_` goes, and what follows begins with a capital.
fn camel(text: &str, mut capital: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if c.is_alphabetic() || c == '_' || at > 0 && c.is_numeric() {
            if capital {
                out.extend(c.to_uppercase());
            } else {
                out.push(c);
            }
            capital = false;
        } else {
            capital = true;
        }
    }
    out
}

/// `a Pod`, `an Ingress`, `Endpoints`: plurals have no article.
fn with_article(kind: &str) -> String {
    let plural = kind.ends_with('s') && !kind.ends_with("ss");
    match kind.chars().next() {
        _ if plural => kind.to_string(),
        Some('a' | 'e' | 'i' | 'o' | 'u' | 'A' | 'E' | 'I' | 'O' | 'U') => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

impl Route {
    /// The operation's id and its tag, which say group and version.
    pub fn id_and_tag(&self) -> (String, String) {
        let verb = VERBS.iter().find(|verb| self.operation.starts_with(**verb)).copied().unwrap_or("");
        let rest = &self.operation[verb.len()..];
        let mut parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.first() == Some(&"api") {
            parts.splice(..1, ["apis", "core"]);
        }
        let (mut prefix, mut tag) = (verb.to_string(), String::new());
        match parts.as_slice() {
            ["apis", group, rest @ ..] => {
                let group = group.strip_suffix(".k8s.io").unwrap_or(group);
                prefix.push_str(&camel(group, !prefix.is_empty()));
                tag.push_str(&camel(group, false));
                if let Some(version) = rest.first() {
                    prefix.push_str(&camel(version, true));
                    tag = format!("{tag}_{}", camel(version, false));
                }
            }
            [first, ..] => tag.push_str(&camel(first, false)),
            [] => {}
        }
        let id = format!("{prefix}{}", camel(rest, !prefix.is_empty()));
        (id, tag)
    }
}

/// `api/v1`, `apis/apps/v1`.
pub fn prefix(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}/{}", resource.group, resource.version)
    }
}

/// The name of a kind's definition.
pub fn name_of(resource: &Resource, kind: &str) -> String {
    match &resource.custom {
        Some(_) => crate::custom::openapi::name(&resource.group, &resource.version, kind),
        None => builtin_name(&resource.group, &resource.version, kind),
    }
}

/// The name of a built-in kind's definition.
pub fn builtin_name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "api.core",
        "apiextensions.k8s.io" => "apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "kube-aggregator.pkg.apis.apiregistration",
        group => return format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    };
    format!("io.k8s.{package}.{version}.{kind}")
}

fn meta(kind: &str) -> Model {
    Model::Named(format!("{META}{kind}"))
}

fn shared(keys: &[&'static str]) -> Vec<Parameter> {
    keys.iter().copied().map(Parameter::Shared).collect()
}

/// The operations of one resource.
struct Builder<'a> {
    resource: &'a Resource,
    /// `/api/v1`
    base: String,
    /// The definition of the kind.
    model: String,
    custom: bool,
}

/// What the table of answers by verb is made from.
struct Operation<'a> {
    path: String,
    method: &'static str,
    verb: &'static str,
    action: &'static str,
    description: String,
    /// What stands behind the kind in the operation's name.
    suffix: &'a str,
    /// The kind that the operation is about, and its definition.
    kind: Value,
    model: Model,
}

/// All operations of a resource and of its subresources.
pub fn of_resource(resource: &Resource) -> Vec<Route> {
    let builder = Builder {
        resource,
        base: format!("/{}", prefix(resource)),
        model: name_of(resource, &resource.kind),
        custom: resource.custom.is_some(),
    };
    let mut out = Vec::new();
    builder.collection(&mut out);
    builder.item(&mut out);
    for sub in &resource.subresources {
        builder.subresource(&mut out, sub);
    }
    if resource.allows("watch") && !builder.custom {
        builder.watches(&mut out);
    }
    out
}

impl Builder<'_> {
    fn own_kind(&self) -> Value {
        gvk(&self.resource.group, &self.resource.version, &self.resource.kind)
    }

    fn collection_path(&self, below: &str) -> String {
        let (base, plural) = (&self.base, &self.resource.plural);
        if self.resource.namespaced {
            format!("{base}{below}/namespaces/{{namespace}}/{plural}")
        } else {
            format!("{base}{below}/{plural}")
        }
    }

    fn route(&self, operation: Operation<'_>) -> Route {
        let in_namespace = operation.path.contains("{namespace}");
        let mut parameters = shared(&["pretty"]);
        if in_namespace {
            parameters.push(Parameter::Shared("/namespace"));
        }
        if operation.path.contains("{name}") {
            let named = operation.kind["kind"].as_str().unwrap_or(&self.resource.kind);
            // Custom resources have no names for the kinds of their subresources.
            let named = if self.custom { &self.resource.kind } else { named };
            parameters.push(Parameter::Name(named.to_string()));
        }
        let named = match &operation.model {
            Model::Named(name) => name.clone(),
            Model::Text => String::new(),
        };
        let more: &[&'static str] = match operation.action {
            "list" | "watch" | "watchlist" => &parameters::LIST,
            "deletecollection" if self.custom => &parameters::LIST,
            "deletecollection" => &parameters::DELETE_COLLECTION,
            "post" | "put" => &parameters::WRITE,
            "patch" if self.custom => &parameters::WRITE,
            "patch" => &parameters::PATCH,
            "delete" => &parameters::DELETE,
            "get" if self.custom => &["resourceVersion"],
            _ => &[],
        };
        parameters.extend(shared(more));
        let body = match operation.action {
            "post" | "put" => Some((named, true)),
            "patch" => Some((format!("{META}Patch"), true)),
            "deletecollection" if self.custom => None,
            "delete" | "deletecollection" => Some((format!("{META}DeleteOptions"), false)),
            _ => None,
        };
        let codes: &[u16] = match operation.action {
            "post" => &[200, 201, 202],
            "patch" if self.custom => &[200],
            "put" | "patch" => &[200, 201],
            "delete" => &[200, 202],
            _ => &[200],
        };
        let (consumes, produces) = match operation.action {
            "patch" if self.custom => (CUSTOM_PATCHES, CUSTOM),
            _ if self.custom => (CUSTOM, CUSTOM),
            "patch" => (PATCHES, OBJECTS),
            "list" | "watch" | "watchlist" => (ANY, STREAMS),
            "connect" => (ANY, ANY),
            _ => (ANY, OBJECTS),
        };
        let namespaced = if in_namespace { "Namespaced" } else { "" };
        let (verb, kind, suffix) = (operation.verb, &self.resource.kind, operation.suffix);
        Route {
            path: operation.path,
            method: operation.method,
            operation: format!("{verb}{namespaced}{kind}{suffix}"),
            description: operation.description,
            action: operation.action,
            kind: Some(operation.kind),
            parameters,
            body,
            answers: codes.iter().map(|code| (*code, operation.model.clone())).collect(),
            consumes,
            produces,
        }
    }

    fn operation(
        &self,
        method: &'static str,
        verb: &'static str,
        action: &'static str,
    ) -> Operation<'static> {
        let kind = &self.resource.kind;
        Operation {
            path: String::new(),
            method,
            verb,
            action,
            description: match verb {
                "list" if self.custom => format!("list objects of kind {kind}"),
                "list" => format!("list or watch objects of kind {kind}"),
                "create" | "delete" => format!("{verb} {}", with_article(kind)),
                "deletecollection" => format!("delete collection of {kind}"),
                "patch" => format!("partially update the specified {kind}"),
                verb => format!("{verb} the specified {kind}"),
            },
            suffix: "",
            kind: self.own_kind(),
            model: Model::Named(self.model.clone()),
        }
    }

    fn collection(&self, out: &mut Vec<Route>) {
        let path = self.collection_path("");
        let mut put = |operation| out.push(self.route(Operation { path: path.clone(), ..operation }));
        let list = Model::Named(name_of(self.resource, &self.resource.list_kind()));
        if self.resource.allows("list") {
            put(Operation { model: list.clone(), ..self.operation("get", "list", "list") });
        }
        if self.resource.allows("create") {
            put(self.operation("post", "create", "post"));
        }
        if self.resource.allows("deletecollection") {
            let all = self.operation("delete", "deletecollection", "deletecollection");
            put(Operation { model: meta("Status"), ..all });
        }
        if self.resource.namespaced && self.resource.allows("list") {
            out.push(self.route(Operation {
                path: format!("{}/{}", self.base, self.resource.plural),
                suffix: "ForAllNamespaces",
                model: list,
                ..self.operation("get", "list", "list")
            }));
        }
    }

    fn item(&self, out: &mut Vec<Route>) {
        let path = format!("{}/{{name}}", self.collection_path(""));
        let mut put = |operation| out.push(self.route(Operation { path: path.clone(), ..operation }));
        for (verb, method, name, action) in [
            ("get", "get", "read", "get"),
            ("update", "put", "replace", "put"),
            ("patch", "patch", "patch", "patch"),
        ] {
            if self.resource.allows(verb) {
                put(self.operation(method, name, action));
            }
        }
        if self.resource.allows("delete") {
            let mut delete = self.operation("delete", "delete", "delete");
            if !returns_object(self.resource) {
                delete.model = meta("Status");
            }
            put(delete);
        }
    }

    fn watches(&self, out: &mut Vec<Route>) {
        let kind = &self.resource.kind;
        let mut put = |path: String, action, suffix, description: String| {
            out.push(self.route(Operation {
                path,
                suffix,
                description,
                model: meta("WatchEvent"),
                ..self.operation("get", "watch", action)
            }));
        };
        let many = format!(
            "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
        );
        let one = format!(
            "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
        );
        let collection = self.collection_path("/watch");
        put(format!("{collection}/{{name}}"), "watch", "", one);
        put(collection, "watchlist", "List", many.clone());
        if self.resource.namespaced {
            let path = format!("{}/watch/{}", self.base, self.resource.plural);
            put(path, "watchlist", "ListForAllNamespaces", many);
        }
    }

    fn subresource(&self, out: &mut Vec<Route>, sub: &Subresource) {
        let path = format!("{}/{{name}}/{}", self.collection_path(""), sub.name);
        if sub.kind.ends_with("Options") {
            return self.connections(out, sub, &path);
        }
        let resource = self.resource;
        let group = sub.group.as_deref().unwrap_or(&resource.group);
        let version = sub.version.as_deref().unwrap_or(&resource.version);
        let model = match (sub.name.as_str(), &sub.group) {
            ("log", _) => Model::Text,
            (_, Some(_)) => Model::Named(builtin_name(group, version, &sub.kind)),
            (_, None) => Model::Named(name_of(resource, &sub.kind)),
        };
        let suffix = title(&sub.name);
        // Operations of custom resources are all said to be about the resource's own kind.
        let kind = if self.custom { self.own_kind() } else { gvk(group, version, &sub.kind) };
        for (verb, method, name, action) in [
            ("get", "get", "read", "get"),
            ("update", "put", "replace", "put"),
            ("patch", "patch", "patch", "patch"),
            ("create", "post", "create", "post"),
        ] {
            if !sub.verbs.iter().any(|allowed| allowed == verb) {
                continue;
            }
            let what = if name == "patch" { "partially update" } else { name };
            let of = match name {
                "create" => with_article(&resource.kind),
                _ => format!("the specified {}", resource.kind),
            };
            let mut route = self.route(Operation {
                path: path.clone(),
                description: format!("{what} {} of {of}", sub.name),
                suffix: &suffix,
                kind: kind.clone(),
                model: model.clone(),
                ..self.operation(method, name, action)
            });
            if sub.name == "log" {
                let known: Vec<Parameter> = route.parameters.clone();
                let more = shared(parameters::of_options("PodLogOptions"));
                route.parameters.extend(more.into_iter().filter(|parameter| !known.contains(parameter)));
                route.produces = LOGS;
            }
            out.push(route);
        }
    }

    fn connections(&self, out: &mut Vec<Route>, sub: &Subresource, path: &str) {
        let resource = self.resource;
        let methods: &[&'static str] = match sub.name.as_str() {
            "proxy" => &["delete", "get", "head", "options", "patch", "post", "put"],
            _ => &["get", "post"],
        };
        let mut forms = vec![(path.to_string(), "")];
        if sub.name == "proxy" {
            forms.push((format!("{path}/{{path}}"), "WithPath"));
        }
        let namespaced = if resource.namespaced { "Namespaced" } else { "" };
        for (path, suffix) in forms {
            for method in methods {
                let mut parameters = shared(parameters::of_options(&sub.kind));
                parameters.push(Parameter::Name(sub.kind.clone()));
                if resource.namespaced {
                    parameters.push(Parameter::Shared("/namespace"));
                }
                if !suffix.is_empty() {
                    parameters.push(Parameter::Shared("/path"));
                }
                out.push(Route {
                    path: path.clone(),
                    method,
                    operation: format!(
                        "connect{}{namespaced}{}{}{suffix}",
                        title(method),
                        resource.kind,
                        title(&sub.name)
                    ),
                    description: format!(
                        "connect {} requests to {} of {}",
                        method.to_uppercase(),
                        sub.name,
                        resource.kind
                    ),
                    action: "connect",
                    kind: Some(gvk(&resource.group, &resource.version, &sub.kind)),
                    parameters,
                    body: None,
                    answers: vec![(200, Model::Text)],
                    consumes: ANY,
                    produces: ANY,
                });
            }
        }
    }
}

/// An operation that only reads something about the server.
pub fn plain(path: &str) -> Option<Route> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (operation, description, model, produces) = match parts.as_slice() {
        ["api"] | ["apis"] => {
            ("getAPIVersions", "get available API versions", meta(versions(&parts)), OBJECTS)
        }
        ["api", _] | ["apis", _, _] => {
            ("getAPIResources", "get available resources", meta("APIResourceList"), OBJECTS)
        }
        ["apis", _] => ("getAPIGroup", "get information of a group", meta("APIGroup"), OBJECTS),
        ["version"] => (
            "getCodeVersion",
            "get the version information for this server",
            Model::Named("io.k8s.apimachinery.pkg.version.Info".to_string()),
            JSON,
        ),
        [".well-known", "openid-configuration"] => (
            "getServiceAccountIssuerOpenIDConfiguration",
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            Model::Text,
            JSON,
        ),
        ["openid", "v1", "jwks"] => (
            "getServiceAccountIssuerOpenIDKeyset",
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            Model::Text,
            &["application/jwk-set+json"][..],
        ),
        _ => return None,
    };
    Some(Route {
        path: format!("/{}/", parts.join("/")),
        method: "get",
        operation: operation.to_string(),
        description: description.to_string(),
        action: "",
        kind: None,
        parameters: Vec::new(),
        body: None,
        answers: vec![(200, model)],
        consumes: if parts[0].starts_with("api") { OBJECTS } else { JSON },
        produces,
    })
}

fn versions(parts: &[&str]) -> &'static str {
    if parts == ["api"] { "APIVersions" } else { "APIGroupList" }
}
