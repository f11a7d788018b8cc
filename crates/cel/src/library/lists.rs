//! Lists: cel-go's extension, Kubernetes' own functions, and concatenation with `x-kubernetes-list-type`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use super::{mismatch, ops, strings};
use crate::decl::ListKind;
use crate::error::EvalError;
use crate::interp::compare;
use crate::val::{List, Res, Val};

/// Longer lists are not made; looking at them would cost more than any evaluation may.
const MAX_LENGTH: usize = 2_000_000;

/// `a + b`. Sets become unions, list maps merge by their keys.
pub fn append<'a>(a: &Val<'a>, b: &Val<'a>) -> Res<'a> {
    let (Val::List(a), Val::List(b)) = (a, b) else { return Err(EvalError::no_such_overload()) };
    if a.len() + b.len() > MAX_LENGTH {
        return Err(EvalError::CostLimitExceeded);
    }
    match a.kind() {
        ListKind::Atomic => {
            let mut values = values(a)?;
            values.reserve(b.len());
            for val in b.iter() {
                values.push(val?);
            }
            Ok(Val::list(values))
        }
        kind @ ListKind::Set => {
            let mut union = values(a)?;
            let mut seen: HashSet<String> = union.iter().filter_map(compare::identity).collect();
            for val in b.iter() {
                let val = val?;
                let is_new = match compare::identity(&val) {
                    Some(identity) => seen.insert(identity),
                    None => {
                        let mut found = false;
                        for known in &union {
                            found = found || compare::equal(known, &val)?;
                        }
                        !found
                    }
                };
                if is_new {
                    union.push(val);
                }
            }
            Ok(Val::List(List::Typed(Arc::new(union), kind)))
        }
        kind @ ListKind::Map(keys) => {
            let mut merged = values(a)?;
            let mut places: std::collections::HashMap<_, usize> = merged
                .iter()
                .enumerate()
                .map(|(place, val)| (compare::list_map_key(val, keys), place))
                .collect();
            for val in b.iter() {
                let val = val?;
                let key = compare::list_map_key(&val, keys);
                match places.get(&key) {
                    Some(place) => merged[*place] = val,
                    None => {
                        places.insert(key, merged.len());
                        merged.push(val);
                    }
                }
            }
            Ok(Val::List(List::Typed(Arc::new(merged), kind)))
        }
    }
}

fn values<'a>(list: &List<'a>) -> Result<Vec<Val<'a>>, EvalError> {
    list.iter().collect()
}

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("slice", [Val::List(list), Val::Int(from), Val::Int(to)]) => slice(list, *from, *to),
        ("flatten", [Val::List(list)]) => flatten(list, 1),
        ("flatten", [Val::List(list), Val::Int(depth)]) => flatten(list, *depth),
        ("sort", [Val::List(list)]) => sort(list, list),
        ("@sortByAssociatedKeys", [Val::List(list), Val::List(keys)]) => sort(list, keys),
        ("lists.range", [Val::Int(n)]) => match usize::try_from(*n) {
            Ok(n) if n <= crate::PER_CALL_LIMIT as usize => {
                Ok(Val::list((0..n as i64).map(Val::Int).collect()))
            }
            Ok(_) => Err(EvalError::CostLimitExceeded),
            Err(_) => Err(EvalError::text(format!("lists.range: size must be non-negative, got {n}"))),
        },
        ("reverse", [Val::List(list)]) => {
            let mut values = values(list)?;
            values.reverse();
            Ok(Val::list(values))
        }
        ("distinct", [Val::List(list)]) => distinct(list),
        ("isSorted", [Val::List(list)]) => is_sorted(list),
        ("sum", [Val::List(list)]) => sum(list),
        ("min", [Val::List(list)]) => extreme(function, list, Ordering::Less),
        ("max", [Val::List(list)]) => extreme(function, list, Ordering::Greater),
        _ => Err(mismatch(function, args)),
    }
}

/// `indexOf` and `lastIndexOf` of lists and strings.
pub fn index_of<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    let [Val::List(list), wanted] = args else { return strings::call(function, args) };
    let mut found = -1;
    for (index, val) in list.iter().enumerate() {
        if compare::equal(&val?, wanted)? {
            found = index as i64;
            if function == "indexOf" {
                break;
            }
        }
    }
    Ok(Val::Int(found))
}

fn slice<'a>(list: &List<'a>, from: i64, to: i64) -> Res<'a> {
    let length = list.len() as i64;
    let problem = if from < 0 || to < 0 {
        "negative indexes not supported".to_owned()
    } else if from > to {
        "start index must be less than or equal to end index".to_owned()
    } else if length < to {
        format!("list is length {length}")
    } else {
        let part: Result<Vec<_>, _> =
            (from as usize..to as usize).filter_map(|index| list.get(index)).collect();
        return part.map(Val::list);
    };
    Err(EvalError::text(format!("cannot slice({from}, {to}), {problem}")))
}

fn flatten<'a>(list: &List<'a>, depth: i64) -> Res<'a> {
    if depth < 0 {
        return Err(EvalError::text("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten_into(list, depth.min(250), &mut out)?;
    Ok(Val::list(out))
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Val<'a>>) -> Result<(), EvalError> {
    for val in list.iter() {
        match val? {
            Val::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, out)?,
            other => out.push(other),
        }
        if out.len() > MAX_LENGTH {
            return Err(EvalError::CostLimitExceeded);
        }
    }
    Ok(())
}

/// More elements than this cost more than any evaluation may, squared as they are.
const MAX_QUADRATIC: usize = 1000;

fn sort<'a>(list: &List<'a>, keys: &List<'a>) -> Res<'a> {
    if list.len() != keys.len() {
        return Err(EvalError::text(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            list.len(),
            keys.len()
        )));
    }
    if keys.len() > MAX_QUADRATIC {
        return Err(EvalError::CostLimitExceeded);
    }
    let (values, keys) = (values(list)?, values(keys)?);
    let Some(first) = keys.first() else { return Ok(Val::list(values)) };
    if compare::order(first, first).is_err() {
        return Err(EvalError::text("list elements must be comparable"));
    }
    let ty = first.ty();
    if keys.iter().any(|key| !key.ty().same(&ty)) {
        return Err(EvalError::text("list elements must have the same type"));
    }
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| compare::order(&keys[*a], &keys[*b]).ok().flatten().unwrap_or(Ordering::Equal));
    Ok(Val::list(order.into_iter().map(|place| values[place].clone()).collect()))
}

fn distinct<'a>(list: &List<'a>) -> Res<'a> {
    if list.len() > MAX_QUADRATIC {
        return Err(EvalError::CostLimitExceeded);
    }
    let mut out: Vec<Val<'a>> = Vec::new();
    for val in list.iter() {
        let val = val?;
        let mut seen = false;
        for known in &out {
            seen = seen || compare::equal(known, &val)?;
        }
        if !seen {
            out.push(val);
        }
    }
    Ok(Val::list(out))
}

fn is_sorted<'a>(list: &List<'a>) -> Res<'a> {
    let mut previous: Option<Val<'a>> = None;
    for val in list.iter() {
        let val = val?;
        if let Some(previous) = &previous
            && compare::order(previous, &val)? == Some(Ordering::Greater)
        {
            return Ok(Val::Bool(false));
        }
        previous = Some(val);
    }
    Ok(Val::Bool(true))
}

fn sum<'a>(list: &List<'a>) -> Res<'a> {
    let mut total: Option<Val<'a>> = None;
    for val in list.iter() {
        let val = val?;
        if !matches!(val, Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Duration(_)) {
            return Err(EvalError::no_such_overload());
        }
        total = Some(match total {
            None => val,
            Some(total) => ops::call("_+_", &[total, val])?,
        });
    }
    Ok(total.unwrap_or(Val::Int(0)))
}

fn extreme<'a>(function: &str, list: &List<'a>, wanted: Ordering) -> Res<'a> {
    let mut best: Option<Val<'a>> = None;
    for val in list.iter() {
        let val = val?;
        let better = match &best {
            None => true,
            Some(best) => compare::order(&val, best)? == Some(wanted),
        };
        if better {
            best = Some(val);
        }
    }
    best.ok_or_else(|| EvalError::text(format!("{function} called on empty list")))
}
