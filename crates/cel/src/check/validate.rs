//! Checks of literals after type checking: durations, timestamps and patterns given as constants must be valid.

use crate::ast::{Expr, ExprKind, Literal};
use crate::error::Issue;
use crate::library::check_pattern;
use crate::parse::Parsed;
use crate::time::{Duration, Timestamp};

/// Adds an issue for each invalid literal argument.
pub fn validate(expr: &Expr, parsed: &Parsed, issues: &mut Vec<Issue>) {
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        match &expr.kind {
            ExprKind::Call { function, target, args } => {
                call(function, target.is_some(), args, parsed, issues);
                open.extend(target.iter().map(|target| &**target));
                open.extend(args);
            }
            ExprKind::Select { operand, .. } => open.push(operand),
            ExprKind::List { elements, .. } => open.extend(elements),
            ExprKind::Map(entries) => {
                open.extend(entries.iter().flat_map(|entry| [&entry.key, &entry.value]))
            }
            ExprKind::Struct { fields, .. } => open.extend(fields.iter().map(|field| &field.value)),
            ExprKind::Comprehension(fold) => {
                open.extend([&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]);
            }
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
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
