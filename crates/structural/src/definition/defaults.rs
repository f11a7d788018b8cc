//! Defaults must be values of their schema, without fields that would be pruned.
//!
//! Answers to `apiserver/schema/defaulting` (`ValidateDefaults`).

use orlop_api::field::{self, ErrorList, Path};
use orlop_cel::Budget;
use orlop_json::{Value, json};

use super::Options;
use crate::meta::{Malformed, coerce_at, validate_at};
use crate::prune::prune_value;
use crate::rules::Rules;
use crate::schema::Schema;
use crate::value;

/// Checks the defaults of a schema; `raw` is the same schema as it is written.
pub(super) fn validate(schema: &Schema, raw: &Value, path: &Path, options: &Options<'_>) -> ErrorList {
    let budget = Budget::new(orlop_cel::RUNTIME_BUDGET);
    let mut walk = Walk { errors: ErrorList::new(), options, budget };
    walk.schema(schema, raw, path, true, &[], schema);
    walk.errors
}

struct Walk<'o> {
    errors: ErrorList,
    options: &'o Options<'o>,
    /// What the rules of all defaults together may cost.
    budget: Budget,
}

impl Walk<'_> {
    /// `inside` is the way from the resource at `root` down to here, when that leads through its metadata.
    fn schema(
        &mut self,
        schema: &Schema,
        raw: &Value,
        path: &Path,
        is_root: bool,
        inside: &[&str],
        root: &Schema,
    ) {
        if self.budget.exceeded() {
            return;
        }
        let (inside, root): (&[&str], &Schema) = if schema.embedded { (&[], schema) } else { (inside, root) };
        let is_resource = is_root || schema.embedded;
        if let Some(default) = &schema.default {
            let at = path.child("default");
            let good = match inside.is_empty() {
                true => self.check(schema, default, &at, is_resource),
                false => self.check_metadata(schema, default, &at, inside, root),
            };
            if good {
                self.check_rules(raw, is_resource, default, &at);
            }
        }
        // Upstream does not look at the defaults of additional properties.
        let below = |field: &str| raw.get(field).unwrap_or(&Value::Null);
        if let Some(items) = schema.items.as_deref() {
            self.schema(items, below("items"), &path.child("items"), false, &[], root);
        }
        for (name, property) in &schema.properties {
            let meta = crate::META_FIELDS.contains(&name.as_str());
            let mut way = inside.to_vec();
            if (is_resource && meta) || !inside.is_empty() {
                way.push(name);
            }
            let inner = below("properties").get(name).unwrap_or(&Value::Null);
            self.schema(property, inner, &path.child("properties").key(name), false, &way, root);
        }
    }

    /// Whether the default is a value of its schema.
    fn check(&mut self, schema: &Schema, default: &Value, at: &Path, is_resource: bool) -> bool {
        if self.options.require_pruned_defaults {
            let mut pruned = default.clone();
            if !prune_value(&mut pruned, schema, is_resource).is_empty() || pruned != *default {
                self.errors.push(field::invalid(at, default.clone(), "must not have unknown fields"));
            }
        }
        let mut object = default.clone();
        if let Err(error) = coerce_at(at, &mut object, schema, is_resource, Malformed::Refuse) {
            self.errors.push(*error);
            return false;
        }
        let wrong = validate_at(at, &object, schema, is_resource, self.options.meta_rule);
        if !wrong.is_empty() {
            self.errors.extend(wrong);
            return false;
        }
        self.check_value(schema, &object, at)
    }

    /// A resource with the default in its place must be a resource.
    fn check_metadata(
        &mut self,
        schema: &Schema,
        default: &Value,
        at: &Path,
        inside: &[&str],
        root: &Schema,
    ) -> bool {
        let mut object = default.clone();
        for name in inside.iter().rev() {
            object = json!({ (*name): object });
        }
        for (name, own) in [("kind", "Validation"), ("apiVersion", "validation/v1")] {
            if object.get(name).is_none() {
                object[name] = json!(own);
            }
        }
        let place = Path::root();
        let wrong = match coerce_at(&place, &mut object, root, true, Malformed::Refuse) {
            Err(error) => Some(error.to_string()),
            Ok(_) => aggregate(&validate_at(&place, &object, root, true, self.options.meta_rule)),
        };
        if let Some(wrong) = wrong {
            let detail = format!("must result in valid metadata: {wrong}");
            self.errors.push(field::invalid(at, default.clone(), detail));
            return false;
        }
        self.check_value(schema, default, at)
    }

    fn check_value(&mut self, schema: &Schema, default: &Value, at: &Path) -> bool {
        let wrong = value::validate(at, default, schema);
        let good = wrong.is_empty();
        self.errors.extend(wrong);
        good
    }

    /// A default must satisfy the rules of its schema, both where it stays and where it comes anew.
    fn check_rules(&mut self, raw: &Value, is_resource: bool, default: &Value, at: &Path) {
        let Some(rules) = Rules::of(raw, is_resource) else { return };
        let mut staying = self.budget.clone();
        let mut wrong = rules.evaluate_at(at, default, Some(default), &mut staying);
        if wrong.is_empty() {
            wrong = rules.evaluate_at(at, default, None, &mut self.budget);
        }
        // Of the two the dearer one counts.
        if staying.remaining() < self.budget.remaining() || staying.exceeded() {
            self.budget = staying;
        }
        self.errors.extend(wrong);
    }
}

/// Several errors as one text; `None` when there are none.
fn aggregate(errors: &ErrorList) -> Option<String> {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}
