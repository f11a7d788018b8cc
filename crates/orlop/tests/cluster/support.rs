//! One cluster in a network namespace of its own, and the clients that talk to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// The cluster's node as the network namespace's only address.
pub const NODE_IP: &str = "192.168.77.2";
/// The image that every cluster has: busybox with a web server on port 8080.
pub const WEB: &str = "localhost/web:1";
/// The same with another page.
pub const WEB2: &str = "localhost/web:2";

/// How long anything may take that people would wait for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The program under test.
pub fn orlop() -> &'static str {
    env!("CARGO_BIN_EXE_orlop")
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A program from PATH or from the tool cache of `scripts/fetch-tools`.
pub fn tool(name: &str) -> PathBuf {
    let cache = std::env::var_os("ORLOP_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/orlop"));
    let cached = cache.join("tools").join(name);
    if cached.exists() {
        return cached;
    }
    let path = std::env::var_os("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| {
        panic!("{name} is missing: run scripts/fetch-tools, or start the tests with ./test")
    })
}

/// Runs a command and panics with its output when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed\n{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both streams of a finished command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Repeats `probe` until it returns something; panics with `what` when patience ends.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "did not happen within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A network namespace with one address, removed at the end.
pub struct HostNamespace {
    pub name: String,
}

impl HostNamespace {
    pub fn new() -> Self {
        let name = format!("orlop-test-{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff);
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        for arguments in [
            "link set lo up",
            "link add ext0 type veth peer name ext1",
            &format!("addr add {NODE_IP}/24 dev ext0"),
            "link set ext1 up",
            "link set ext0 up",
        ] {
            run(namespace.command("ip").args(arguments.split(' ')));
        }
        namespace
    }

    /// A command that runs inside. Only the network is another one: cgroups and files are the host's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }
}

impl Drop for HostNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A running cluster of one node; stopped and cleaned away at the end of the test.
pub struct Cluster {
    pub host: HostNamespace,
    pub directory: tempfile::TempDir,
    server: Option<Child>,
    flags: Vec<String>,
}

impl Cluster {
    /// A cluster whose node is Ready and has the test images.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with further flags of the server.
    pub fn start_with(flags: &[&str]) -> Self {
        let mut cluster = Self {
            host: HostNamespace::new(),
            directory: tempfile::Builder::new().prefix("orlop-test-").tempdir().unwrap(),
            server: None,
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
        };
        cluster.start_server();
        cluster.wait_until_ready();
        for (image, page) in [(WEB, "page one\n"), (WEB2, "page two\n")] {
            let archive = web_image(cluster.directory.path(), image, page);
            run(cluster.orlop("image").arg("import").arg("--data-dir").arg(cluster.data()).arg(archive));
        }
        cluster
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// Starts the server process; returns at once.
    pub fn start_server(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.orlop("server");
        command
            .arg("--data-dir")
            .arg(self.data())
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .args(["--node-name", "node-1", "--node-ip", NODE_IP])
            // The tests are about other things than how full the disk of the machine is.
            .args(["--eviction-hard", "nodefs.available<1%"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.server = Some(command.spawn().unwrap());
    }

    /// `kill -9`, as the kernel or an operator would.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn wait_until_ready(&mut self) {
        eventually("the node is Ready", || {
            if let Some(status) = self.server.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log_tail());
            }
            let jsonpath = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
            let output = self.kubectl(&["get", "nodes", "-o", jsonpath]);
            (output.status.success() && output.stdout == b"True").then_some(())
        });
        eventually("the default service account exists", || {
            self.kubectl(&["get", "serviceaccount", "default"]).status.success().then_some(())
        });
    }

    pub fn orlop(&self, subcommand: &str) -> Command {
        let mut command = self.host.command(orlop());
        command.arg(subcommand);
        command
    }

    /// A client's command, ready for this cluster.
    pub fn client(&self, program: &str) -> Command {
        let mut command = self.host.command(tool(program));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.directory.path());
        command
    }

    /// Runs kubectl, whatever comes of it.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.client("kubectl").args(arguments).output().unwrap()
    }

    /// Runs kubectl; it must succeed. Returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        run(self.client("kubectl").args(arguments))
    }

    /// Runs kubectl; it must fail. Returns its error text.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} should fail:\n{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with `input` on its standard input, whatever comes of it.
    pub fn kubectl_stdin(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.client("kubectl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A client that ends early closes the pipe; what it said is in its output.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.kubectl_stdin(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "apply failed\n{}\n{manifest}", text(&output));
        text(&output)
    }

    /// An object or list as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend_from_slice(arguments);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Runs a shell command in a pod.
    pub fn exec(&self, pod: &str, script: &str) -> String {
        self.ok(&["exec", pod, "--", "sh", "-c", script])
    }

    /// A pod that sleeps, Ready when this returns.
    pub fn toolbox(&self, name: &str) {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, \
             containers: [{{name: main, image: {WEB}, command: [sleep, '100000']}}]}}}}"
        ));
        self.ok(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]);
    }

    /// Runs `work` on a thread inside the host's network namespace.
    pub fn on_host<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.host.name)).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- end of the server's log ----\n{}", self.log_tail());
            let seen = self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]);
            let nodes = self.kubectl(&["get", "nodes", "-o", "yaml"]);
            eprintln!("---- pods, events, nodes ----\n{}{}", text(&seen), text(&nodes));
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let cleaned = self.orlop("uninstall").arg("--data-dir").arg(self.data()).output();
        if let Ok(output) = cleaned
            && !output.status.success()
        {
            eprintln!("uninstall failed: {}", text(&output));
        }
    }
}

/// Builds the archive of a test image in `directory`.
fn web_image(directory: &Path, name: &str, page: &str) -> PathBuf {
    let archive = directory.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    run(Command::new(repository().join("scripts/web-image")).arg(&archive).args([name, page]));
    archive
}

/// One HTTP/1.0 GET with a new connection; the body, or what went wrong. Runs on the calling thread's network.
pub fn http_get(address: SocketAddr) -> Result<String, String> {
    let limit = Duration::from_secs(5);
    let mut stream =
        TcpStream::connect_timeout(&address, limit).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| format!("write: {error}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("read: {error}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(format!("answer: {answer:?}")),
    }
}

/// A Deployment of web servers and its Service, as most tests want them.
pub fn web_deployment(name: &str, replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
        - name: web
          image: {WEB}
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
          lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"#
    )
}
