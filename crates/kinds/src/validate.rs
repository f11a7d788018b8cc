//! Checks that many kinds share, each reporting upstream's words at a path.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use serde_json::Value;

use crate::NameRule;
use crate::cursor::Cursor;
use crate::metadata::{validate_label_name, validate_labels};

/// What upstream says of a number below zero.
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";

/// One `Invalid` error at `path` for each message.
pub(crate) fn invalids(errs: &mut ErrorList, path: &Path, value: &str, messages: Vec<String>) {
    errs.extend(messages.into_iter().map(|msg| field::invalid(path, value, msg)));
}

/// A string that must not be empty.
pub(crate) fn require_text(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.is_empty() {
        errs.push(field::required(path, ""));
    }
}

/// A number that must not be negative.
pub(crate) fn nonnegative(errs: &mut ErrorList, path: &Path, value: &Value) {
    if value.int() < 0 {
        errs.push(field::invalid(path, value.int(), NEGATIVE));
    }
}

/// A string out of a closed set; empty is missing.
pub(crate) fn require_one_of(errs: &mut ErrorList, path: &Path, value: &str, valid: &[&str]) {
    if value.is_empty() {
        errs.push(field::required(path, ""));
    } else if !valid.contains(&value) {
        errs.push(field::not_supported(path, value, valid));
    }
}

/// A string out of a closed set that may be left out.
pub(crate) fn one_of(errs: &mut ErrorList, path: &Path, value: &Value, valid: &[&str]) {
    if value.is_set() && !valid.contains(&value.text()) {
        errs.push(field::not_supported(path, value.text(), valid));
    }
}

pub(crate) fn dns_label(errs: &mut ErrorList, path: &Path, value: &str) {
    invalids(errs, path, value, names::is_dns1123_label(value));
}

pub(crate) fn dns_subdomain(errs: &mut ErrorList, path: &Path, value: &str) {
    invalids(errs, path, value, names::is_dns1123_subdomain(value));
}

pub(crate) fn qualified_name(errs: &mut ErrorList, path: &Path, value: &str) {
    invalids(errs, path, value, names::is_qualified_name(value));
}

/// A name of another object, under that kind's rule.
pub(crate) fn object_name(errs: &mut ErrorList, path: &Path, value: &str, rule: NameRule) {
    invalids(errs, path, value, rule.check(value, false));
}

/// An IP address in its plain form.
pub(crate) fn ip(errs: &mut ErrorList, path: &Path, value: &str) -> bool {
    let messages = ip_messages(value);
    let good = messages.is_empty();
    invalids(errs, path, value, messages);
    good
}

/// Like the name rules; an IPv4 address with leading zeros has a message of its own.
pub(crate) fn ip_messages(value: &str) -> Vec<String> {
    let octets: Vec<&str> = value.split('.').collect();
    let digits = |o: &&str| !o.is_empty() && o.len() <= 3 && o.bytes().all(|b| b.is_ascii_digit());
    if octets.len() == 4
        && octets.iter().all(digits)
        && octets.iter().all(|o| o.parse::<u16>().is_ok_and(|n| n < 256))
        && octets.iter().any(|o| o.len() > 1 && o.starts_with('0'))
    {
        return vec!["must not have leading 0s".to_owned()];
    }
    if value.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.to_ipv4_mapped().is_some()) {
        return vec!["must not be an IPv4-mapped IPv6 address".to_owned()];
    }
    names::is_valid_ip(value)
}

/// A CIDR.
pub(crate) fn cidr(errs: &mut ErrorList, path: &Path, value: &str) {
    invalids(errs, path, value, names::is_valid_cidr(value));
}

/// Addresses that cannot be reached from another host: upstream's `ValidateNonSpecialIP`.
pub(crate) fn non_special_ip(errs: &mut ErrorList, path: &Path, value: &str) {
    use std::net::IpAddr;
    let Ok(address) = value.parse::<IpAddr>() else {
        errs.push(field::invalid(path, value, "must be a valid IP address"));
        return;
    };
    let mut bad = |why: &str| errs.push(field::invalid(path, value, why));
    if address.is_unspecified() {
        bad(&format!("may not be unspecified ({value})"));
    }
    if address.is_loopback() {
        bad("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (a.is_unicast_link_local(), a.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        bad("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        bad("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// A port as number or name (`IntOrString`).
pub(crate) fn port_num_or_name(errs: &mut ErrorList, path: &Path, value: &Value) {
    if let Some(name) = value.as_str() {
        invalids(errs, path, name, names::is_valid_port_name(name));
    } else {
        port_number(errs, path, value.int());
    }
}

pub(crate) fn port_number(errs: &mut ErrorList, path: &Path, port: i64) {
    for msg in names::is_valid_port_num(port) {
        errs.push(field::invalid(path, port, msg));
    }
}

/// A `LabelSelector` object: upstream's `ValidateLabelSelector`.
pub(crate) fn label_selector(errs: &mut ErrorList, path: &Path, selector: &Value) {
    errs.extend(validate_labels(&selector["matchLabels"], &path.child("matchLabels")));
    for (i, requirement) in selector["matchExpressions"].items().iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = requirement["values"].texts();
        match requirement["operator"].text() {
            "In" | "NotIn" if values.is_empty() => errs.push(field::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(field::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        errs.extend(validate_label_name(requirement["key"].text(), &path.child("key")));
        for (v, value) in values.into_iter().enumerate() {
            invalids(errs, &path.child("values").index(v), value, names::is_valid_label_value(value));
        }
    }
}

/// Whether a `LabelSelector` object can be turned into a selector at all.
pub(crate) fn selector_is_valid(selector: &Value) -> bool {
    let mut errs = ErrorList::new();
    label_selector(&mut errs, &Path::new("selector"), selector);
    errs.is_empty()
}

/// Whether a valid, non-null `LabelSelector` object selects these labels.
pub(crate) fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let value_of = |key: &str| labels.get(key).map(Cursor::text);
    selector["matchLabels"].entries().all(|(key, value)| value_of(key) == Some(value.text()))
        && selector["matchExpressions"].items().iter().all(|requirement| {
            let value = value_of(requirement["key"].text());
            let values = requirement["values"].texts();
            match requirement["operator"].text() {
                "In" => value.is_some_and(|v| values.contains(&v)),
                "NotIn" => value.is_none_or(|v| !values.contains(&v)),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether a `LabelSelector` object selects everything.
pub(crate) fn selector_is_empty(selector: &Value) -> bool {
    selector["matchLabels"].is_empty() && selector["matchExpressions"].is_empty()
}

/// A path below some directory: relative and without `..`.
pub(crate) fn local_descending_path(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.starts_with('/') {
        errs.push(field::invalid(path, value, "must be a relative path"));
    }
    path_no_backsteps(errs, path, value);
}

pub(crate) fn path_no_backsteps(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.split('/').any(|part| part == "..") {
        errs.push(field::invalid(path, value, "must not contain '..'"));
    }
}

/// A path below a volume whose names with `..` in front are the kubelet's own.
pub(crate) fn local_non_reserved_path(errs: &mut ErrorList, path: &Path, value: &str) {
    local_descending_path(errs, path, value);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.push(field::invalid(path, value, "must not start with '..'"));
    }
}
