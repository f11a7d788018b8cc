//! What a request asks for, read from its method and path alone, as upstream's `RequestInfoFactory` does.
//!
//! Authorization, routing and metrics all see this one reading of the path.

use std::num::{IntErrorKind, ParseIntError};

use http::Method;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;

/// The parts of an API path and the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource (`/api/v1/pods`) rather than something else (`/healthz`).
    pub is_resource: bool,
    /// The path without its query.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the method in lower
    /// case for non-resource requests.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty at cluster scope.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource; may be empty.
    pub subresource: String,
    /// Object name; may be empty.
    pub name: String,
    /// What follows resource, name and subresource (the path of a proxy request).
    pub rest: Vec<String>,
}

/// A decoded query string: pairs in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d` (percent signs and plus as upstream's `url.ParseQuery`).
    pub fn parse(raw: &str) -> Query {
        Query(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(key, true), percent_decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of `key`, or an empty string.
    pub fn value(&self, key: &str) -> &str {
        self.get(key).unwrap_or("")
    }

    /// Every value of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean parameter: absent is `false`; present without a value, or anything but `0`/`false`, is `true`.
    pub fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    /// A boolean parameter that may be left unsaid.
    pub fn optional_flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|v| !matches!(v.to_ascii_lowercase().as_str(), "0" | "false"))
    }

    /// A whole number; 400 in Go's words when it is none.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, ApiError> {
        self.get(key).map(parse_int).transpose()
    }
}

/// Go's `strconv.ParseInt` of a parameter.
fn parse_int(text: &str) -> Result<i64, ApiError> {
    text.parse().map_err(|error: ParseIntError| {
        let what = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        ApiError::bad_request(format!("strconv.ParseInt: parsing {}: {what}", go_quote(text)))
    })
}

/// Undoes percent encoding; with `plus`, `+` is a space.
pub fn percent_decode(text: &str, plus: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_string();
    }
    let raw = text.as_bytes();
    let mut out = Vec::with_capacity(raw.len());
    let mut i = 0;
    while i < raw.len() {
        let hex = |at: usize| raw.get(at).and_then(|b| (*b as char).to_digit(16));
        match raw[i] {
            b'%' => {
                if let (Some(high), Some(low)) = (hex(i + 1), hex(i + 2)) {
                    out.push((high * 16 + low) as u8);
                    i += 2;
                } else {
                    out.push(b'%');
                }
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl RequestInfo {
    /// Reads a request's method, path (still percent-encoded) and query.
    pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
        let mut info = RequestInfo {
            path: percent_decode(path, false),
            verb: method.as_str().to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let mut parts: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .filter(|p| !p.is_empty())
            .map(|p| percent_decode(p, false))
            .collect();
        let minimum = match parts.first().map(String::as_str) {
            Some("api") => 3,
            Some("apis") => 4,
            _ => return info,
        };
        if parts.len() < minimum {
            return info;
        }
        info.prefix = parts.remove(0);
        if info.prefix == "apis" {
            info.group = parts.remove(0);
        }
        info.version = parts.remove(0);
        info.is_resource = true;
        let mut special_watch = false;
        if parts[0] == "watch" && parts.len() > 1 {
            parts.remove(0);
            special_watch = true;
            info.verb = "watch".to_string();
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .to_string();
        }
        if parts[0] == "namespaces" {
            if parts.len() > 1 {
                info.namespace = parts[1].clone();
                // The subresources of a namespace itself are not resources inside it.
                if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                    parts.drain(..2);
                }
            }
        } else {
            info.namespace = String::new();
        }
        info.resource = parts[0].clone();
        if parts.len() > 1 {
            info.name = parts[1].clone();
        }
        if parts.len() > 2 {
            info.subresource = parts[2].clone();
        }
        if parts.len() > 3 {
            info.rest = parts[3..].to_vec();
        }
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" }.to_string();
            if let Some(name) = exact_name(query.value("fieldSelector")) {
                info.name = name;
            }
        } else if special_watch && info.name.is_empty() {
            if let Some(name) = exact_name(query.value("fieldSelector")) {
                info.name = name;
            }
        } else if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_string();
            if let Some(name) = exact_name(query.value("fieldSelector")) {
                info.name = name;
            }
        }
        info
    }

    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The name of a `metadata.name=x` selector, so that `list` of one name can be authorized as that name.
fn exact_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let name = term.strip_prefix("metadata.name=")?;
        let name = name.strip_prefix('=').unwrap_or(name);
        (!name.is_empty()).then(|| name.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, target: &str, expected: [&str; 7]) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(&method, path, &Query::parse(query));
        let got = [
            info.verb.as_str(),
            &info.group,
            &info.version,
            &info.namespace,
            &info.resource,
            &info.name,
            &info.subresource,
        ];
        assert_eq!(got, expected, "{method} {target}");
    }

    #[test]
    fn paths() {
        check(Method::GET, "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods?watch=1", ["watch", "", "v1", "a", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods/p/log", ["get", "", "v1", "a", "pods", "p", "log"]);
        check(Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            ["update", "", "v1", "a", "namespaces", "a", "finalize"],
        );
        check(
            Method::DELETE,
            "/api/v1/namespaces/a/pods",
            ["deletecollection", "", "v1", "a", "pods", "", ""],
        );
        check(
            Method::POST,
            "/apis/apps/v1/namespaces/a/deployments",
            ["create", "apps", "v1", "a", "deployments", "", ""],
        );
        check(
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dx",
            ["list", "", "v1", "", "pods", "x", ""],
        );
        check(Method::GET, "/healthz", ["get", "", "", "", "", "", ""]);
        check(
            Method::GET,
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            ["get", "rbac.authorization.k8s.io", "v1", "", "clusterroles", "system:node", ""],
        );
    }
}
