//! Paths to fields of a schema (`.spec.list[0]['key']`), as rules and selectable fields name them.
//!
//! Answers to `apiserver/schema/cel` (`ValidFieldPath`).

use orlop_api::field::Path;

use crate::schema::Schema;

/// A step of such a path, and whether it was written in brackets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub name: String,
    pub bracket: bool,
}

/// Splits a path.
pub(crate) fn steps(text: &str, allow_brackets: bool) -> Result<Vec<Step>, String> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '.' => {
                let start = at + 1;
                let mut end = start;
                while end < chars.len() && !matches!(chars[end], '.' | '[') {
                    end += 1;
                }
                if end == start {
                    return Err(format!("empty property name in path {text:?}"));
                }
                out.push(Step { name: chars[start..end].iter().collect(), bracket: false });
                at = end;
            }
            '[' => {
                if !allow_brackets {
                    return Err("array notation is not allowed".to_string());
                }
                if chars.get(at + 1) != Some(&'\'') {
                    return Err("expected ' but got ".to_string()
                        + &chars.get(at + 1).map_or("end of path".to_string(), |c| format!("{c}")));
                }
                let start = at + 2;
                let mut end = start;
                let mut name = String::new();
                while end < chars.len() && chars[end] != '\'' {
                    if chars[end] == '\\' && end + 1 < chars.len() {
                        end += 1;
                    }
                    name.push(chars[end]);
                    end += 1;
                }
                if chars.get(end) != Some(&'\'') || chars.get(end + 1) != Some(&']') {
                    return Err("unterminated single quoted property name".to_string());
                }
                out.push(Step { name, bracket: true });
                at = end + 2;
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    if out.is_empty() {
        return Err("must not be empty".to_string());
    }
    Ok(out)
}

/// Follows a path through a schema: the path in canonical form and the schema it leads to, `None` where nothing is said
/// about the place.
pub(crate) fn resolve<'s>(
    text: &str,
    schema: &'s Schema,
    allow_brackets: bool,
) -> Result<(String, Option<&'s Schema>), String> {
    let mut path = Path::root();
    let mut current = schema;
    for step in steps(text, allow_brackets)? {
        let missing = || format!("does not refer to a valid field: {}", step.name);
        if current.items.is_some() || current.ty == "array" {
            return Err(missing());
        }
        if let Some(property) = current.properties.get(step.name.as_str()) {
            path = if step.bracket { path.key(&step.name) } else { path.child(&step.name) };
            current = property;
        } else if let Some(additional) = current.additional_schema() {
            path = path.key(&step.name);
            current = additional;
        } else if path.is_root() && step.name == "metadata" {
            path = path.child("metadata");
            return Ok((path.to_string(), None));
        } else {
            return Err(missing());
        }
    }
    Ok((path.to_string(), Some(current)))
}
