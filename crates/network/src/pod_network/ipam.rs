//! Pod addresses of this node: which sandbox has which, kept as one small file a sandbox.
//!
//! A file is written whole and renamed into place before anything is made in the kernel, so that a crash at any
//! point leaves at worst a reservation without an interface, which the next start finds and frees. Nothing is
//! fsynced: a reboot ends all network namespaces, and with them every reservation.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use orlop_cri::PortMapping;
use serde::{Deserialize, Serialize};

use crate::error::{NetworkError, Result};

/// A host port of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub host_port: u16,
    pub container_port: u16,
    /// `None` means every address of the host.
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    pub(crate) fn of(mapping: &PortMapping) -> Self {
        Self {
            protocol: mapping.protocol.to_ascii_uppercase(),
            host_port: mapping.host_port,
            container_port: mapping.container_port,
            // The API's "0.0.0.0" means every address too.
            host_ip: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
        }
    }

    fn clashes(&self, other: &Self) -> bool {
        let overlap = self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        self.protocol == other.protocol && self.host_port == other.host_port && overlap
    }
}

/// What one sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reservation {
    pub sandbox_id: String,
    /// For people who read the file.
    pub pod: String,
    pub ip: Ipv4Addr,
    /// The node's end of the veth pair.
    pub interface: String,
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// Whether the interface was made completely.
    #[serde(default)]
    pub attached: bool,
}

/// The reservations of a node.
#[derive(Debug)]
pub(crate) struct Ipam {
    directory: PathBuf,
    by_sandbox: HashMap<String, Reservation>,
    by_ip: BTreeMap<Ipv4Addr, String>,
    last: Option<Ipv4Addr>,
}

impl Ipam {
    /// Reads what is reserved. Files that cannot be read are set aside with a log line: an address may then be given
    /// twice at worst to a sandbox that is gone.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(NetworkError::file("create", directory))?;
        let mut ipam = Self {
            directory: directory.to_owned(),
            by_sandbox: HashMap::new(),
            by_ip: BTreeMap::new(),
            last: None,
        };
        for entry in fs::read_dir(directory).map_err(NetworkError::file("list", directory))? {
            let path = entry.map_err(NetworkError::file("list", directory))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What a crash left of an unfinished write.
                let _ = fs::remove_file(&path);
                continue;
            }
            let text = fs::read(&path).map_err(NetworkError::file("read", &path))?;
            match serde_json::from_slice::<Reservation>(&text) {
                Ok(reservation) => ipam.remember(reservation),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "unreadable address reservation removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        ipam.last = ipam.by_ip.keys().next_back().copied();
        Ok(ipam)
    }

    fn remember(&mut self, reservation: Reservation) {
        self.by_ip.insert(reservation.ip, reservation.sandbox_id.clone());
        self.by_sandbox.insert(reservation.sandbox_id.clone(), reservation);
    }

    pub(crate) fn get(&self, sandbox_id: &str) -> Option<&Reservation> {
        self.by_sandbox.get(sandbox_id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Reservation> {
        self.by_sandbox.values()
    }

    /// Reserves an address of `cidr` for a sandbox, or gives what it has. Addresses are given round robin, so that a
    /// freed one rests as long as possible.
    pub(crate) fn reserve(
        &mut self,
        cidr: Ipv4Net,
        sandbox_id: &str,
        pod: &str,
        host_ports: Vec<HostPort>,
    ) -> Result<Reservation> {
        if let Some(present) = self.by_sandbox.get(sandbox_id) {
            return Ok(present.clone());
        }
        for wanted in &host_ports {
            let holder =
                self.by_sandbox.values().find(|other| other.host_ports.iter().any(|p| p.clashes(wanted)));
            if let Some(holder) = holder {
                return Err(NetworkError::HostPortTaken {
                    protocol: wanted.protocol.clone(),
                    port: wanted.host_port,
                    holder: holder.sandbox_id.clone(),
                });
            }
        }
        let ip = self.free(cidr).ok_or(NetworkError::NoAddress(cidr))?;
        let reservation = Reservation {
            sandbox_id: sandbox_id.to_owned(),
            pod: pod.to_owned(),
            ip,
            interface: interface_name(sandbox_id),
            host_ports,
            attached: false,
        };
        self.write(&reservation)?;
        self.last = Some(ip);
        self.remember(reservation.clone());
        Ok(reservation)
    }

    /// The next free address after the last one given, round the range. Network, first (the bridge's) and broadcast
    /// address are not given.
    fn free(&self, cidr: Ipv4Net) -> Option<Ipv4Addr> {
        let first = u32::from(cidr.network()).checked_add(2)?;
        let end = u32::from(cidr.broadcast());
        let size = end.checked_sub(first).filter(|size| *size > 0)?;
        let start = self
            .last
            .map(u32::from)
            .filter(|last| (first..end).contains(last))
            .map_or(0, |last| last - first + 1);
        (0..size)
            .map(|step| Ipv4Addr::from(first + (start + step) % size))
            .find(|ip| !self.by_ip.contains_key(ip))
    }

    /// Notes that the sandbox's interface is complete.
    pub(crate) fn attached(&mut self, sandbox_id: &str) -> Result<()> {
        if let Some(reservation) = self.by_sandbox.get_mut(sandbox_id) {
            reservation.attached = true;
            let reservation = reservation.clone();
            self.write(&reservation)?;
        }
        Ok(())
    }

    /// Frees what a sandbox has; one that has nothing is fine.
    pub(crate) fn release(&mut self, sandbox_id: &str) -> Result<()> {
        let path = self.path(sandbox_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(NetworkError::file("remove", &path)(error));
            }
            _ => {}
        }
        if let Some(reservation) = self.by_sandbox.remove(sandbox_id) {
            self.by_ip.remove(&reservation.ip);
        }
        Ok(())
    }

    fn path(&self, sandbox_id: &str) -> PathBuf {
        self.directory.join(format!("{sandbox_id}.json"))
    }

    fn write(&self, reservation: &Reservation) -> Result<()> {
        let path = self.path(&reservation.sandbox_id);
        let unfinished = path.with_extension("tmp");
        let text = serde_json::to_vec(reservation)
            .map_err(|error| NetworkError::Other(format!("encode an address reservation: {error}")))?;
        fs::write(&unfinished, text).map_err(NetworkError::file("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(NetworkError::file("write", &path))
    }
}

/// `veth` and eleven hexadecimal digits: as long as the kernel allows, and the same for the same sandbox.
fn interface_name(sandbox_id: &str) -> String {
    // FNV-1a: short, stable across versions; clashes would only fail one attach of 2^44.
    let hash = sandbox_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("veth{:011x}", hash & 0xfff_ffff_ffff)
}

/// Whether `sandbox_id` can be a file name.
pub(crate) fn check_id(sandbox_id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if sandbox_id.is_empty() || sandbox_id.len() > 200 || !sandbox_id.chars().all(plain) {
        return Err(NetworkError::Options(format!("sandbox id {sandbox_id:?} is not a plain word")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn port(protocol: &str, host_port: u16, host_ip: Option<&str>) -> HostPort {
        HostPort {
            protocol: protocol.into(),
            host_port,
            container_port: 80,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn addresses_go_round_and_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let cidr: Ipv4Net = "10.1.0.0/29".parse().unwrap();
        let mut ipam = Ipam::open(directory.path()).unwrap();
        let give =
            |ipam: &mut Ipam, id: &str| ipam.reserve(cidr, id, "ns/p", vec![]).map(|r| r.ip.to_string());
        // .0 network, .1 bridge, .7 broadcast.
        for (id, expected) in [("a", "10.1.0.2"), ("b", "10.1.0.3"), ("c", "10.1.0.4"), ("a", "10.1.0.2")] {
            assert_eq!(give(&mut ipam, id).unwrap(), expected);
        }
        ipam.release("a").unwrap();
        ipam.release("a").unwrap();
        assert_eq!(give(&mut ipam, "d").unwrap(), "10.1.0.5");
        drop(ipam);
        std::fs::write(directory.path().join("x.tmp"), "half").unwrap();
        std::fs::write(directory.path().join("y.json"), "{").unwrap();
        let mut ipam = Ipam::open(directory.path()).unwrap();
        assert_eq!(ipam.all().count(), 3);
        assert_eq!(give(&mut ipam, "b").unwrap(), "10.1.0.3");
        assert_eq!(give(&mut ipam, "e").unwrap(), "10.1.0.6");
        assert_eq!(give(&mut ipam, "f").unwrap(), "10.1.0.2");
        assert!(matches!(give(&mut ipam, "g"), Err(NetworkError::NoAddress(_))));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5);
    }

    #[test]
    fn host_ports_clash_as_sockets_do() {
        let check = |a: HostPort, b: HostPort, expected: bool| {
            assert_eq!(a.clashes(&b), expected, "{a:?} {b:?}");
            assert_eq!(b.clashes(&a), expected, "{b:?} {a:?}");
        };
        check(port("TCP", 80, None), port("TCP", 80, None), true);
        check(port("TCP", 80, None), port("UDP", 80, None), false);
        check(port("TCP", 80, None), port("TCP", 81, None), false);
        check(port("TCP", 80, None), port("TCP", 80, Some("10.0.0.1")), true);
        check(port("TCP", 80, Some("10.0.0.2")), port("TCP", 80, Some("10.0.0.1")), false);
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        assert_eq!(interface_name("4f3a").len(), 15);
        assert_ne!(interface_name("4f3a"), interface_name("4f3b"));
        for bad in ["", "a/b", "..", "a b"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
