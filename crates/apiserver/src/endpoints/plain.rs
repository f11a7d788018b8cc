//! Paths that are no resources: version, health, metrics, OpenID discovery.

use http::Method;
use orlop_api::status::ApiError;
use serde_json::json;

use crate::ApiServer;
use crate::http::body::{self, Response};
use crate::http::pipeline::Request;

/// What the server says it is; clients compare major and minor.
pub const GIT_VERSION: &str = "v1.36.0+orlop";

const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// Whether `plain` answers this path.
pub fn is_plain_path(path: &str) -> bool {
    matches!(
        path,
        "/version" | "/version/" | "/metrics" | "/.well-known/openid-configuration" | "/openid/v1/jwks" | "/"
    ) || HEALTH.iter().any(|h| path == *h || path.strip_prefix(h).is_some_and(|rest| rest.starts_with('/')))
}

/// Answers it.
pub fn plain(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
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
        "/metrics" => {
            let watchers: Vec<(String, usize)> = server
                .registry
                .resources
                .table()
                .list
                .iter()
                .filter_map(|r| Some((r.plural.clone(), r.cache.as_ref()?.watchers())))
                .filter(|(_, count)| *count > 0)
                .collect();
            body::response(200, "text/plain; version=0.0.4; charset=utf-8", server.metrics.render(&watchers))
        }
        "/.well-known/openid-configuration" => {
            let port = server.options.advertise_port.unwrap_or(server.options.bind_address.port());
            let uri = format!("https://{}:{port}/openid/v1/jwks", server.advertise_address());
            let document = server.authenticator.service_accounts.discovery(&uri);
            body::json(200, &document)
        }
        "/openid/v1/jwks" if !accepts_jwks(request) => return Err(ApiError::not_acceptable(&[JWKS])),
        "/openid/v1/jwks" => body::response(
            200,
            "application/jwk-set+json",
            server.authenticator.service_accounts.jwks().to_string(),
        ),
        "/" => body::json(
            200,
            &json!({"paths": [
                "/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics",
                "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
            ]}),
        ),
        path => return Ok(health(server, path, request)),
    })
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

fn pretty(value: &serde_json::Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// The machine's architecture by Go's names, which clients know.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Health checks: each by name, and all of them at the root.
fn health(server: &ApiServer, path: &str, request: &Request) -> Response {
    let root = HEALTH.iter().find(|h| path.starts_with(**h)).copied().unwrap_or("/healthz");
    let mut checks: Vec<(&str, bool)> = vec![
        ("ping", true),
        ("log", true),
        ("etcd", true),
        ("poststarthook/rbac/bootstrap-roles", server.is_ready()),
    ];
    if root == "/readyz" {
        checks.push(("informer-sync", server.is_ready()));
        checks.push(("shutdown", !server.is_stopping()));
    }
    let excluded: Vec<&str> = request.query.all("exclude").collect();
    checks.retain(|(name, _)| !excluded.contains(name));
    if let Some(name) = path.strip_prefix(root).map(|rest| rest.trim_matches('/')).filter(|n| !n.is_empty()) {
        return match checks.iter().find(|(check, _)| *check == name) {
            Some((_, true)) => body::text(200, "ok"),
            Some((_, false)) => body::text(500, "internal server error: not ready\n"),
            None => body::text(404, "404 page not found\n"),
        };
    }
    let failed = checks.iter().any(|(_, ok)| !ok);
    let name = root.trim_start_matches('/');
    if !failed && !request.query.flag("verbose") {
        return body::text(200, "ok");
    }
    let mut text = String::new();
    for (check, ok) in &checks {
        text.push_str(&if *ok {
            format!("[+]{check} ok\n")
        } else {
            format!("[-]{check} failed: reason withheld\n")
        });
    }
    text.push_str(&if failed { format!("{name} check failed\n") } else { format!("{name} check passed\n") });
    body::text(if failed { 500 } else { 200 }, text)
}
