//! Optional values.

use std::sync::Arc;

use super::mismatch;
use crate::error::EvalError;
use crate::val::{Res, Val};

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.of", [val]) => Ok(some(val.clone())),
        ("optional.ofNonZeroValue", [val]) => {
            Ok(if is_zero(val) { Val::Optional(None) } else { some(val.clone()) })
        }
        ("hasValue", [Val::Optional(val)]) => Ok(Val::Bool(val.is_some())),
        ("value", [Val::Optional(Some(val))]) => Ok((**val).clone()),
        ("value", [Val::Optional(None)]) => Err(EvalError::text("optional.none() dereference")),
        ("or", [first @ Val::Optional(val), second]) => {
            Ok(if val.is_some() { first.clone() } else { second.clone() })
        }
        ("orValue", [Val::Optional(val), default]) => {
            Ok(val.as_ref().map_or_else(|| default.clone(), |val| (**val).clone()))
        }
        ("first", [Val::List(list)]) => list.get(0).map_or(Ok(Val::Optional(None)), |val| val.map(some)),
        ("last", [Val::List(list)]) => match list.len().checked_sub(1).and_then(|last| list.get(last)) {
            Some(val) => val.map(some),
            None => Ok(Val::Optional(None)),
        },
        ("optional.unwrap" | "unwrapOpt", [Val::List(list)]) => {
            let mut values = Vec::new();
            for val in list.iter() {
                match val? {
                    Val::Optional(Some(val)) => values.push((*val).clone()),
                    Val::Optional(None) => {}
                    other => {
                        let name = other.type_name();
                        return Err(EvalError::text(format!("value {name} is not optional")));
                    }
                }
            }
            Ok(Val::list(values))
        }
        _ => Err(mismatch(function, args)),
    }
}

fn some(val: Val<'_>) -> Val<'_> {
    Val::Optional(Some(Arc::new(val)))
}

fn is_zero(val: &Val<'_>) -> bool {
    match val {
        Val::Null => true,
        Val::Bool(b) => !b,
        Val::Int(i) => *i == 0,
        Val::Uint(u) => *u == 0,
        Val::Double(f) => *f == 0.0,
        Val::Duration(duration) => duration.0 == 0,
        Val::Timestamp(time) => time.to_string() == "0001-01-01T00:00:00Z",
        Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) => val.size() == Some(0),
        Val::Struct(object) => object.fields.is_empty(),
        Val::Optional(val) => val.is_none(),
        Val::Type(_) | Val::Opaque(_) => false,
    }
}
