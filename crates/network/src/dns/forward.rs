//! Questions about the rest of the world go to the resolvers of the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use hickory_server::proto::op::{Edns, Message, OpCode, Query};
use hickory_server::proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// How long one resolver may take. Two of them fit in the five seconds that clients wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often `resolv.conf` is looked at, at most.
const REREAD: Duration = Duration::from_secs(5);
/// Questions under way at once; more are refused, so that a dead resolver does not fill the memory.
const CONCURRENT: usize = 1000;
/// The largest UDP answer worth asking for: it fits every path unfragmented.
const PAYLOAD: u16 = 1232;

/// Forwards to the `nameserver`s of a `resolv.conf`, in order.
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    own: Option<Ipv4Addr>,
    known: Mutex<Known>,
    under_way: Semaphore,
}

#[derive(Default)]
struct Known {
    servers: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Forwarder {
    /// `own` is the address cluster DNS answers on: asking it would go round for ever.
    pub(crate) fn new(resolv_conf: PathBuf, own: Option<Ipv4Addr>) -> Self {
        Self { resolv_conf, own, known: Mutex::default(), under_way: Semaphore::new(CONCURRENT) }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock();
        if known.looked.is_some_and(|looked| looked.elapsed() < REREAD) {
            return known.servers.clone();
        }
        let first = known.looked.is_none();
        known.looked = Some(Instant::now());
        let modified = std::fs::metadata(&self.resolv_conf).and_then(|meta| meta.modified()).ok();
        if first || modified != known.modified {
            known.modified = modified;
            let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
            known.servers = parse(&text, self.own);
            if known.servers.is_empty() {
                warn!(
                    file = %self.resolv_conf.display(),
                    "no usable nameserver: names outside the cluster get SERVFAIL"
                );
            }
        }
        known.servers.clone()
    }

    /// Asks the resolvers in turn. `None` when none gives an answer.
    pub(crate) async fn lookup(
        &self,
        name: &Name,
        kind: RecordType,
        edns: Option<&Edns>,
        tcp: bool,
    ) -> Option<Message> {
        let servers = self.servers();
        let _permit = self.under_way.try_acquire().ok()?;
        let mut question = Message::query();
        question.metadata.id = rand::random();
        question.metadata.op_code = OpCode::Query;
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), kind));
        if let Some(asked) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
            question.set_edns(edns);
        }
        let bytes = question.to_vec().ok()?;
        for server in servers {
            match timeout(PATIENCE, exchange(server, &question, &bytes, tcp)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%server, %name, %error, "resolver failed"),
                Err(_) => debug!(%server, %name, "resolver is silent"),
            }
        }
        None
    }
}

async fn exchange(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
    tcp: bool,
) -> std::io::Result<Message> {
    if tcp {
        return over_tcp(server, question, bytes).await;
    }
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else on this port is a stray or a forgery.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answers(&answer, question)
        {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| bad("question too long"))?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(|error| bad(&error.to_string()))?;
    if answers(&answer, question) { Ok(answer) } else { Err(bad("answer to another question")) }
}

fn answers(answer: &Message, question: &Message) -> bool {
    let same = |a: &Query, b: &Query| a.query_type() == b.query_type() && a.name().eq_ignore_root(b.name());
    answer.metadata.id == question.metadata.id
        && matches!((answer.queries.first(), question.queries.first()), (Some(a), Some(b)) if same(a, b))
}

/// The `nameserver` lines that can be asked.
fn parse(resolv_conf: &str, own: Option<Ipv4Addr>) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
        })
        .filter(|ip| own.is_none_or(|own| IpAddr::from(own) != *ip))
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_libc_reads_it() {
        let check = |text: &str, expected: &[&str]| {
            let servers = parse(text, Some(Ipv4Addr::new(10, 96, 0, 10)));
            assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{text}");
        };
        check("", &[]);
        check("# nameserver 1.1.1.1\nsearch a b\nnameserver 9.9.9.9 # quad\n", &["9.9.9.9:53"]);
        check("nameserver 10.96.0.10\nnameserver\t127.0.0.53\noptions ndots:5", &["127.0.0.53:53"]);
        check("nameserver fd00::1\nnameserver nonsense\nnameserver\n", &["[fd00::1]:53"]);
    }

    #[tokio::test]
    async fn without_resolvers_the_answer_is_immediate() {
        let forwarder = Forwarder::new("/nonexistent/resolv.conf".into(), None);
        let start = Instant::now();
        let name = Name::from_ascii("example.com.").unwrap();
        assert!(forwarder.lookup(&name, RecordType::A, None, false).await.is_none());
        assert!(start.elapsed() < PATIENCE);
    }
}
