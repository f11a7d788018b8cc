//! Ingress: HTTP from outside, by host and path, to services.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::addresses::{ip_unless_stored, parse_ip_sloppy};
use crate::core::endpoints::first_three;
use crate::cursor::{Cursor, bump_generation, keep, set_generation};
use crate::validate::{dns_subdomain, invalids, object_name, port_number, require_text};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Ingresses.
pub struct Ingress;

const CLASS: &str = "kubernetes.io/ingress.class";

fn validate_host(errs: &mut ErrorList, path: &Path, host: &str) {
    if host.contains('*') {
        invalids(errs, path, host, names::is_wildcard_dns1123_subdomain(host));
    } else {
        dns_subdomain(errs, path, host);
    }
}

/// What an update may keep though a new ingress may not have it.
#[derive(Clone, Copy, Default)]
struct Kept {
    /// Names of secrets that no secret can have.
    secret_names: bool,
    /// What stands behind a host with a wildcard.
    wildcard_rules: bool,
}

impl Kept {
    fn of(old: &Value) -> Kept {
        let spec = &old["spec"];
        let found = |check: &dyn Fn(&mut ErrorList)| {
            let mut errs = ErrorList::new();
            check(&mut errs);
            !errs.is_empty()
        };
        Kept {
            secret_names: spec["tls"].items().iter().any(|tls| {
                found(&|errs| validate_secret_name(errs, &Path::root(), tls["secretName"].text()))
            }),
            wildcard_rules: spec["rules"]
                .items()
                .iter()
                .filter(|rule| rule["host"].text().contains('*'))
                .any(|rule| found(&|errs| validate_rule_value(errs, &Path::root(), rule))),
        }
    }
}

fn validate_secret_name(errs: &mut ErrorList, path: &Path, name: &str) {
    if !name.is_empty() {
        object_name(errs, path, name, NameRule::DnsSubdomain);
    }
}

/// The paths of a rule.
fn validate_rule_value(errs: &mut ErrorList, path: &Path, rule: &Value) {
    if !rule["http"].is_set() {
        return;
    }
    let at = path.child("http").child("paths");
    let paths = rule["http"]["paths"].items();
    if paths.is_empty() {
        errs.push(field::required(&at, ""));
    }
    for (p, entry) in paths.iter().enumerate() {
        validate_path(errs, &at.index(p), entry);
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, kept: Kept) {
    let path = Path::new("spec");
    let (rules, backend) = (spec["rules"].items(), &spec["defaultBackend"]);
    if rules.is_empty() && !backend.is_set() {
        errs.push(field::invalid(
            &path,
            spec["rules"].clone(),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if backend.is_set() {
        validate_backend(errs, &path.child("defaultBackend"), backend);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(i);
        let host = rule["host"].text();
        if !host.is_empty() {
            let at = path.child("host");
            if parse_ip_sloppy(host).is_some() {
                errs.push(field::invalid(&at, host, "must be a DNS name, not an IP address"));
            }
            validate_host(errs, &at, host);
        }
        if !(kept.wildcard_rules && host.contains('*')) {
            validate_rule_value(errs, &path, rule);
        }
    }
    for (i, tls) in spec["tls"].items().iter().enumerate() {
        let path = path.child("tls").index(i);
        for (h, host) in tls["hosts"].texts().into_iter().enumerate() {
            validate_host(errs, &path.child("hosts").index(h), host);
        }
        if !kept.secret_names {
            validate_secret_name(errs, &path.child("secretName"), tls["secretName"].text());
        }
    }
    if spec["ingressClassName"].is_set() {
        object_name(
            errs,
            &path.child("ingressClassName"),
            spec["ingressClassName"].text(),
            NameRule::DnsSubdomain,
        );
    }
}

fn validate_path(errs: &mut ErrorList, path: &Path, entry: &Value) {
    let text = entry["path"].text();
    let at = path.child("path");
    match entry["pathType"].as_str() {
        None => {
            errs.push(field::required(&path.child("pathType"), "pathType must be specified"));
            return;
        }
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                errs.push(field::invalid(&at, text, "must be an absolute path"));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(sequence) {
                    errs.push(field::invalid(&at, text, format!("must not contain '{sequence}'")));
                }
            }
            for suffix in ["/..", "/."] {
                if text.ends_with(suffix) {
                    errs.push(field::invalid(&at, text, format!("cannot end with '{suffix}'")));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                errs.push(field::invalid(&at, text, "must be an absolute path"));
            }
        }
        Some(other) => errs.push(field::not_supported(
            &path.child("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    validate_backend(errs, &path.child("backend"), &entry["backend"]);
}

/// What a backend or a class refers to: its group, kind and name.
pub(super) fn reference(errs: &mut ErrorList, path: &Path, reference: &Value) {
    let group = &reference["apiGroup"];
    if group.is_set() {
        dns_subdomain(errs, &path.child("apiGroup"), group.text());
    }
    for key in ["kind", "name"] {
        let (value, at) = (reference[key].text(), path.child(key));
        require_text(errs, &at, value);
        if !value.is_empty() {
            invalids(errs, &at, value, names::path_segment(value));
        }
    }
}

fn validate_backend(errs: &mut ErrorList, path: &Path, backend: &Value) {
    let (resource, service) = (&backend["resource"], &backend["service"]);
    if resource.is_set() && service.is_set() {
        errs.push(field::invalid(path, "", "cannot set both resource and service backends"));
    } else if resource.is_set() {
        reference(errs, &path.child("resource"), resource);
    } else if service.is_set() {
        let at = path.child("service");
        let name = service["name"].text();
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
        } else {
            object_name(errs, &at.child("name"), name, NameRule::DnsLabel);
        }
        let (port_name, number) = (service["port"]["name"].text(), service["port"]["number"].int());
        let at = at.child("port");
        if !port_name.is_empty() && number != 0 {
            errs.push(field::invalid(path, "", "cannot set both port name & port number"));
        } else if !port_name.is_empty() {
            invalids(errs, &at.child("name"), port_name, names::is_valid_port_name(port_name));
        } else if number != 0 {
            port_number(errs, &at.child("number"), number);
        } else {
            errs.push(field::required(path, "port name or number is required"));
        }
    } else {
        errs.push(field::invalid(path, "", "resource or service backend is required"));
    }
}

impl Strategy for Ingress {
    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"loadBalancer": {}});
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], Kept::default());
        let class = &obj["metadata"]["annotations"][CLASS];
        let named = &obj["spec"]["ingressClassName"];
        if class.is_set() && named.is_set() && class != named {
            errs.push(field::invalid(
                &Path::new("annotations").child(CLASS),
                class.text(),
                "must match `ingressClassName` when both are specified",
            ));
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain));
        validate_spec(&mut errs, &obj["spec"], Kept::of(old));
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_none() && obj["metadata"]["annotations"].has(CLASS) {
            return vec![format!(
                "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
            )];
        }
        Vec::new()
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        let path = Path::new("status").child("loadBalancer").child("ingress");
        let stored: Vec<&str> =
            old["status"]["loadBalancer"]["ingress"].items().iter().map(|i| i["ip"].text()).collect();
        for (i, entry) in obj["status"]["loadBalancer"]["ingress"].items().iter().enumerate() {
            let path = path.index(i);
            let (address, host) = (entry["ip"].text(), entry["hostname"].text());
            if !address.is_empty() {
                ip_unless_stored(&mut errs, &path.child("ip"), address, &stored);
            }
            if !host.is_empty() {
                dns_subdomain(&mut errs, &path.child("hostname"), host);
                if parse_ip_sloppy(host).is_some() {
                    errs.push(field::invalid(
                        &path.child("hostname"),
                        host,
                        "must be a DNS name, not an IP address",
                    ));
                }
            }
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let class = spec["ingressClassName"].as_str().unwrap_or("<none>");
        let hosts: Vec<String> = spec["rules"]
            .items()
            .iter()
            .map(|r| r["host"].text())
            .filter(|h| !h.is_empty())
            .map(str::to_owned)
            .collect();
        let mut addresses: Vec<&str> = obj["status"]["loadBalancer"]["ingress"]
            .items()
            .iter()
            .map(|i| if i["ip"].text().is_empty() { i["hostname"].text() } else { i["ip"].text() })
            .filter(|a| !a.is_empty())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ports = if spec["tls"].is_empty() { "80" } else { "80, 443" };
        vec![
            printer::name(obj),
            class.into(),
            first_three(&hosts, "*").into(),
            addresses.join(",").into(),
            ports.into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "networking.k8s.io";

    #[test]
    fn what_was_wrong_may_stay() {
        let check = |spec: Value, plain: Value, wrong: &str| {
            let (odd, plain) = (json!({"spec": spec}), json!({"spec": plain}));
            check_create(GROUP, "Ingress", odd.clone(), &[wrong]);
            check_update(GROUP, "Ingress", odd.clone(), odd.clone(), &[]);
            check_update(GROUP, "Ingress", odd, plain, &[wrong]);
        };
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let tls = |name: &str| json!({"defaultBackend": backend, "tls": [{"secretName": name}]});
        check(
            tls("A"),
            tls("a"),
            "spec.tls[0].secretName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        );
        let rule = |host: &str, path: &str| json!({"rules": [{"host": host, "http": {"paths": [{"path": path, "pathType": "Exact", "backend": backend}]}}]});
        let wrong = "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path";
        check(rule("*.a.b", "x"), rule("*.a.b", "/x"), wrong);
        // Hosts without a wildcard were always looked at.
        let old = json!({"spec": rule("a.b", "x")});
        check_update(GROUP, "Ingress", old.clone(), old, &[wrong]);
    }

    #[test]
    fn validation() {
        let check =
            |spec: Value, expected: &[&str]| check_create(GROUP, "Ingress", json!({"spec": spec}), expected);
        let rule = |path: Value| json!({"rules": [{"host": "a.b", "http": {"paths": [path]}}]});
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        check(json!({"defaultBackend": backend}), &[]);
        check(
            json!({}),
            &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
        );
        check(
            rule(json!({"path": "/x", "backend": backend})),
            &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
        );
        check(
            rule(json!({"path": "x", "pathType": "Prefix", "backend": {}})),
            &[
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            GROUP,
            "Ingress",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"ingressClassName": "c", "tls": [{}], "rules": [{"host": "a.b"}, {}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
            json!(["x", "c", "a.b", "1.2.3.4", "80, 443", "24h"]),
        );
    }
}
