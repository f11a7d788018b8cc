//! IP addresses and CIDRs in fields: upstream's strict forms (KEP-4858). Fields as old as the API also keep an odd
//! value that is stored already; newer ones want the canonical form.

use std::net::{IpAddr, Ipv4Addr};

use orlop_api::field::{self, ErrorList, Path};

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const NO_INTERFACE: &str = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";

/// An address as Go once read it: an IPv4 address may have leading zeros, which mean nothing.
pub(crate) fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        // More digits than this no number below 256 needs, and the parser must not be fed without bound.
        if part.is_empty() || part.len() > 16 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|e| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(e) })
            .ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A range as Go once read it: the address, with any host bits, and the length of the prefix.
pub(crate) fn parse_cidr_sloppy(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = parse_ip_sloppy(address)?;
    if bits.is_empty() || bits.len() > 8 || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u32 = bits.parse().ok()?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    (bits <= max).then_some((address, bits as u8))
}

/// The address with all bits behind the prefix cleared.
pub(crate) fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(a) & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            std::net::Ipv6Addr::from(u128::from(a) & mask).into()
        }
    }
}

/// Whether `inner` lies in the range `outer`.
pub(crate) fn contains(outer: (IpAddr, u8), inner: IpAddr) -> bool {
    outer.0.is_ipv4() == inner.is_ipv4() && masked(outer.0, outer.1) == masked(inner, outer.1)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.to_ipv4_mapped().is_some())
}

/// What is wrong with an address; nothing about its spelling, as long as it means one thing only.
pub(crate) fn ip_problem(text: &str) -> Option<&'static str> {
    match (parse_ip_sloppy(text), text.parse::<IpAddr>()) {
        (None, _) => Some(NO_IP),
        (Some(_), Err(_)) => Some("must not have leading 0s"),
        (Some(ip), Ok(_)) if is_mapped(ip) => Some("must not be an IPv4-mapped IPv6 address"),
        _ => None,
    }
}

fn cidr_problem(text: &str) -> Option<&'static str> {
    let Some((address, bits)) = parse_cidr_sloppy(text) else { return Some(NO_CIDR) };
    let (ip, length) = text.split_once('/').unwrap_or_default();
    if ip.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0')) {
        return Some("must not have leading 0s in IP or prefix length");
    }
    if is_mapped(address) {
        return Some("must not have an IPv4-mapped IPv6 address");
    }
    (masked(address, bits) != address).then_some("must not have bits set beyond the prefix length")
}

/// An address in a field as old as the API; one of `stored` is kept whatever it looks like.
pub(crate) fn ip_unless_stored(errs: &mut ErrorList, path: &Path, value: &str, stored: &[&str]) -> bool {
    if stored.contains(&value) {
        return true;
    }
    let problem = ip_problem(value);
    if let Some(problem) = problem {
        errs.push(field::invalid(path, value, problem));
    }
    problem.is_none()
}

/// An address in a field as old as the API.
pub(crate) fn ip(errs: &mut ErrorList, path: &Path, value: &str) -> bool {
    ip_unless_stored(errs, path, value, &[])
}

/// A range in a field as old as the API; one of `stored` is kept whatever it looks like.
pub(crate) fn cidr_unless_stored(errs: &mut ErrorList, path: &Path, value: &str, stored: &[&str]) -> bool {
    if stored.contains(&value) {
        return true;
    }
    let problem = cidr_problem(value);
    if let Some(problem) = problem {
        errs.push(field::invalid(path, value, problem));
    }
    problem.is_none()
}

/// A range in a field as old as the API.
pub(crate) fn cidr(errs: &mut ErrorList, path: &Path, value: &str) -> bool {
    cidr_unless_stored(errs, path, value, &[])
}

fn not_canonical(canonical: &str) -> String {
    format!("must be in canonical form ({})", field::go_quote(canonical))
}

/// Complaints about an address that must be in its canonical form.
pub(crate) fn canonical_ip_problem(text: &str) -> Option<String> {
    if let Some(problem) = ip_problem(text) {
        return Some(problem.to_owned());
    }
    let canonical = text.parse::<IpAddr>().ok()?.to_string();
    (canonical != text).then(|| not_canonical(&canonical))
}

/// A range in its canonical form.
pub(crate) fn canonical_cidr(errs: &mut ErrorList, path: &Path, value: &str) {
    if !cidr(errs, path, value) {
        return;
    }
    if let Some((address, bits)) = parse_cidr_sloppy(value) {
        let canonical = format!("{address}/{bits}");
        if canonical != value {
            errs.push(field::invalid(path, value, not_canonical(&canonical)));
        }
    }
}

/// The address of an interface with the length of its network's prefix, in canonical form.
pub(crate) fn interface_address(errs: &mut ErrorList, path: &Path, value: &str) {
    let Some((address, bits)) = parse_cidr_sloppy(value) else {
        errs.push(field::invalid(path, value, NO_INTERFACE));
        return;
    };
    let canonical = format!("{address}/{bits}");
    if canonical != value {
        errs.push(field::invalid(path, value, not_canonical(&canonical)));
    }
}

/// What upstream warns of in an address that it accepts: spellings that mean different things to different programs, and
/// IPv6 addresses that are not in RFC 5952's form.
pub(crate) fn ip_warning(path: &Path, text: &str) -> Option<String> {
    let address = parse_ip_sloppy(text)?;
    let plain = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    };
    if text.parse::<IpAddr>().is_err() || is_mapped(address) {
        return Some(format!(
            "{path}: non-standard IP address {} will be considered invalid in a future Kubernetes release: use {}",
            field::go_quote(text),
            field::go_quote(&plain.to_string())
        ));
    }
    let canonical = address.to_string();
    (address.is_ipv6() && canonical != text).then(|| {
        format!(
            "{path}: IPv6 address {} should be in RFC 5952 canonical format ({})",
            field::go_quote(text),
            field::go_quote(&canonical)
        )
    })
}

/// [`ip_warning`] for a range.
pub(crate) fn cidr_warning(path: &Path, text: &str) -> Option<String> {
    let (address, bits) = parse_cidr_sloppy(text)?;
    let network = format!("{}/{bits}", masked(address, bits));
    let quoted = field::go_quote(text);
    let (ip, length) = text.split_once('/')?;
    if ip.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0')) || is_mapped(address) {
        return Some(format!(
            "{path}: non-standard CIDR value {quoted} will be considered invalid in a future Kubernetes release: use {}",
            field::go_quote(&network)
        ));
    }
    if masked(address, bits) != address {
        let all = if address.is_ipv4() { 32 } else { 128 };
        return Some(format!(
            "{path}: CIDR value {quoted} is ambiguous in this context (should be {} or \"{address}/{all}\"?)",
            field::go_quote(&network)
        ));
    }
    (address.is_ipv6() && network != text).then(|| {
        format!(
            "{path}: IPv6 CIDR value {quoted} should be in RFC 5952 canonical format ({})",
            field::go_quote(&network)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("010.0.0.1", Some("must not have leading 0s")),
            ("10.0.0.256", Some(NO_IP)),
            ("foo", Some(NO_IP)),
            ("", Some(NO_IP)),
            ("::ffff:1.2.3.4", Some("must not be an IPv4-mapped IPv6 address")),
        ] {
            assert_eq!(ip_problem(text), expected, "{text}");
        }
        assert_eq!(
            canonical_ip_problem("2001:DB8::1").as_deref(),
            Some("must be in canonical form (\"2001:db8::1\")")
        );
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("10.0.0.0/8", None),
            ("::/0", None),
            ("10.0.0.0", Some(NO_CIDR)),
            ("10.0.0.0/33", Some(NO_CIDR)),
            ("10.0.0.0/08", Some("must not have leading 0s in IP or prefix length")),
            ("010.0.0.0/8", Some("must not have leading 0s in IP or prefix length")),
            ("10.0.0.1/8", Some("must not have bits set beyond the prefix length")),
            ("::ffff:10.0.0.0/104", Some("must not have an IPv4-mapped IPv6 address")),
        ] {
            assert_eq!(cidr_problem(text), expected, "{text}");
        }
    }

    #[test]
    fn warnings() {
        let path = Path::new("f");
        for (text, expected) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("foo", None),
            (
                "010.0.0.1",
                Some(
                    "f: non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
                ),
            ),
            (
                "2001:DB8::1",
                Some(
                    "f: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")",
                ),
            ),
        ] {
            assert_eq!(ip_warning(&path, text).as_deref(), expected, "{text}");
        }
        for (text, expected) in [
            ("10.0.0.0/8", None),
            (
                "10.0.0.1/8",
                Some(
                    "f: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                ),
            ),
            (
                "2001:DB8::/64",
                Some(
                    "f: IPv6 CIDR value \"2001:DB8::/64\" should be in RFC 5952 canonical format (\"2001:db8::/64\")",
                ),
            ),
        ] {
            assert_eq!(cidr_warning(&path, text).as_deref(), expected, "{text}");
        }
    }
}
