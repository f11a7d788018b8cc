//! Connections through the API server: port-forward, exec and attach in both of kubectl's transports, `kubectl cp`,
//! and the proxy subresources.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};

use crate::support::{Cluster, eventually, http_get, text, web_deployment};

/// kubectl's switches between WebSocket and SPDY.
const TRANSPORTS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

fn transport(command: &mut std::process::Command, websocket: &str) {
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket);
}

/// A kubectl that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn port_forward() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 1));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    for (name, websocket) in TRANSPORTS {
        let mut command = cluster.client("kubectl");
        transport(&mut command, websocket);
        command.args(["port-forward", "service/web", ":80"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running(command.spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap_or_else(|| panic!("{name}: kubectl said nothing")).unwrap();
        let port: u16 = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {line}"));
        // Several connections at once, each with its own pair of streams.
        let fetch = move || (0..5).map(|_| http_get(([127, 0, 0, 1], port).into())).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| cluster.on_host(fetch)).collect();
        for thread in threads {
            for page in thread.join().unwrap() {
                assert_eq!(page.as_deref(), Ok("page one\n"), "{name}");
            }
        }
    }
}

#[test]
fn exec_attach_and_copies() {
    let cluster = Cluster::start();
    cluster.toolbox("box");
    for (name, websocket) in TRANSPORTS {
        let kubectl = |arguments: &[&str]| {
            let mut command = cluster.client("kubectl");
            transport(&mut command, websocket);
            command.args(arguments);
            command
        };
        let output =
            kubectl(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {}", text(&output));
        assert_eq!(output.stdout, b"out\n", "{name}");
        assert_eq!(output.stderr, b"err\ncommand terminated with exit code 3\n", "{name}");
        // Stdin ends, and what it said has all arrived.
        let mut command = kubectl(&["exec", "-i", "box", "--", "wc", "-c"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&vec![b'x'; 3_000_000]).unwrap();
        let counted = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), "3000000", "{name}");
        // A directory there and back.
        let near = cluster.directory.path().join(format!("near-{name}"));
        std::fs::create_dir_all(near.join("inner")).unwrap();
        std::fs::write(near.join("inner/file"), vec![7u8; 1_000_000]).unwrap();
        let far = format!("box:/tmp/{name}");
        let copied = kubectl(&["cp", near.to_str().unwrap(), &far]).output().unwrap();
        assert!(copied.status.success(), "{name}: {}", text(&copied));
        let back = cluster.directory.path().join(format!("back-{name}"));
        let copied = kubectl(&["cp", &far, back.to_str().unwrap()]).output().unwrap();
        assert!(copied.status.success(), "{name}: {}", text(&copied));
        assert_eq!(std::fs::read(back.join("inner/file")).unwrap(), vec![7u8; 1_000_000], "{name}");
        // `kubectl run -i` attaches, and shows what the container says.
        let pod = format!("echo-{}", name.to_lowercase());
        let image = crate::support::WEB;
        let arguments =
            ["run", &pod, "-i", "--rm", "--restart=Never", "--image", image, "--command", "--", "cat"];
        let mut command = kubectl(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"said and heard\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(text(&output).contains("said and heard"), "{name}: {}", text(&output));
    }
}

#[test]
fn proxies() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 1));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pod = cluster.ok(&["get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    let get = |path: String| cluster.ok(&["get", "--raw", &path]);
    let base = "/api/v1/namespaces/default";
    for path in [
        format!("{base}/pods/{pod}/proxy/"),
        format!("{base}/pods/{pod}:8080/proxy/"),
        format!("{base}/pods/http:{pod}:8080/proxy/"),
        format!("{base}/services/web:http/proxy/"),
        format!("{base}/services/web:80/proxy/"),
    ] {
        eventually("the endpoints are there", || {
            cluster.kubectl(&["get", "--raw", &path]).status.success().then_some(())
        });
        assert_eq!(get(path.clone()), "page one\n", "{path}");
    }
    assert_eq!(get("/api/v1/nodes/node-1/proxy/healthz".into()), "ok");
    assert!(get("/api/v1/nodes/node-1/proxy/pods".into()).contains("\"PodList\""));
    for (path, message) in [
        (format!("{base}/services/web:81/proxy/"), "no service port 81 found for service \"web\""),
        (format!("{base}/services/none/proxy/"), "endpoints \"none\" not found"),
        (format!("{base}/pods/none/proxy/"), "pods \"none\" not found"),
        (format!("{base}/pods/ftp:{pod}:80/proxy/"), "invalid pod request"),
    ] {
        let refused = cluster.refused(&["get", "--raw", &path]);
        assert!(refused.contains(message), "{path}: {refused}");
    }
    let refused = cluster.refused(&["get", "--raw", &format!("{base}/pods/{pod}:9/proxy/")]);
    assert!(refused.contains("(ServiceUnavailable)"), "{refused}");
}
