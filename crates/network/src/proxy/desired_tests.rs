#![allow(clippy::unwrap_used)]
use super::*;
use crate::proxy::{changes, diff};
use pretty_assertions::assert_eq;
use serde_json::{Value as Json, json};

fn service(spec: Json) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .unwrap()
}

fn web(more: Json) -> Service {
    let mut spec = json!({
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "type": "ClusterIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    service(spec)
}

/// Endpoints as `address[/condition][@node]`; conditions: `ready` (default), `unready`, `draining`, `dead`.
fn slice(endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Json> = endpoints
        .iter()
        .map(|text| {
            let (text, node) = text.split_once('@').unwrap_or((text, "other"));
            let (address, condition) = text.split_once('/').unwrap_or((text, "ready"));
            let conditions = match condition {
                "unready" => json!({"ready": false, "serving": false, "terminating": false}),
                "draining" => json!({"ready": false, "serving": true, "terminating": true}),
                "dead" => json!({"ready": false, "serving": false, "terminating": true}),
                "unknown" => json!({}),
                _ => json!({"ready": true}),
            };
            json!({"addresses": [address], "conditions": conditions, "nodeName": node})
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .unwrap()
}

/// The rows as `set key : data`, without chains, which follow from the verdicts.
fn shown(rows: &Ruleset) -> Vec<String> {
    rows.iter()
        .filter_map(|(row, value)| Some(format!("{} {}{}", row.set()?, row.key(), value.data())))
        .collect()
}

fn check(service: &Service, endpoints: &[&str], expected: &[&str]) {
    let rows = service_rows(service, &[&slice(endpoints)], "me");
    let mut shown = shown(&rows);
    let mut expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected, "{endpoints:?} {:?}", service.spec);
    for value in rows.values() {
        if let Value::Goto(chain) = value {
            let mut needed = vec![*chain];
            while let Some(chain) = needed.pop() {
                assert!(rows.contains_key(&Row::Chain(chain)), "{chain}");
                needed.extend(chain.needs());
            }
        }
    }
}

const IP: &str = "cluster-ips 10.96.0.7";

#[test]
fn cluster_ips() {
    let plain = web(json!({}));
    let one = "address-services 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-1";
    let refused = "address-refused 10.96.0.7 . tcp . 80 : goto reject-no-endpoints";
    let to = |ip: &str| format!("address-tcp-backends 10.96.0.7 . tcp . 80 . 0 : {ip} . 8080");
    check(&plain, &[], &[IP, refused]);
    check(&plain, &["10.1.0.1"], &[IP, one, &to("10.1.0.1")]);
    check(&plain, &["10.1.0.1/unknown"], &[IP, one, &to("10.1.0.1")]);
    check(&plain, &["10.1.0.1@me"], &[IP, one, &to("10.1.0.1"), "hairpin 10.1.0.1 . 10.1.0.1"]);
    check(&plain, &["10.1.0.1/unready"], &[IP, refused]);
    check(&plain, &["10.1.0.1", "10.1.0.2/unready", "10.1.0.3/draining"], &[IP, one, &to("10.1.0.1")]);
    check(&plain, &["10.1.0.3/draining", "10.1.0.4/dead"], &[IP, one, &to("10.1.0.3")]);
    check(
        &plain,
        &["10.1.0.2", "10.1.0.1"],
        &[
            IP,
            "address-services 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-2",
            &to("10.1.0.1"),
            "address-tcp-backends 10.96.0.7 . tcp . 80 . 1 : 10.1.0.2 . 8080",
        ],
    );
}

#[test]
fn not_proxied() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
        json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7"], "ports": [{"name": "http", "port": 80}]}),
        json!({"ports": [{"name": "http", "port": 80}]}),
    ] {
        check(&service(spec), &["10.1.0.1"], &[]);
    }
    let mut claimed = web(json!({}));
    claimed.metadata.labels = Some([(PROXY_NAME.to_owned(), "other".to_owned())].into());
    check(&claimed, &["10.1.0.1"], &[]);
}

#[test]
fn internal_traffic_policy() {
    let local = web(json!({"internalTrafficPolicy": "Local"}));
    check(
        &local,
        &["10.1.0.1", "10.1.0.2@me"],
        &[
            IP,
            "address-services 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-1",
            "address-tcp-backends 10.96.0.7 . tcp . 80 . 0 : 10.1.0.2 . 8080",
            "hairpin 10.1.0.2 . 10.1.0.2",
        ],
    );
    check(
        &local,
        &["10.1.0.1"],
        &[IP, "address-refused 10.96.0.7 . tcp . 80 : goto drop-no-local-endpoints"],
    );
    check(&local, &[], &[IP, "address-refused 10.96.0.7 . tcp . 80 : goto reject-no-endpoints"]);
}

#[test]
fn node_ports() {
    let port = json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]);
    let plain = web(json!({"type": "NodePort", "ports": port}));
    let service = "address-services 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-1";
    let backend = "address-tcp-backends 10.96.0.7 . tcp . 80 . 0 : 10.1.0.1 . 8080";
    check(
        &plain,
        &["10.1.0.1"],
        &[
            IP,
            service,
            backend,
            "node-port-services tcp . 30080 : goto external-node-port-cluster-tcp-1",
            "node-port-tcp-backends tcp . 30080 . 0 : 10.1.0.1 . 8080",
        ],
    );
    check(
        &plain,
        &[],
        &[
            IP,
            "address-refused 10.96.0.7 . tcp . 80 : goto reject-no-endpoints",
            "node-port-refused tcp . 30080 : goto reject-no-endpoints",
        ],
    );
    let local = web(json!({"type": "NodePort", "ports": port, "externalTrafficPolicy": "Local"}));
    check(
        &local,
        &["10.1.0.1"],
        &[
            IP,
            service,
            backend,
            "node-port-services tcp . 30080 : goto external-node-port-cluster-tcp-1-local-0",
            "node-port-tcp-backends tcp . 30080 . 0 : 10.1.0.1 . 8080",
        ],
    );
    check(
        &local,
        &["10.1.0.1@me"],
        &[
            IP,
            service,
            backend,
            "hairpin 10.1.0.1 . 10.1.0.1",
            "node-port-services tcp . 30080 : goto external-node-port-cluster-tcp-1-local-1",
            "node-port-tcp-backends tcp . 30080 . 0 : 10.1.0.1 . 8080",
            "node-port-local-tcp-backends tcp . 30080 . 0 : 10.1.0.1 . 8080",
        ],
    );
}

#[test]
fn external_addresses_and_affinity() {
    let mut service = web(json!({
        "type": "LoadBalancer", "externalIPs": ["192.0.2.9"], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "loadBalancerSourceRanges": ["10.0.0.0/8", "10.1.0.0/16", " 172.16.0.0/12"],
    }));
    service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.10", "ipMode": "VIP"}, {"ip": "192.0.2.11", "ipMode": "Proxy"}, {"hostname": "lb.example.com"},
    ]}}))
    .unwrap();
    check(
        &service,
        &["10.1.0.1"],
        &[
            IP,
            "address-services 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-1-sticky-60",
            "address-services 192.0.2.9 . tcp . 80 : goto external-address-cluster-tcp-1-sticky-60",
            "address-services 192.0.2.10 . tcp . 80 : goto external-address-cluster-tcp-1-sticky-60",
            "address-sticky-backends 10.96.0.7 . tcp . 80 . 0 : goto remember-10.1.0.1-8080-60",
            "address-sticky-backends 192.0.2.9 . tcp . 80 . 0 : goto remember-10.1.0.1-8080-60",
            "address-sticky-backends 192.0.2.10 . tcp . 80 . 0 : goto remember-10.1.0.1-8080-60",
            "firewalled 192.0.2.10 . tcp . 80",
            "allowed-sources 192.0.2.10 . tcp . 80 . 10.0.0.0/8",
            "allowed-sources 192.0.2.10 . tcp . 80 . 172.16.0.0/12",
        ],
    );
}

#[test]
fn ports_match_by_name_and_protocol() {
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "sctp", "port": 53, "protocol": "SCTP"}]);
    check(
        &web(json!({"ports": ports})),
        &["10.1.0.1"],
        &[
            IP,
            "address-refused 10.96.0.7 . udp . 53 : goto reject-no-endpoints",
            "address-refused 10.96.0.7 . sctp . 53 : goto reject-no-endpoints",
        ],
    );
}

#[test]
fn a_change_costs_what_changed() {
    let service = web(json!({}));
    let range: Ipv4Net = "10.244.0.0/16".parse().unwrap();
    let check = |old: &[&str], new: &[&str], expected: &str| {
        let rows = |endpoints: &[&str]| service_rows(&service, &[&slice(endpoints)], "me");
        let text = diff("t", range, &rows(old), &rows(new));
        assert_eq!(text.trim(), expected.trim(), "{old:?} -> {new:?}");
    };
    check(&["10.1.0.1"], &["10.1.0.1"], "");
    check(
        &["10.1.0.1"],
        &["10.1.0.2"],
        "delete element ip t address-tcp-backends { 10.96.0.7 . tcp . 80 . 0 }\n\
         add element ip t address-tcp-backends { 10.96.0.7 . tcp . 80 . 0 : 10.1.0.2 . 8080 }",
    );
    check(
        &[],
        &["10.1.0.1"],
        "add chain ip t pick-address-cluster-tcp-1\n\
         add chain ip t internal-address-cluster-tcp-1\n\
         flush chain ip t pick-address-cluster-tcp-1\n\
         add rule ip t pick-address-cluster-tcp-1 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @address-tcp-backends\n\
         flush chain ip t internal-address-cluster-tcp-1\n\
         add rule ip t internal-address-cluster-tcp-1 ip saddr != 10.244.0.0/16 meta mark set meta mark or 0x4000\n\
         add rule ip t internal-address-cluster-tcp-1 goto pick-address-cluster-tcp-1\n\
         delete element ip t address-refused { 10.96.0.7 . tcp . 80 }\n\
         add element ip t address-services { 10.96.0.7 . tcp . 80 : goto internal-address-cluster-tcp-1 }\n\
         add element ip t address-tcp-backends { 10.96.0.7 . tcp . 80 . 0 : 10.1.0.1 . 8080 }\n\
         flush chain ip t reject-no-endpoints\n\
         delete chain ip t reject-no-endpoints",
    );
}

#[test]
fn the_first_of_clashing_services_wins() {
    let (a, b) = (web(json!({})), web(json!({})));
    let (one, two) = (slice(&["10.1.0.1"]), slice(&["10.1.0.2"]));
    let both = desired([(&a, vec![&one]), (&b, vec![&two])], "me");
    assert!(changes(&both, &desired([(&a, vec![&one])], "me")).is_empty());
}
