//! Checks of literals after type checking: durations, timestamps and patterns given as constants must be valid.

use crate::ast::{Expr, ExprKind, Literal};
use crate::error::Issue;
use crate::library::check_pattern;
use crate::parse::Parsed;
use crate::time::{Duration, Timestamp};
use crate::types::Type;

/// Adds an issue for each invalid literal argument and each literal of mixed types.
pub fn validate(expr: &Expr, parsed: &Parsed, types: &[Type], issues: &mut Vec<Issue>) {
    // What is inside of arguments of `format` may be mixed.
    let mut open = vec![(expr, false)];
    while let Some((expr, mut exempt)) = open.pop() {
        match &expr.kind {
            ExprKind::Call { function, target, args } => {
                exempt = exempt || &**function == "format";
                call(function, target.is_some(), args, parsed, issues);
                open.extend(target.iter().map(|target| (&**target, exempt)));
                open.extend(args.iter().map(|arg| (arg, exempt)));
            }
            ExprKind::Select { operand, .. } => open.push((operand, exempt)),
            ExprKind::List { elements, optional } => {
                if !exempt {
                    homogeneous(elements.iter().zip(optional.iter().copied()), parsed, types, issues);
                }
                open.extend(elements.iter().map(|element| (element, exempt)));
            }
            ExprKind::Map(entries) => {
                if !exempt {
                    homogeneous(entries.iter().map(|entry| (&entry.key, false)), parsed, types, issues);
                    homogeneous(
                        entries.iter().map(|entry| (&entry.value, entry.optional)),
                        parsed,
                        types,
                        issues,
                    );
                }
                open.extend(entries.iter().flat_map(|entry| [(&entry.key, exempt), (&entry.value, exempt)]));
            }
            ExprKind::Struct { fields, .. } => open.extend(fields.iter().map(|field| (&field.value, exempt))),
            ExprKind::Comprehension(fold) => open.extend(
                [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]
                    .map(|part| (part, exempt)),
            ),
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
        }
    }
}

/// The elements of a literal must all have the type of the first.
fn homogeneous<'e>(
    elements: impl Iterator<Item = (&'e Expr, bool)>,
    parsed: &Parsed,
    types: &[Type],
    issues: &mut Vec<Issue>,
) {
    let mut first: Option<&Type> = None;
    for (element, optional) in elements {
        let ty = match &types[element.id as usize] {
            Type::Optional(inner) if optional => inner,
            other => other,
        };
        match first {
            None => first = Some(ty),
            Some(first) if first.same(ty) => {}
            Some(first) => {
                let (expected, found) = (first.checked_name(), ty.checked_name());
                issues.push(
                    parsed.issue(element.id, format!("expected type '{expected}' but found '{found}'")),
                );
                return;
            }
        }
    }
}

fn call(function: &str, member: bool, args: &[Expr], parsed: &Parsed, issues: &mut Vec<Issue>) {
    let literal = |index: usize| match args.get(index).map(|arg| &arg.kind) {
        Some(ExprKind::Literal(literal)) => Some(literal),
        _ => None,
    };
    let (index, valid) = match function {
        "duration" if args.len() == 1 => match literal(0) {
            Some(Literal::String(text)) => (0, Duration::parse(text).is_some()),
            _ => return,
        },
        "timestamp" if args.len() == 1 => match literal(0) {
            Some(Literal::String(text)) => (0, Timestamp::parse(text).is_some()),
            Some(Literal::Int(seconds)) => (0, Timestamp::from_seconds(*seconds).is_some()),
            _ => return,
        },
        "matches" => {
            let index = if member { 0 } else { 1 };
            match literal(index) {
                Some(Literal::String(text)) => (index, check_pattern(text)),
                _ => return,
            }
        }
        _ => return,
    };
    if !valid {
        issues.push(parsed.issue(args[index].id, format!("invalid {function} argument")));
    }
}
