//! The JSON paths of printer columns, as kubectl's templates know them: fields, indexes, slices, wildcards, filters,
//! recursive descent, unions.
//!
//! Answers to `client-go/util/jsonpath` for a template of one expression.

use std::cmp::Ordering;

use orlop_json::Value;

/// Values that one evaluation may visit.
const BUDGET: usize = 100_000;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    /// From, to, step; as in Python.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Union(Vec<Vec<Step>>),
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    operator: String,
    right: Operand,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Vec<Step>),
    Literal(Value),
    None,
}

impl JsonPath {
    /// Reads a path like `.status.conditions[?(@.type=="Ready")].status`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        let chars: Vec<char> = text.trim().chars().collect();
        let mut reader = Reader { chars: &chars, at: 0 };
        let steps = reader.steps()?;
        if reader.at < chars.len() {
            return Err(format!("unrecognized character {:?}", chars[reader.at]));
        }
        Ok(JsonPath(steps))
    }

    /// The values at the path, in order; none when a field is missing.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut budget = BUDGET;
        walk(&self.0, vec![value], &mut budget)
    }
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn steps(&mut self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        if matches!(self.peek(), Some('$' | '@')) {
            self.at += 1;
        }
        loop {
            match self.peek() {
                Some('.') => {
                    self.at += 1;
                    if self.peek() == Some('.') {
                        self.at += 1;
                        steps.push(Step::Recursive);
                    }
                    match self.peek() {
                        Some('*') => {
                            self.at += 1;
                            steps.push(Step::Wildcard);
                        }
                        Some('[') | None => {}
                        _ => {
                            let name = self.field();
                            if !name.is_empty() {
                                steps.push(Step::Field(name));
                            }
                        }
                    }
                }
                Some('[') => {
                    let inner = self.bracket()?;
                    steps.push(array_step(&inner)?);
                }
                _ => return Ok(steps),
            }
        }
    }

    fn field(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            match c {
                '\\' => {
                    self.at += 1;
                    name.extend(self.peek());
                    self.at += 1;
                }
                '.' | '[' | ' ' | ')' | '=' | '!' | '<' | '>' | '{' | '}' => break,
                c => {
                    name.push(c);
                    self.at += 1;
                }
            }
        }
        name
    }

    /// What stands between a bracket and its partner.
    fn bracket(&mut self) -> Result<String, String> {
        self.at += 1;
        let start = self.at;
        let (mut depth, mut quote) = (1, None);
        while let Some(c) = self.peek() {
            match (quote, c) {
                (Some(_), '\\') => self.at += 1,
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => {}
                (None, '\'' | '"') => quote = Some(c),
                (None, '[') => depth += 1,
                (None, ']') => {
                    depth -= 1;
                    if depth == 0 {
                        let inner = self.chars[start..self.at].iter().collect();
                        self.at += 1;
                        return Ok(inner);
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Err("unterminated array".to_string())
    }
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(inner.replace(&format!("\\{quote}"), &quote.to_string()).replace("\\\\", "\\"))
}

fn array_step(inner: &str) -> Result<Step, String> {
    let inner = inner.trim();
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return Ok(Step::Filter(Box::new(filter_of(filter)?)));
    }
    if inner == "*" {
        return Ok(Step::Wildcard);
    }
    let parts = split_outside_quotes(inner);
    if parts.len() > 1 {
        let members: Result<Vec<Vec<Step>>, String> =
            parts.iter().map(|part| array_step(part).map(|step| vec![step])).collect();
        return members.map(Step::Union);
    }
    if let Some(name) = unquote(inner) {
        return Ok(Step::Field(name));
    }
    let invalid = || format!("invalid array index {inner}");
    let number = |text: &str| -> Result<Option<i64>, String> {
        let text = text.trim();
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| invalid()) }
    };
    let pieces: Vec<&str> = inner.split(':').collect();
    match pieces.as_slice() {
        [index] => Ok(Step::Index(number(index)?.ok_or_else(invalid)?)),
        [from, to] => Ok(Step::Slice(number(from)?, number(to)?, 1)),
        [from, to, step] => Ok(Step::Slice(number(from)?, number(to)?, number(step)?.unwrap_or(1).max(1))),
        _ => Err(invalid()),
    }
}

fn split_outside_quotes(text: &str) -> Vec<String> {
    let (mut parts, mut current, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ',') => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    parts.push(current);
    parts
}

fn filter_of(text: &str) -> Result<Filter, String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut quote, mut found) = (None, None);
    for (at, c) in chars.iter().enumerate() {
        match (quote, c) {
            (Some(open), c) if *c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(*c),
            (None, '=' | '!' | '<' | '>') => {
                let double = chars.get(at + 1) == Some(&'=');
                found = Some((at, if double { 2 } else { 1 }));
                break;
            }
            _ => {}
        }
    }
    let Some((at, length)) = found else {
        return Ok(Filter { left: operand(text)?, operator: "exists".into(), right: Operand::None });
    };
    let slice = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
    Ok(Filter {
        left: operand(&slice(0, at))?,
        operator: slice(at, at + length),
        right: operand(&slice(at + length, chars.len()))?,
    })
}

fn operand(text: &str) -> Result<Operand, String> {
    let text = text.trim();
    if let Some(literal) = unquote(text) {
        return Ok(Operand::Literal(Value::String(literal)));
    }
    if let Ok(value) = orlop_json::from_str::<Value>(text) {
        return Ok(Operand::Literal(value));
    }
    JsonPath::parse(text).map(|path| Operand::Path(path.0))
}

fn walk<'v>(steps: &[Step], values: Vec<&'v Value>, budget: &mut usize) -> Vec<&'v Value> {
    let mut current = values;
    for step in steps {
        let mut next = Vec::new();
        for value in current {
            apply(step, value, &mut next, budget);
            if *budget == 0 {
                return Vec::new();
            }
            *budget -= 1;
        }
        current = next;
    }
    current
}

fn apply<'v>(step: &Step, value: &'v Value, out: &mut Vec<&'v Value>, budget: &mut usize) {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => out.extend(map.get(name)),
        (Step::Wildcard, Value::Object(map)) => out.extend(map.values()),
        (Step::Wildcard, Value::Array(items)) => out.extend(items),
        (Step::Recursive, value) => {
            let mut open = vec![value];
            while let Some(value) = open.pop() {
                if *budget == 0 {
                    return;
                }
                *budget -= 1;
                out.push(value);
                match value {
                    Value::Object(map) => open.extend(map.values().rev()),
                    Value::Array(items) => open.extend(items.iter().rev()),
                    _ => {}
                }
            }
        }
        (Step::Index(index), Value::Array(items)) => {
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { index.saturating_add(length) } else { *index };
            out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
        }
        (Step::Slice(from, to, step), Value::Array(items)) => {
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let place = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
            let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
            // Out of bounds, there is no result at all.
            if from != to && (!(0..length).contains(&from) || !(0..=length).contains(&to)) {
                *budget = 0;
                return;
            }
            let skip = usize::try_from(from).unwrap_or(0);
            let take = usize::try_from(to - from).unwrap_or(0);
            let by = usize::try_from(*step).unwrap_or(1);
            out.extend(items.iter().skip(skip).take(take).step_by(by));
        }
        (Step::Union(members), value) => {
            for member in members {
                out.extend(walk(member, vec![value], budget));
            }
        }
        (Step::Filter(filter), Value::Array(items)) => {
            out.extend(items.iter().filter(|item| matches(filter, item)));
        }
        _ => {}
    }
}

fn matches(filter: &Filter, item: &Value) -> bool {
    let mut budget = 1000;
    let mut read = |operand: &Operand| -> Option<Value> {
        match operand {
            Operand::Literal(value) => Some(value.clone()),
            Operand::Path(steps) => walk(steps, vec![item], &mut budget).first().map(|v| (*v).clone()),
            Operand::None => None,
        }
    };
    let left = read(&filter.left);
    if filter.operator == "exists" {
        return left.is_some();
    }
    let (Some(left), Some(right)) = (left, read(&filter.right)) else { return false };
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => match (left.as_str(), right.as_str()) {
            (Some(a), Some(b)) => Some(a.cmp(b)),
            _ => None,
        },
    };
    match filter.operator.as_str() {
        "==" | "=" => left == right || order == Some(Ordering::Equal),
        "!=" => left != right && order != Some(Ordering::Equal),
        "<" => order == Some(Ordering::Less),
        ">" => order == Some(Ordering::Greater),
        "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        ">=" => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        _ => false,
    }
}

/// A value as the printer writes it.
pub fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<no value>".to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e21 => {
                format!("{float:.0}")
            }
            _ => number.to_string(),
        },
        Value::Bool(value) => value.to_string(),
        other => crate::sorted(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn paths() {
        let object = json!({"metadata": {"annotations": {"a.b/c": "v"}}, "spec": {"l": [{"k": "a"}, {"k": "b", "n": 2}], "o": {"z": 1}},
            "status": {"conditions": [{"type": "X", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let check = |path: &str, expected: Value| {
            let found: Vec<Value> =
                JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), expected, "{path}");
        };
        check(".spec.o", json!([{"z": 1}]));
        check(".spec.l[*].k", json!(["a", "b"]));
        check(".spec.l[0].k", json!(["a"]));
        check(".spec.l[-1].k", json!(["b"]));
        check(".spec.l[0:1].k", json!(["a"]));
        check(".spec.l[1:].k", json!(["b"]));
        check(".spec.l[0:3].k", json!([]));
        check(".spec.l[5:5].k", json!([]));
        check(".spec.l[-1:].k", json!(["b"]));
        check(".spec.l[?(@.n>1)].k", json!(["b"]));
        check(".spec.l[?(@.n)].k", json!(["b"]));
        check(r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"]));
        check(r".metadata.annotations.a\.b/c", json!(["v"]));
        check(".metadata.annotations['a.b/c']", json!(["v"]));
        check("..k", json!(["a", "b"]));
        check(".spec.nope.x", json!([]));
        check(".spec.l[0,1].k", json!(["a", "b"]));
        assert!(JsonPath::parse(".a[").is_err() && JsonPath::parse(".a[x]").is_err());
    }
}
