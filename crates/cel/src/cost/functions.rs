//! The estimates of functions beyond the standard library.

use std::sync::Arc;

use super::estimate::{ArgNode, CallEstimate, Declared, declared_size};
use super::{CHECK_COST, CostEstimate, REGEX_FACTOR, STRING_FACTOR, SizeEstimate};
use crate::ast::Literal;
use crate::library::named_format::MAX_NAME_FORMAT_REGEX_SIZE;
use crate::types::{Kind, Type};

/// The longest name of a named format.
const MAX_FORMAT_SIZE: u64 = 64;

/// A selector's cost: reading it, a list, and for every two characters a requirement.
pub fn selector_cost(length: SizeEstimate) -> CostEstimate {
    let requirements = length.factor(0.5).factor(50.0);
    CostEstimate::fixed(10).add(length.factor(STRING_FACTOR)).add(requirements)
}

/// The estimate of a call; `None` where the defaults apply.
pub fn estimate(
    declared: Declared<'_, '_>,
    function: &str,
    overload: &str,
    target: Option<&ArgNode<'_>>,
    args: &[ArgNode<'_>],
) -> Option<CallEstimate> {
    let size = |node: &ArgNode<'_>| {
        node.computed.or_else(|| declared_size(declared, &node.path)).unwrap_or(SizeEstimate::UNKNOWN)
    };
    if let Some(call) = lists(overload, target, args, &size) {
        return Some(call);
    }
    let cost = |cost: CostEstimate| Some(CallEstimate { cost, result: None });
    let string_cost = |node: &ArgNode<'_>| cost(size(node).factor(STRING_FACTOR));
    let one = || cost(CostEstimate::fixed(1));
    match function {
        "check" => cost(CostEstimate::fixed(CHECK_COST)),
        "fieldSelector" | "labelSelector" if args.len() == 1 => cost(selector_cost(size(&args[0]))),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            let target = target?;
            let Some(element) = element_of(target) else { return string_cost(target) };
            let mut each = CostEstimate::fixed(1);
            if matches!(element.ty.kind(), Kind::String | Kind::Bytes) {
                each = each.add(size(&element).factor(STRING_FACTOR));
            }
            cost(size(target).cost(each))
        }
        "url" | "jsonpatch.escapeKey" if args.len() == 1 => {
            let sz = size(&args[0]);
            Some(CallEstimate { cost: sz.factor(STRING_FACTOR), result: Some(sz) })
        }
        "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            let sz = size(target?);
            Some(CallEstimate { cost: sz.factor(STRING_FACTOR), result: Some(sz) })
        }
        "replace" if args.len() >= 2 => {
            let sz = size(target?);
            let result = replaced_size(sz, size(&args[0]), size(&args[1]));
            Some(CallEstimate { cost: sz.factor(2.0 * STRING_FACTOR), result: Some(result) })
        }
        "split" => {
            let sz = size(target?);
            let max = match args.get(1).and_then(|arg| arg.literal) {
                Some(Literal::Int(limit)) => *limit as u64,
                _ => sz.max,
            };
            let result = Some(SizeEstimate { min: 0, max });
            Some(CallEstimate { cost: sz.factor(2.0 * STRING_FACTOR), result })
        }
        "join" => {
            let target = target?;
            let list = size(target);
            let mut sz = SizeEstimate::fixed(0);
            if let Some(element) = element_of(target) {
                sz = list.multiply(size(&element));
            }
            if let Some(separator) = args.first() {
                let gaps = SizeEstimate { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                sz = sz.add(size(separator).multiply(gaps));
            }
            Some(CallEstimate { cost: sz.factor(STRING_FACTOR), result: Some(sz) })
        }
        "find" | "findAll" if !args.is_empty() => {
            let sz = size(target?);
            let text = sz.add(SizeEstimate::fixed(1)).factor(STRING_FACTOR);
            let result = Some(SizeEstimate { min: 0, max: sz.max });
            Some(CallEstimate { cost: text.multiply(size(&args[0]).factor(REGEX_FACTOR)), result })
        }
        // Upstream looks for a receiver here, which these functions never have: the default applies.
        "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" | "ip.isCanonical" => {
            None
        }
        "ip" if target.is_some() => one(),
        "containsIP" | "containsCIDR" if target.is_some() && !args.is_empty() => {
            let bytes = SizeEstimate { min: 4, max: 16 };
            let mut sum = bytes.add(bytes).factor(STRING_FACTOR);
            if function == "containsCIDR" {
                sum = sum.add(bytes.factor(STRING_FACTOR)).add(CostEstimate::fixed(1));
            }
            if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                sum = sum.add(size(&args[0]).factor(STRING_FACTOR));
            }
            cost(sum)
        }
        "validate" if target.is_some() && !args.is_empty() => cost(
            size(&args[0]).factor(STRING_FACTOR).factor(MAX_NAME_FORMAT_REGEX_SIZE as f64 * REGEX_FACTOR),
        ),
        constant if super::COST_ONE.contains(&constant) => one(),
        "_==_" if args.len() == 2 && args[0].ty.same(args[1].ty) => equality(args),
        _ => None,
    }
}

fn equality(args: &[ArgNode<'_>]) -> Option<CallEstimate> {
    let cost = match args[0].ty.name() {
        "net.IP"
        | "net.CIDR"
        | "kubernetes.Quantity"
        | "kubernetes.Semver"
        | "kubernetes.authorization.Authorizer"
        | "kubernetes.authorization.PathCheck"
        | "kubernetes.authorization.GroupCheck"
        | "kubernetes.authorization.ResourceCheck"
        | "kubernetes.authorization.Decision" => CostEstimate::fixed(1),
        "kubernetes.NamedFormat" => CostEstimate { min: 1, max: MAX_FORMAT_SIZE }.factor(STRING_FACTOR),
        "kubernetes.URL" => {
            let max = args[1].computed.map_or(1, |size| size.max);
            CostEstimate { min: 1, max }.factor(STRING_FACTOR)
        }
        _ => return None,
    };
    Some(CallEstimate { cost, result: None })
}

/// The elements of a list as an argument of their own.
fn element_of<'c>(list: &ArgNode<'c>) -> Option<ArgNode<'c>> {
    let ty: &'c Type = match list.ty {
        Type::List(element) | Type::Optional(element) => element,
        Type::Map(key, _) => key,
        _ => return None,
    };
    let mut path = list.path.clone();
    if !path.is_empty() {
        path.push(Arc::from("@items"));
    }
    Some(ArgNode { path, ty, computed: None, literal: None })
}

/// The size of `sz.replace(old, new)`.
fn replaced_size(sz: SizeEstimate, old: SizeEstimate, new: SizeEstimate) -> SizeEstimate {
    let ratio = |a: u64, b: u64| (a as f64 / b as f64).ceil() as u64;
    // The longest result: an empty `old` surrounds every character, a growing replacement of the shortest `old` as
    // often as possible, otherwise nothing.
    let (max_count, max_kept) = if old.min == 0 {
        (sz.max.saturating_add(1), sz.max)
    } else if new.max <= old.min {
        (0, sz.max)
    } else {
        (ratio(sz.max, old.min), 0)
    };
    let (min_count, min_kept) = if old.max == 0 {
        (sz.min.saturating_add(1), sz.min)
    } else if old.max <= new.min {
        (0, sz.min)
    } else {
        (ratio(sz.min, old.max), 0)
    };
    SizeEstimate { min: min_count, max: max_count }
        .multiply(new)
        .add(SizeEstimate { min: min_kept, max: max_kept })
}

/// Functions of the list and set extensions, which estimate themselves by overload.
fn lists(
    overload: &str,
    target: Option<&ArgNode<'_>>,
    args: &[ArgNode<'_>],
    size: &dyn Fn(&ArgNode<'_>) -> SizeEstimate,
) -> Option<CallEstimate> {
    let number = |node: Option<&ArgNode<'_>>, default: u64| match node.and_then(|node| node.literal) {
        Some(Literal::Int(i)) if *i >= 0 => *i as u64,
        Some(Literal::Uint(u)) => *u,
        _ => default,
    };
    let allocating = |factor: f64, list: SizeEstimate| {
        Some(CallEstimate { cost: list.factor(factor).add(CostEstimate::fixed(11)), result: Some(list) })
    };
    match overload {
        "list_slice" => {
            let sz = size(target?);
            let (from, to) = (number(args.first(), 0), number(args.get(1), sz.max));
            allocating(1.0, SizeEstimate::fixed(to.wrapping_sub(from)))
        }
        "lists_range" => allocating(1.0, SizeEstimate::fixed(number(args.first(), u64::MAX))),
        "list_reverse" => allocating(1.0, size(target?)),
        "list_flatten" => allocating(1.0, size(target?)),
        "list_flatten_int" => allocating(number(args.first(), u64::MAX) as f64, size(target?)),
        "list_distinct" => {
            let sz = size(target?);
            allocating(2.0, sz.multiply(sz))
        }
        "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
            let factor = if overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
            let product = size(&args[0]).multiply(size(&args[1]));
            Some(CallEstimate { cost: product.factor(factor).add(CostEstimate::fixed(1)), result: None })
        }
        _ => {
            let (list, kind) = match overload.strip_suffix("_sort") {
                Some(kind) => (target?, kind),
                None => (args.first()?, overload.strip_suffix("_sortByAssociatedKeys")?),
            };
            let sz = size(list);
            let textual = matches!(kind, "list_string" | "list_bytes");
            allocating(if textual { 2.0 + STRING_FACTOR } else { 2.0 }, sz.multiply(sz))
        }
    }
}
