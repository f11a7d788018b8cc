//! IngressClass: which controller serves an Ingress.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::{Cursor, bump_generation, child, default_to, set_generation};
use crate::validate::{dns_subdomain, object_name};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of IngressClasses.
pub struct IngressClass;

/// `acme.io/foo`: a DNS subdomain, then a path.
pub fn domain_prefixed_path(errs: &mut ErrorList, path: &Path, value: &str) {
    if value.is_empty() {
        errs.push(field::required(path, ""));
        return;
    }
    match value.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            dns_subdomain(errs, path, domain);
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"/%-._~!$'()*+,;=:".contains(&b);
            if !rest.bytes().all(legal) {
                errs.push(field::invalid(
                    path,
                    rest,
                    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                ));
            }
        }
        _ => {
            errs.push(field::invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")"))
        }
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec");
    let controller = spec["controller"].text();
    let at = path.child("controller");
    if controller.len() > 250 {
        errs.push(field::too_long(&at, 250));
    }
    domain_prefixed_path(errs, &at, controller);
    let parameters = &spec["parameters"];
    if !parameters.is_set() {
        return;
    }
    let at = path.child("parameters");
    super::ingress::reference(errs, &at, parameters);
    if !parameters["scope"].is_set() {
        errs.push(field::required(&at.child("scope"), ""));
        return;
    }
    let scope = parameters["scope"].text();
    if !["Cluster", "Namespace"].contains(&scope) {
        errs.push(field::not_supported(&at.child("scope"), scope, &["Cluster", "Namespace"]));
        return;
    }
    let namespace = &parameters["namespace"];
    if parameters["scope"].text() == "Namespace" {
        if namespace.is_set() {
            object_name(errs, &at.child("namespace"), namespace.text(), NameRule::DnsLabel);
        } else {
            errs.push(field::required(&at.child("namespace"), "`parameters.scope` is set to 'Namespace'"));
        }
    } else if namespace.is_set() {
        errs.push(field::forbidden(&at.child("namespace"), "`parameters.scope` is set to 'Cluster'"));
    }
}

impl Strategy for IngressClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        if spec["parameters"].is_set() {
            default_to(&mut spec["parameters"], "scope", "Cluster");
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_immutable(
            &obj["spec"]["controller"],
            &old["spec"]["controller"],
            &Path::new("spec").child("controller"),
        ));
        errs.extend(self.validate_create(obj));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let parameters = &obj["spec"]["parameters"];
        let shown = if parameters.is_set() {
            let group = match parameters["apiGroup"].text() {
                "" => String::new(),
                group => format!(".{group}"),
            };
            format!("{}{group}/{}", parameters["kind"].text(), parameters["name"].text())
        } else {
            "<none>".to_owned()
        };
        vec![
            printer::name(obj),
            obj["spec"]["controller"].text().into(),
            shown.into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::check_create;
    use orlop_json::json;

    #[test]
    fn controllers_have_a_domain() {
        let check = |controller: &str, expected: &[&str]| {
            check_create(
                "networking.k8s.io",
                "IngressClass",
                json!({"spec": {"controller": controller}}),
                expected,
            );
        };
        check("example.com/c", &[]);
        check("", &["spec.controller: Required value"]);
        check(
            "foo",
            &[
                "spec.controller: Invalid value: \"foo\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ],
        );
    }
}
