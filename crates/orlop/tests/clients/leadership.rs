//! Components whose way to the API server is cut: who leads stops in time, another one goes on, and nothing is done twice.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::components::{Component, LEASE_DURATION, RENEW_DEADLINE, add_node, bound, holder};
use crate::support::{Server, eventually};

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Whole,
    /// Nothing passes; connections stay, and what they carry comes later.
    Stalled,
    /// Connections end, and new ones end at once.
    Reset,
}

/// A way to a server that can be cut. It ends with the process.
struct Link {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Link {
    fn to(port: u16) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Link {
            port: listener.local_addr().unwrap().port(),
            state: Arc::new((Mutex::new(State::Whole), Condvar::new())),
            open: Arc::default(),
        };
        let (state, open) = (link.state.clone(), link.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if *state.0.lock().unwrap() == State::Reset {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let state = state.clone();
                    std::thread::spawn(move || carry(from, to, &state));
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        link
    }

    fn set(&self, state: State) {
        *self.state.0.lock().unwrap() = state;
        self.state.1.notify_all();
        if state == State::Reset {
            for stream in self.open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn cut(&self, state: State, time: Duration) {
        self.set(state);
        std::thread::sleep(time);
        self.set(State::Whole);
    }

    /// The server's kubeconfig with this way in it.
    fn kubeconfig(&self, server: &Server) -> PathBuf {
        let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
        let (old, new) = (format!(":{}", server.port), format!(":{}", self.port));
        assert!(text.contains(&old), "{text}");
        let path = server.directory.path().join(format!("kubeconfig-{}", self.port));
        std::fs::write(&path, text.replace(&old, &new)).unwrap();
        path
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &(Mutex<State>, Condvar)) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let stalled = |state: &mut State| *state == State::Stalled;
        drop(state.1.wait_while(state.0.lock().unwrap(), stalled).unwrap());
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// A leader behind a link, and another one that waits.
struct Pair {
    name: &'static str,
    lease: &'static str,
    link: Link,
    leader: Component,
    _other: Component,
    holder: String,
}

impl Pair {
    fn start(server: &Server, name: &'static str, lease: &'static str) -> Pair {
        let link = Link::to(server.port);
        let way = format!("--kubeconfig={}", link.kubeconfig(server).display());
        let leader = Component::start(server, name, &[&way]);
        let holder = eventually("one leads", || Some(holder(server, lease)).filter(|name| !name.is_empty()));
        let other = Component::start(server, name, &[]);
        eventually("the other waits", || (other.get("/healthz", &[]) == "ok").then_some(()));
        Pair { name, lease, link, leader, _other: other, holder }
    }
}

fn check(cut: State) {
    let server = Server::start();
    add_node(&server);
    let pairs = [("controller-manager", "kube-controller-manager"), ("scheduler", "kube-scheduler")];
    let mut pairs = pairs.map(|(name, lease)| Pair::start(&server, name, lease));
    server.ok(&["create", "deployment", "web", "--image=web:1", "--replicas=3"]);
    eventually("the pods are bound", || (bound(&server, "web") == 3).then_some(()));

    // Less than the deadline.
    for pair in &pairs {
        pair.link.cut(cut, RENEW_DEADLINE / 3);
    }
    std::thread::sleep(LEASE_DURATION);
    for pair in &mut pairs {
        assert_eq!(holder(&server, pair.lease), pair.holder);
        assert!(pair.leader.child.try_wait().unwrap().is_none(), "{} has ended", pair.name);
    }
    server.ok(&["scale", "deployment", "web", "--replicas=5"]);
    eventually("the same leaders go on", || (bound(&server, "web") == 5).then_some(()));

    // More than the deadline, in the middle of work.
    server.ok(&["scale", "deployment", "web", "--replicas=40"]);
    let begun = Instant::now();
    for pair in &pairs {
        pair.link.set(cut);
    }
    server.ok(&["scale", "deployment", "web", "--replicas=50"]);
    for pair in &mut pairs {
        let status = eventually("who is cut off ends", || pair.leader.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1), "{}", pair.name);
        assert!(pair.leader.log_text().contains("leaderelection lost"), "{}", pair.leader.log_text());
    }
    let stopped = begun.elapsed();
    for pair in &pairs {
        let taken = || Some(holder(&server, pair.lease)).filter(|name| *name != pair.holder);
        eventually("the other takes over", taken);
    }
    let taken = begun.elapsed();
    eventually("the others do the rest", || (bound(&server, "web") == 50).then_some(()));
    // Generous: everything shares a few cores.
    assert!(stopped < RENEW_DEADLINE * 4, "{stopped:?}");
    assert!(taken < LEASE_DURATION * 4, "{taken:?}");

    // What was under way arrives late, or never.
    for pair in &pairs {
        pair.link.set(State::Whole);
    }
    std::thread::sleep(LEASE_DURATION);
    eventually("there are as many pods as were asked for", || {
        let pods = server.json(&["pods", "-l", "app=web"]);
        let pods = pods["items"].as_array().unwrap();
        let leave = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string()).count();
        (pods.len() == 50 && leave == 0).then_some(())
    });
    assert_eq!(server.json(&["replicasets"])["items"].as_array().unwrap().len(), 1);
    for pair in &pairs {
        assert_ne!(holder(&server, pair.lease), pair.holder);
    }
}

#[test]
fn a_link_that_stalls() {
    check(State::Stalled);
}

#[test]
fn a_link_that_breaks() {
    check(State::Reset);
}
