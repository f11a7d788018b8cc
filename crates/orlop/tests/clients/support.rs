//! An API server of its own for each test.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that people would wait for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program from the tool cache of `scripts/fetch-tools`, or from PATH.
pub fn tool(name: &str) -> PathBuf {
    let cached = cache().join("tools").join(name);
    if cached.exists() {
        return cached;
    }
    let path = std::env::var_os("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| {
        panic!("{name} is missing: run scripts/fetch-tools --dev, or start the tests with ./test")
    })
}

/// Where the project's scripts keep what they fetch.
pub fn cache() -> PathBuf {
    std::env::var_os("ORLOP_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/orlop"))
}

/// Both streams of a finished command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command and panics with its output when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed\n{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Repeats `probe` until it returns something; panics with `what` when patience ends.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "did not happen within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A port that nobody uses at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running API server; it dies with this value.
pub struct Server {
    pub directory: tempfile::TempDir,
    pub port: u16,
    pub child: Child,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// A server with more arguments, ready when this returns.
    pub fn with(arguments: &[&str]) -> Server {
        let directory = tempfile::Builder::new().prefix("orlop-test-").tempdir().unwrap();
        Server::at(directory, free_port(), arguments)
    }

    /// A server with its state in a directory and at a port.
    pub fn at(directory: tempfile::TempDir, port: u16, arguments: &[&str]) -> Server {
        let child = spawn(directory.path(), port, arguments);
        let mut server = Server { directory, port, child };
        server.wait();
        server
    }

    /// The same state and port under other arguments.
    pub fn again(&mut self, arguments: &[&str]) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.directory.path(), self.port, arguments);
        self.wait();
    }

    fn wait(&mut self) {
        eventually("the API server is ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            self.kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(())
        });
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Runs curl, which believes nothing but the answer's text.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> String {
        let mut command = self.client(tool("curl"));
        command.args(["--silent", "--insecure"]).args(arguments).arg(format!("{}{path}", self.url()));
        run(&mut command)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("server.log")).unwrap_or_default()
    }

    /// A client's command, ready for this server.
    pub fn client(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory.path())
            .current_dir(self.directory.path());
        command
    }

    /// Runs kubectl, whatever comes of it.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.client(tool("kubectl")).args(arguments).output().unwrap()
    }

    /// Runs kubectl; it must succeed. Returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        run(self.client(tool("kubectl")).args(arguments))
    }

    /// Runs kubectl; it must fail. Returns its error text.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} should fail:\n{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with `input` on its standard input, whatever comes of it.
    pub fn stdin(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.client(tool("kubectl"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A client that ends early closes the pipe; what it said is in its output.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The same; it must succeed.
    pub fn ok_stdin(&self, arguments: &[&str], input: &str) -> String {
        let output = self.stdin(arguments, input);
        assert!(output.status.success(), "kubectl {arguments:?} failed\n{}\n{input}", text(&output));
        text(&output)
    }

    /// An object or list as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend_from_slice(arguments);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }
}

fn spawn(directory: &Path, port: u16, arguments: &[&str]) -> Child {
    let log = File::create(directory.join("server.log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["apiserver", "--bind-address=127.0.0.1", &format!("--secure-port={port}")])
        .arg(format!("--data-dir={}", directory.join("data").display()))
        .arg(format!("--write-kubeconfig={}", directory.join("kubeconfig").display()))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("---- end of the server's log ----\n{tail}");
        }
    }
}
