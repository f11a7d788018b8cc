//! Strings: the standard functions and cel-go's extension in version 2. Positions count code points.

use super::{format, mismatch};
use crate::error::EvalError;
use crate::val::{Res, Val};

/// Longer strings are not made.
const MAX_LENGTH: usize = 64 << 20;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match (function, args) {
        ("contains", [Val::String(text), Val::String(part)]) => {
            Ok(Val::Bool(text.as_str().contains(part.as_str())))
        }
        ("startsWith", [Val::String(text), Val::String(part)]) => {
            Ok(Val::Bool(text.as_str().starts_with(part.as_str())))
        }
        ("endsWith", [Val::String(text), Val::String(part)]) => {
            Ok(Val::Bool(text.as_str().ends_with(part.as_str())))
        }
        ("charAt", [Val::String(text), Val::Int(index)]) => char_at(text.as_str(), *index),
        ("indexOf" | "lastIndexOf", [Val::String(text), Val::String(part)]) => {
            index_of(function, text.as_str(), part.as_str(), None)
        }
        ("indexOf" | "lastIndexOf", [Val::String(text), Val::String(part), Val::Int(from)]) => {
            index_of(function, text.as_str(), part.as_str(), Some(*from))
        }
        ("lowerAscii", [Val::String(text)]) => Ok(Val::string(text.as_str().to_ascii_lowercase())),
        ("upperAscii", [Val::String(text)]) => Ok(Val::string(text.as_str().to_ascii_uppercase())),
        ("trim", [Val::String(text)]) => {
            Ok(Val::string(text.as_str().trim_matches(|c: char| c.is_whitespace() || c == '\u{85}')))
        }
        ("replace", [Val::String(text), Val::String(old), Val::String(new)]) => {
            replace(text.as_str(), old.as_str(), new.as_str(), -1)
        }
        ("replace", [Val::String(text), Val::String(old), Val::String(new), Val::Int(limit)]) => {
            replace(text.as_str(), old.as_str(), new.as_str(), *limit)
        }
        ("split", [Val::String(text), Val::String(by)]) => Ok(split(text.as_str(), by.as_str(), -1)),
        ("split", [Val::String(text), Val::String(by), Val::Int(limit)]) => {
            Ok(split(text.as_str(), by.as_str(), *limit))
        }
        ("substring", [Val::String(text), Val::Int(from)]) => substring(text.as_str(), *from, None),
        ("substring", [Val::String(text), Val::Int(from), Val::Int(to)]) => {
            substring(text.as_str(), *from, Some(*to))
        }
        ("join", [Val::List(_)]) => join(args, ""),
        ("join", [Val::List(_), Val::String(by)]) => join(args, by.as_str()),
        ("strings.quote", [Val::String(text)]) => Ok(Val::string(quote(text.as_str()))),
        ("jsonpatch.escapeKey", [Val::String(text)]) => {
            Ok(Val::string(text.as_str().replace('~', "~0").replace('/', "~1")))
        }
        _ => Err(mismatch(function, args)),
    }
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::text(format!("index out of range: {index}"))
}

/// The byte offset of a code point; the end is one, too.
fn offset(text: &str, index: i64) -> Option<usize> {
    let index = usize::try_from(index).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(index)
}

fn char_at<'a>(text: &str, index: i64) -> Res<'a> {
    let at = offset(text, index).ok_or_else(|| out_of_range(index))?;
    Ok(Val::string(text[at..].chars().next().map(String::from).unwrap_or_default()))
}

fn index_of<'a>(function: &str, text: &str, part: &str, from: Option<i64>) -> Res<'a> {
    let count = |end: usize| text[..end].chars().count() as i64;
    if function == "indexOf" {
        let from = from.unwrap_or(0);
        if part.is_empty() && from >= 0 && from <= count(text.len()) {
            return Ok(Val::Int(from));
        }
        let start = offset(text, from).ok_or_else(|| out_of_range(from))?;
        return Ok(Val::Int(text[start..].find(part).map_or(-1, |at| count(start + at))));
    }
    let length = count(text.len());
    let from = from.unwrap_or(length);
    if part.is_empty() && from >= 0 && from <= length {
        return Ok(Val::Int(from));
    }
    let last = offset(text, from).ok_or_else(|| out_of_range(from))?;
    // The match may begin at `last` at most.
    let mut end = (last + part.len()).min(text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    let found = text[..end].rfind(part).filter(|at| *at <= last);
    Ok(Val::Int(found.map_or(-1, count)))
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Res<'a> {
    if let Some(to) = to
        && from > to
    {
        return Err(EvalError::text(format!("invalid substring range. start: {from}, end: {to}")));
    }
    let start = offset(text, from).ok_or_else(|| out_of_range(from))?;
    let end = match to {
        Some(to) => offset(text, to).ok_or_else(|| out_of_range(to))?,
        None => text.len(),
    };
    Ok(Val::string(&text[start..end]))
}

fn replace<'a>(text: &str, old: &str, new: &str, limit: i64) -> Res<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() }.min(limit);
    if text.len().saturating_add(count.saturating_mul(new.len())) > MAX_LENGTH {
        return Err(EvalError::CostLimitExceeded);
    }
    Ok(Val::string(text.replacen(old, new, limit)))
}

fn split<'a>(text: &str, by: &str, limit: i64) -> Val<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<Val<'a>> = match (limit, by) {
        (0, _) => Vec::new(),
        (_, "") => {
            let mut parts = Vec::new();
            let mut rest = text;
            while let Some(c) = rest.chars().next() {
                if parts.len() + 1 == limit {
                    parts.push(Val::string(rest));
                    break;
                }
                parts.push(Val::string(c.to_string()));
                rest = &rest[c.len_utf8()..];
            }
            parts
        }
        _ => text.splitn(limit, by).map(Val::string).collect(),
    };
    Val::list(parts)
}

fn join<'a>(args: &[Val<'a>], by: &str) -> Res<'a> {
    let Some(Val::List(list)) = args.first() else { return Err(mismatch("join", args)) };
    let mut out = String::new();
    for (index, val) in list.iter().enumerate() {
        let val = val?;
        let Some(text) = val.as_str() else {
            return Err(EvalError::text(format!("join: invalid input: {}", format::plain(&val))));
        };
        if index > 0 {
            out.push_str(by);
        }
        out.push_str(text);
        if out.len() > MAX_LENGTH {
            return Err(EvalError::CostLimitExceeded);
        }
    }
    Ok(Val::string(out))
}

/// A string in double quotes, with escapes.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
