//! Pod network, Services and DNS with real packets between network namespaces. Needs root, nft, ip and conntrack.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod node;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use node::cluster::{Cluster, NODE, options, request};
use node::{Inside, eventually, ip, on_a_node, sh};
use orlop_client::{Informer, ObjectKey};
use orlop_cri::{PodNetwork, PortMapping};
use orlop_network::{BridgeNetwork, ClusterDns, DnsOptions, NodeRoutes, cleanup};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[test]
fn pods_reach_each_other_and_the_world() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let ((a, a_ip), (b, b_ip)) = (cluster.pod("a").await, cluster.pod("b").await);
        assert_eq!((a_ip.as_str(), b_ip.as_str()), ("10.244.3.2", "10.244.3.3"));
        let at = |ip: &str| format!("{ip}:8080");
        assert_eq!(a.ask(&at(&b_ip)).await, format!("b {a_ip}"), "pod to pod keeps the address");
        assert_eq!(a.ask(&at(&a_ip)).await, format!("a {a_ip}"), "a pod reaches itself");
        assert_eq!(cluster.host.ask(&at(&a_ip)).await, "a 10.244.3.1", "node to pod");
        b.shell("ping -c1 -W1 10.244.3.1 >/dev/null 2>&1 || true").await;

        cluster.outside.serve("outside", 9000).await;
        sh("ip link set uplink up");
        assert_eq!(a.ask("192.0.2.2:9000").await, "outside 192.0.2.1", "leaving traffic is masqueraded");

        // Idempotent by sandbox, also with a new process in between.
        assert_eq!(cluster.network.attach(&request(&a, "a", vec![])).await.unwrap().ips, [ip(&a_ip)]);
        let (_, known) = watch::channel(Some("10.244.3.0/24".parse().unwrap()));
        let again = BridgeNetwork::open(cluster.options.clone(), known).await.unwrap();
        assert_eq!(again.attach(&request(&a, "a", vec![])).await.unwrap().ips, [ip(&a_ip)]);
        assert_eq!(a.ask(&at(&b_ip)).await, format!("b {a_ip}"));

        // A sandbox that died with its namespace: the next start frees its address.
        let dead = Inside::new();
        cluster.network.attach(&request(&dead, "dead", vec![])).await.unwrap();
        let links = sh("ip -br link | grep -c veth");
        drop(dead);
        eventually("the kernel took the interface", async || sh("ip -br link | grep -c veth") != links).await;
        let reserved = || std::fs::read_dir(cluster.options.state_dir.join("sandboxes")).unwrap().count();
        assert_eq!(reserved(), 3);
        let (_, known) = watch::channel(Some("10.244.3.0/24".parse().unwrap()));
        let again = BridgeNetwork::open(cluster.options.clone(), known).await.unwrap();
        assert_eq!(reserved(), 2);
        again.detach("b").await.unwrap();
        again.detach("b").await.unwrap();
        again.detach("never-there").await.unwrap();
        assert!(cluster.host.ask(&at(&b_ip)).await != format!("b {a_ip}"));
    });
}

#[test]
fn not_ready_without_a_pod_cidr() {
    on_a_node(|| async {
        let state = tempfile::tempdir().unwrap();
        let (cidr, known) = watch::channel(None);
        let network = BridgeNetwork::open(options(&state), known).await.unwrap();
        let reason = network.ready().await.unwrap_err();
        assert!(reason.contains("node me has no pod CIDR yet"), "{reason}");
        let pod = Inside::new();
        let error = network.attach(&request(&pod, "a", vec![])).await.unwrap_err();
        assert!(error.to_string().contains("no pod CIDR"), "{error}");
        let stop = CancellationToken::new();
        let run = tokio::spawn(network.clone().run(stop.clone()));
        cidr.send(Some("10.244.9.0/24".parse().unwrap())).unwrap();
        eventually("the bridge is made", async || sh("ip -br addr").contains("10.244.9.1/24")).await;
        network.ready().await.unwrap();
        assert_eq!(network.attach(&request(&pod, "a", vec![])).await.unwrap().ips, [ip("10.244.9.2")]);
        stop.cancel();
        run.await.unwrap();

        // A namespace that is no namespace: the error says so and nothing stays reserved.
        let mut bad = request(&pod, "bad", vec![]);
        bad.netns = "/proc/self/ns/nothing".into();
        let error = network.attach(&bad).await.unwrap_err().to_string();
        assert!(error.contains("pod-bad") && error.contains("/proc/self/ns/nothing"), "{error}");
        assert_eq!(std::fs::read_dir(state.path().join("sandboxes")).unwrap().count(), 1);
    });
}

#[test]
fn routes_to_other_nodes() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let node = |name: &str, cidr: &str, address: &str| -> k8s_openapi::api::core::v1::Node {
            let addresses = json!([{"type": "InternalIP", "address": address}]);
            let node = json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr}, "status": {"addresses": addresses}});
            serde_json::from_value(node).unwrap()
        };
        let nodes = Informer::fixed([
            node(NODE, "10.244.3.0/24", "192.0.2.1"),
            node("far", "10.244.6.0/24", "198.51.100.1"),
            node("other", "10.244.7.0/24", "192.0.2.2"),
        ]);
        // Left by an earlier run: ours, but nobody's any more.
        sh("ip route add 10.244.8.0/24 via 192.0.2.2 proto 111; ip route add 10.244.9.0/24 via 192.0.2.2");
        let stop = CancellationToken::new();
        let running = tokio::spawn(NodeRoutes::new(cluster.options.clone(), nodes.clone()).run(stop.clone()));
        let routes = || sh("ip route");
        eventually("the route", async || routes().contains("10.244.7.0/24 via 192.0.2.2")).await;
        eventually("cleared", async || !routes().contains("10.244.8.0")).await;
        assert!(routes().contains("10.244.9.0"), "a route of somebody else");
        // The far node's route fails until it moves to this link; it must not be in the others' way.
        nodes.insert(node("other", "10.244.7.0/24", "192.0.2.3"));
        nodes.insert(node("far", "10.244.6.0/24", "192.0.2.4"));
        eventually("moved", async || {
            routes().contains("10.244.7.0/24 via 192.0.2.3")
                && routes().contains("10.244.6.0/24 via 192.0.2.4")
        })
        .await;
        nodes.remove(&ObjectKey::new("", "other"));
        eventually("gone", async || !routes().contains("10.244.7.0")).await;
        stop.cancel();
        running.await.unwrap();
    });
}

#[test]
fn host_ports() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let pod = Inside::new();
        let port = |host_port, host_ip: Option<&str>| PortMapping {
            protocol: "TCP".into(),
            container_port: 8080,
            host_port,
            host_ip: host_ip.map(ip),
        };
        let ports = vec![port(8088, None), port(8089, Some("192.0.2.1"))];
        let attached = cluster.network.attach(&request(&pod, "web", ports)).await.unwrap();
        pod.serve("web", 8080).await;
        assert_eq!(
            cluster.outside.ask("192.0.2.1:8088").await,
            "web 192.0.2.2",
            "the client's address is kept"
        );
        assert_eq!(cluster.outside.ask("192.0.2.1:8089").await, "web 192.0.2.2");
        assert_eq!(cluster.host.ask_name("192.0.2.1:8088").await, "web");
        assert_eq!(cluster.host.ask_name("127.0.0.1:8088").await, "web");
        assert_eq!(cluster.host.ask("127.0.0.1:8089").await, "ConnectionRefused");
        eventually("the pod itself by its host port", async || pod.ask_name("192.0.2.1:8088").await == "web")
            .await;

        let other = Inside::new();
        let error = cluster.network.attach(&request(&other, "x", vec![port(8088, None)])).await.unwrap_err();
        assert!(error.to_string().contains("host port TCP 8088 is already taken by sandbox web"), "{error}");
        cluster.network.detach("web").await.unwrap();
        assert_eq!(cluster.outside.ask("192.0.2.1:8088").await, "ConnectionRefused");
        assert!(!sh("ip -br link").contains("veth") && !attached.ips.is_empty());
    });
}

#[test]
fn services() {
    services_with_bridge_netfilter(false);
}

/// Other software on the host may need the module, and then the kernel translates addresses inside the bridge.
#[test]
fn services_where_the_bridge_calls_netfilter() {
    services_with_bridge_netfilter(true);
}

fn services_with_bridge_netfilter(on: bool) {
    on_a_node(move || async move {
        sh(&format!(
            "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo {} > $f",
            u8::from(on)
        ));
        let cluster = Cluster::start().await;
        let ((a, a_ip), (b, b_ip)) = (cluster.pod("a").await, cluster.pod("b").await);
        let (_client, client_ip) = cluster.pod("client").await;
        let client = &_client;
        cluster.service(
            "web",
            "10.96.0.7",
            json!({
                "type": "NodePort", "externalIPs": ["203.0.113.5"],
                "ports": [{"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": 30080},
                    {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080}],
            }),
        );
        cluster.endpoints("web", &[&a_ip]);
        let (stop, running) = cluster.proxy();
        let vip = "10.96.0.7:80";
        eventually("the Service answers", async || client.ask(vip).await == format!("a {client_ip}")).await;
        assert_eq!(cluster.host.ask_name(vip).await, "a", "from the node, which has no default route");
        assert_eq!(a.ask(vip).await, "a 10.244.3.1", "a pod meets itself through its Service");
        assert_eq!(cluster.outside.ask("192.0.2.1:30080").await, "a 10.244.3.1", "node port");
        assert_eq!(cluster.host.ask_name("192.0.2.1:30080").await, "a", "node port from the node");
        assert_eq!(client.ask_name("192.0.2.1:30080").await, "a", "node port from a pod");
        assert_eq!(client.ask_name("10.244.3.1:30080").await, "a", "node port on every address");
        cluster
            .outside
            .shell("ip route add 203.0.113.5 via 192.0.2.1; ip route add 10.96.0.0/16 via 192.0.2.1")
            .await;
        assert_eq!(cluster.outside.ask("203.0.113.5:80").await, "a 10.244.3.1", "external IP");
        assert_eq!(cluster.outside.ask(vip).await, "a 10.244.3.1", "cluster IP from outside is masqueraded");

        // Both endpoints get their share.
        cluster.endpoints("web", &[&a_ip, &b_ip]);
        let (mut seen_a, mut seen_b) = (0, 0);
        eventually("both endpoints answer", async || {
            match client.ask_name(vip).await.as_str() {
                "a" => seen_a += 1,
                "b" => seen_b += 1,
                other => panic!("{other}"),
            }
            seen_a > 3 && seen_b > 3
        })
        .await;
        assert_eq!(
            b.ask_name("10.96.0.7:81").await,
            "ConnectionRefused",
            "a port that the Service does not have"
        );

        // UDP: one client socket keeps working when its endpoint goes.
        let socket = client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).await;
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.connect("10.96.0.7:80").unwrap();
        let socket = Arc::new(socket);
        let udp = async || {
            let socket = socket.clone();
            let exchange = move || {
                let mut buffer = [0; 64];
                socket.send(b"?").ok()?;
                let length = socket.recv(&mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..1.min(length)]).into_owned())
            };
            tokio::task::spawn_blocking(exchange).await.unwrap().unwrap_or_default()
        };
        let first: String = udp().await;
        assert!(first == "a" || first == "b", "{first}");
        let (rest, rest_ip) = if first == "a" { ("b", &b_ip) } else { ("a", &a_ip) };
        cluster.endpoints("web", &[rest_ip]);
        eventually("the UDP flow moved", async || udp().await == rest).await;

        // The same while no proxy runs: the next one clears it.
        stop.cancel();
        running.await.unwrap();
        cluster.endpoints("web", &[if rest == "a" { &b_ip } else { &a_ip }]);
        let (stop, _) = cluster.proxy();
        eventually("the UDP flow moved again", async || udp().await == first).await;

        // An endpoint on the node itself, as of the Service "kubernetes".
        cluster.host.serve("host", 8080).await;
        cluster.service("kubernetes", "10.96.0.1", json!({}));
        cluster.endpoints("kubernetes", &["192.0.2.1"]);
        eventually("pod to node", async || client.ask("10.96.0.1:80").await == format!("host {client_ip}"))
            .await;
        assert_eq!(cluster.host.ask_name("10.96.0.1:80").await, "host");

        // No endpoints, no answer, at once.
        cluster.endpoints("web", &[]);
        eventually("refused", async || client.ask(vip).await == "ConnectionRefused").await;
        assert_eq!(cluster.host.ask(vip).await, "ConnectionRefused");
        assert_eq!(cluster.outside.ask("192.0.2.1:30080").await, "ConnectionRefused");

        // The last row goes with the Service, chains included.
        for service in ["web", "kubernetes"] {
            cluster.services.remove(&ObjectKey::new("default", service));
        }
        eventually("the table is empty", async || {
            let table = sh("nft list table ip orlop");
            !table.contains("10.96.0.7") && !table.contains("chain pick-") && !table.contains("30080")
        })
        .await;
        stop.cancel();
    });
}

#[test]
fn affinity_and_local_traffic() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let ((_a, a_ip), (_b, b_ip)) = (cluster.pod("a").await, cluster.pod("b").await);
        let (client, _) = cluster.pod("client").await;
        cluster.service(
            "sticky",
            "10.96.0.8",
            json!({
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
            }),
        );
        cluster.endpoints("sticky", &[&a_ip, &b_ip]);
        let ports = json!([{"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": 30081}]);
        cluster.service(
            "local",
            "10.96.0.9",
            json!({
                "type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local",
            }),
        );
        let remote = format!("{b_ip}@other");
        cluster.endpoints("local", &[&a_ip, &remote]);
        let ports = json!([{"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": 30082}]);
        cluster.service(
            "away",
            "10.96.0.11",
            json!({
                "type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local",
            }),
        );
        cluster.endpoints("away", &[&remote]);
        let (stop, _) = cluster.proxy();

        let vip = "10.96.0.8:80";
        eventually("answers", async || ["a", "b"].contains(&client.ask_name(vip).await.as_str())).await;
        let first = client.ask_name(vip).await;
        for _ in 0..12 {
            assert_eq!(client.ask_name(vip).await, first);
        }
        let (rest, rest_ip) = if first == "a" { ("b", &b_ip) } else { ("a", &a_ip) };
        cluster.endpoints("sticky", &[rest_ip]);
        eventually("affinity moved", async || client.ask_name(vip).await == rest).await;
        cluster.endpoints("sticky", &[&a_ip, &b_ip]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        for _ in 0..12 {
            assert_eq!(client.ask_name(vip).await, rest);
        }

        for _ in 0..6 {
            assert_eq!(
                cluster.outside.ask("192.0.2.1:30081").await,
                "a 192.0.2.2",
                "local, with the client's address"
            );
        }
        assert_eq!(
            cluster.outside.ask("192.0.2.1:30082").await,
            "TimedOut",
            "dropped where nothing is local"
        );
        assert_eq!(
            client.ask_name("192.0.2.1:30082").await,
            "b",
            "clients in the cluster reach all endpoints"
        );
        assert_eq!(cluster.host.ask_name("192.0.2.1:30082").await, "b");
        stop.cancel();
    });
}

#[test]
fn sources_of_a_load_balancer() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let ((_a, a_ip), (pod, _)) = (cluster.pod("a").await, cluster.pod("pod").await);
        let balanced = |ranges: &[&str]| {
            let mut service = cluster.balanced("10.96.0.12", "192.0.2.1");
            service.spec.as_mut().unwrap().load_balancer_source_ranges =
                Some(ranges.iter().map(|range| (*range).to_owned()).collect());
            cluster.services.insert(service);
        };
        balanced(&["192.0.2.2/32"]);
        cluster.endpoints("balanced", &[&a_ip]);
        let (stop, _) = cluster.proxy();
        let at = "192.0.2.1:80";
        eventually("a source", async || cluster.outside.ask_name(at).await == "a").await;
        assert_eq!(cluster.host.ask(at).await, "TimedOut", "the node itself is none");
        assert_eq!(pod.ask(at).await, "TimedOut", "nor is a pod");
        assert_eq!(cluster.host.ask_name("10.96.0.12:80").await, "a", "the cluster IP is for all");

        balanced(&["192.0.2.1/32"]);
        eventually("the node is one", async || cluster.host.ask_name(at).await == "a").await;
        assert_eq!(cluster.outside.ask(at).await, "TimedOut");
        balanced(&["192.0.2.0/24", "10.244.0.0/16"]);
        eventually("all are", async || pod.ask_name(at).await == "a").await;
        assert_eq!(cluster.host.ask_name(at).await, "a");
        assert_eq!(cluster.outside.ask_name(at).await, "a");
        stop.cancel();
    });
}

#[test]
fn ranges_that_are_added() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let ((_a, a_ip), (pod, _)) = (cluster.pod("a").await, cluster.pod("pod").await);
        let cidr = |name: &str, ranges: &[&str]| {
            let object = json!({"metadata": {"name": name}, "spec": {"cidrs": ranges}});
            cluster.cidrs.insert(serde_json::from_value(object).unwrap());
        };
        cidr("kubernetes", &["10.96.0.0/16"]);
        cluster.service("far", "172.30.5.5", json!({}));
        cluster.endpoints("far", &[&a_ip]);
        let (stop, running) = cluster.proxy();
        let vip = "172.30.5.5:80";
        eventually("a pod has a route anyway", async || pod.ask_name(vip).await == "a").await;
        assert_eq!(
            cluster.host.ask(vip).await,
            "NetworkUnreachable",
            "the node has none without a default route"
        );

        // One within another, and one of the other family.
        cidr("more", &["172.30.0.0/20", "fd00:30::/64"]);
        cidr("within", &["172.30.5.0/24"]);
        eventually("the node has one", async || cluster.host.ask_name(vip).await == "a").await;
        assert_eq!(cluster.host.ask("172.30.5.6:80").await, "TimedOut", "an address that no Service has");
        assert_eq!(pod.ask("172.30.5.6:80").await, "TimedOut");
        assert_eq!(cluster.host.ask("172.30.5.5:81").await, "ConnectionRefused");
        cluster.service("near", "10.96.0.13", json!({}));
        cluster.endpoints("near", &[&a_ip]);
        eventually("changes go on", async || cluster.host.ask_name("10.96.0.13:80").await == "a").await;

        // What is left of a range, and what went while no proxy ran.
        cluster.cidrs.remove(&ObjectKey::new("", "more"));
        eventually("less", async || sh("ip route").contains("172.30.5.0/24")).await;
        assert!(!sh("ip route").contains("172.30.0.0/20"));
        stop.cancel();
        running.await.unwrap();
        cluster.cidrs.remove(&ObjectKey::new("", "within"));
        let (stop, running) = cluster.proxy();
        eventually("none", async || !sh("ip route").contains("172.30.")).await;
        stop.cancel();
        running.await.unwrap();
        cidr("more", &["172.30.0.0/20"]);
        let (stop, running) = cluster.proxy();
        eventually("again", async || cluster.host.ask_name(vip).await == "a").await;
        stop.cancel();
        running.await.unwrap();
        cleanup(&cluster.options).await.unwrap();
        assert!(!sh("ip route").contains("proto 111"));
    });
}

#[test]
fn a_restart_interrupts_nothing() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let (client, _) = cluster.pod("client").await;
        let (_a, a_ip) = cluster.pod("a").await;
        for number in 1..200_u8 {
            let name = format!("web-{number}");
            cluster.service(&name, &format!("10.96.1.{number}"), json!({}));
            cluster.endpoints(&name, &[&a_ip]);
        }
        let (mut stop, mut running) = cluster.proxy();
        let vip = "10.96.1.77:80";
        eventually("answers", async || client.ask_name(vip).await == "a").await;
        let (done, failed, asked) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let hammer = {
            let (done, failed, asked) = (done.clone(), failed.clone(), asked.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if client.ask_name(vip).await != "a" {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        for _ in 0..5 {
            stop.cancel();
            running.await.unwrap();
            (stop, running) = cluster.proxy();
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        done.store(true, Ordering::Relaxed);
        hammer.await.unwrap();
        assert!(asked.load(Ordering::Relaxed) > 20);
        assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}", asked.load(Ordering::Relaxed));

        // What went while no proxy ran is gone after the next start.
        stop.cancel();
        running.await.unwrap();
        cluster.services.remove(&ObjectKey::new("default", "web-77"));
        let (stop, running) = cluster.proxy();
        eventually("gone", async || !sh("nft list table ip orlop").contains("10.96.1.77 ")).await;

        // Somebody flushes the ruleset: the next change writes all of it again.
        sh("nft flush ruleset");
        cluster.service("web-77", "10.96.1.77", json!({}));
        eventually("repaired", async || {
            sh("nft list table ip orlop 2>/dev/null || true").contains("10.96.1.78 ")
        })
        .await;
        stop.cancel();
        running.await.unwrap();
    });
}

/// One DNS question over a socket of the pod's namespace; the answer's bytes.
async fn dig(pod: &Inside, server: Ipv4Addr, name: &str, kind: u16, tcp: bool) -> Vec<u8> {
    dig_with(pod, server, name, kind, tcp, &[]).await
}

/// With an additional record.
async fn dig_with(pod: &Inside, server: Ipv4Addr, name: &str, kind: u16, tcp: bool, more: &[u8]) -> Vec<u8> {
    let mut question: Vec<u8> = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend([&kind.to_be_bytes()[..], &[0, 1]].concat());
    question[11] = u8::from(!more.is_empty());
    question.extend(more);
    pod.run(move || {
        use std::io::{Read, Write};
        let patience = Some(Duration::from_secs(2));
        let mut buffer = vec![0; 65536];
        if tcp {
            let Ok(mut stream) = std::net::TcpStream::connect((server, 53)) else { return vec![] };
            stream.set_read_timeout(patience).unwrap();
            stream.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&question).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            buffer.truncate(usize::from(u16::from_be_bytes(length)));
            stream.read_exact(&mut buffer).unwrap();
        } else {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(patience).unwrap();
            socket.connect((server, 53)).unwrap();
            if socket.send(&question).is_err() {
                return vec![];
            }
            let length = socket.recv(&mut buffer).unwrap_or(0);
            buffer.truncate(length);
        }
        buffer
    })
    .await
}

#[test]
fn dns() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let (pod, _) = cluster.pod("a").await;
        cluster.service("web", "10.96.0.7", json!({}));
        cluster.service("many", "None", json!({}));
        cluster.service("out", "", json!({"type": "ExternalName", "externalName": "www.example.com"}));
        let many: Vec<String> = (1..100).map(|n| format!("10.244.5.{n}")).collect();
        cluster.endpoints("many", &many.iter().map(String::as_str).collect::<Vec<_>>());
        // A Service object for DNS itself, without endpoints, must not be in the way.
        cluster.service(
            "kube-dns",
            "10.96.0.10",
            json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        );
        let (stop, _) = cluster.proxy();
        // The upstream resolver is a socket on the node that answers 203.0.113.9 to everything.
        let upstream = UdpSocket::bind("127.0.0.9:53").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = upstream.recv_from(&mut buffer) {
                let mut answer = buffer[..length].to_vec();
                answer[2] = 0x81;
                answer[3] = 0x80;
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 9]);
                let _ = upstream.send_to(&answer, peer);
            }
        });
        let resolv = cluster.options.state_dir.join("resolv.conf");
        std::fs::write(&resolv, "nameserver 10.96.0.10\nnameserver 127.0.0.9\n").unwrap();
        let dns = ClusterDns::new(
            cluster.options.clone(),
            DnsOptions { resolv_conf: resolv, ..DnsOptions::default() },
            cluster.services.clone(),
            cluster.slices.clone(),
        )
        .unwrap();
        let running = tokio::spawn(dns.run(stop.clone()));
        let server = Ipv4Addr::new(10, 96, 0, 10);
        let (a, web) = (1, "web.default.svc.cluster.local");
        eventually("DNS answers", async || !dig(&pod, server, web, a, false).await.is_empty()).await;
        eventually("the proxy runs", async || sh("nft list table ip orlop").contains("10.96.0.7 ")).await;

        for (name, tcp, code, answers, ends) in [
            (web, false, 0, 1, &[10, 96, 0, 7][..]),
            (web, true, 0, 1, &[10, 96, 0, 7]),
            ("gone.default.svc.cluster.local", false, 3, 0, &[]),
            ("www.example.org", false, 0, 1, &[203, 0, 113, 9]),
            ("out.default.svc.cluster.local", false, 0, 2, &[203, 0, 113, 9]),
        ] {
            let answer = dig(&pod, server, name, a, tcp).await;
            assert_eq!((answer[3] & 15, answer[7]), (code, answers), "{name} {answer:?}");
            assert!(answer.ends_with(ends), "{name} {answer:?}");
            let host = dig(&cluster.host, server, name, a, tcp).await;
            assert_eq!((host[3] & 15, host[7]), (code, answers), "from the node: {name}");
        }
        // Too much for a datagram: truncated there, whole over TCP.
        let many = "many.default.svc.cluster.local";
        let short = dig(&pod, server, many, a, false).await;
        assert!(short.len() <= 512 && short[2] & 2 == 2, "{}", short.len());
        // A client that says it takes 4096 bytes gets them, and is told how many this server takes.
        let edns = [0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0];
        let large = dig_with(&pod, server, many, a, false, &edns).await;
        assert_eq!((large[2] & 2, large[7], large[11]), (0, 99, 1));
        let version = [0, 0, 41, 16, 0, 0, 1, 0, 0, 0, 0];
        let refused = dig_with(&pod, server, many, a, false, &version).await;
        assert_eq!((refused[7], refused[11]), (0, 1), "an EDNS version that nobody knows yet");
        let whole = dig(&pod, server, many, a, true).await;
        assert_eq!((whole[2] & 2, whole[7]), (0, 99));
        stop.cancel();
        running.await.unwrap();
    });
}

#[test]
fn cleanup_leaves_nothing() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let state = || {
            let flags = "ip -br link | sort; ip -br addr; ip route; nft list tables";
            sh(flags)
        };
        let (pod, a_ip) = cluster.pod("a").await;
        cluster.service("web", "10.96.0.7", json!({}));
        cluster.endpoints("web", &[&a_ip]);
        let (stop, running) = cluster.proxy();
        eventually("answers", async || cluster.host.ask_name("10.96.0.7:80").await == "a").await;
        let dns = ClusterDns::new(
            cluster.options.clone(),
            DnsOptions::default(),
            cluster.services.clone(),
            cluster.slices.clone(),
        )
        .unwrap();
        let named = tokio::spawn(dns.run(stop.clone()));
        eventually("DNS address", async || state().contains("10.96.0.10")).await;
        stop.cancel();
        running.await.unwrap();
        named.await.unwrap();
        assert!(state().contains("orlop"));

        cleanup(&cluster.options).await.unwrap();
        cleanup(&cluster.options).await.unwrap();
        let left = state();
        for word in ["orlop", "10.96.", "10.244.", "veth0", "table"] {
            assert!(!left.contains(word), "{word} in {left}");
        }
        assert!(!cluster.options.state_dir.join("sandboxes").exists());
        drop(pod);
    });
}

/// Prints, does not judge: `cargo nextest run -p orlop-network --run-ignored only --no-capture`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    on_a_node(|| async {
        let cluster = Cluster::start().await;
        let mut pods = Vec::new();
        for number in 0..20 {
            let pod = Inside::new();
            let start = std::time::Instant::now();
            cluster.network.attach(&request(&pod, &format!("p{number}"), vec![])).await.unwrap();
            pods.push((start.elapsed(), pod));
        }
        let mut times: Vec<_> = pods.iter().map(|(time, _)| *time).collect();
        times.sort();
        println!("attach: median {:?}, longest {:?}", times[10], times[19]);
        for number in 0..5000_u16 {
            let [high, low] = number.to_be_bytes();
            let name = format!("s{number}");
            cluster.service(&name, &format!("10.96.{}.{low}", high + 100), json!({}));
            cluster.endpoints(&name, &["10.244.3.2", "10.244.4.2@x", "10.244.5.2@x"]);
        }
        let listed =
            |text: &str| sh("nft list map ip orlop address-services 2>/dev/null || true").contains(text);
        let start = std::time::Instant::now();
        let (stop, running) = cluster.proxy();
        while !listed("10.96.119.135 . udp") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("5000 services of 2 ports and 3 endpoints: {:?} until nft shows the last", start.elapsed());
        stop.cancel();
        running.await.unwrap();
        let start = std::time::Instant::now();
        let stop = cluster.proxy().0;
        let (client, _) = cluster.pod("client").await;
        let (_a, a_ip) = cluster.pod("a").await;
        eventually("taken over", async || {
            cluster.endpoints("s77", &[&a_ip]);
            client.ask_name("10.96.100.77:80").await == "a"
        })
        .await;
        println!("taken over after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
        for round in 0..3_u8 {
            let start = std::time::Instant::now();
            cluster.service("new", &format!("10.96.90.{round}"), json!({}));
            cluster.endpoints("new", &[&a_ip]);
            let vip = std::net::SocketAddr::from(([10, 96, 90, round], 80));
            let patience = Duration::from_millis(5);
            client.run(move || while std::net::TcpStream::connect_timeout(&vip, patience).is_err() {}).await;
            println!("one service added, until a connection to it works: {:?}", start.elapsed());
        }
        stop.cancel();
    });
}
