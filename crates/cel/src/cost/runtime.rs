//! What a call costs when it is made.

use super::{CHECK_COST, REGEX_FACTOR, STRING_FACTOR, SizeEstimate, scaled};
use crate::cost::functions::selector_cost;
use crate::library::opaque::Opaque;
use crate::val::Val;

/// The cost of a call that was made with these arguments. `overload` is empty where several were possible.
pub fn call_cost(function: &str, overload: &str, args: &[Val<'_>], result: Option<&Val<'_>>) -> u64 {
    if let Some(cost) = tracked(overload, args, result) {
        return cost;
    }
    if let Some(cost) = kubernetes(function, overload, args, result) {
        return cost;
    }
    let size = |index: usize| args.get(index).map_or(1, Val::cost_size);
    match overload {
        // Of `startsWith`, upstream charges the receiver at run time and the argument in the estimate.
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scaled(size(0), STRING_FACTOR),
        "in_list" => size(1),
        "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes" => scaled(size(0).min(size(1)), STRING_FACTOR),
        "add_string" | "add_bytes" => scaled(size(0) + size(1), STRING_FACTOR),
        "matches_string" | "matches" => pattern_cost(size(0), size(1)),
        "contains_string" => scaled(size(0), STRING_FACTOR).saturating_mul(scaled(size(1), STRING_FACTOR)),
        _ => 1,
    }
}

fn pattern_cost(text: u64, pattern: u64) -> u64 {
    scaled(text.saturating_add(1), STRING_FACTOR).saturating_mul(scaled(pattern, REGEX_FACTOR))
}

/// Functions that bring their own counting with them.
fn tracked(overload: &str, args: &[Val<'_>], result: Option<&Val<'_>>) -> Option<u64> {
    let size = |index: usize| args.get(index).map_or(1, Val::cost_size);
    let allocating = |size: f64| Some((size as u64).saturating_add(11));
    match overload {
        "list_slice" | "lists_range" | "list_reverse" => allocating(result.map_or(1, Val::cost_size) as f64),
        "list_flatten" => allocating(size(0) as f64),
        "list_flatten_int" => match args.get(1) {
            Some(Val::Int(depth)) => allocating((size(0) as f64 * *depth as f64).max(0.0)),
            _ => None,
        },
        "list_distinct" => self_compare(args.first()),
        "list_sets_contains_list" | "list_sets_intersects_list" => {
            Some(1 + (size(0) as f64 * size(1) as f64) as u64)
        }
        "list_sets_equivalent_list" => Some(1 + (size(0) as f64 * size(1) as f64 * 2.0) as u64),
        _ if overload.ends_with("_sort") => self_compare(args.first()),
        _ if overload.ends_with("_sortByAssociatedKeys") => self_compare(args.get(1)),
        _ => None,
    }
}

fn self_compare(list: Option<&Val<'_>>) -> Option<u64> {
    let Some(Val::List(list)) = list else { return None };
    let size = list.len() as f64;
    let textual = matches!(list.get(0), Some(Ok(Val::String(_) | Val::Bytes(_))));
    let factor = if textual { 2.0 + STRING_FACTOR } else { 2.0 };
    Some(((size * size * factor) as u64).saturating_add(11))
}

fn kubernetes(function: &str, overload: &str, args: &[Val<'_>], result: Option<&Val<'_>>) -> Option<u64> {
    let size = |index: usize| args.get(index).map(Val::cost_size);
    Some(match function {
        "check" => CHECK_COST,
        "fieldSelector" | "labelSelector" => selector_cost(SizeEstimate::fixed(size(1)?)).max,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            traversal(args.first()?, &mut 2_000_000)
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => scaled(size(0)?, STRING_FACTOR),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0)?, 2.0 * STRING_FACTOR),
        "join" => scaled(result.map_or(1, Val::cost_size), 2.0 * STRING_FACTOR),
        "find" | "findAll" => pattern_cost(size(0)?, size(1)?),
        "ip" if overload == "cidr_ip" => 1,
        "ip" => scaled(size(0)?, STRING_FACTOR),
        "containsIP" | "containsCIDR" => {
            let (mine, other) = (size(0)?, size(1)?);
            let mut cost = scaled(mine + mine, STRING_FACTOR);
            if function == "containsCIDR" {
                cost += scaled(mine, STRING_FACTOR) + 1;
            }
            if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                cost += scaled(other, STRING_FACTOR);
            }
            cost
        }
        "validate" => match args.first()? {
            Val::Opaque(Opaque::Format(format)) => pattern_cost(size(1)?, format.max_regex_size),
            _ => return None,
        },
        constant if super::COST_ONE.contains(&constant) => 1,
        _ => return None,
    })
}

/// The cost of looking at all of a value, of which so many parts are left to be looked at.
fn traversal(val: &Val<'_>, left: &mut usize) -> u64 {
    if *left == 0 {
        return 1;
    }
    *left -= 1;
    match val {
        Val::String(text) => (text.as_str().len() as f64 * STRING_FACTOR) as u64,
        Val::Bytes(bytes) => (bytes.len() as f64 * STRING_FACTOR) as u64,
        Val::List(list) => {
            let mut sum = 0;
            for element in list.iter() {
                sum += element.map_or(1, |element| traversal(&element, left));
            }
            sum
        }
        Val::Map(map) => {
            let mut sum = 0;
            for key in map.keys() {
                let value = map.get(&key).and_then(Result::ok);
                sum += traversal(&key, left) + value.map_or(1, |value| traversal(&value, left));
            }
            sum
        }
        _ => 1,
    }
}
