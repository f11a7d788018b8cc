//! YAML to JSON by the rules of YAML 1.1 that upstream's decoder follows (`yes` is true, `010` is eight).

use granit_parser::{Event, Parser, ScalarStyle, ScanError};
use orlop_json::{Map, Number, Value};

use super::lexer::MAX_DEPTH;

/// Aliases may unfold a document to at most so many values.
const MAX_NODES: usize = 1_000_000;

/// A document and the repeated keys in it, in upstream's words (`line 8: key "a" already set in map`).
pub(super) type Parsed = (Value, Vec<String>);

struct Frame {
    value: Value,
    key: Option<String>,
    anchor: usize,
    merges: Vec<Value>,
}

/// The first document of a stream; nothing at all is null.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let mut duplicates = Vec::new();
    let mut stack: Vec<Frame> = Vec::new();
    let mut anchors: std::collections::HashMap<usize, Value> = std::collections::HashMap::new();
    let mut nodes = 0usize;
    for item in Parser::new_from_str(text) {
        let (event, span) = item.map_err(|error| describe(&error, text))?;
        let line = span.start.line();
        let done: Option<(Value, usize)> = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain;
                let tag = tag.as_ref().and_then(|tag| tag.core_suffix().map(str::to_owned));
                let value = match tag.as_deref() {
                    Some("str" | "binary") => Value::String(text.into_owned()),
                    _ if quoted => Value::String(text.into_owned()),
                    _ => resolve(&text),
                };
                Some((value, anchor))
            }
            Event::Alias(id) => {
                let Some(value) = anchors.get(&id) else {
                    return Err(format!("yaml: unknown anchor at line {line}"));
                };
                nodes += count(value);
                Some((value.clone(), 0))
            }
            Event::MappingStart(_, anchor, _) => {
                push(&mut stack, Value::Object(Map::new()), anchor)?;
                None
            }
            Event::SequenceStart(_, anchor, _) => {
                push(&mut stack, Value::Array(Vec::new()), anchor)?;
                None
            }
            Event::MappingEnd | Event::SequenceEnd => stack.pop().map(|mut frame| {
                for merged in std::mem::take(&mut frame.merges) {
                    merge(&mut frame.value, merged);
                }
                (frame.value, frame.anchor)
            }),
            _ => None,
        };
        nodes += 1;
        if nodes > MAX_NODES {
            return Err("yaml: document contains excessive aliasing".into());
        }
        let Some((value, anchor)) = done else { continue };
        if anchor != 0 {
            anchors.insert(anchor, value.clone());
        }
        let Some(top) = stack.last_mut() else { return Ok((value, duplicates)) };
        match &mut top.value {
            Value::Array(items) => items.push(value),
            Value::Object(map) => match top.key.take() {
                None => top.key = Some(key_text(value, line)?),
                Some(key) if key == "<<" && (value.is_object() || value.is_array()) => top.merges.push(value),
                Some(key) => {
                    if map.contains_key(&key) {
                        // The value's line is the key's line for scalars, which is where duplicates matter.
                        duplicates.push(format!(
                            "line {line}: key {} already set in map",
                            crate::field::go_quote(&key)
                        ));
                    }
                    map.insert(key.into(), value);
                }
            },
            _ => {}
        }
    }
    Ok((Value::Null, duplicates))
}

fn push(stack: &mut Vec<Frame>, value: Value, anchor: usize) -> Result<(), String> {
    if stack.len() >= MAX_DEPTH {
        return Err("yaml: exceeded max depth".into());
    }
    stack.push(Frame { value, key: None, anchor, merges: Vec::new() });
    Ok(())
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// `<<`: keys that are there win.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (into @ Value::Object(_), Value::Array(items)) => {
            for item in items {
                merge(into, item);
            }
        }
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                into.entry(key).or_insert(value);
            }
        }
        _ => {}
    }
}

fn key_text(value: Value, line: usize) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null => Ok("null".into()),
        _ => Err(format!("yaml: invalid map key at line {line}")),
    }
}

/// What a plain scalar means.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if !numeric {
        return Value::String(text.to_owned());
    }
    let plain = text.replace('_', "");
    if let Some(whole) = integer(&plain) {
        return Value::from(whole);
    }
    let shaped = plain.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && plain.bytes().any(|b| b.is_ascii_digit())
        && plain.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    match plain.parse::<f64>() {
        Ok(float) if shaped => {
            Number::from_f64(float).map_or_else(|| Value::String(text.to_owned()), Value::Number)
        }
        _ => Value::String(text.to_owned()),
    }
}

/// Go's `ParseInt` with base 0.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1i128, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()? * sign;
    i64::try_from(value).ok()
}

/// libyaml's words for the mistakes that people make most.
fn describe(error: &ScanError, text: &str) -> String {
    let info = error.info();
    let mut line = error.marker().line();
    // libyaml counts from the line before when the text ends without a closing bracket.
    if line > text.lines().count() {
        line = text.lines().count();
    }
    let unclosed = |open: char, close: char| {
        let tail = text.trim_end();
        if tail.ends_with(open) || tail.ends_with(',') {
            "did not find expected node content".to_owned()
        } else {
            format!("did not find expected ',' or '{close}'")
        }
    };
    let opens = |open: char, close: char| text.matches(open).count() > text.matches(close).count();
    let what = if opens('[', ']') {
        unclosed('[', ']')
    } else if opens('{', '}') {
        unclosed('{', '}')
    } else if info.contains("tab") {
        "found character that cannot start any token".to_owned()
    } else if info.contains("mapping values") {
        "mapping values are not allowed in this context".to_owned()
    } else {
        info
    };
    format!("yaml: line {}: {what}", line.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn documents() {
        let cases = [
            (
                "a: 1\nb: [x, yes, ~, 010, 0x10, 1.5, '1', \"no\"]\n",
                json!({"a": 1, "b": ["x", true, null, 8, 16, 1.5, "1", "no"]}),
            ),
            ("", Value::Null),
            ("---\na: |\n  x\n  y\n---\nb: 1\n", json!({"a": "x\ny\n"})),
            (
                "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\n",
                json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"e": 2, "b": 1}}),
            ),
            ("1: a\ntrue: b\n", json!({"1": "a", "true": "b"})),
            (
                "t: 2020-01-01T00:00:00Z\nv: 1.2.3\nw: 1e3\n",
                json!({"t": "2020-01-01T00:00:00Z", "v": "1.2.3", "w": 1000.0}),
            ),
            ("{\"a\": [1, {\"b\": null}]}", json!({"a": [1, {"b": null}]})),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).unwrap().0, want, "{text}");
        }
    }

    #[test]
    fn duplicates_and_errors() {
        assert_eq!(parse("a: 1\nb: 2\na: 3\n").unwrap().1, ["line 3: key \"a\" already set in map"]);
        assert_eq!(parse("a: [b\n").unwrap_err(), "yaml: line 1: did not find expected ',' or ']'");
        assert_eq!(parse("a: [\n").unwrap_err(), "yaml: line 1: did not find expected node content");
    }
}
