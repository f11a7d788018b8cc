//! Equality and order. Numbers compare across types; values of different types are unequal and have no order. Lists
//! of objects compare by their `x-kubernetes-list-type`.

use std::cmp::Ordering;

use crate::decl::ListKind;
use crate::error::EvalError;
use crate::val::{List, Map, Val};

/// Deeper values are not compared.
const MAX_DEPTH: usize = 300;
/// Nor values of more parts; they can share parts and so be far larger than what was paid for.
const MAX_PARTS: usize = 10_000_000;

/// How far a comparison has gone.
struct Progress {
    depth: usize,
    parts: usize,
}

/// Whether two values are equal.
pub fn equal(a: &Val<'_>, b: &Val<'_>) -> Result<bool, EvalError> {
    equal_at(a, b, &mut Progress { depth: 0, parts: 0 })
}

fn equal_at(a: &Val<'_>, b: &Val<'_>, progress: &mut Progress) -> Result<bool, EvalError> {
    if progress.depth > MAX_DEPTH || progress.parts > MAX_PARTS {
        return Err(EvalError::CostLimitExceeded);
    }
    progress.depth += 1;
    progress.parts += 1;
    let equal = equal_inner(a, b, progress);
    progress.depth -= 1;
    equal
}

fn equal_inner(a: &Val<'_>, b: &Val<'_>, depth: &mut Progress) -> Result<bool, EvalError> {
    Ok(match (a, b) {
        (Val::List(a), Val::List(b)) => return lists(a, b, depth),
        (Val::Map(a), Val::Map(b)) => return maps(a, b, depth),
        (Val::Struct(a), Val::Struct(b)) => {
            if a.ty.name != b.ty.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                match b.fields.iter().find(|(other, _)| other == name) {
                    Some((_, other)) if equal_at(value, other, depth)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Val::Optional(a), Val::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => return equal_at(a, b, depth),
            (a, b) => a.is_none() && b.is_none(),
        },
        (Val::Opaque(a), Val::Opaque(b)) => a.equal(b).unwrap_or(false),
        (a, b) => equal_scalar(a, b),
    })
}

/// Equality of values that are neither lists nor maps.
pub fn equal_scalar(a: &Val<'_>, b: &Val<'_>) -> bool {
    match (a, b) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::String(a), Val::String(b)) => a.as_str() == b.as_str(),
        (Val::Bytes(a), Val::Bytes(b)) => a == b,
        (Val::Duration(a), Val::Duration(b)) => a == b,
        (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
        (Val::Type(a), Val::Type(b)) => a.name() == b.name(),
        (a, b) => numbers(a, b) == Some(Ordering::Equal),
    }
}

/// The order of two numbers; `None` where one is none or is not a number.
fn numbers(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    let whole = |val: &Val<'_>| match val {
        Val::Int(i) => Some(i128::from(*i)),
        Val::Uint(u) => Some(i128::from(*u)),
        _ => None,
    };
    match (a, b) {
        (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
        (Val::Double(a), b) => mixed(*a, whole(b)?),
        (a, Val::Double(b)) => mixed(*b, whole(a)?).map(Ordering::reverse),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

fn mixed(double: f64, whole: i128) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double.abs() >= 1e30 {
        return Some(if double > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let floor = double.floor();
    Some((floor as i128).cmp(&whole).then(if double > floor { Ordering::Greater } else { Ordering::Equal }))
}

/// The order of two values of a type that has one. `Ok(None)` for not-a-number.
pub fn order(a: &Val<'_>, b: &Val<'_>) -> Result<Option<Ordering>, EvalError> {
    Ok(match (a, b) {
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        (Val::String(a), Val::String(b)) => Some(a.as_str().cmp(b.as_str())),
        (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
        (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
        (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
        (Val::Int(_) | Val::Uint(_) | Val::Double(_), Val::Int(_) | Val::Uint(_) | Val::Double(_)) => {
            numbers(a, b)
        }
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn lists(a: &List<'_>, b: &List<'_>, depth: &mut Progress) -> Result<bool, EvalError> {
    match a.kind() {
        ListKind::Set => sets(a, b, depth),
        ListKind::Map(keys) => map_lists(a, b, keys, depth),
        ListKind::Atomic => match b.kind() {
            ListKind::Set => sets(b, a, depth),
            ListKind::Map(keys) => map_lists(b, a, keys, depth),
            ListKind::Atomic => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b.iter()) {
                    if !equal_at(&a?, &b?, depth)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        },
    }
}

/// Sets: the same elements in any order.
fn sets(a: &List<'_>, b: &List<'_>, depth: &mut Progress) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    let texts: Option<std::collections::HashSet<String>> = a.iter().map(|val| identity(&val.ok()?)).collect();
    if let Some(texts) = texts {
        for val in b.iter() {
            match identity(&val?) {
                Some(text) if texts.contains(&text) => {}
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    for wanted in b.iter() {
        let wanted = wanted?;
        let mut found = false;
        for val in a.iter() {
            if equal_at(&val?, &wanted, depth)? {
                found = true;
                break;
            }
        }
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A text that equal scalars share.
pub fn identity(val: &Val<'_>) -> Option<String> {
    Some(match val {
        Val::String(text) => format!("s{}", text.as_str()),
        Val::Bool(b) => format!("b{b}"),
        Val::Int(i) => format!("n{i}"),
        Val::Uint(u) => format!("n{u}"),
        Val::Null => "null".to_owned(),
        _ => return None,
    })
}

/// Lists of objects with keys: the same objects in any order.
fn map_lists(
    a: &List<'_>,
    b: &List<'_>,
    keys: &[std::sync::Arc<str>],
    depth: &mut Progress,
) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    let mut mine = std::collections::HashMap::new();
    for val in a.iter() {
        let val = val?;
        mine.insert(list_map_key(&val, keys), val);
    }
    for val in b.iter() {
        let val = val?;
        match mine.get(&list_map_key(&val, keys)) {
            Some(other) if equal_at(other, &val, depth)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// What identifies an element of a list map.
pub fn list_map_key(val: &Val<'_>, keys: &[std::sync::Arc<str>]) -> Vec<Option<String>> {
    let Val::Map(map) = val else { return Vec::new() };
    keys.iter()
        .map(|key| {
            let name = crate::escaping::escape(key)?;
            map.get_str(&name).and_then(Result::ok).and_then(|val| identity(&val))
        })
        .collect()
}

fn maps(a: &Map<'_>, b: &Map<'_>, depth: &mut Progress) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for key in a.keys() {
        let (Some(mine), Some(theirs)) = (a.get(&key), b.get(&key)) else { return Ok(false) };
        if !equal_at(&mine?, &theirs?, depth)? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl PartialEq for Val<'_> {
    fn eq(&self, other: &Val<'_>) -> bool {
        equal(self, other).unwrap_or(false)
    }
}
