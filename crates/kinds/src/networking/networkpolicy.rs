//! NetworkPolicy: which traffic to and from some pods is allowed.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::addresses::{cidr_unless_stored, cidr_warning, contains, parse_cidr_sloppy};
use crate::cursor::{Cursor, bump_generation, child, default_to, items_mut, set_generation};
use crate::validate::{SelectorValues, label_selector_with, port_num_or_name};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of NetworkPolicies.
pub struct NetworkPolicy;

/// What an update may keep though a new policy may not have it.
#[derive(Default)]
struct Kept<'a> {
    ranges: Vec<&'a str>,
    selector_values: SelectorValues,
}

impl Kept<'_> {
    fn of(old: &Value) -> Kept<'_> {
        let spec = &old["spec"];
        let selectors = peers(spec).flat_map(|peer| [&peer["podSelector"], &peer["namespaceSelector"]]);
        let all = std::iter::once(&spec["podSelector"]).chain(selectors);
        Kept { ranges: ranges(spec), selector_values: SelectorValues::replacing(all) }
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, kept: &Kept) {
    let path = Path::new("spec");
    let at = path.child("podSelector");
    label_selector_with(errs, &at, &spec["podSelector"], kept.selector_values);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in spec[direction].items().iter().enumerate() {
            let path = path.child(direction).index(i);
            for (p, port) in rule["ports"].items().iter().enumerate() {
                validate_port(errs, &path.child("ports").index(p), port);
            }
            for (p, peer) in rule[peers].items().iter().enumerate() {
                validate_peer(errs, &path.child(peers).index(p), peer, kept);
            }
        }
    }
    let types = spec["policyTypes"].texts();
    let at = path.child("policyTypes");
    if types.len() > 2 {
        errs.push(field::invalid(
            &at,
            spec["policyTypes"].clone(),
            "may not specify more than two policyTypes",
        ));
        return;
    }
    for (i, kind) in types.into_iter().enumerate() {
        if !["Egress", "Ingress"].contains(&kind) {
            errs.push(field::not_supported(&at.index(i), kind, &["Egress", "Ingress"]));
        }
    }
}

fn validate_port(errs: &mut ErrorList, path: &Path, port: &Value) {
    let protocol = &port["protocol"];
    if protocol.is_set() && !["TCP", "UDP", "SCTP"].contains(&protocol.text()) {
        errs.push(field::not_supported(&path.child("protocol"), protocol.text(), &["TCP", "UDP", "SCTP"]));
    }
    let (first, last) = (&port["port"], &port["endPort"]);
    let at = path.child("endPort");
    match first {
        Value::Null => {
            if last.is_set() {
                errs.push(field::invalid(
                    &at,
                    last.int(),
                    "may not be specified when `port` is not specified",
                ));
            }
        }
        Value::String(_) => {
            if last.is_set() {
                errs.push(field::invalid(&at, last.int(), "may not be specified when `port` is non-numeric"));
            }
            port_num_or_name(errs, &path.child("port"), first);
        }
        _ => {
            port_num_or_name(errs, &path.child("port"), first);
            if last.is_set() {
                if last.int() < first.int() {
                    errs.push(field::invalid(&at, last.int(), "must be greater than or equal to `port`"));
                }
                for msg in names::is_valid_port_num(last.int()) {
                    errs.push(field::invalid(&at, last.int(), msg));
                }
            }
        }
    }
}

fn validate_peer(errs: &mut ErrorList, path: &Path, peer: &Value, kept: &Kept) {
    let mut kinds = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if peer[key].is_set() {
            kinds += 1;
            label_selector_with(errs, &path.child(key), &peer[key], kept.selector_values);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_set() {
        kinds += 1;
        validate_block(errs, &path.child("ipBlock"), block, &kept.ranges);
    }
    if kinds == 0 {
        errs.push(field::required(path, "must specify a peer"));
    } else if kinds > 1 && block.is_set() {
        errs.push(field::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

fn validate_block(errs: &mut ErrorList, path: &Path, block: &Value, stored: &[&str]) {
    let outer = block["cidr"].text();
    if outer.is_empty() {
        errs.push(field::required(&path.child("cidr"), ""));
        return;
    }
    cidr_unless_stored(errs, &path.child("cidr"), outer, stored);
    let Some(outer) = parse_cidr_sloppy(outer) else { return };
    for (i, except) in block["except"].texts().into_iter().enumerate() {
        let at = path.child("except").index(i);
        cidr_unless_stored(errs, &at, except, stored);
        let Some(inner) = parse_cidr_sloppy(except) else { continue };
        if !contains(outer, inner.0) || outer.1 >= inner.1 {
            errs.push(field::invalid(&at, except, "must be a strict subset of `cidr`"));
        }
    }
}

/// The peers of all rules.
fn peers(spec: &Value) -> impl Iterator<Item = &Value> {
    [("ingress", "from"), ("egress", "to")].into_iter().flat_map(|(direction, peers)| {
        spec[direction].items().iter().flat_map(move |rule| rule[peers].items())
    })
}

/// Every range of a policy: an update may repeat them, whatever they look like.
fn ranges(spec: &Value) -> Vec<&str> {
    let mut all = Vec::new();
    for peer in peers(spec) {
        all.push(peer["ipBlock"]["cidr"].text());
        all.extend(peer["ipBlock"]["except"].texts());
    }
    all
}

impl Strategy for NetworkPolicy {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        for direction in ["ingress", "egress"] {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    default_to(port, "protocol", "TCP");
                }
            }
        }
        if spec["policyTypes"].is_empty() {
            let egress = !spec["egress"].is_empty();
            spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], &Kept::default());
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"], &Kept::of(old));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in obj["spec"][direction].items().iter().enumerate() {
                for (p, peer) in rule[peers].items().iter().enumerate() {
                    let path =
                        Path::new("spec").child(direction).index(i).child(peers).index(p).child("ipBlock");
                    out.extend(cidr_warning(&path.child("cidr"), peer["ipBlock"]["cidr"].text()));
                    for (e, except) in peer["ipBlock"]["except"].texts().into_iter().enumerate() {
                        out.extend(cidr_warning(&path.child("except").index(e), except));
                    }
                }
            }
        }
        out
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            printer::name(obj),
            printer::format_label_selector(&obj["spec"]["podSelector"]).into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::check_create;
    use orlop_json::{Value, json};

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create("networking.k8s.io", "NetworkPolicy", json!({"spec": spec}), expected);
        };
        let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
        check(from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}})), &[]);
        check(from(json!({})), &["spec.ingress[0].from[0]: Required value: must specify a peer"]);
        check(
            from(json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["11.0.0.0/25"]}})),
            &[
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/25\": must be a strict subset of `cidr`",
            ],
        );
        check(
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http", "endPort": 1}, {"endPort": 1}, {"port": 5, "endPort": 4}]}]}),
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 1: may not be specified when `port` is non-numeric",
                "spec.ingress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
                "spec.ingress[0].ports[2].endPort: Invalid value: 4: must be greater than or equal to `port`",
            ],
        );
        check(
            json!({"podSelector": {}, "egress": [{"ports": [{"protocol": "ICMP", "port": 0}]}]}),
            &[
                "spec.egress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
                "spec.egress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        );
    }
}
