//! Endpoints: the addresses behind a service, in their old form.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::addresses::ip_warning;
use crate::cursor::{Cursor, default_empty_to, items_mut};
use crate::validate::{
    dns_label, ip, non_special_ip, object_name, port_number, qualified_name, require_one_of,
};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Endpoints.
pub struct Endpoints;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    for (i, subset) in obj["subsets"].items().iter().enumerate() {
        let path = Path::new("subsets").index(i);
        if subset["addresses"].is_empty() && subset["notReadyAddresses"].is_empty() {
            errs.push(field::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (a, address) in subset[list].items().iter().enumerate() {
                validate_address(&mut errs, &path.child(list).index(a), address);
            }
        }
        let ports = subset["ports"].items();
        for (p, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(p);
            let name = port["name"].text();
            if !name.is_empty() {
                dns_label(&mut errs, &path.child("name"), name);
            } else if ports.len() > 1 {
                errs.push(field::required(&path.child("name"), ""));
            }
            port_number(&mut errs, &path.child("port"), port["port"].int());
            require_one_of(
                &mut errs,
                &path.child("protocol"),
                port["protocol"].text(),
                &["SCTP", "TCP", "UDP"],
            );
            if port["appProtocol"].is_set() {
                qualified_name(&mut errs, &path.child("appProtocol"), port["appProtocol"].text());
            }
        }
    }
    errs
}

fn validate_address(errs: &mut ErrorList, path: &Path, address: &Value) {
    ip(errs, &path.child("ip"), address["ip"].text());
    let host = address["hostname"].text();
    if !host.is_empty() {
        dns_label(errs, &path.child("hostname"), host);
    }
    if address["nodeName"].is_set() {
        object_name(errs, &path.child("nodeName"), address["nodeName"].text(), NameRule::DnsSubdomain);
    }
    non_special_ip(errs, &path.child("ip"), address["ip"].text());
}

/// At most three, then how many more.
pub(crate) fn first_three(all: &[String], none: &str) -> String {
    if all.is_empty() {
        return none.to_owned();
    }
    let shown = all[..all.len().min(3)].join(",");
    if all.len() > 3 { format!("{shown} + {} more...", all.len() - 3) } else { shown }
}

fn join_host_port(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Strategy for Endpoints {
    fn defaults(&self, obj: &mut Value) {
        for subset in items_mut(obj, "subsets") {
            for port in items_mut(subset, "ports") {
                default_empty_to(port, "protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(validate(obj));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, subset) in obj["subsets"].items().iter().enumerate() {
            for list in ["addresses", "notReadyAddresses"] {
                let path = Path::new("subsets").index(i).child(list);
                for (a, address) in subset[list].items().iter().enumerate() {
                    out.extend(ip_warning(&path.index(a).child("ip"), address["ip"].text()));
                }
            }
        }
        out
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut all = Vec::new();
        for subset in obj["subsets"].items() {
            let addresses = || subset["addresses"].items().iter().map(|a| a["ip"].text());
            if subset["ports"].is_empty() {
                all.extend(addresses().map(str::to_owned));
            }
            for port in subset["ports"].items() {
                all.extend(addresses().map(|a| join_host_port(a, port["port"].int())));
            }
        }
        vec![printer::name(obj), first_three(&all, "<none>").into(), printer::age(obj, now)]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create};
    use orlop_json::json;

    #[test]
    fn addresses() {
        let with = |ip: &str| json!({"subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]});
        check_create("", "Endpoints", with("10.0.0.1"), &[]);
        check_create(
            "",
            "Endpoints",
            with("foo"),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"foo\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[0].addresses[0].ip: Invalid value: \"foo\": must be a valid IP address",
            ],
        );
        check_create(
            "",
            "Endpoints",
            with("127.0.0.1"),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        );
        check_create(
            "",
            "Endpoints",
            json!({"subsets": [{"ports": [{"port": 80}]}]}),
            &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "",
            "Endpoints",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "subsets": [{"addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}], "ports": [{"port": 80}, {"port": 53}]}]}),
            json!(["x", "10.0.0.2:80,10.0.0.1:80,10.0.0.2:53 + 1 more...", "24h"]),
        );
    }
}
