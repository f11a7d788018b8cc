//! Validation of values against a schema, with the texts of `kube-openapi`'s validator.
//!
//! An update is ratcheted: what was there before and has not changed is not looked at again.

use orlop_api::field::{self, ErrorList, FieldError, Path};
use orlop_json::Value;

use crate::formats;
use crate::lists::keys_of;
use crate::schema::{Additional, Checks, ListType, Schema};

/// What was found, and how much of the schema fitted: of several alternatives that fail, the best one is told of.
#[derive(Default)]
struct Outcome {
    errors: ErrorList,
    matches: usize,
}

impl Outcome {
    fn add(&mut self, error: FieldError) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn merge(&mut self, other: Outcome) {
        self.matches += other.matches;
        other.errors.into_iter().for_each(|error| self.add(error));
    }

    fn of(error: FieldError) -> Outcome {
        Outcome { errors: vec![error], matches: 0 }
    }

    fn ok(&self) -> bool {
        self.errors.is_empty()
    }
}

/// All that is wrong with a value that stands at `path`.
pub fn validate(path: &Path, value: &Value, schema: &Schema) -> ErrorList {
    Validator { base: path }.node("", value, None, schema).errors
}

/// All that is wrong with a value that replaces `old`, without what has not changed.
pub fn validate_update(path: &Path, value: &Value, old: &Value, schema: &Schema) -> ErrorList {
    Validator { base: path }.node("", value, Some(old), schema).errors
}

struct Validator<'a> {
    base: &'a Path,
}

/// The name of a value's type in messages.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn format_of(value: &Value) -> &'static str {
    match type_name(value) {
        "integer" => "int64",
        "number" => "float64",
        _ => "",
    }
}

/// A number as Go prints it.
fn plain(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e21 { format!("{number:.0}") } else { number.to_string() }
}

/// Below this a float names exactly one integer.
const EXACT: f64 = 9_007_199_254_740_991.0;

impl Validator<'_> {
    fn path(&self, name: &str) -> Path {
        let name = name.trim_start_matches('.');
        if name.is_empty() { self.base.clone() } else { self.base.child(name) }
    }

    fn invalid(&self, name: &str, value: &Value, detail: impl AsRef<str>) -> FieldError {
        field::invalid(&self.path(name), value.clone(), format!("{name} in body {}", detail.as_ref()))
    }

    fn wrong_type(&self, name: &str, wanted: &str, value: impl Into<Value>) -> FieldError {
        let value = value.into();
        let text = field::go_quote(value.as_str().unwrap_or(""));
        let detail = format!("{name} in body must be of type {wanted}: {text}");
        field::type_invalid(&self.path(name), value, detail)
    }

    /// An error that upstream cannot place.
    fn composite(&self, detail: String) -> FieldError {
        field::invalid(self.base, "", detail)
    }

    fn node(&self, name: &str, value: &Value, old: Option<&Value>, schema: &Schema) -> Outcome {
        let mut out = Outcome::default();
        if old == Some(value) {
            out.matches = 1;
            return out;
        }
        let none = Checks::default();
        let checks = schema.checks.as_deref().unwrap_or(&none);
        if !schema.ty.is_empty() || schema.int_or_string || !checks.format.is_empty() {
            out.merge(self.types(name, value, schema, checks));
            out.matches += 1;
        }
        if value.is_null() {
            if let Some(error) = self.values(name, value, checks) {
                out.add(error);
            }
            return out;
        }
        out.merge(self.alternatives(name, value, checks));
        out.matches += 1;
        match value {
            Value::String(text) => {
                out.merge(self.string(name, text, value, checks));
                out.matches += 1;
                let format = checks.format.replace('-', "");
                if formats::applies(&format) {
                    if !formats::check(&format, text) {
                        out.add(self.wrong_type(name, &checks.format, text.as_str()));
                    }
                    out.matches += 1;
                }
            }
            Value::Number(_) => {
                out.merge(self.number(name, value, schema, checks));
                out.matches += 1;
            }
            Value::Array(items) => {
                out.merge(self.array(name, value, items, old, schema, checks));
                out.matches += 1;
            }
            _ => {}
        }
        if let Some(error) = self.values(name, value, checks) {
            out.add(error);
        }
        out.matches += 1;
        if let Value::Object(_) = value {
            out.merge(self.object(name, value, old, schema, checks));
            out.matches += 1;
        }
        out.matches += 1;
        out
    }

    fn types(&self, name: &str, value: &Value, schema: &Schema, checks: &Checks) -> Outcome {
        let types: &[&str] = match (schema.int_or_string, schema.ty.as_str()) {
            (true, _) => &["integer", "string"],
            (false, "") => &[],
            (false, ty) => &[ty],
        };
        let passed = Outcome { errors: ErrorList::new(), matches: 1 };
        let found = type_name(value);
        if value.is_null() {
            return if types.is_empty() || schema.nullable {
                passed
            } else {
                Outcome::of(self.wrong_type(name, &types.join(","), "null"))
            };
        }
        let numeric = types.contains(&"number") || types.contains(&"integer");
        let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() <= EXACT);
        let fits = types.contains(&found)
            || (found == "number" && whole && types.contains(&"integer"))
            || (found == "integer" && types.contains(&"number"));
        let textual = matches!(value, Value::String(_) | Value::Array(_));
        let format = checks.format.as_str();
        if !textual && !format.is_empty() && !fits && format_of(value) != format {
            return Outcome::of(self.wrong_type(name, format, format_of(value)));
        }
        if !numeric && !format.is_empty() && textual {
            return passed;
        }
        if !fits {
            return Outcome::of(self.wrong_type(name, &types.join(","), found));
        }
        passed
    }

    fn values(&self, name: &str, value: &Value, checks: &Checks) -> Option<FieldError> {
        let same = |allowed: &Value| match (allowed.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => allowed == value,
        };
        if checks.values.is_empty() || checks.values.iter().any(same) {
            return None;
        }
        let allowed: Vec<String> = checks
            .values
            .iter()
            .map(|value| value.as_str().map_or_else(|| field::go_json(value), String::from))
            .collect();
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        Some(field::not_supported(&self.path(name), value.clone(), &allowed))
    }

    fn alternatives(&self, name: &str, value: &Value, checks: &Checks) -> Outcome {
        let mut out = Outcome::default();
        if !checks.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut fits = None;
            for schema in &checks.any_of {
                let outcome = self.node(name, value, None, schema);
                if outcome.ok() {
                    fits = Some(outcome);
                    break;
                }
                if best.as_ref().is_none_or(|best| outcome.matches > best.matches) {
                    best = Some(outcome);
                }
            }
            match (fits, best) {
                (Some(fits), _) => out.merge(fits),
                (None, best) => {
                    out.add(self.composite(format!(
                        "{} must validate at least one schema (anyOf)",
                        field::go_quote(name)
                    )));
                    best.into_iter().for_each(|best| out.merge(best));
                }
            }
        }
        if !checks.one_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut first = None;
            let mut valid = 0;
            for schema in &checks.one_of {
                let outcome = self.node(name, value, None, schema);
                if outcome.ok() {
                    valid += 1;
                    best = None;
                    first.get_or_insert(outcome);
                } else if valid == 0 && best.as_ref().is_none_or(|best| outcome.matches > best.matches) {
                    best = Some(outcome);
                }
            }
            if valid == 1 {
                first.into_iter().for_each(|first| out.merge(first));
            } else {
                let found = match valid {
                    0 => "Found none valid".to_string(),
                    count => format!("Found {count} valid alternatives"),
                };
                out.add(self.composite(format!(
                    "{} must validate one and only one schema (oneOf). {found}",
                    field::go_quote(name)
                )));
                best.into_iter().for_each(|best| out.merge(best));
            }
        }
        if !checks.all_of.is_empty() {
            let mut valid = 0;
            for schema in &checks.all_of {
                let outcome = self.node(name, value, None, schema);
                valid += usize::from(outcome.ok());
                out.merge(outcome);
            }
            if valid != checks.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                out.add(self.composite(format!(
                    "{} must validate all the schemas (allOf){none}",
                    field::go_quote(name)
                )));
            }
        }
        if let Some(not) = &checks.not
            && self.node(name, value, None, not).ok()
        {
            out.add(self.composite(format!("{} must not validate the schema (not)", field::go_quote(name))));
        }
        out.matches += 1;
        out
    }

    fn string(&self, name: &str, text: &str, value: &Value, checks: &Checks) -> Outcome {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = checks.max_length.filter(|max| length > *max) {
            let max = usize::try_from(max).unwrap_or(0);
            return Outcome::of(field::too_long(&self.path(name), max));
        }
        if let Some(min) = checks.min_length.filter(|min| length < *min) {
            return Outcome::of(self.invalid(name, value, format!("should be at least {min} chars long")));
        }
        if let Some((pattern, compiled)) = &checks.pattern
            && !compiled.as_ref().is_some_and(|compiled| compiled.is_match(text))
        {
            return Outcome::of(self.invalid(name, value, format!("should match '{pattern}'")));
        }
        Outcome { errors: ErrorList::new(), matches: 1 }
    }

    /// A complaint when a number is none of the schema's type and format.
    fn range(
        &self,
        what: &str,
        name: &str,
        number: &Value,
        schema: &Schema,
        checks: &Checks,
    ) -> Option<FieldError> {
        if schema.int_or_string {
            return None;
        }
        let format = checks.format.as_str();
        let float = number.as_f64().unwrap_or(0.0);
        let fits = match schema.ty.as_str() {
            "integer" => {
                let whole = number.as_i64().or_else(|| {
                    (float.fract() == 0.0 && float.abs() < i64::MAX as f64).then_some(float as i64)
                });
                match format {
                    "int32" => whole.is_some_and(|whole| i32::try_from(whole).is_ok()),
                    _ => whole.is_some(),
                }
            }
            _ if format == "float" => float.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        if fits {
            return None;
        }
        let format =
            if format.is_empty() { "(default format)".to_string() } else { format!("with format {format}") };
        Some(self.composite(format!("{what} value must be of type {} {format} in {name}", schema.ty)))
    }

    fn number(&self, name: &str, value: &Value, schema: &Schema, checks: &Checks) -> Outcome {
        let mut out = Outcome { errors: ErrorList::new(), matches: 1 };
        let number = value.as_f64().unwrap_or(0.0);
        if let Some(error) = self.range("Checked", name, value, schema, checks) {
            out.add(error);
        }
        let mut bound = |what: &str, bound: Option<f64>, broken: &dyn Fn(f64) -> Option<String>| {
            let Some(bound) = bound else { return };
            if let Some(error) = self.range(what, name, &Value::from(bound), schema, checks) {
                out.add(error);
            }
            if let Some(detail) = broken(bound) {
                out.add(self.invalid(name, value, detail));
            }
        };
        bound("MultipleOf", checks.multiple_of, &|factor| {
            let quotient = number / factor;
            (factor <= 0.0 || (quotient - quotient.round()).abs() > 1e-9 * quotient.abs().max(1.0))
                .then(|| format!("should be a multiple of {}", plain(factor)))
        });
        bound("Maximum boundary", checks.maximum, &|max| {
            let (broken, words) = if checks.exclusive_maximum {
                (number >= max, "less than")
            } else {
                (number > max, "less than or equal to")
            };
            broken.then(|| format!("should be {words} {}", plain(max)))
        });
        bound("Minimum boundary", checks.minimum, &|min| {
            let (broken, words) = if checks.exclusive_minimum {
                (number <= min, "greater than")
            } else {
                (number < min, "greater than or equal to")
            };
            broken.then(|| format!("should be {words} {}", plain(min)))
        });
        out
    }

    fn array(
        &self,
        name: &str,
        value: &Value,
        items: &[Value],
        old: Option<&Value>,
        schema: &Schema,
        checks: &Checks,
    ) -> Outcome {
        let mut out = Outcome { errors: ErrorList::new(), matches: 1 };
        if let Some(item_schema) = schema.items.as_deref() {
            let olds = old.and_then(Value::as_array);
            for (at, item) in items.iter().enumerate() {
                let before = match schema.list_type {
                    ListType::Map => olds.and_then(|olds| {
                        let keys = keys_of(item, schema);
                        olds.iter().find(|old| keys_of(old, schema) == keys)
                    }),
                    _ => None,
                };
                out.merge(self.node(&format!("{name}[{at}]"), item, before, item_schema));
            }
        }
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_items.filter(|min| count < *min) {
            out.add(self.invalid(name, &Value::from(count), format!("should have at least {min} items")));
        }
        if let Some(max) = checks.max_items.filter(|max| count > *max) {
            out.add(field::too_many(&self.path(name), items.len(), usize::try_from(max).unwrap_or(0)));
        }
        if checks.unique_items && (1..items.len()).any(|at| items[..at].contains(&items[at])) {
            out.add(self.invalid(name, value, "shouldn't contain duplicates"));
        }
        out
    }

    fn object(
        &self,
        name: &str,
        value: &Value,
        old: Option<&Value>,
        schema: &Schema,
        checks: &Checks,
    ) -> Outcome {
        let Some(map) = value.as_object() else { return Outcome::default() };
        let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_properties.filter(|min| count < *min) {
            return Outcome::of(self.invalid(
                name,
                &Value::from(count),
                format!("should have at least {min} properties"),
            ));
        }
        if let Some(max) = checks.max_properties.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(0);
            return Outcome::of(field::too_many(&self.path(name), map.len(), max));
        }
        let mut out = Outcome::default();
        for (key, value) in map {
            let before = old.and_then(|old| old.get(key));
            if let Some(property) = schema.properties.get(key) {
                let inner = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
                out.merge(self.node(&inner, value, before, property));
                continue;
            }
            match &schema.additional {
                Some(Additional::Schema(additional)) => {
                    out.merge(self.node(&format!("{name}.{key}"), value, before, additional));
                }
                Some(Additional::Allowed(false)) => {
                    let detail = format!("{name}.{key} in body is a forbidden property");
                    out.add(field::invalid(&self.path(name), key.as_str(), detail));
                }
                _ => {}
            }
        }
        for key in &checks.required {
            if !map.contains_key(key) {
                out.add(field::required(&self.path(&format!("{name}.{key}")), ""));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    #[track_caller]
    fn check(spec: Value, value: Value, expected: &[&str]) {
        let schema = Schema::of(&json!({"type": "object", "properties": {"spec": spec}}));
        let found: Vec<String> = validate(&Path::root(), &json!({"spec": value}), &schema)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn types() {
        check(
            json!({"type": "string"}),
            json!(1),
            &[r#"spec: Invalid value: "integer": spec in body must be of type string: "integer""#],
        );
        check(
            json!({"type": "integer"}),
            json!(1.5),
            &[
                r#"spec: Invalid value: "number": spec in body must be of type integer: "number""#,
                r#"<nil>: Invalid value: "": Checked value must be of type integer (default format) in spec"#,
            ],
        );
        check(json!({"type": "integer"}), json!(1.0), &[]);
        check(json!({"type": "number"}), json!(1), &[]);
        check(
            json!({"type": "array", "items": {"type": "integer"}}),
            json!([1, "x"]),
            &[r#"spec[1]: Invalid value: "string": spec[1] in body must be of type integer: "string""#],
        );
        check(
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            &[r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#],
        );
        check(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!(1.5),
            &[
                r#"spec: Invalid value: "number": spec in body must be of type integer,string: "number""#,
                r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
                r#"spec: Invalid value: "number": spec in body must be of type integer: "number""#,
                r#"<nil>: Invalid value: "": Checked value must be of type integer (default format) in spec"#,
            ],
        );
        check(
            json!({"type": "string"}),
            json!(null),
            &[r#"spec: Invalid value: "null": spec in body must be of type string: "null""#],
        );
        check(json!({"type": "string", "nullable": true}), json!(null), &[]);
    }

    #[test]
    fn bounds() {
        let number = json!({"type": "integer", "minimum": 1, "maximum": 5, "multipleOf": 2});
        check(
            number.clone(),
            json!(7),
            &[
                "spec: Invalid value: 7: spec in body should be a multiple of 2",
                "spec: Invalid value: 7: spec in body should be less than or equal to 5",
            ],
        );
        check(
            json!({"type": "number", "minimum": 0, "exclusiveMinimum": true}),
            json!(0),
            &["spec: Invalid value: 0: spec in body should be greater than 0"],
        );
        check(
            json!({"type": "integer", "format": "int32"}),
            json!(99999999999i64),
            &[r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec"#],
        );
        let text = json!({"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4});
        check(
            text.clone(),
            json!("AB"),
            &[r#"spec: Invalid value: "AB": spec in body should match '^[a-z]+$'"#],
        );
        check(
            text.clone(),
            json!("a"),
            &[r#"spec: Invalid value: "a": spec in body should be at least 2 chars long"#],
        );
        check(text, json!("abcde"), &["spec: Too long: may not be more than 4 bytes"]);
        let list = json!({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3});
        check(
            list.clone(),
            json!(["a"]),
            &["spec: Invalid value: 1: spec in body should have at least 2 items"],
        );
        check(list, json!(["a", "b", "c", "d"]), &["spec: Too many: 4: must have at most 3 items"]);
        let map = json!({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1, "maxProperties": 1});
        check(
            map.clone(),
            json!({}),
            &["spec: Invalid value: 0: spec in body should have at least 1 properties"],
        );
        check(map, json!({"a": "", "b": ""}), &["spec: Too many: 2: must have at most 1 item"]);
        check(
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            &[r#"spec: Unsupported value: "c": supported values: "a", "b""#],
        );
    }

    #[test]
    fn alternatives() {
        let schema = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}});
        check(
            schema.clone(),
            json!({}),
            &[
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid"#,
                "spec.a: Required value",
            ],
        );
        check(
            schema.clone(),
            json!({"a": 1, "b": 1}),
            &[
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        );
        check(
            schema,
            json!({"a": 1, "c": 1}),
            &[r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#],
        );
        check(
            json!({"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 3}]}),
            json!("abcd"),
            &[
                "spec: Too long: may not be more than 3 bytes",
                r#"<nil>: Invalid value: "": "spec" must validate all the schemas (allOf)"#,
            ],
        );
    }

    #[test]
    fn what_has_not_changed_is_not_looked_at() {
        let schema = Schema::of(&json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "integer"},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                  "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}}}}));
        let old = json!({"a": "long", "b": 1, "l": [{"k": "x", "v": "long"}]});
        let new = json!({"a": "long", "b": 2, "l": [{"k": "y", "v": "v"}, {"k": "x", "v": "long"}]});
        assert_eq!(validate_update(&Path::root(), &new, &old, &schema), vec![]);
        let new = json!({"a": "longer", "b": 2, "l": []});
        assert_eq!(validate_update(&Path::root(), &new, &old, &schema).len(), 1);
    }
}
