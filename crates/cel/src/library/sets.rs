//! Lists as sets.

use super::mismatch;
use crate::error::EvalError;
use crate::interp::compare;
use crate::val::{List, Res, Val};

/// More comparisons than this cost more than any evaluation may.
const MAX_COMPARISONS: usize = crate::PER_CALL_LIMIT as usize;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    let [Val::List(a), Val::List(b)] = args else { return Err(mismatch(function, args)) };
    if a.len().saturating_mul(b.len()) > MAX_COMPARISONS {
        return Err(EvalError::CostLimitExceeded);
    }
    let (a, b) = (values(a)?, values(b)?);
    Ok(Val::Bool(match function {
        "sets.contains" => contains(&a, &b)?,
        "sets.equivalent" => contains(&a, &b)? && contains(&b, &a)?,
        _ => {
            for val in &a {
                if has(&b, val)? {
                    return Ok(Val::Bool(true));
                }
            }
            false
        }
    }))
}

fn values<'a>(list: &List<'a>) -> Result<Vec<Val<'a>>, EvalError> {
    list.iter().collect()
}

fn has(list: &[Val<'_>], val: &Val<'_>) -> Result<bool, EvalError> {
    for element in list {
        if compare::equal(element, val)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains(list: &[Val<'_>], sub: &[Val<'_>]) -> Result<bool, EvalError> {
    for val in sub {
        if !has(list, val)? {
            return Ok(false);
        }
    }
    Ok(true)
}
