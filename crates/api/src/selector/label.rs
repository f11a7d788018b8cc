//! Conditions on labels: as text (`a=b,c in (d,e)`) and as `meta/v1` LabelSelector.

use std::fmt;

use orlop_json::{Map, Value};

use super::{SelectorError, fail};
use crate::field::{Path, go_quote, invalid};
use crate::names;

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is missing or has none of the values.
    NotIn,
    /// The label has the value.
    Equals,
    /// The label is missing or has another value.
    NotEquals,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is a number above the value.
    GreaterThan,
    /// The label is a number below the value.
    LessThan,
}

/// One condition of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; sorted.
    pub values: Vec<String>,
}

impl Requirement {
    /// A condition that keeps to the rules for keys and values.
    ///
    /// # Errors
    /// Upstream's field errors.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Requirement, SelectorError> {
        let path = Path::root();
        let problems = names::is_qualified_name(key);
        if !problems.is_empty() {
            return fail(invalid(&path.child("key"), key, problems.join("; ")).to_string());
        }
        let values_path = path.child("values");
        let listed = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                let detail = "for 'in', 'notin' operators, values set can't be empty";
                return fail(invalid(&values_path, listed(), detail).to_string());
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                let detail = "values set must be empty for exists and does not exist";
                return fail(invalid(&values_path, listed(), detail).to_string());
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                let detail = "exact-match compatibility requires one single value";
                return fail(invalid(&values_path, listed(), detail).to_string());
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                let detail = "for 'Gt', 'Lt' operators, exactly one value is required";
                return fail(invalid(&values_path, listed(), detail).to_string());
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                return fail(invalid(&values_path.index(0), values[0].as_str(), detail).to_string());
            }
            _ => {}
        }
        for (at, value) in values.iter().enumerate() {
            let problems = names::is_valid_label_value(value);
            if !problems.is_empty() {
                let path = values_path.index(at).key(key);
                return fail(invalid(&path, value.as_str(), problems.join("; ")).to_string());
            }
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    /// Whether labels meet the condition.
    pub fn matches(&self, labels: Option<&Map>) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        let listed = |value: &str| self.values.iter().any(|known| known == value);
        let number = |text: &str| text.parse::<i64>().ok();
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.and_then(number) > self.values.first().and_then(|v| number(v)),
            Operator::LessThan => value
                .and_then(number)
                .is_some_and(|n| self.values.first().and_then(|v| number(v)).is_some_and(|m| n < m)),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let single = self.values.first().map_or("", String::as_str);
        match self.operator {
            Operator::Equals => write!(f, "{key}={single}"),
            Operator::NotEquals => write!(f, "{key}!={single}"),
            Operator::In => write!(f, "{key} in ({})", self.values.join(",")),
            Operator::NotIn => write!(f, "{key} notin ({})", self.values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{single}"),
            Operator::LessThan => write!(f, "{key}<{single}"),
        }
    }
}

/// Conditions on labels, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects every object.
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    /// Selects no object.
    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// `a=b,c!=d,e in (f,g),!h,i`.
    ///
    /// # Errors
    /// Upstream's texts.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Parser { tokens: lex(text), at: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// `meta/v1` LabelSelector. Null or absent selects nothing, an empty one everything.
    ///
    /// # Errors
    /// Upstream's texts.
    pub fn from_object(selector: &Value) -> Result<LabelSelector, SelectorError> {
        let Value::Object(selector) = selector else { return Ok(LabelSelector::nothing()) };
        let mut requirements = Vec::new();
        if let Some(Value::Object(labels)) = selector.get("matchLabels") {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or("").to_owned();
                requirements.push(Requirement::new(key, Operator::In, vec![value]).map(
                    |mut requirement| {
                        requirement.operator = Operator::Equals;
                        requirement
                    },
                )?);
            }
        }
        if let Some(Value::Array(expressions)) = selector.get("matchExpressions") {
            for expression in expressions {
                let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or("");
                let operator = match text("operator") {
                    "In" => Operator::In,
                    "NotIn" => Operator::NotIn,
                    "Exists" => Operator::Exists,
                    "DoesNotExist" => Operator::DoesNotExist,
                    other => {
                        return fail(format!("{} is not a valid label selector operator", go_quote(other)));
                    }
                };
                let values = expression.get("values").and_then(Value::as_array);
                let values = values
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect::<Vec<_>>();
                requirements.push(Requirement::new(text("key"), operator, values)?);
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// A plain map of labels, as Services and ReplicationControllers select; empty selects everything.
    pub fn from_map(labels: &Map) -> LabelSelector {
        let mut requirements: Vec<Requirement> = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone().into(),
                operator: Operator::Equals,
                values: vec![value.as_str().unwrap_or("").to_owned()],
            })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// Whether labels meet all conditions.
    pub fn matches(&self, labels: Option<&Map>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether there is no condition at all.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The conditions, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

fn lex(text: &str) -> Vec<(Token, String)> {
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(space);
        let Some(first) = rest.chars().next() else {
            tokens.push((Token::End, String::new()));
            return tokens;
        };
        if special(first) {
            // The longest symbol that begins here.
            let length = if rest.len() >= 2 && rest.is_char_boundary(2) && symbol(&rest[..2]).is_some() {
                2
            } else {
                1
            };
            let literal = &rest[..length];
            tokens.push((symbol(literal).unwrap_or(Token::Error), literal.to_owned()));
            rest = &rest[length..];
        } else {
            let length = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
            let literal = &rest[..length];
            let token = match literal {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            tokens.push((token, literal.to_owned()));
            rest = &rest[length..];
        }
    }
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    /// The next token; where values are expected, `in` and `notin` are names.
    fn lookahead(&self, values: bool) -> (Token, &str) {
        let (token, literal) = match self.tokens.get(self.at) {
            Some((token, literal)) => (*token, literal.as_str()),
            None => (Token::End, ""),
        };
        match token {
            Token::In | Token::NotIn if values => (Token::Identifier, literal),
            _ => (token, literal),
        }
    }

    fn consume(&mut self, values: bool) -> (Token, String) {
        let (token, literal) = self.lookahead(values);
        let literal = literal.to_owned();
        self.at += 1;
        (token, literal)
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            let (token, literal) = self.lookahead(true);
            match token {
                Token::Identifier | Token::Not => {
                    let requirement = self
                        .requirement()
                        .map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?;
                    requirements.push(requirement);
                    match self.consume(true) {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (next, literal) = self.lookahead(true);
                            if next != Token::Identifier && next != Token::Not {
                                return fail(format!("found '{literal}', expected: identifier after ','"));
                            }
                        }
                        (_, literal) => {
                            return fail(format!("found '{literal}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                Token::End => return Ok(requirements),
                _ => return fail(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.consume(true);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.consume(true);
        }
        if token != Token::Identifier {
            return fail(format!("found '{key}', expected: identifier"));
        }
        let problems = names::is_qualified_name(&key);
        if !problems.is_empty() {
            return fail(invalid(&Path::root(), key.as_str(), problems.join("; ")).to_string());
        }
        let ends = matches!(self.lookahead(true).0, Token::End | Token::Comma);
        if negated || ends {
            let operator = if negated { Operator::DoesNotExist } else { Operator::Exists };
            return Requirement::new(&key, operator, Vec::new());
        }
        let operator = match self.consume(false) {
            (Token::In, _) => Operator::In,
            (Token::NotIn, _) => Operator::NotIn,
            (Token::Equals | Token::DoubleEquals, _) => Operator::Equals,
            (Token::NotEquals, _) => Operator::NotEquals,
            (Token::Greater, _) => Operator::GreaterThan,
            (Token::Less, _) => Operator::LessThan,
            (_, literal) => {
                return fail(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, literal) = self.consume(true);
        if token != Token::Open {
            return fail(format!("found '{literal}' expected: '('"));
        }
        match self.lookahead(true) {
            (Token::Identifier | Token::Comma, _) => {
                let values = self.identifiers()?;
                let (token, literal) = self.consume(true);
                if token != Token::Close {
                    return fail(format!("found '{literal}', expected: ')'"));
                }
                Ok(values)
            }
            (Token::Close, _) => {
                self.consume(true);
                Ok(vec![String::new()])
            }
            (_, literal) => fail(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut values = Vec::new();
        loop {
            match self.consume(true) {
                (Token::Identifier, literal) => {
                    values.push(literal);
                    match self.lookahead(true) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, literal) => return fail(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.lookahead(true).0 {
                        Token::Close => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.consume(true);
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return fail(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.lookahead(true).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.consume(true) {
            (Token::Identifier, literal) => Ok(literal),
            (_, literal) => fail(format!("found '{literal}', expected: identifier")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn label_selectors_match() {
        let labels = json!({"a": "b", "n": "5"});
        let labels = labels.as_object();
        let cases = [
            ("", true),
            ("a", true),
            ("!a", false),
            ("a=b", true),
            ("a==b,n", true),
            ("a!=b", false),
            ("x!=b", true),
            ("a in (b,c)", true),
            ("a notin (b,c)", false),
            ("x notin (b)", true),
            ("in in (in)", false),
            ("n>4", true),
            ("n<5", false),
            ("a=", false),
            ("a in (,b)", true),
        ];
        for (text, want) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(labels), want, "{text}");
        }
    }

    #[test]
    fn label_selector_errors() {
        let cases = [
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a==(", "unable to parse requirement: found '(', expected: identifier"),
        ];
        for (text, want) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), want, "{text}");
        }
        let error = LabelSelector::parse("a^=b").unwrap_err().to_string();
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"a^\": name part must"),
            "{error}"
        );
        let error = LabelSelector::parse("a=^").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "unable to parse requirement: values[0][a]: Invalid value: \"^\": a valid label"
            ),
            "{error}"
        );
    }

    #[test]
    fn label_selector_objects() {
        let labels = json!({"a": "b"});
        let check = |selector: Value, want: bool| {
            assert_eq!(
                LabelSelector::from_object(&selector).unwrap().matches(labels.as_object()),
                want,
                "{selector}"
            );
        };
        check(json!(null), false);
        check(json!({}), true);
        check(json!({"matchLabels": {"a": "b"}}), true);
        check(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}), false);
        let shown = LabelSelector::from_object(&json!({"matchLabels": {"z": "1"},
            "matchExpressions": [{"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "b", "operator": "Exists"}]}));
        assert_eq!(shown.unwrap().to_string(), "a in (x,y),b,z=1");
        let bad = LabelSelector::from_object(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]}));
        assert_eq!(bad.unwrap_err().to_string(), "\"Is\" is not a valid label selector operator");
    }
}
