//! What the kernel remembers of endpoints: connection tracking entries and client affinity.
//!
//! UDP has no end of connection: a client that keeps sending would be sent to a removed endpoint for ever, so its
//! entry is deleted, as upstream does. The `conntrack` program does it; without it this is logged once and flows to
//! removed UDP endpoints end only when they fall silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value as Json;
use tokio::process::Command;
use tracing::{debug, warn};

use super::rows::{Frontend, Protocol};
use crate::{NetworkError, Result};

/// Deletes the UDP flows of clients to `gone` endpoints by frontend, and those that were seen at frontends which only
/// now `come` to have endpoints.
pub async fn forget(gone: &BTreeMap<Frontend, BTreeSet<SocketAddrV4>>, come: &[Frontend]) {
    let mut commands: Vec<Vec<String>> = Vec::new();
    for (frontend, endpoints) in gone {
        for endpoint in endpoints {
            let mut args = selection(*frontend);
            args.extend(["--reply-src".to_owned(), endpoint.ip().to_string()]);
            commands.push(args);
        }
    }
    commands.extend(come.iter().map(|frontend| selection(*frontend)));
    for args in commands {
        if run(&args).await.is_none() {
            return;
        }
    }
}

/// Deletes the translated UDP flows that `stale(original address, original port, endpoint)` picks.
pub async fn forget_flows(stale: impl Fn(Ipv4Addr, u16, SocketAddrV4) -> bool) {
    let list = ["-L", "-f", "ipv4", "-p", "udp", "--dst-nat"].map(str::to_owned);
    let Some(listing) = run(&list).await else { return };
    for args in stale_flows(&listing, stale) {
        if run(&args).await.is_none() {
            return;
        }
    }
}

/// The arguments that delete each stale flow of a listing by `conntrack -L`.
fn stale_flows(listing: &str, stale: impl Fn(Ipv4Addr, u16, SocketAddrV4) -> bool) -> Vec<Vec<String>> {
    let flows = listing.lines().filter_map(|line| {
        // Each field is there twice: as the client sent it, and as the endpoint answers.
        let field = |name: &str, nth: usize| {
            line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).nth(nth)
        };
        let (ip, port) = (field("dst", 0)?, field("dport", 0)?);
        let endpoint = SocketAddrV4::new(field("src", 1)?.parse().ok()?, field("sport", 1)?.parse().ok()?);
        stale(ip.parse().ok()?, port.parse().ok()?, endpoint).then(|| {
            let (client, client_port) = (field("src", 0)?, field("sport", 0)?);
            let args = ["-D", "-f", "ipv4", "-p", "udp", "--orig-src", client, "--orig-dst", ip];
            let ports = ["--orig-port-src", client_port, "--orig-port-dst", port];
            Some(args.iter().chain(&ports).map(|arg| (*arg).to_owned()).collect())
        })?
    });
    flows.collect()
}

fn selection(frontend: Frontend) -> Vec<String> {
    let mut args: Vec<String> = ["-D", "-f", "ipv4", "-p", "udp"].map(str::to_owned).to_vec();
    let port = match frontend {
        Frontend::Address(ip, _, port) => {
            args.extend(["--orig-dst".to_owned(), ip.to_string()]);
            port
        }
        Frontend::NodePort(_, port) => port,
    };
    args.extend(["--orig-port-dst".to_owned(), port.to_string()]);
    args
}

/// What conntrack prints; `None` when there is none on this host.
async fn run(args: &[String]) -> Option<String> {
    static MISSING: AtomicBool = AtomicBool::new(false);
    for program in ["conntrack", "/usr/sbin/conntrack"] {
        match Command::new(program).args(args).stdin(Stdio::null()).output().await {
            Ok(output) => {
                // Status 1 with "0 flow entries" means there was nothing to delete.
                let said = String::from_utf8_lossy(&output.stderr);
                debug!(?args, said = said.trim(), "conntrack");
                return Some(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                warn!(%error, "conntrack could not be run; UDP flows to removed endpoints end when they fall silent");
                return None;
            }
        }
    }
    if !MISSING.swap(true, Ordering::Relaxed) {
        warn!(
            "the conntrack program is not installed (package conntrack): UDP flows to removed endpoints end only when they fall silent"
        );
    }
    None
}

/// The keys of the elements of the affinity map, as `nft -j` lists it, that `stale(service ip, protocol, port,
/// endpoint)` picks.
pub fn stale_affinity(
    listing: &str,
    stale: impl Fn(Ipv4Addr, Protocol, u16, SocketAddrV4) -> bool,
) -> Result<Vec<String>> {
    let json: Json = serde_json::from_str(listing)
        .map_err(|error| NetworkError::Other(format!("nft's listing of the affinity map: {error}")))?;
    let elements = json["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|object| object["map"]["elem"].as_array())
        .flatten();
    Ok(elements
        .filter_map(|pair| {
            let key = pair.get(0)?;
            let key = key["elem"]["val"]["concat"].as_array().or_else(|| key["concat"].as_array())?;
            let endpoint = pair.get(1)?["concat"].as_array()?;
            let [client, ip, protocol, port] = key.as_slice() else { return None };
            let [to, to_port] = endpoint.as_slice() else { return None };
            let (client, ip) = (client.as_str()?, ip.as_str()?.parse().ok()?);
            let protocol = Protocol::parse(Some(&protocol.as_str()?.to_ascii_uppercase()))?;
            let port = u16::try_from(port.as_u64()?).ok()?;
            let to = SocketAddrV4::new(to.as_str()?.parse().ok()?, u16::try_from(to_port.as_u64()?).ok()?);
            stale(ip, protocol, port, to).then(|| format!("{client} . {ip} . {protocol} . {port}"))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stale_flows_are_found_in_a_listing() {
        let listing = "udp      17 25 src=10.244.3.4 dst=10.96.0.7 sport=41515 dport=80 src=10.244.3.2 dst=10.244.3.4 \
                       sport=8080 dport=41515 [ASSURED] mark=0 use=1\n\
                       udp      17 9 src=1.2.3.4 dst=10.96.0.7 sport=1 dport=80 [UNREPLIED] src=10.244.3.3 \
                       dst=1.2.3.4 sport=8080 dport=1 mark=0 use=1\nnonsense\n";
        let stale = stale_flows(listing, |ip, port, endpoint| {
            (ip.to_string().as_str(), port) == ("10.96.0.7", 80) && endpoint.to_string() == "10.244.3.3:8080"
        });
        let expected =
            "-D -f ipv4 -p udp --orig-src 1.2.3.4 --orig-dst 10.96.0.7 --orig-port-src 1 --orig-port-dst 80";
        assert_eq!(stale.iter().map(|args| args.join(" ")).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn stale_clients_are_found_in_a_listing() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"map": {"family": "ip", "name": "affinity",
            "elem": [[{"elem": {"val": {"concat": ["1.2.3.4", "10.96.0.1", "tcp", 80]}, "expires": 9}},
            {"concat": ["10.244.0.5", 8080]}], [{"elem": {"val": {"concat": ["1.2.3.5", "10.96.0.1", "udp", 80]},
            "expires": 9}}, {"concat": ["10.244.0.6", 8080]}]]}}]}"#;
        let check = |endpoint: &str, expected: &[&str]| {
            let endpoint: SocketAddrV4 = endpoint.parse().unwrap();
            assert_eq!(stale_affinity(listing, |_, _, _, to| to == endpoint).unwrap(), expected);
        };
        check("10.244.0.5:8080", &["1.2.3.4 . 10.96.0.1 . tcp . 80"]);
        check("10.244.0.6:8080", &["1.2.3.5 . 10.96.0.1 . udp . 80"]);
        check("10.244.0.6:80", &[]);
        assert!(stale_affinity(r#"{"nftables": [{"map": {}}]}"#, |_, _, _, _| true).unwrap().is_empty());
        assert!(stale_affinity("no json", |_, _, _, _| true).is_err());
    }
}
