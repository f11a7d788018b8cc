//! `WebhookClientConfig`: where a webhook is called, by URL or by service. Upstream's `ValidateWebhookURL` and
//! `ValidateWebhookService`, which conversion webhooks and others share.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use crate::cursor::{Cursor, default_to};

/// Fills in the port of a service reference.
pub(crate) fn defaults(config: &mut Value) {
    if let Some(service) = config.get_mut("service").filter(|s| s.is_object()) {
        default_to(service, "port", 443);
    }
}

/// All that is wrong with a `WebhookClientConfig`: exactly one of `url` and `service`, and that one well-formed.
pub fn validate_client_config(config: &Value, path: &Path) -> ErrorList {
    match (config["url"].is_set(), config["service"].is_set()) {
        (true, false) => validate_url(config["url"].text(), &path.child("url")),
        (false, true) => validate_service(&config["service"], &path.child("service")),
        _ => vec![field::required(path, "exactly one of url or service is required")],
    }
}

/// All that is wrong with a webhook's URL, which must be `https`.
pub fn validate_url(text: &str, path: &Path) -> ErrorList {
    const FORM: &str = "; desired format: https://host[/path]";
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(why) => {
            let shown = field::go_quote(text);
            return vec![field::required(
                path,
                &format!("url must be a valid URL: parse {shown}: {why}{FORM}"),
            )];
        }
    };
    let mut errs = ErrorList::new();
    if url.scheme != "https" {
        errs.push(field::invalid(
            path,
            url.scheme.as_str(),
            format!("'https' is the only allowed URL scheme{FORM}"),
        ));
    }
    if url.host.is_empty() {
        errs.push(field::invalid(path, "", format!("host must be specified{FORM}")));
    }
    if let Some(user) = &url.user {
        errs.push(field::invalid(path, user.as_str(), "user information is not permitted in the URL"));
    }
    if !url.fragment.is_empty() {
        errs.push(field::invalid(path, url.fragment.as_str(), "fragments are not permitted in the URL"));
    }
    if !url.query.is_empty() {
        errs.push(field::invalid(path, url.query.as_str(), "query parameters are not permitted in the URL"));
    }
    errs
}

/// All that is wrong with a webhook's service reference.
pub fn validate_service(service: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if service["name"].text().is_empty() {
        errs.push(field::required(&path.child("name"), "service name is required"));
    }
    if service["namespace"].text().is_empty() {
        errs.push(field::required(&path.child("namespace"), "service namespace is required"));
    }
    let port = service["port"].int();
    let wrong = names::is_valid_port_num(port);
    if !wrong.is_empty() {
        errs.push(field::invalid(
            &path.child("port"),
            port,
            format!("port is not valid: {}", wrong.join(",")),
        ));
    }
    errs.extend(validate_service_path(service["path"].text(), &path.child("path")));
    errs
}

/// Every segment of the path must be a DNS subdomain.
fn validate_service_path(text: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if text.is_empty() || text == "/" {
        return errs;
    }
    if text == "//" {
        errs.push(field::invalid(path, text, "segment[0] may not be empty"));
        return errs;
    }
    if !text.starts_with('/') {
        errs.push(field::invalid(path, text, "must start with a '/'"));
    }
    let mut inner = text.chars();
    inner.next();
    let inner = inner.as_str();
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (i, step) in inner.split('/').enumerate() {
        if step.is_empty() {
            errs.push(field::invalid(path, text, format!("segment[{i}] may not be empty")));
            continue;
        }
        for message in names::is_dns1123_subdomain(step) {
            errs.push(field::invalid(path, text, format!("segment[{i}]: {message}")));
        }
    }
    errs
}

/// The parts of a URL as Go's `net/url` separates them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Url {
    /// Scheme in lower case; may be empty.
    pub scheme: String,
    /// User information before the `@`.
    pub user: Option<String>,
    /// Host, with its port; may be empty.
    pub host: String,
    /// Path, still percent-encoded.
    pub path: String,
    /// What follows `?`.
    pub query: String,
    /// What follows `#`.
    pub fragment: String,
}

impl Url {
    /// Separates a URL; the error is Go's, without `parse "…": ` before it.
    pub fn parse(text: &str) -> Result<Url, String> {
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        check_escapes(fragment)?;
        if rest.is_empty() && text.is_empty() {
            return Err("empty url".into());
        }
        let (scheme, rest) = split_scheme(rest)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Url {
            scheme: scheme.to_ascii_lowercase(),
            query: query.into(),
            fragment: fragment.into(),
            ..Url::default()
        };
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                // An opaque URL (`mailto:x`) has no host.
                return Ok(url);
            }
            let segment = rest.split('/').next().unwrap_or("");
            if segment.contains(':') {
                return Err("first path segment in URL cannot contain colon".into());
            }
        }
        let mut path = rest;
        if let Some(authority) = rest.strip_prefix("//")
            && (!scheme.is_empty() || !rest.starts_with("///"))
        {
            let end = authority.find('/').unwrap_or(authority.len());
            let (authority, tail) = authority.split_at(end);
            path = tail;
            let (user, host) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(user), host),
                None => (None, authority),
            };
            check_host(host)?;
            if let Some(user) = user {
                let fits = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
                if !user.chars().all(fits) {
                    return Err("net/url: invalid userinfo".into());
                }
                check_escapes(user)?;
            }
            url.user = user.map(String::from);
            url.host = host.into();
        }
        check_escapes(path)?;
        url.path = path.into();
        Ok(url)
    }
}

fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' => {
                if at == 0 {
                    return Ok(("", text));
                }
            }
            ':' => {
                if at == 0 {
                    return Err("missing protocol scheme".into());
                }
                return Ok((&text[..at], &text[at + 1..]));
            }
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn check_escapes(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        if *byte != b'%' {
            continue;
        }
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        if !hex(at + 1) || !hex(at + 2) {
            let shown: String = text[at..].chars().take(3).collect();
            return Err(format!("invalid URL escape {}", field::go_quote(&shown)));
        }
    }
    Ok(())
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some(end) = rest.find(']') else { return Err("missing ']' in host".into()) };
            (&rest[..end], &rest[end + 1..])
        }
        None => match host.rfind(':') {
            Some(colon) => (&host[..colon], &host[colon..]),
            None => (host, ""),
        },
    };
    let valid_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    if !valid_port {
        return Err(format!("invalid port {} after host", field::go_quote(port)));
    }
    let allowed =
        |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:[]<>\"%".contains(c);
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!("invalid character {} in host name", field::go_quote(&bad.to_string())));
    }
    check_escapes(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn urls() {
        let check = |url: &str, expected: &[&str]| {
            let errs = validate_url(url, &Path::new("url"));
            assert_eq!(errs.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{url}");
        };
        check("https://a.example/b", &[]);
        check("https://[::1]:8443/b", &[]);
        check(
            "http://a/b",
            &[
                "url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ],
        );
        check(
            "https:///b",
            &["url: Invalid value: \"\": host must be specified; desired format: https://host[/path]"],
        );
        check(
            "https://u:p@a/b?c=d#e",
            &[
                "url: Invalid value: \"u:p\": user information is not permitted in the URL",
                "url: Invalid value: \"e\": fragments are not permitted in the URL",
                "url: Invalid value: \"c=d\": query parameters are not permitted in the URL",
            ],
        );
        check(
            "https://a:x/",
            &[
                "url: Required value: url must be a valid URL: parse \"https://a:x/\": invalid port \":x\" after host; desired format: https://host[/path]",
            ],
        );
        check(
            "",
            &[
                "url: Required value: url must be a valid URL: parse \"\": empty url; desired format: https://host[/path]",
            ],
        );
    }

    #[test]
    fn services() {
        let check = |service: Value, expected: &[&str]| {
            let errs = validate_service(&service, &Path::new("service"));
            assert_eq!(errs.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{service}");
        };
        check(json!({"name": "s", "namespace": "n", "port": 443, "path": "/a/b/"}), &[]);
        check(
            json!({"name": "", "namespace": "", "port": 0}),
            &[
                "service.name: Required value: service name is required",
                "service.namespace: Required value: service namespace is required",
                "service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
            ],
        );
        check(
            json!({"name": "s", "namespace": "n", "port": 443, "path": "a//b"}),
            &[
                "service.path: Invalid value: \"a//b\": must start with a '/'",
                "service.path: Invalid value: \"a//b\": segment[0] may not be empty",
                "service.path: Invalid value: \"a//b\": segment[1] may not be empty",
            ],
        );
    }
}
