//! How objects are converted between versions.

use base64::Engine as _;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::{Options, child, items, text};

const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

fn webhook(spec: &Value) -> Option<&Value> {
    child(spec.get("conversion")?, "webhook")
}

/// Whether a spec names a version of ConversionReview that is known here, or none.
pub(super) fn recognizes_review(spec: &Value) -> bool {
    let versions = webhook(spec).map_or(&[][..], |webhook| items(webhook, "conversionReviewVersions"));
    versions.is_empty() || versions.iter().any(|version| REVIEWS.contains(&version.as_str().unwrap_or("")))
}

/// Whether a spec has certificates that cannot be read.
pub(super) fn has_invalid_ca(spec: &Value) -> bool {
    let config = webhook(spec).and_then(|webhook| child(webhook, "clientConfig"));
    config.is_some_and(|config| ca_error(text(config, "caBundle")).is_some())
}

fn ca_error(bundle: &str) -> Option<&'static str> {
    if bundle.is_empty() {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default();
    let pem = String::from_utf8_lossy(&decoded);
    let begin = pem.matches("-----BEGIN CERTIFICATE-----").count();
    let good = begin > 0 && begin == pem.matches("-----END CERTIFICATE-----").count();
    (!good).then_some("unable to load root certificates: unable to parse bytes as PEM block")
}

pub(super) fn validate(spec: &Value, options: &Options<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(conversion) = child(spec, "conversion") else { return errors };
    let strategy = text(conversion, "strategy");
    match strategy {
        "" => errors.push(field::required(&path.child("strategy"), "")),
        "None" | "Webhook" => {}
        other => errors.push(field::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
    let webhook = child(conversion, "webhook");
    let config = webhook.and_then(|webhook| child(webhook, "clientConfig"));
    let versions = webhook.map_or(&[][..], |webhook| items(webhook, "conversionReviewVersions"));
    let config_path = path.child("webhookClientConfig");
    let versions_path = path.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.push(field::forbidden(&config_path, detail));
        }
        if !versions.is_empty() {
            errors.push(field::forbidden(&versions_path, detail));
        }
        return errors;
    }
    match config {
        None => {
            errors.push(field::required(&config_path, "required when strategy is set to Webhook"));
        }
        Some(config) => {
            match (child(config, "url").and_then(Value::as_str), child(config, "service")) {
                (Some(url), None) => errors.extend(validate_url(url, &config_path.child("url"))),
                (None, Some(service)) => {
                    errors.extend(validate_service(service, &config_path.child("service")));
                }
                _ => errors.push(field::required(&config_path, "exactly one of url or service is required")),
            }
            if !options.allow_invalid_ca
                && let Some(detail) = ca_error(text(config, "caBundle"))
            {
                let value = text(config, "caBundle");
                errors.push(field::invalid(&config_path.child("caBundle"), value, detail));
            }
        }
    }
    errors.extend(validate_reviews(versions, options.require_recognized_review, &versions_path));
    errors
}

fn validate_reviews(versions: &[Value], recognized: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if versions.is_empty() {
        return vec![field::required(path, "")];
    }
    let mut seen: Vec<&str> = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        let version = version.as_str().unwrap_or("");
        if seen.contains(&version) {
            errors.push(field::invalid(&path.index(at), version, "duplicate version"));
            continue;
        }
        seen.push(version);
        for message in names::is_dns1035_label(version) {
            errors.push(field::invalid(&path.index(at), version, message));
        }
    }
    if recognized && !seen.iter().any(|version| REVIEWS.contains(version)) {
        errors.push(field::invalid(path, versions, "must include at least one of v1, v1beta1"));
    }
    errors
}

fn validate_url(url: &str, path: &Path) -> ErrorList {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut errors = ErrorList::new();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, tail) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let (user, host) = authority.split_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(field::invalid(path, scheme, detail));
    }
    if host.is_empty() {
        errors.push(field::invalid(path, host, format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(field::invalid(path, user, "user information is not permitted in the URL"));
    }
    if let Some((_, fragment)) = tail.split_once('#').filter(|(_, fragment)| !fragment.is_empty()) {
        errors.push(field::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    let before = tail.split('#').next().unwrap_or("");
    if let Some((_, query)) = before.split_once('?').filter(|(_, query)| !query.is_empty()) {
        errors.push(field::invalid(path, query, "query parameters are not permitted in the URL"));
    }
    errors
}

fn validate_service(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if text(service, "name").is_empty() {
        errors.push(field::required(&path.child("name"), "service name is required"));
    }
    if text(service, "namespace").is_empty() {
        errors.push(field::required(&path.child("namespace"), "service namespace is required"));
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    if let Some(message) = joined_port(port) {
        let detail = format!("port is not valid: {message}");
        errors.push(field::invalid(&path.child("port"), port, detail));
    }
    let Some(url_path) = child(service, "path").and_then(Value::as_str) else { return errors };
    let at = path.child("path");
    // What looks like a scheme or a host is no path.
    if url_path.is_empty() || !url_path.starts_with('/') {
        errors.push(field::invalid(&at, url_path, "must start with a '/'"));
        return errors;
    }
    if url_path == "/" {
        return errors;
    }
    let steps: Vec<&str> = url_path[1..].split('/').collect();
    let last = steps.len() - 1;
    for (index, step) in steps.iter().enumerate() {
        if step.is_empty() && index == last {
            continue;
        }
        if step.is_empty() {
            errors.push(field::invalid(&at, url_path, format!("segment[{index}] may not be empty")));
            continue;
        }
        for message in names::is_dns1123_subdomain(step) {
            errors.push(field::invalid(&at, url_path, format!("segment[{index}]: {message}")));
        }
    }
    errors
}

fn joined_port(port: i64) -> Option<String> {
    super::joined(names::is_valid_port_num(port))
}
