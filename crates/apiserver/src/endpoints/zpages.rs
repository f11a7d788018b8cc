//! `/statusz` and `/flagz`: what the server is and how it was started, as a page for people and, for those who name
//! group, version and kind, as an object. Upstream's `server/statusz` and `server/flagz`.

use http::header::ACCEPT;
use orlop_api::status::ApiError;
use orlop_json::{Map, Value, json};

use super::plain::{GIT_VERSION, paths};
use crate::ApiServer;
use crate::http::body::{self, Response};
use crate::http::negotiate::{Accept, Format, MEDIA_TYPES};
use crate::http::pipeline::Request;
use crate::registry::render;

const COMPONENT: &str = "kube-apiserver";
const GROUP: &str = "config.k8s.io";
/// Upstream's warning above pages for people.
const FOR_PEOPLE: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// Parts of the API, which are no endpoints for debugging.
const NOT_FOR_DEBUGGING: [&str; 5] = ["/apis", "/api", "/openid", "/openapi", "/.well-known"];

/// The form that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Page,
    Object { format: Format, version: &'static str },
}

/// The first clause of an `Accept` header that can be had.
fn choose(header: &str, kind: &str) -> Option<Form> {
    if header.trim().is_empty() {
        return Some(Form::Page);
    }
    let parameter = |clause: &str, name: &str| {
        let found = clause.split(';').skip(1).filter_map(|part| part.trim().split_once('='));
        found.filter(|(key, _)| *key == name).last().map(|(_, value)| value.to_owned())
    };
    let mut clauses: Vec<(f32, &str)> = header
        .split(',')
        .map(|clause| (parameter(clause, "q").and_then(|q| q.parse().ok()).unwrap_or(1.0), clause.trim()))
        .collect();
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses.into_iter().find_map(|(_, clause)| {
        let media = clause.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let [g, v, wanted] = ["g", "v", "as"].map(|name| parameter(clause, name));
        if g.is_none() && v.is_none() && wanted.is_none() {
            // An object is only for those who know which they want.
            return matches!(media.as_str(), "text/plain" | "text/*" | "*/*").then_some(Form::Page);
        }
        let format = match media.as_str() {
            "application/json" | "application/*" | "*/*" => Format::Json,
            "application/yaml" => Format::Yaml,
            _ => return None,
        };
        if g.as_deref() != Some(GROUP) || wanted.as_deref() != Some(kind) {
            return None;
        }
        let version = ["v1beta1", "v1alpha1"].into_iter().find(|known| v.as_deref() == Some(known))?;
        Some(Form::Object { format, version })
    })
}

/// Answers with a page, or with an object of this kind.
fn answer(
    request: &Request,
    kind: &str,
    page: impl FnOnce() -> String,
    fields: impl FnOnce() -> Value,
) -> Result<Response, ApiError> {
    let header: Vec<&str> =
        request.parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    match choose(&header.join(","), kind) {
        None => {
            let accepted: Vec<&str> = MEDIA_TYPES.into_iter().chain(["text/plain"]).collect();
            Err(ApiError::not_acceptable(&accepted))
        }
        Some(Form::Page) => Ok(body::text(200, page())),
        Some(Form::Object { format, version }) => {
            if version == "v1alpha1" {
                let name = kind.to_ascii_lowercase();
                request.warnings.add(format!(
                    "This version of the {name} endpoint is deprecated. Please use a newer version."
                ));
            }
            let mut object = json!({
                "kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT},
            });
            if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields()) {
                object.extend(fields);
            }
            let accept = Accept { format, ..request.accept };
            Ok(body::response(200, format.content_type(), render::encode(&object, accept)))
        }
    }
}

/// `/flagz`
pub(super) fn flagz(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let page = || {
        let mut text = format!("\n{COMPONENT} flagz\n{FOR_PEOPLE}\n\n");
        for (name, value) in &server.options.flags {
            text.push_str(&format!("{name}={value}\n"));
        }
        text
    };
    let fields = || {
        let flags = server.options.flags.iter().map(|(name, value)| (name.into(), json!(value)));
        json!({"flags": flags.collect::<Map>()})
    };
    answer(request, "Flagz", page, fields)
}

/// The first steps of the paths that are served, but for those of the API.
fn debugging_paths(all: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut steps: Vec<String> = all
        .into_iter()
        .filter_map(|path| path.split('/').nth(1).map(|step| format!("/{step}")))
        .filter(|step| step != "/" && !NOT_FOR_DEBUGGING.contains(&step.as_str()))
        .collect();
    steps.sort();
    steps.dedup();
    steps
}

/// `/statusz`
pub(super) fn statusz(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let up = server.started.elapsed().unwrap_or_default().as_secs();
    let started = jiff::Timestamp::try_from(server.started).unwrap_or_default();
    let go = concat!("rust", env!("CARGO_PKG_RUST_VERSION"));
    let binary = GIT_VERSION.trim_start_matches('v');
    let paths = debugging_paths(paths(server));
    let page = || {
        let started = started.strftime("%a %b %e %H:%M:%S UTC %Y");
        let up = format!("{} hr {:02} min {:02} sec", up / 3600, up / 60 % 60, up % 60);
        let paths = paths.join(" ");
        format!(
            "\n{COMPONENT} statusz\n{FOR_PEOPLE}\n\nStarted: {started}\nUp: {up}\nGo version: {go}\nBinary version: {binary}\nEmulation version: 1.36\nPaths: {paths}\n"
        )
    };
    let fields = || {
        json!({
            "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "uptimeSeconds": up,
            "goVersion": go,
            "binaryVersion": binary,
            "emulationVersion": "1.36",
            "paths": paths,
        })
    };
    answer(request, "Statusz", page, fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let check = |header: &str, expected: Option<Form>| {
            assert_eq!(choose(header, "Statusz"), expected, "{header}");
        };
        let object = |format, version| Some(Form::Object { format, version });
        let beta = "g=config.k8s.io;v=v1beta1;as=Statusz";
        for header in ["", "  ", "*/*", "text/plain", "text/*", "text/plain; charset=utf-8"] {
            check(header, Some(Form::Page));
        }
        for header in [
            "application/xml",
            "application/json",
            "application/json;v=v1beta1;g=config.k8s.io",
            "application/json;g=config.k8s.io;v=v1beta1;as=Flagz",
            "application/vnd.kubernetes.protobuf;g=config.k8s.io;v=v1beta1;as=Statusz",
            "text/plain;g=config.k8s.io;v=v1beta1;as=Statusz",
        ] {
            check(header, None);
        }
        check(&format!("application/json;{beta}"), object(Format::Json, "v1beta1"));
        check(&format!("application/yaml;{beta}"), object(Format::Yaml, "v1beta1"));
        check("application/json;v=foo;g=config.k8s.io;as=Statusz,*/*", Some(Form::Page));
        check(
            &format!("application/json;g=config.k8s.io;v=v1alpha1;as=Statusz,application/json;{beta}"),
            object(Format::Json, "v1alpha1"),
        );
        check(&format!("*/*;q=0.1, application/json;{beta}"), object(Format::Json, "v1beta1"));
    }

    #[test]
    fn paths_for_debugging() {
        let all =
            ["/", "/apis/apps/v1", "/healthz/ping", "/healthz", "/version", "/openapi/v3", "/metrics/slis"];
        assert_eq!(debugging_paths(all.map(String::from)), ["/healthz", "/metrics", "/version"]);
    }
}
