//! Conditions on fields: `spec.nodeName=a,status.phase!=Failed`.

use std::fmt;

use super::{SelectorError, fail};

/// One condition of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field label: `spec.nodeName`.
    pub field: String,
    /// Whether the field must differ.
    pub negated: bool,
    /// The value.
    pub value: String,
}

/// Conditions on fields, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// `spec.nodeName=a,status.phase!=Failed`; `\` escapes `\`, `,` and `=`.
    ///
    /// # Errors
    /// Upstream's texts.
    pub fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, operator, value)) = split_term(part) else {
                return fail(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                negated: operator == "!=",
                value: unescape(value)?,
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// The conditions.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether there is no condition at all.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that a field must have, when the selector says exactly one.
    pub fn requires_exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.field == field && !r.negated).map(|r| r.value.as_str())
    }

    /// Whether fields meet all conditions; `value` answers with a field's value, absent fields are empty.
    pub fn matches(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (value(&r.field).unwrap_or_default() == r.value) != r.negated)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, r) in self.requirements.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let operator = if r.negated { "!=" } else { "=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    for (at, _) in term.char_indices() {
        for operator in ["!=", "==", "="] {
            if let Some(value) = term[at..].strip_prefix(operator) {
                return Some((&term[..at], operator, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return fail(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return fail("invalid field selector: invalid escape sequence: \\"),
            },
            ',' | '=' => {
                return fail(format!("invalid field selector: unescaped character in value: {}", c as u32));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn field_selectors() {
        let value = |field: &str| (field == "spec.nodeName").then(|| "a,b".to_owned());
        assert!(FieldSelector::parse("spec.nodeName=a\\,b,x!=y").unwrap().matches(value));
        assert!(!FieldSelector::parse("spec.nodeName!=a\\,b").unwrap().matches(value));
        assert!(FieldSelector::parse("").unwrap().is_empty());
        assert_eq!(FieldSelector::parse("a==b").unwrap().requires_exact("a"), Some("b"));
        assert_eq!(
            FieldSelector::parse("a=b,c").unwrap_err().to_string(),
            "invalid selector: 'a=b,c'; can't understand 'c'"
        );
    }
}
