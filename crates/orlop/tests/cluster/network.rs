//! From outside, between pods, by name.

use std::net::SocketAddr;

use crate::support::{Cluster, NODE_IP, eventually, http_get, web_deployment};

#[test]
fn services_are_reached_by_name_by_address_and_by_node_port() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    cluster.toolbox("box");

    let address = cluster.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let answer = cluster.exec("box", "nslookup web.default.svc.cluster.local");
    assert!(answer.contains(&format!("Address: {address}")), "{answer:?}");
    // The resolver's search list makes shorter names of it; busybox' nslookup does not use the list, its wget does.
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
        "web.default.svc.cluster.local.",
    ] {
        assert_eq!(cluster.exec("box", &format!("wget -qO- http://{name}/")), "page one\n", "{name}");
    }
    let resolver = cluster.exec("box", "cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.96.0.10"), "{resolver}");
    assert!(
        resolver.contains("search default.svc.cluster.local svc.cluster.local cluster.local"),
        "{resolver}"
    );
    let none = cluster.kubectl(&["exec", "box", "--", "nslookup", "nobody.default.svc.cluster.local"]);
    assert!(!none.status.success());

    // pod -> Service -> pod, and a pod that reaches itself through its Service.
    assert_eq!(cluster.exec("box", "wget -qO- http://web/"), "page one\n");
    let pods = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
    let server = pods.lines().next().unwrap();
    cluster.ok(&["scale", "deployment/web", "--replicas=1"]);
    eventually("one pod is left", || {
        (cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]).lines().count() == 1).then_some(())
    });
    let last = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
    assert!(pods.contains(last.trim()), "{server}");
    assert_eq!(cluster.ok(&["exec", last.trim(), "--", "wget", "-qO-", "http://web/"]), "page one\n");

    // The API server from a pod, by its Service. (busybox has no TLS that the server accepts: the connection counts.)
    assert_eq!(
        cluster.exec("box", "nc -w 5 kubernetes.default.svc 443 </dev/null && echo connected"),
        "connected\n"
    );

    cluster.ok(&["patch", "service", "web", "-p", r#"{"spec":{"type":"NodePort"}}"#]);
    let port: u16 =
        cluster.ok(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]).parse().unwrap();
    let node: SocketAddr = format!("{NODE_IP}:{port}").parse().unwrap();
    eventually("the node port answers", || {
        cluster.on_host(move || http_get(node)).join().unwrap().ok().filter(|page| page == "page one\n")
    });
    cluster.ok(&["delete", "service", "web"]);
    eventually("the node port is closed", || cluster.on_host(move || http_get(node)).join().unwrap().err());
}

#[test]
fn a_service_without_endpoints_refuses_and_a_headless_one_names_its_pods() {
    let cluster = Cluster::start();
    cluster.toolbox("box");
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {app: nobody}, ports: [{port: 80}]}}",
    );
    let refused = eventually("connections are refused at once", || {
        let output = cluster.kubectl(&["exec", "box", "--", "wget", "-qO-", "http://nobody/"]);
        let text = crate::support::text(&output);
        text.contains("refused").then_some(text)
    });
    assert!(refused.contains("refused"));

    cluster.apply(
        &web_deployment("web", 2)
            .replace("  selector: {app: web}\n", "  clusterIP: None\n  selector: {app: web}\n"),
    );
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let ips = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"]);
    eventually("both pods' addresses are in DNS", || {
        let answer = cluster.exec("box", "nslookup web.default.svc.cluster.local 2>&1 || true");
        ips.split(' ').all(|ip| answer.contains(ip)).then_some(())
    });
}
