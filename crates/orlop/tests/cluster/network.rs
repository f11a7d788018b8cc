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

#[test]
fn a_load_balancer_is_the_node_to_those_outside() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["patch", "service", "web", "-p", r#"{"spec":{"type":"LoadBalancer"}}"#]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let ingress = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    eventually("the service has the node's address", || {
        (cluster.ok(&["get", "service", "web", "-o", ingress]) == NODE_IP).then_some(())
    });
    let row = cluster.ok(&["get", "service", "web", "--no-headers"]);
    assert_eq!(row.split_whitespace().nth(3), Some(NODE_IP), "{row}");
    let balanced: SocketAddr = format!("{NODE_IP}:80").parse().unwrap();
    let get = move || http_get(balanced);
    eventually("it answers at its own port", || {
        cluster.on_host(get).join().unwrap().ok().filter(|page| page == "page one\n")
    });
    // And from within, where the same address means the same service.
    cluster.toolbox("box");
    assert_eq!(cluster.exec("box", &format!("wget -qO- http://{NODE_IP}/")), "page one\n");
    // Only for some: the node is a client like any other.
    let only = |sources: &str| {
        let patch = format!(r#"{{"spec":{{"loadBalancerSourceRanges":["{sources}"]}}}}"#);
        cluster.ok(&["patch", "service", "web", "-p", &patch]);
    };
    only("203.0.113.0/24");
    eventually("the node is refused", || cluster.on_host(get).join().unwrap().err());
    only(&format!("{NODE_IP}/32"));
    eventually("the node is let in", || cluster.on_host(get).join().unwrap().ok());
    let outcome =
        cluster.kubectl(&["exec", "box", "--", "wget", "-qO-", "-T2", &format!("http://{NODE_IP}/")]);
    assert!(!outcome.status.success(), "a pod is not among the sources");

    cluster.ok(&[
        "patch",
        "service",
        "web",
        "-p",
        r#"{"spec":{"type":"ClusterIP","loadBalancerSourceRanges":null}}"#,
    ]);
    eventually("nobody listens there any more", || cluster.on_host(get).join().unwrap().err());
    eventually("and the address is gone", || {
        cluster.ok(&["get", "service", "web", "-o", ingress]).is_empty().then_some(())
    });
}

#[test]
fn services_get_addresses_of_a_range_that_is_added() {
    let cluster = Cluster::start();
    let main = cluster.ok(&["get", "servicecidr", "kubernetes", "-o", "jsonpath={.spec.cidrs[0]}"]);
    assert_eq!(main, "10.96.0.0/16");
    cluster.apply("{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.200.0.0/24]}}");
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    eventually("the range is ready", || {
        (cluster.ok(&["get", "servicecidr", "more", "-o", ready]) == "True").then_some(())
    });
    cluster.apply(&web_deployment("web", 1).replace(
        "  selector: {app: web}\n  ports",
        "  clusterIP: 10.200.0.9\n  selector: {app: web}\n  ports",
    ));
    let parent = "jsonpath={.spec.parentRef.resource}/{.spec.parentRef.namespace}/{.spec.parentRef.name}";
    eventually("the address is taken", || {
        let seen = cluster.kubectl(&["get", "ipaddress", "10.200.0.9", "-o", parent]);
        (seen.stdout == b"services/default/web").then_some(())
    });
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    cluster.toolbox("box");
    eventually("it is reached there", || {
        let page = cluster.kubectl(&["exec", "box", "--", "wget", "-qO-", "http://10.200.0.9/"]);
        (page.stdout == b"page one\n").then_some(())
    });
    let answer = cluster.exec("box", "nslookup web.default.svc.cluster.local");
    assert!(answer.contains("Address: 10.200.0.9"), "{answer:?}");
    let address: SocketAddr = "10.200.0.9:80".parse().unwrap();
    let page = cluster.on_host(move || http_get(address)).join().unwrap();
    assert_eq!(page.as_deref(), Ok("page one\n"), "from the node, too");
    let counted = cluster.ok(&["get", "--raw", "/metrics"]);
    assert!(
        counted.contains("workqueue_adds_total{name=\"ipaddresses\"}"),
        "the controllers run in this process"
    );

    // A range with an address in use does not go.
    cluster.ok(&["delete", "servicecidr", "more", "--wait=false"]);
    eventually("it says what holds it", || {
        let reason = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
        (cluster.ok(&["get", "servicecidr", "more", "-o", reason]) == "Terminating").then_some(())
    });
    cluster.ok(&["delete", "service", "web"]);
    eventually("address and range are gone", || {
        let left = cluster.ok(&["get", "ipaddress,servicecidr", "-o", "name"]);
        (!left.contains("10.200.0.9") && !left.contains("/more")).then_some(())
    });
}
