//! A node for tests: a thread in a network namespace of its own stands for the host, further ones for pods and for a
//! machine outside. All of it ends with the threads; nothing has a name on the real host. Needs root.

pub mod cluster;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A thread inside a network namespace that runs what it is given.
pub struct Inside {
    jobs: mpsc::Sender<Job>,
    /// Opens the namespace.
    pub netns: PathBuf,
}

impl Inside {
    /// A new namespace.
    pub fn new() -> Self {
        Self::start(|| unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)"))
    }

    /// Another thread in the namespace of the calling thread.
    pub fn here() -> Self {
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        Self::start(move || setns(netns, CloneFlags::CLONE_NEWNET).unwrap())
    }

    fn start(enter: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, receive) = mpsc::channel::<Job>();
        let (ready, wait) = mpsc::channel();
        thread::spawn(move || {
            enter();
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            ready.send(PathBuf::from("/proc").join(thread).join("ns/net")).unwrap();
            while let Ok(job) = receive.recv() {
                job();
            }
        });
        Self { jobs, netns: wait.recv().unwrap() }
    }

    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = oneshot::channel();
        self.jobs.send(Box::new(move || drop(answer.send(work())))).unwrap();
        result.await.unwrap()
    }

    /// Serves TCP and UDP on `port`: each client gets `NAME CLIENT-IP`.
    pub async fn serve(&self, name: &'static str, port: u16) {
        let (tcp, udp) = self
            .run(move || {
                (TcpListener::bind(("0.0.0.0", port)).unwrap(), UdpSocket::bind(("0.0.0.0", port)).unwrap())
            })
            .await;
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let mut stream = stream;
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// What the server at `address` says; errors as words.
    pub async fn ask(&self, address: &str) -> String {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || ask(address)).await
    }

    /// The server's name alone.
    pub async fn ask_name(&self, address: &str) -> String {
        self.ask(address).await.split(' ').next().unwrap().to_owned()
    }

    pub async fn shell(&self, command: &'static str) {
        self.run(move || sh(command)).await;
    }
}

fn ask(address: SocketAddr) -> String {
    let answer = TcpStream::connect_timeout(&address, Duration::from_secs(1)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    answer.unwrap_or_else(|error| format!("{:?}", error.kind()))
}

/// Runs a shell command in the calling thread's namespace.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `test` on a thread in a fresh namespace.
pub fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    // Shown when the test fails.
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A machine outside the cluster, `192.0.2.2`, on a link with the node, `192.0.2.1`.
pub async fn outside() -> Inside {
    let outside = Inside::new();
    let netns = std::fs::File::open(&outside.netns).unwrap();
    use std::os::fd::AsRawFd;
    sh(
        "ip link set lo up; ip link add uplink type veth peer name wire; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up",
    );
    sh(&format!("ip link set wire netns /proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
    outside.shell("ip link set lo up; ip addr add 192.0.2.2/24 dev wire; ip link set wire up").await;
    outside
}

/// Waits up to five seconds until `check` holds.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!(
        "{}",
        sh(
            "nft list ruleset; conntrack -L; ip addr; ip route; nstat -az 2>/dev/null | grep -i -e martian -e IpExtInNoRoutes || true"
        )
    );
    panic!("not within five seconds: {what}");
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
