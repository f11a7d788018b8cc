//! EndpointSlice: some of the addresses behind a service.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::addresses::ip_warning;
use crate::core::endpoints::first_three;
use crate::cursor::{Cursor, default_to, items_mut, same, set_generation};
use crate::metadata::validate_labels;
use crate::validate::{
    dns_label, invalids, ip, non_special_ip, object_name, one_of, qualified_name, require_one_of,
};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of EndpointSlices.
pub struct EndpointSlice;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    let kind = obj["addressType"].text();
    require_one_of(&mut errs, &Path::new("addressType"), kind, &["FQDN", "IPv4", "IPv6"]);
    validate_endpoints(&mut errs, &Path::new("endpoints"), obj["endpoints"].items(), kind);
    validate_ports(&mut errs, &Path::new("ports"), obj["ports"].items());
    errs
}

fn validate_endpoints(errs: &mut ErrorList, path: &Path, endpoints: &[Value], kind: &str) {
    if endpoints.len() > MAX_ENDPOINTS {
        errs.push(field::too_many(path, endpoints.len(), MAX_ENDPOINTS));
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let addresses = endpoint["addresses"].texts();
        let at = path.child("addresses");
        if addresses.is_empty() {
            errs.push(field::required(&at, "must contain at least 1 address"));
        } else if addresses.len() > MAX_ADDRESSES {
            errs.push(field::too_many(&at, addresses.len(), MAX_ADDRESSES));
        }
        for (a, address) in addresses.into_iter().enumerate() {
            validate_address(errs, &at.index(a), address, kind);
        }
        if endpoint["nodeName"].is_set() {
            object_name(errs, &path.child("nodeName"), endpoint["nodeName"].text(), NameRule::DnsSubdomain);
        }
        errs.extend(validate_labels(&endpoint["deprecatedTopology"], &path.child("deprecatedTopology")));
        if endpoint["hostname"].is_set() {
            dns_label(errs, &path.child("hostname"), endpoint["hostname"].text());
        }
        for (list, rule) in [("forZones", NameRule::PathSegment), ("forNodes", NameRule::DnsSubdomain)] {
            validate_hints(errs, &path.child("hints").child(list), endpoint["hints"][list].items(), rule);
        }
    }
}

fn validate_address(errs: &mut ErrorList, path: &Path, address: &str, kind: &str) {
    match kind {
        "IPv4" | "IPv6" => {
            if !ip(errs, path, address) {
                return;
            }
            if (kind == "IPv6") != address.contains(':') {
                errs.push(field::invalid(path, address, format!("must be an {kind} address")));
            }
            non_special_ip(errs, path, address);
        }
        "FQDN" => {
            let name = address.strip_suffix('.').unwrap_or(address);
            if name.is_empty() {
                errs.push(field::required(path, ""));
            } else {
                invalids(errs, path, name, names::is_dns1123_subdomain(name));
                if !name.contains('.') {
                    errs.push(field::invalid(
                        path,
                        name,
                        "should be a domain with at least two segments separated by dots",
                    ));
                }
            }
        }
        _ => {}
    }
}

fn validate_hints(errs: &mut ErrorList, path: &Path, hints: &[Value], rule: NameRule) {
    if hints.len() > MAX_HINTS {
        errs.push(field::too_many(path, hints.len(), MAX_HINTS));
        return;
    }
    for (i, hint) in hints.iter().enumerate() {
        let at = path.index(i).child("name");
        let name = hint["name"].text();
        if hints[..i].iter().any(|h| h["name"].text() == name) {
            errs.push(field::duplicate(&at, name));
        }
        if rule == NameRule::PathSegment {
            invalids(errs, &at, name, names::is_valid_label_value(name));
        } else {
            object_name(errs, &at, name, rule);
        }
    }
}

fn validate_ports(errs: &mut ErrorList, path: &Path, ports: &[Value]) {
    if ports.len() > MAX_PORTS {
        errs.push(field::too_many(path, ports.len(), MAX_PORTS));
        return;
    }
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].text();
        if !name.is_empty() {
            dns_label(errs, &path.child("name"), name);
        }
        if ports[..i].iter().any(|p| p["name"].text() == name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        one_of(errs, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        if port["appProtocol"].is_set() {
            qualified_name(errs, &path.child("appProtocol"), port["appProtocol"].text());
        }
    }
}

impl Strategy for EndpointSlice {
    fn defaults(&self, obj: &mut Value) {
        for port in items_mut(obj, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
        for endpoint in items_mut(obj, "endpoints") {
            default_to(endpoint, "conditions", json!({}));
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        let changed = ["addressType", "endpoints", "ports"].iter().any(|key| !same(&obj[*key], &old[*key]))
            || !same(&obj["metadata"]["labels"], &old["metadata"]["labels"]);
        set_generation(obj, old["metadata"]["generation"].int() + i64::from(changed));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(validate(obj));
        errs.extend(metadata::validate_immutable(
            &obj["addressType"],
            &old["addressType"],
            &Path::new("addressType"),
        ));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        if obj["addressType"].text() == "FQDN" {
            return vec!["spec.addressType: FQDN endpoints are deprecated".to_owned()];
        }
        let mut out = Vec::new();
        for (i, endpoint) in obj["endpoints"].items().iter().enumerate() {
            let path = Path::new("endpoints").index(i).child("addresses");
            for (a, address) in endpoint["addresses"].texts().into_iter().enumerate() {
                out.extend(ip_warning(&path.index(a), address));
            }
        }
        out
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = obj["ports"]
            .items()
            .iter()
            .map(|p| match (p["port"].as_i64(), p["name"].text()) {
                (Some(number), _) => number.to_string(),
                (None, "") => "*".to_owned(),
                (None, name) => name.to_owned(),
            })
            .collect();
        let addresses: Vec<String> =
            obj["endpoints"].items().iter().flat_map(|e| e["addresses"].texts()).map(str::to_owned).collect();
        vec![
            printer::name(obj),
            obj["addressType"].text().into(),
            first_three(&ports, "<unset>").into(),
            first_three(&addresses, "<unset>").into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::json;

    const GROUP: &str = "discovery.k8s.io";

    #[test]
    fn validation() {
        check_create(
            GROUP,
            "EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
            &[],
        );
        check_create(GROUP, "EndpointSlice", json!({"endpoints": []}), &["addressType: Required value"]);
        check_create(
            GROUP,
            "EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["foo"]}, {"addresses": []}]}),
            &[
                "endpoints[0].addresses[0]: Invalid value: \"foo\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "endpoints[1].addresses: Required value: must contain at least 1 address",
            ],
        );
        check_update(
            GROUP,
            "EndpointSlice",
            json!({"addressType": "IPv6"}),
            json!({"addressType": "IPv4"}),
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            GROUP,
            "EndpointSlice",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}, "addressType": "IPv4", "ports": null,
                "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]}),
            json!(["x", "IPv4", "<unset>", "10.0.0.1,10.0.0.2", "24h"]),
        );
    }
}
