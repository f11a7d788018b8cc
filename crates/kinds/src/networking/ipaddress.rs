//! IPAddress: an address of the cluster's Services that somebody uses. Its name is the address.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use crate::addresses::canonical_ip_problem;
use crate::cursor::Cursor;
use crate::metadata::{validate_immutable, validate_meta_by, validate_object_meta_update};
use crate::validate::{dns_subdomain, invalids};
use crate::{NameRule, Strategy, printer};

/// The strategy of IPAddresses.
pub struct IpAddress;

fn validate_parent(errs: &mut ErrorList, parent: &Value) {
    let path = Path::new("spec").child("parentRef");
    if !parent.is_set() {
        errs.push(field::required(&path, ""));
        return;
    }
    let group = parent["group"].text();
    if !group.is_empty() {
        dns_subdomain(errs, &path.child("group"), group);
    }
    for (key, is_required) in [("resource", true), ("name", true), ("namespace", false)] {
        let (value, at) = (parent[key].text(), path.child(key));
        if !value.is_empty() {
            invalids(errs, &at, value, names::path_segment(value));
        } else if is_required {
            errs.push(field::required(&at, ""));
        }
    }
}

impl Strategy for IpAddress {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn namespaced(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let rule = |name: &str, _prefix: bool| canonical_ip_problem(name).into_iter().collect();
        let mut errs = validate_meta_by(&obj["metadata"], false, &rule, &Path::new("metadata"));
        validate_parent(&mut errs, &obj["spec"]["parentRef"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = validate_object_meta_update(obj, old);
        errs.extend(validate_immutable(
            &obj["spec"]["parentRef"],
            &old["spec"]["parentRef"],
            &Path::new("spec").child("parentRef"),
        ));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let parent = &obj["spec"]["parentRef"];
        let mut reference = "<none>".to_owned();
        if parent.is_set() {
            reference = parent["resource"].text().to_lowercase();
            let group = parent["group"].text();
            if !group.is_empty() {
                reference.push_str(&format!(".{}", group.to_lowercase()));
            }
            for part in [parent["namespace"].text(), parent["name"].text()] {
                if !part.is_empty() {
                    reference.push_str(&format!("/{part}"));
                }
            }
        }
        // Upstream gives an age, for which it names no column.
        vec![printer::name(obj), reference.into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "networking.k8s.io";

    #[test]
    fn names_and_parents() {
        let check = |name: &str, parent: Value, expected: &[&str]| {
            check_create(
                GROUP,
                "IPAddress",
                json!({"metadata": {"name": name}, "spec": {"parentRef": parent}}),
                expected,
            );
        };
        let parent = json!({"resource": "services", "name": "s", "namespace": "n"});
        check("10.0.0.1", parent.clone(), &[]);
        check("2001:db8::1", parent.clone(), &[]);
        check("10.0.0.1", Value::Null, &["spec.parentRef: Required value"]);
        check(
            "foo",
            parent.clone(),
            &[
                "metadata.name: Invalid value: \"foo\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        );
        check(
            "2001:db8:0::1",
            json!({"resource": "services"}),
            &[
                "metadata.name: Invalid value: \"2001:db8:0::1\": must be in canonical form (\"2001:db8::1\")",
                "spec.parentRef.name: Required value",
            ],
        );
        check_update(
            GROUP,
            "IPAddress",
            json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "b"}}}),
            json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "a"}}}),
            &[
                "spec.parentRef: Invalid value: {\"resource\":\"services\",\"name\":\"b\"}: field is immutable",
            ],
        );
    }
}
