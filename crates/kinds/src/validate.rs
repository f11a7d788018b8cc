//! Checks that many kinds share, each reporting upstream's words at a path.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

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

pub(crate) use crate::addresses::{cidr, interface_address, ip};

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

/// A CSI or DRA driver's name.
pub(crate) fn csi_driver_name(errs: &mut ErrorList, path: &Path, name: &str) {
    if name.is_empty() {
        errs.push(field::required(path, ""));
        return;
    }
    if name.len() > 63 {
        errs.push(field::too_long(path, 63));
    }
    invalids(errs, path, name, names::is_dns1123_subdomain(&name.to_lowercase()));
}

/// `example.com/name`: who signs certificates or bundles.
pub(crate) fn signer_name(errs: &mut ErrorList, path: &Path, name: &str) {
    const MAX_DOMAIN: usize = 253;
    /// A namespace, a dot and a name.
    const MAX_PATH: usize = 253 + 63 + 1;
    if name.is_empty() {
        errs.push(field::required(path, ""));
    }
    let (domain, rest) = match name.split_once('/') {
        Some((domain, rest)) if !rest.contains('/') => (domain, rest),
        _ => {
            errs.push(field::invalid(
                path,
                name,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ));
            return;
        }
    };
    if domain.len() > MAX_DOMAIN {
        errs.push(field::too_long(path, MAX_DOMAIN));
    }
    signer_labels(errs, path, domain, names::is_dns1123_label);
    if !domain.contains('.') {
        errs.push(field::invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        ));
    }
    signer_labels(errs, path, rest, names::is_dns1123_subdomain);
    if name.len() > MAX_DOMAIN + MAX_PATH + 1 {
        errs.push(field::too_long(path, MAX_DOMAIN + MAX_PATH + 1));
    }
}

/// The first bad label between the dots of a part of a signer's name.
fn signer_labels(errs: &mut ErrorList, path: &Path, part: &str, check: fn(&str) -> Vec<String>) {
    let bad = part.split('.').map(|label| (label, check(label))).find(|(_, messages)| !messages.is_empty());
    if let Some((label, messages)) = bad {
        for msg in messages {
            let why = format!("validating label {}: {msg}", field::go_quote(label));
            errs.push(field::invalid(path, part, why));
        }
    }
}

/// `meta/v1` conditions: upstream's `ValidateConditions`.
pub(crate) fn conditions(errs: &mut ErrorList, path: &Path, list: &Value) {
    const MAX_REASON: usize = 1024;
    const MAX_MESSAGE: usize = 32 * 1024;
    let items = list.items();
    for (i, condition) in items.iter().enumerate() {
        let path = path.index(i);
        let kind = condition["type"].text();
        if items[..i].iter().any(|earlier| earlier["type"].text() == kind) {
            errs.push(field::duplicate(&path.child("type"), kind));
        }
        errs.extend(validate_label_name(kind, &path.child("type")));
        let status = condition["status"].text();
        if !["False", "True", "Unknown"].contains(&status) {
            errs.push(field::not_supported(&path.child("status"), status, &["False", "True", "Unknown"]));
        }
        let generation = condition["observedGeneration"].int();
        if generation < 0 {
            errs.push(field::invalid(
                &path.child("observedGeneration"),
                generation,
                "must be greater than or equal to zero",
            ));
        }
        if condition["lastTransitionTime"].text().is_empty() {
            errs.push(field::required(&path.child("lastTransitionTime"), "must be set"));
        }
        let reason = condition["reason"].text();
        let at = path.child("reason");
        if reason.is_empty() {
            errs.push(field::required(&at, "must be set"));
        } else {
            if !is_condition_reason(reason) {
                errs.push(field::invalid(
                    &at,
                    reason,
                    names::regex_error(
                        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
                        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
                    ),
                ));
            }
            if reason.len() > MAX_REASON {
                errs.push(field::too_long(&at, MAX_REASON));
            }
        }
        if condition["message"].text().len() > MAX_MESSAGE {
            errs.push(field::too_long(&path.child("message"), MAX_MESSAGE));
        }
    }
}

fn is_condition_reason(reason: &str) -> bool {
    let bytes = reason.as_bytes();
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(word)
        && bytes.iter().all(|b| word(b) || b",:".contains(b))
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

/// Whether the values in a selector's requirements must be such that a label can have them. It was not always so, and an
/// update keeps what a selector had before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SelectorValues {
    #[default]
    Checked,
    Any,
}

impl SelectorValues {
    /// What replaces an object that has these selectors may have.
    pub(crate) fn replacing<'a>(before: impl IntoIterator<Item = &'a Value>) -> SelectorValues {
        if before.into_iter().all(selector_is_valid) { SelectorValues::Checked } else { SelectorValues::Any }
    }
}

/// A `LabelSelector` object: upstream's `ValidateLabelSelector`.
pub(crate) fn label_selector(errs: &mut ErrorList, path: &Path, selector: &Value) {
    label_selector_with(errs, path, selector, SelectorValues::Checked);
}

/// [`label_selector`] that may have been written before its values were checked.
pub(crate) fn label_selector_with(
    errs: &mut ErrorList,
    path: &Path,
    selector: &Value,
    allowed: SelectorValues,
) {
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
        if allowed == SelectorValues::Any {
            continue;
        }
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

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::{Value, json};

    /// An object with this selector is refused with `wrong` (below `path`) when it is new; an update keeps what the
    /// object before it had and brings in nothing else.
    fn check(group: &str, kind: &str, path: &str, object: impl Fn(&Value) -> Value, and: &[&str]) {
        const LABEL: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
        let selector = |value: &str| json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["v", value]}]});
        let (odd, plain) = (object(&selector("-x")), object(&selector("x")));
        let wrong = format!("{path}.matchExpressions[0].values[1]: Invalid value: \"-x\": {LABEL}");
        let expected: Vec<&str> = std::iter::once(wrong.as_str()).chain(and.iter().copied()).collect();
        check_create(group, kind, odd.clone(), &expected);
        check_update(group, kind, odd.clone(), odd.clone(), and);
        if kind != "Job" {
            check_update(group, kind, odd, plain, &expected);
        }
    }

    #[test]
    fn values_that_were_in_a_selector_may_stay() {
        check(
            "policy",
            "PodDisruptionBudget",
            "spec.selector",
            |s| json!({"spec": {"minAvailable": 1, "selector": s}}),
            &[],
        );
        let policy = |spec: Value| json!({"spec": spec});
        check(
            "networking.k8s.io",
            "NetworkPolicy",
            "spec.podSelector",
            |s| policy(json!({"podSelector": s})),
            &[],
        );
        check(
            "networking.k8s.io",
            "NetworkPolicy",
            "spec.egress[0].to[0].namespaceSelector",
            |s| policy(json!({"podSelector": {}, "egress": [{"to": [{"namespaceSelector": s}]}]})),
            &[],
        );
        check(
            "rbac.authorization.k8s.io",
            "ClusterRole",
            "aggregationRule.clusterRoleSelectors[0]",
            |s| json!({"aggregationRule": {"clusterRoleSelectors": [s]}}),
            // Such a selector cannot be used, and upstream says so of old ones too.
            &["aggregationRule.clusterRoleSelectors[0]: Invalid value: null: invalid label selector."],
        );
        check(
            "batch",
            "Job",
            "spec.selector",
            |s| {
                json!({"spec": {"manualSelector": true, "suspend": true, "selector": s, "template": {
                    "metadata": {"labels": {"k": "v"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}})
            },
            &[],
        );
        check(
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration",
            "webhooks[0].objectSelector",
            |s| {
                json!({"webhooks": [{"name": "a.b.c", "clientConfig": {"url": "https://x/"}, "sideEffects": "None",
                    "admissionReviewVersions": ["v1"], "objectSelector": s}]})
            },
            &[],
        );
    }

    #[test]
    fn values_that_were_in_a_volume_may_stay() {
        let claim = |value: &str| {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "selector": {"matchExpressions": [{"key": "k", "operator": "In", "values": [value]}]}}})
        };
        check_update("", "PersistentVolumeClaim", claim("-x"), claim("-x"), &[]);
        let volume = |value: &str| {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/x"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "k", "operator": "In", "values": [value]}]}]}}}})
        };
        check_update("", "PersistentVolume", volume("-x"), volume("-x"), &[]);
    }
}
