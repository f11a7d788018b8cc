#![allow(clippy::unwrap_used)]
use super::*;
use pretty_assertions::assert_eq;
use serde_json::{Value as Json, json};

fn service(name: &str, spec: Json) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
}

fn slice(service: &str, endpoints: Json, ports: Json) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": format!("{service}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    }))
    .unwrap()
}

fn zone() -> Zone {
    let http = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let services = Informer::fixed([
        service(
            "kubernetes",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}),
        ),
        service(
            "web",
            json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": [
                {"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]}),
        ),
        service(
            "empty",
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]}),
        ),
        service("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
    ]);
    let slices = Informer::fixed([
        slice("web", json!([{"addresses": ["10.244.0.5"]}]), http.clone()),
        slice(
            "db",
            json!([
                {"addresses": ["10.244.0.6"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.7"], "hostname": "db-1"},
                {"addresses": ["10.244.0.8"]},
                {"addresses": ["10.244.0.9"], "hostname": "db-3", "conditions": {"ready": false}},
            ]),
            http,
        ),
    ]);
    Zone::new(NetworkOptions::default(), services, slices).unwrap()
}

/// Data of the answers, sorted; `[]` for a name without such records; a word for the rest.
fn check(zone: &Zone, name: &str, kind: RecordType, expected: &str) {
    let answer = zone.answer(&Name::from_ascii(name).unwrap(), kind);
    let shown = match answer {
        Answer::Records { answers, .. } => {
            let mut data: Vec<_> = answers.iter().map(|record| record.data.to_string()).collect();
            data.sort();
            format!("[{}]", data.join(", "))
        }
        Answer::Alias(target) => format!("alias {target}"),
        Answer::NoSuchName => "no such name".into(),
        Answer::Foreign => "foreign".into(),
    };
    assert_eq!(shown, expected, "{name} {kind}");
}

#[test]
fn names_of_services() {
    let zone = zone();
    for (name, kind, expected) in [
        ("kubernetes.default.svc.cluster.local.", RecordType::A, "[10.96.0.1]"),
        ("KUBERNETES.Default.SVC.cluster.LOCAL.", RecordType::A, "[10.96.0.1]"),
        ("kubernetes.default.svc.cluster.local.", RecordType::AAAA, "[]"),
        ("kubernetes.default.svc.cluster.local.", RecordType::MX, "[]"),
        ("web.default.svc.cluster.local.", RecordType::AAAA, "[fd00::7]"),
        ("web.other.svc.cluster.local.", RecordType::A, "no such name"),
        ("gone.default.svc.cluster.local.", RecordType::A, "no such name"),
        ("default.svc.cluster.local.", RecordType::A, "[]"),
        ("other.svc.cluster.local.", RecordType::A, "no such name"),
        ("svc.cluster.local.", RecordType::A, "[]"),
        ("nonsense.cluster.local.", RecordType::A, "no such name"),
        ("a.b.c.d.e.f.svc.cluster.local.", RecordType::A, "no such name"),
        ("db.default.svc.cluster.local.", RecordType::A, "[10.244.0.6, 10.244.0.7, 10.244.0.8]"),
        ("db-0.db.default.svc.cluster.local.", RecordType::A, "[10.244.0.6]"),
        ("db-3.db.default.svc.cluster.local.", RecordType::A, "no such name"),
        ("10-244-0-8.db.default.svc.cluster.local.", RecordType::A, "[10.244.0.8]"),
        ("empty.default.svc.cluster.local.", RecordType::A, "no such name"),
        ("out.default.svc.cluster.local.", RecordType::A, "alias www.example.com."),
        ("x.out.default.svc.cluster.local.", RecordType::A, "no such name"),
        ("www.example.com.", RecordType::A, "foreign"),
        ("kubernetes.default.", RecordType::A, "foreign"),
        ("local.", RecordType::A, "foreign"),
    ] {
        check(&zone, name, kind, expected);
    }
}

#[test]
fn ports() {
    let zone = zone();
    let srv = RecordType::SRV;
    for (name, kind, expected) in [
        ("_http._tcp.web.default.svc.cluster.local.", srv, "[0 100 80 web.default.svc.cluster.local.]"),
        ("_dns._udp.web.default.svc.cluster.local.", srv, "[0 100 53 web.default.svc.cluster.local.]"),
        ("_dns._tcp.web.default.svc.cluster.local.", srv, "no such name"),
        ("_http._tcp.web.default.svc.cluster.local.", RecordType::A, "[]"),
        (
            "_http._tcp.db.default.svc.cluster.local.",
            srv,
            "[0 33 8080 10-244-0-8.db.default.svc.cluster.local., 0 33 8080 db-0.db.default.svc.cluster.local., \
             0 33 8080 db-1.db.default.svc.cluster.local.]",
        ),
        (
            "web.default.svc.cluster.local.",
            srv,
            "[0 50 53 web.default.svc.cluster.local., 0 50 80 web.default.svc.cluster.local.]",
        ),
    ] {
        check(&zone, name, kind, expected);
    }
    let Answer::Records { additionals, .. } =
        zone.answer(&Name::from_ascii("_http._tcp.web.default.svc.cluster.local.").unwrap(), srv)
    else {
        panic!("no records");
    };
    assert_eq!(additionals.len(), 2);
}

#[test]
fn everything_else() {
    let zone = zone();
    let ptr = RecordType::PTR;
    for (name, kind, expected) in [
        ("1.0.96.10.in-addr.arpa.", ptr, "[kubernetes.default.svc.cluster.local.]"),
        ("7.0.96.10.in-addr.arpa.", RecordType::A, "[]"),
        ("99.0.96.10.in-addr.arpa.", ptr, "no such name"),
        ("6.0.244.10.in-addr.arpa.", ptr, "[db-0.db.default.svc.cluster.local.]"),
        ("8.0.244.10.in-addr.arpa.", ptr, "[10-244-0-8.db.default.svc.cluster.local.]"),
        ("99.0.244.10.in-addr.arpa.", ptr, "no such name"),
        ("1.1.1.1.in-addr.arpa.", ptr, "foreign"),
        ("0.96.10.in-addr.arpa.", ptr, "foreign"),
        ("10-244-0-5.default.pod.cluster.local.", RecordType::A, "[10.244.0.5]"),
        ("10-244-0-5.default.pod.cluster.local.", RecordType::AAAA, "[]"),
        ("10-244-0.default.pod.cluster.local.", RecordType::A, "no such name"),
        ("dns-version.cluster.local.", RecordType::TXT, "[1.1.0]"),
        ("dns-version.cluster.local.", RecordType::A, "[]"),
        ("ns.dns.cluster.local.", RecordType::A, "[10.96.0.10]"),
        ("cluster.local.", RecordType::NS, "[ns.dns.cluster.local.]"),
        ("cluster.local.", RecordType::A, "[]"),
    ] {
        check(&zone, name, kind, expected);
    }
    let Answer::Records { answers, .. } =
        zone.answer(&Name::from_ascii("cluster.local.").unwrap(), RecordType::SOA)
    else {
        panic!("no records");
    };
    assert_eq!(answers.len(), 1);
}
