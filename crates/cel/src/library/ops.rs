//! Operators and conversions.

use std::cmp::Ordering;

use super::{format, lists, mismatch};
use crate::error::EvalError;
use crate::interp::compare;
use crate::time::{Duration, Timestamp};
use crate::types::Type;
use crate::val::{Map, OwnedMap, Res, Val};

const INT_OVERFLOW: &str = "integer overflow";
const UINT_OVERFLOW: &str = "unsigned integer overflow";
const DURATION_OVERFLOW: &str = "duration overflow";
const TIMESTAMP_OVERFLOW: &str = "timestamp overflow";

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("_==_", [a, b]) => compare::equal(a, b).map(Val::Bool),
        ("_!=_", [a, b]) => compare::equal(a, b).map(|equal| Val::Bool(!equal)),
        ("_<_", [a, b]) => ordered(a, b, |order| order == Ordering::Less),
        ("_<=_", [a, b]) => ordered(a, b, |order| order != Ordering::Greater),
        ("_>_", [a, b]) => ordered(a, b, |order| order == Ordering::Greater),
        ("_>=_", [a, b]) => ordered(a, b, |order| order != Ordering::Less),
        ("!_", [Val::Bool(b)]) => Ok(Val::Bool(!b)),
        ("-_", [Val::Int(i)]) => i.checked_neg().map(Val::Int).ok_or(EvalError::text(INT_OVERFLOW)),
        ("-_", [Val::Double(f)]) => Ok(Val::Double(-f)),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_" | "_/_" | "_%_", [a, b]) => multiply(function, a, b),
        ("@in", [a, b]) => contains(a, b),
        ("@not_strictly_false", [Val::Bool(b)]) => Ok(Val::Bool(*b)),
        ("@not_strictly_false", [_]) => Ok(Val::Bool(true)),
        ("size", [val]) => val.size().map(Val::Int).ok_or_else(EvalError::no_such_overload),
        ("dyn", [val]) => Ok(val.clone()),
        ("type", [val]) => Ok(Val::Type(val.ty())),
        ("cel.@mapInsert", _) => insert(args),
        ("bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint", [val]) => {
            convert(function, val)
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn ordered<'a>(a: &Val<'a>, b: &Val<'a>, test: fn(Ordering) -> bool) -> Res<'a> {
    match compare::order(a, b)? {
        Some(order) => Ok(Val::Bool(test(order))),
        None => Err(EvalError::text("NaN values cannot be ordered")),
    }
}

fn some<'a, T>(value: Option<T>, make: fn(T) -> Val<'a>, error: &'static str) -> Res<'a> {
    value.map(make).ok_or(EvalError::text(error))
}

fn add<'a>(a: &Val<'a>, b: &Val<'a>) -> Res<'a> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => some(a.checked_add(*b), Val::Int, INT_OVERFLOW),
        (Val::Uint(a), Val::Uint(b)) => some(a.checked_add(*b), Val::Uint, UINT_OVERFLOW),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        (Val::String(a), Val::String(b)) => Ok(Val::string([a.as_str(), b.as_str()].concat())),
        (Val::Bytes(a), Val::Bytes(b)) => Ok(Val::Bytes([&**a, &**b].concat().into())),
        (Val::Duration(a), Val::Duration(b)) => some(a.checked_add(*b), Val::Duration, DURATION_OVERFLOW),
        (Val::Timestamp(time), Val::Duration(duration)) | (Val::Duration(duration), Val::Timestamp(time)) => {
            some(time.checked_add(*duration), Val::Timestamp, TIMESTAMP_OVERFLOW)
        }
        (Val::List(_), Val::List(_)) => lists::append(a, b),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn subtract<'a>(a: &Val<'a>, b: &Val<'a>) -> Res<'a> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => some(a.checked_sub(*b), Val::Int, INT_OVERFLOW),
        (Val::Uint(a), Val::Uint(b)) => some(a.checked_sub(*b), Val::Uint, UINT_OVERFLOW),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a - b)),
        (Val::Duration(a), Val::Duration(b)) => some(a.checked_sub(*b), Val::Duration, DURATION_OVERFLOW),
        (Val::Timestamp(time), Val::Duration(duration)) => {
            some(time.checked_sub(*duration), Val::Timestamp, TIMESTAMP_OVERFLOW)
        }
        (Val::Timestamp(a), Val::Timestamp(b)) => some(a.since(*b), Val::Duration, TIMESTAMP_OVERFLOW),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn multiply<'a>(function: &str, a: &Val<'a>, b: &Val<'a>) -> Res<'a> {
    match (function, a, b) {
        ("_*_", Val::Int(a), Val::Int(b)) => some(a.checked_mul(*b), Val::Int, INT_OVERFLOW),
        ("_*_", Val::Uint(a), Val::Uint(b)) => some(a.checked_mul(*b), Val::Uint, UINT_OVERFLOW),
        ("_*_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a * b)),
        ("_/_", Val::Double(a), Val::Double(b)) => Ok(Val::Double(a / b)),
        ("_/_", Val::Int(_), Val::Int(0)) | ("_/_", Val::Uint(_), Val::Uint(0)) => {
            Err(EvalError::text("division by zero"))
        }
        ("_%_", Val::Int(_), Val::Int(0)) | ("_%_", Val::Uint(_), Val::Uint(0)) => {
            Err(EvalError::text("modulus by zero"))
        }
        ("_/_", Val::Int(a), Val::Int(b)) => some(a.checked_div(*b), Val::Int, INT_OVERFLOW),
        ("_%_", Val::Int(a), Val::Int(b)) => some(a.checked_rem(*b), Val::Int, INT_OVERFLOW),
        ("_/_", Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a / b)),
        ("_%_", Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a % b)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn contains<'a>(val: &Val<'a>, container: &Val<'a>) -> Res<'a> {
    match container {
        Val::List(list) => {
            for element in list.iter() {
                if compare::equal(val, &element?)? {
                    return Ok(Val::Bool(true));
                }
            }
            Ok(Val::Bool(false))
        }
        Val::Map(map) => match map.get(val) {
            Some(found) => found.map(|_| Val::Bool(true)),
            None => Ok(Val::Bool(false)),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn insert<'a>(args: &[Val<'a>]) -> Res<'a> {
    let Some(Val::Map(target)) = args.first() else { return Err(EvalError::no_such_overload()) };
    let mut out = OwnedMap::default();
    copy_entries(target, &mut out)?;
    match &args[1..] {
        [Val::Map(update)] => copy_entries(update, &mut out)?,
        [key, value] => crate::interp::insert_new(&mut out, key.clone(), value.clone())?,
        _ => return Err(EvalError::no_such_overload()),
    }
    Ok(Val::map(out))
}

fn copy_entries<'a>(from: &Map<'a>, to: &mut OwnedMap<'a>) -> Result<(), EvalError> {
    for key in from.keys() {
        if let Some(value) = from.get(&key) {
            crate::interp::insert_new(to, key, value?)?;
        }
    }
    Ok(())
}

fn convert<'a>(to: &str, val: &Val<'a>) -> Res<'a> {
    let converted = match (to, val) {
        ("bool", Val::Bool(_))
        | ("bytes", Val::Bytes(_))
        | ("double", Val::Double(_))
        | ("duration", Val::Duration(_))
        | ("int", Val::Int(_))
        | ("string", Val::String(_))
        | ("timestamp", Val::Timestamp(_))
        | ("uint", Val::Uint(_)) => Some(val.clone()),
        ("string", val) => return to_string(val),
        ("bool", Val::String(text)) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Val::Bool(false)),
            _ => None,
        },
        ("bytes", Val::String(text)) => Some(Val::Bytes(text.as_str().as_bytes().into())),
        ("double", Val::String(text)) => parse_double(text.as_str()).map(Val::Double),
        ("double", Val::Int(i)) => Some(Val::Double(*i as f64)),
        ("double", Val::Uint(u)) => Some(Val::Double(*u as f64)),
        ("duration", Val::String(text)) => Duration::parse(text.as_str()).map(Val::Duration),
        ("duration", Val::Int(nanos)) => Some(Val::Duration(Duration(*nanos))),
        ("timestamp", Val::String(text)) => Timestamp::parse(text.as_str()).map(Val::Timestamp),
        ("timestamp", Val::Int(seconds)) => {
            return some(Timestamp::from_seconds(*seconds), Val::Timestamp, TIMESTAMP_OVERFLOW);
        }
        ("int", Val::String(text)) => parse_go_int(text.as_str()).map(Val::Int),
        ("int", Val::Uint(u)) => return some(i64::try_from(*u).ok(), Val::Int, INT_OVERFLOW),
        ("int", Val::Double(f)) => {
            let fits = *f > -9.223372036854775e18 && *f < 9.223372036854775e18;
            return some(fits.then_some(*f as i64), Val::Int, INT_OVERFLOW);
        }
        ("int", Val::Timestamp(time)) => Some(Val::Int(time.seconds())),
        ("int", Val::Duration(duration)) => Some(Val::Int(duration.0)),
        ("uint", Val::String(text)) => {
            let text = text.as_str();
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten().map(Val::Uint)
        }
        ("uint", Val::Int(i)) => return some(u64::try_from(*i).ok(), Val::Uint, UINT_OVERFLOW),
        ("uint", Val::Double(f)) => {
            let fits = *f >= 0.0 && *f < 1.8446744073709552e19;
            return some(fits.then_some(*f as u64), Val::Uint, UINT_OVERFLOW);
        }
        _ => return Err(mismatch(to, std::slice::from_ref(val))),
    };
    converted.ok_or_else(|| {
        let target = match to {
            "duration" => Type::Duration.to_string(),
            "timestamp" => Type::Timestamp.to_string(),
            other => other.to_owned(),
        };
        EvalError::text(format!("type conversion error from '{}' to '{target}'", val.type_name()))
    })
}

fn parse_go_int(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn parse_double(text: &str) -> Option<f64> {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    if matches!(bare.as_str(), "inf" | "infinity" | "nan") {
        return text.parse().ok();
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite())
}

fn to_string<'a>(val: &Val<'a>) -> Res<'a> {
    use super::opaque::Opaque;
    Ok(Val::string(match val {
        Val::Bool(b) => b.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Double(f) => format::general(*f),
        Val::Duration(duration) => duration.to_string(),
        Val::Timestamp(time) => time.to_string(),
        Val::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return Err(EvalError::text("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Val::Opaque(Opaque::Ip(ip)) => ip.to_string(),
        Val::Opaque(Opaque::Cidr(cidr)) => format!("{}/{}", cidr.addr, cidr.bits),
        other => return Err(mismatch("string", std::slice::from_ref(other))),
    }))
}
