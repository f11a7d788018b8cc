//! The ranges that Services get their addresses from: every ServiceCIDR that is ready and not being deleted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use orlop_json::Value;
use parking_lot::Mutex;
use rand::Rng as _;

use super::{IP_GROUP, strings};
use crate::registry::{Registry, object};

/// A range of addresses, without those that no service may have: the network's and, for IPv4, the broadcast address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    base: u128,
    prefix: u8,
    /// How many usable addresses follow the base.
    size: u64,
    ipv4: bool,
}

impl Range {
    /// The range of this address and prefix length.
    pub fn new(address: IpAddr, prefix: u8) -> Range {
        let (bits, number) = match address {
            IpAddr::V4(a) => (32, u128::from(u32::from(a))),
            IpAddr::V6(a) => (128, u128::from(a)),
        };
        let host_bits = u32::from(bits - prefix.min(bits));
        let base = number.checked_shr(host_bits).map_or(0, |n| n.checked_shl(host_bits).unwrap_or(0));
        let all = 1u64.checked_shl(host_bits).unwrap_or(u64::MAX);
        let size = all.saturating_sub(if bits == 32 { 2 } else { 1 });
        Range { base, prefix, size, ipv4: bits == 32 }
    }

    fn parse(cidr: &str) -> Option<Range> {
        let (address, prefix) = cidr.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then(|| Range::new(address, prefix))
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    fn address(&self, number: u128) -> IpAddr {
        // An IPv4 range's numbers have 32 bits.
        if self.ipv4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
    }

    /// Its first usable address.
    pub(super) fn first(&self) -> IpAddr {
        self.address(self.base + 1)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let number = match address {
            IpAddr::V4(a) if self.ipv4 => u128::from(u32::from(a)),
            IpAddr::V6(a) if !self.ipv4 => u128::from(a),
            _ => return false,
        };
        number > self.base && number - self.base <= u128::from(self.size)
    }

    /// Every usable address, from a random one on. The lower band comes last: it is left to those who name their
    /// address (KEP-3070).
    pub(super) fn candidates(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let band = match self.size {
            0..=14 => 0,
            size => ((size + 2) / 16).clamp(16, 256).min(size),
        };
        let upper = self.size - band;
        let start = |size: u64| if size > 0 { rand::rng().random_range(0..size) } else { 0 };
        let (high, low) = (start(upper), start(band));
        let wrapped = |start: u64, step: u64, size: u64| {
            let left = size - start;
            if step < left { start + step } else { step - left }
        };
        (0..upper)
            .map(move |step| band + wrapped(high, step, upper))
            .chain((0..band).map(move |step| wrapped(low, step, band)))
            .map(|offset| self.address(self.base + 1 + u128::from(offset)))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(self.base), self.prefix)
    }
}

/// The ready ranges, read again when a ServiceCIDR has changed.
#[derive(Default)]
pub struct Ranges(Mutex<Option<(u64, Arc<[Range]>)>>);

/// Whether addresses may be taken from it: without a condition it is ready, as its controller may not run.
fn is_ready(cidr: &Value) -> bool {
    let condition =
        cidr["status"]["conditions"].as_array().and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
    !object::is_deleting(cidr) && condition.is_none_or(|c| c["status"] == "True")
}

impl Ranges {
    /// The ready ranges; `configured` alone where ServiceCIDRs are not served.
    pub fn ready(&self, registry: &Registry, configured: &[Range]) -> Arc<[Range]> {
        let Some(cache) = registry.resources.cache(IP_GROUP, "ServiceCIDR") else {
            return Arc::from(configured);
        };
        let mut known = self.0.lock();
        let changed = cache.last_change();
        if let Some((at, ranges)) = known.as_ref()
            && *at == changed
        {
            return ranges.clone();
        }
        let mut ranges: Vec<Range> = Vec::new();
        for entry in cache.snapshot().0.values() {
            let cidr = entry.value();
            if is_ready(&cidr) {
                ranges.extend(strings(&cidr["spec"], "cidrs").iter().filter_map(|c| Range::parse(c)));
            }
        }
        let ranges: Arc<[Range]> = ranges.into();
        *known = Some((changed, ranges.clone()));
        ranges
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn usable_addresses() {
        for (cidr, size, first) in [
            ("10.96.0.0/29", 6, "10.96.0.1"),
            ("10.96.0.0/28", 14, "10.96.0.1"),
            ("10.96.0.0/24", 254, "10.96.0.1"),
            ("10.96.0.5/32", 0, "10.96.0.6"),
            ("2001:db8::/120", 255, "2001:db8::1"),
        ] {
            let range = Range::parse(cidr).unwrap();
            assert_eq!(range.first().to_string(), first, "{cidr}");
            let all: HashSet<IpAddr> = range.candidates().collect();
            assert_eq!(all.len(), size, "{cidr}");
            assert!(all.iter().all(|a| range.contains(*a)), "{cidr}");
        }
        let range = Range::parse("10.96.0.0/24").unwrap();
        for (address, expected) in
            [("10.96.0.0", false), ("10.96.0.255", false), ("10.96.0.254", true), ("::1", false)]
        {
            assert_eq!(range.contains(address.parse().unwrap()), expected, "{address}");
        }
        // The first choice comes from the upper band.
        for _ in 0..50 {
            let first = range.candidates().next().unwrap();
            assert!(first >= "10.96.0.17".parse::<IpAddr>().unwrap(), "{first}");
        }
    }
}
