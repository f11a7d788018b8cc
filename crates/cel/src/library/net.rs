//! IP addresses and CIDR prefixes.

use std::net::IpAddr;

use super::mismatch;
use super::opaque::{Cidr, Opaque};
use crate::error::EvalError;
use crate::val::{Res, Val};

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("ip", [Val::String(text)]) => parse_ip(text.as_str()).map(|ip| Val::Opaque(Opaque::Ip(ip))),
        ("ip", [Val::Opaque(Opaque::Cidr(cidr))]) => Ok(Val::Opaque(Opaque::Ip(cidr.addr))),
        ("isIP", [Val::String(text)]) => Ok(Val::Bool(parse_ip(text.as_str()).is_ok())),
        ("ip.isCanonical", [Val::String(text)]) => {
            Ok(Val::Bool(parse_ip(text.as_str())?.to_string() == text.as_str()))
        }
        ("cidr", [Val::String(text)]) => {
            parse_cidr(text.as_str()).map(|cidr| Val::Opaque(Opaque::Cidr(cidr)))
        }
        ("isCIDR", [Val::String(text)]) => Ok(Val::Bool(parse_cidr(text.as_str()).is_ok())),
        (_, [Val::Opaque(Opaque::Ip(ip))]) => address(function, *ip).ok_or_else(|| mismatch(function, args)),
        ("containsIP", [Val::Opaque(Opaque::Cidr(cidr)), Val::Opaque(Opaque::Ip(ip))]) => {
            Ok(Val::Bool(contains(*cidr, *ip)))
        }
        ("containsIP", [Val::Opaque(Opaque::Cidr(cidr)), Val::String(text)]) => {
            Ok(Val::Bool(contains(*cidr, parse_ip(text.as_str())?)))
        }
        ("containsCIDR", [Val::Opaque(Opaque::Cidr(cidr)), Val::Opaque(Opaque::Cidr(other))]) => {
            Ok(Val::Bool(cidr.bits <= other.bits && contains(*cidr, other.addr)))
        }
        ("containsCIDR", [Val::Opaque(Opaque::Cidr(cidr)), Val::String(text)]) => {
            let other = parse_cidr(text.as_str())?;
            Ok(Val::Bool(cidr.bits <= other.bits && contains(*cidr, other.addr)))
        }
        ("prefixLength", [Val::Opaque(Opaque::Cidr(cidr))]) => Ok(Val::Int(i64::from(cidr.bits))),
        ("masked", [Val::Opaque(Opaque::Cidr(cidr))]) => {
            Ok(Val::Opaque(Opaque::Cidr(Cidr { addr: mask(cidr.addr, cidr.bits), bits: cidr.bits })))
        }
        _ => Err(mismatch(function, args)),
    }
}

fn address<'a>(function: &str, ip: IpAddr) -> Option<Val<'a>> {
    let v6 = |test: fn(&[u16; 8]) -> bool| matches!(ip, IpAddr::V6(ip) if test(&ip.segments()));
    Some(Val::Bool(match function {
        "family" => return Some(Val::Int(if ip.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => ip.is_unspecified(),
        "isLoopback" => ip.is_loopback(),
        "isLinkLocalMulticast" => match ip {
            IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
            IpAddr::V6(_) => v6(|segments| segments[0] & 0xff0f == 0xff02),
        },
        "isLinkLocalUnicast" => link_local(ip),
        "isGlobalUnicast" => {
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip) || broadcast)
        }
        _ => return None,
    }))
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// An address in text. Zones and IPv4-mapped IPv6 addresses are refused.
fn parse_ip(text: &str) -> Result<IpAddr, EvalError> {
    if text.contains('%') && text.contains(':') {
        return Err(EvalError::text(format!("IP address {text:?} with zone value is not allowed")));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        EvalError::text(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        ))
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(EvalError::text(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, EvalError> {
    let problem = |what: String| {
        EvalError::text(format!("network address parse error during conversion from string: {what}"))
    };
    let Some((addr, bits)) = text.rsplit_once('/') else {
        return Err(problem(format!("netip.ParsePrefix({text:?}): no '/'")));
    };
    let ip: IpAddr = addr.parse().map_err(|_| {
        problem(format!("netip.ParsePrefix({text:?}): ParseAddr({addr:?}): unable to parse IP"))
    })?;
    if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(EvalError::text(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
    }
    let plain = bits.bytes().all(|b| b.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    let number: u8 = match bits.parse() {
        Ok(number) if plain => number,
        _ => return Err(problem(format!("netip.ParsePrefix({text:?}): bad bits after slash: {bits:?}"))),
    };
    if number > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(problem(format!("netip.ParsePrefix({text:?}): prefix length out of range")));
    }
    Ok(Cidr { addr: ip, bits: number })
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

fn contains(cidr: Cidr, ip: IpAddr) -> bool {
    cidr.addr.is_ipv4() == ip.is_ipv4() && mask(cidr.addr, cidr.bits) == mask(ip, cidr.bits)
}
