//! `string.format`, and numbers as Go prints them.

use super::mismatch;
use super::strings::quote;
use crate::error::EvalError;
use crate::val::{List, Map, Res, Val};

/// The largest precision of a clause.
const MAX_PRECISION: usize = 1000;
/// Longer strings are not made.
const MAX_LENGTH: usize = 64 << 20;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match args {
        [Val::String(text), Val::List(list)] => format(text.as_str(), list).map(Val::string),
        _ => Err(mismatch(function, args)),
    }
}

fn format(text: &str, args: &List<'_>) -> Result<String, EvalError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let Some(arg) = args.get(next) else {
            return Err(EvalError::text(format!("index {next} out of range")));
        };
        next += 1;
        let arg = arg?;
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            match digits.parse() {
                Ok(number) if number <= MAX_PRECISION => precision = Some(number),
                _ => {
                    return Err(problem(
                        "could not parse formatting clause: error while converting precision to integer",
                    ));
                }
            }
        }
        let Some(verb) = chars.next() else {
            return Err(problem("could not parse formatting clause: unexpected end of string"));
        };
        clause(&mut out, verb, precision.unwrap_or(6), &arg)?;
        if out.len() > MAX_LENGTH {
            return Err(EvalError::CostLimitExceeded);
        }
    }
    if next < args.len() {
        let count = args.len();
        return Err(EvalError::text(format!(
            "too many arguments supplied to string.format (expected {next}, got {count})"
        )));
    }
    Ok(out)
}

fn problem(text: &str) -> EvalError {
    EvalError::text(text.to_owned())
}

fn clause(out: &mut String, verb: char, precision: usize, arg: &Val<'_>) -> Result<(), EvalError> {
    let wrong = |what: &str| {
        EvalError::text(format!("error during formatting: {what}, was given {}", arg.type_name()))
    };
    match verb {
        's' => string(out, arg, 0)?,
        'd' => match arg {
            Val::Int(i) => out.push_str(&i.to_string()),
            Val::Uint(u) => out.push_str(&u.to_string()),
            Val::Double(f) if !f.is_finite() => out.push_str(special(*f)),
            _ => return Err(wrong("decimal clause can only be used on integers")),
        },
        'f' => match as_double(arg) {
            Some(f) if f.is_finite() => out.push_str(&grouped(&format!("{f:.precision$}"))),
            Some(f) => out.push_str(special(f)),
            None => return Err(wrong("fixed-point clause can only be used on doubles")),
        },
        'e' => match as_double(arg) {
            Some(f) if f.is_finite() => out.push_str(&scientific(f, precision)),
            Some(f) => out.push_str(special(f)),
            None => return Err(wrong("scientific clause can only be used on doubles")),
        },
        'b' => match arg {
            Val::Int(i) => out.push_str(&signed(*i, |u| format!("{u:b}"))),
            Val::Uint(u) => out.push_str(&format!("{u:b}")),
            Val::Bool(b) => out.push_str(if *b { "1" } else { "0" }),
            _ => return Err(wrong("only integers and bools can be formatted as binary")),
        },
        'o' => match arg {
            Val::Int(i) => out.push_str(&signed(*i, |u| format!("{u:o}"))),
            Val::Uint(u) => out.push_str(&format!("{u:o}")),
            _ => return Err(wrong("octal clause can only be used on integers")),
        },
        'x' | 'X' => {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let text = match arg {
                Val::Int(i) => signed(*i, |u| format!("{u:x}")),
                Val::Uint(u) => format!("{u:x}"),
                Val::String(text) => hex(text.as_str().as_bytes()),
                Val::Bytes(bytes) => hex(bytes),
                _ => return Err(wrong("only integers, byte buffers, and strings can be formatted as hex")),
            };
            out.push_str(&if verb == 'X' { text.to_ascii_uppercase() } else { text });
        }
        other => {
            return Err(EvalError::text(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{other}\""
            )));
        }
    }
    Ok(())
}

fn signed(i: i64, show: impl Fn(u64) -> String) -> String {
    format!("{}{}", if i < 0 { "-" } else { "" }, show(i.unsigned_abs()))
}

fn as_double(arg: &Val<'_>) -> Option<f64> {
    match arg {
        Val::Double(f) => Some(*f),
        Val::Int(i) => Some(*i as f64),
        Val::Uint(u) => Some(*u as f64),
        Val::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn special(f: f64) -> &'static str {
    if f.is_nan() {
        "NaN"
    } else if f > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// A decimal number with commas between thousands, as the en-US locale has them.
fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, ""), |(whole, fraction)| (whole, fraction));
    let mut out = sign.to_owned();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// `2.718280 × 10⁰⁰`, with narrow no-break spaces.
fn scientific(f: f64, precision: usize) -> String {
    let text = format!("{f:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let superscript = |digit: char| {
        char::from_digit(digit.to_digit(10).unwrap_or_default(), 10).map_or('⁰', |c| {
            ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][c.to_digit(10).unwrap_or_default() as usize]
        })
    };
    let digits: String = format!("{:02}", exponent.abs()).chars().map(superscript).collect();
    let sign = if exponent < 0 { "⁻" } else { "" };
    format!("{mantissa}\u{202f}×\u{202f}10{sign}{digits}")
}

/// The `%s` clause.
fn string(out: &mut String, arg: &Val<'_>, depth: usize) -> Result<(), EvalError> {
    if depth > 200 || out.len() > MAX_LENGTH {
        return Err(EvalError::CostLimitExceeded);
    }
    match arg {
        Val::String(text) if depth > 0 => out.push_str(&quote(text.as_str())),
        Val::String(text) => out.push_str(text.as_str()),
        Val::Bytes(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        Val::Null => out.push_str("null"),
        Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Duration(_) | Val::Timestamp(_) => {
            out.push_str(&plain(arg));
        }
        Val::Double(f) if f.is_finite() => out.push_str(&format!("{f}")),
        Val::Double(f) => out.push_str(special(*f)),
        Val::Type(ty) => out.push_str(ty.name()),
        Val::List(list) => {
            out.push('[');
            for (index, val) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                string(out, &val?, depth + 1)?;
            }
            out.push(']');
        }
        Val::Map(map) => map_string(out, map, depth)?,
        other => {
            return Err(EvalError::text(format!(
                "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, \
                 maps, lists, types, durations, and timestamps, was given {}",
                other.type_name()
            )));
        }
    }
    Ok(())
}

fn map_string(out: &mut String, map: &Map<'_>, depth: usize) -> Result<(), EvalError> {
    let mut entries = Vec::new();
    for key in map.keys() {
        let mut text = String::new();
        string(&mut text, &key, depth + 1)?;
        entries.push((text, map.get(&key)));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    out.push('{');
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        out.push_str(&key);
        out.push(':');
        if let Some(value) = value {
            string(out, &value?, depth + 1)?;
        }
    }
    out.push('}');
    Ok(())
}

/// A value in an error message.
pub fn plain(val: &Val<'_>) -> String {
    match val {
        Val::String(text) => text.as_str().to_owned(),
        Val::Bool(b) => b.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Double(f) => general(*f),
        Val::Duration(duration) => duration.to_string(),
        Val::Timestamp(time) => time.to_string(),
        Val::Null => "null".to_owned(),
        other => other.type_name(),
    }
}

/// A double as Go's `%g` prints it: the shortest digits, an exponent from 1e+21 on… or below 1e-4.
pub fn general(f: f64) -> String {
    if f.is_nan() {
        return "NaN".to_owned();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let text = format!("{f:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..21).contains(&exponent) || f == 0.0 {
        return format!("{f}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
