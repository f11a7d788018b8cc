//! Paths that are no resources: version, health, metrics, OpenID discovery.

use http::Method;
use orlop_api::status::ApiError;
use orlop_json::json;

use super::{health, zpages};
use crate::ApiServer;
use crate::http::body::{self, Response};
use crate::http::pipeline::Request;

/// What the server says it is; clients compare major and minor.
pub const GIT_VERSION: &str = "v1.36.0+orlop";

const DUMPS: &str = "/debug/api_priority_and_fairness/";

/// Whether `plain` answers this path.
pub fn is_plain_path(path: &str) -> bool {
    matches!(
        path,
        "/" | "/version"
            | "/version/"
            | "/metrics"
            | "/metrics/slis"
            | "/configz"
            | "/flagz"
            | "/statusz"
            | "/.well-known/openid-configuration"
            | "/openid/v1/jwks"
    ) || path.starts_with(DUMPS)
        || path == "/debug/pprof"
        || path.starts_with("/debug/pprof/")
        || health::is_path(path)
}

/// The paths that are served, as `/` lists them; those for debugging are not listed.
pub(super) fn paths(server: &ApiServer) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/apis/",
        "/flagz",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/statusz",
        "/version",
    ]
    .map(String::from)
    .to_vec();
    for resource in &server.registry.resources.table().list {
        if resource.group.is_empty() {
            paths.push(format!("/api/{}", resource.version));
        } else {
            paths.push(format!("/apis/{}", resource.group));
            paths.push(format!("/apis/{}/{}", resource.group, resource.version));
        }
    }
    paths.extend(health::paths(server));
    paths.sort();
    paths.dedup();
    paths
}

/// Answers it.
pub async fn plain(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    debug_assert!(matches!(request.parts.method, Method::GET | Method::HEAD));
    Ok(match request.info.path.as_str() {
        "/version" | "/version/" => body::response(
            200,
            "application/json",
            pretty(&json!({
                "major": "1",
                "minor": "36",
                "emulationMajor": "1",
                "emulationMinor": "36",
                "minCompatibilityMajor": "1",
                "minCompatibilityMinor": "35",
                "gitVersion": GIT_VERSION,
                "gitCommit": option_env!("ORLOP_GIT_COMMIT").unwrap_or("unknown"),
                "gitTreeState": "clean",
                "buildDate": "1970-01-01T00:00:00Z",
                "goVersion": concat!("rust", env!("CARGO_PKG_RUST_VERSION")),
                "compiler": "rustc",
                "platform": format!("{}/{}", std::env::consts::OS, architecture()),
            })),
        ),
        "/metrics" => body::response(200, METRICS, super::scrape::metrics(server)),
        "/metrics/slis" => body::response(200, METRICS, health::slis(server)),
        "/configz" => body::json(200, &json!({"kube-apiserver.orlop": settings(server)})),
        "/flagz" => return zpages::flagz(server, request),
        "/statusz" => return zpages::statusz(server, request),
        "/.well-known/openid-configuration" => {
            let uri = jwks_uri(server);
            let document = server.authenticator.service_accounts.discovery(&uri);
            body::json(200, &document)
        }
        "/openid/v1/jwks" if !accepts_jwks(request) => return Err(ApiError::not_acceptable(&[JWKS])),
        "/openid/v1/jwks" => body::response(
            200,
            "application/jwk-set+json",
            server.authenticator.service_accounts.jwks().to_string(),
        ),
        "/" => body::json(200, &json!({"paths": paths(server)})),
        path if path.starts_with("/debug/pprof") => body::text(
            501,
            "profiles are made from outside: perf and bpftrace see this process; it has no profiler of its own\n",
        ),
        path if path.starts_with(DUMPS) => {
            let details = request.query.get("includeRequestDetails").is_some_and(|v| !v.is_empty());
            let flows = server.flows.as_ref();
            match flows.and_then(|flows| crate::flowcontrol::dump::dump(flows, &path[DUMPS.len()..], details))
            {
                Some(table) => body::text(200, table),
                None => body::text(404, "404 page not found\n"),
            }
        }
        path => return Ok(health::serve(server, path, request).await),
    })
}

/// The form of metrics.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The command line as it was understood.
fn settings(server: &ApiServer) -> orlop_json::Map {
    server.options.flags.iter().map(|(name, value)| (name.into(), json!(value))).collect()
}

/// Where others find the key set.
fn jwks_uri(server: &ApiServer) -> String {
    let options = &server.options;
    if let Some(uri) = &options.service_account_jwks_uri {
        return uri.clone();
    }
    let port = options.advertise_port.unwrap_or(options.bind_address.port());
    match &options.external_hostname {
        Some(host) if host.contains(':') => format!("https://{host}/openid/v1/jwks"),
        Some(host) => format!("https://{host}:{port}/openid/v1/jwks"),
        None => format!("https://{}:{port}/openid/v1/jwks", server.advertise_address()),
    }
}

/// The form key sets come in.
const JWKS: &str = "application/jwk-set+json";

fn accepts_jwks(request: &Request) -> bool {
    let accept =
        request.parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    accept
        .split(',')
        .any(|clause| matches!(clause.split(';').next().unwrap_or("").trim(), JWKS | "*/*" | "application/*"))
}

fn pretty(value: &orlop_json::Value) -> Vec<u8> {
    orlop_json::to_vec_pretty(value).unwrap_or_default()
}

/// The machine's architecture by Go's names, which clients know.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
