//! `x-kubernetes-validations`: rules in CEL, compiled with their schema, evaluated on objects and on their changes.
//!
//! Answers to `apiserver/schema/cel` and, for definitions, to the CEL part of their validation.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_api::field::{self, ErrorList, FieldError, Path};
use orlop_cel::{Budget, DeclType, Environment, EnvironmentBuilder, EvalError, Program, Type, Val, Vars};
use orlop_json::Value;

use crate::lists::keys_with;
use crate::paths;
use crate::schema::Rule;

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The rules of a schema, where they stand in it.
#[derive(Debug)]
pub struct Rules {
    root: Node,
}

#[derive(Debug)]
struct Node {
    ty: String,
    decl: Arc<DeclType>,
    rules: Vec<Compiled>,
    items: Option<Box<Node>>,
    /// Keys by which items are told apart; `None` = an item has no former self.
    keys: Option<Vec<String>>,
    properties: BTreeMap<orlop_json::Key, Node>,
    additional: Option<Box<Node>>,
    /// Whether the object is one value: its properties have no former selves.
    atomic: bool,
    all_of: Vec<Node>,
}

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Result<Program, String>>,
    uses_old_self: bool,
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn object_at<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    value.get(field).filter(|value| value.is_object())
}

fn has_rules(schema: &Value) -> bool {
    !list(schema, "x-kubernetes-validations").is_empty()
        || object_at(schema, "items").is_some_and(has_rules)
        || object_at(schema, "additionalProperties").is_some_and(has_rules)
        || schema.get("properties").and_then(Value::as_object).is_some_and(|all| all.values().any(has_rules))
        || list(schema, "allOf").iter().any(has_rules)
}

/// The variables of a rule.
fn environment(decl: &DeclType, optional_old: bool) -> Environment {
    let old = if optional_old { Type::optional(decl.ty.clone()) } else { decl.ty.clone() };
    EnvironmentBuilder::kubernetes().variable("self", decl.ty.clone()).variable("oldSelf", old).build()
}

impl Compiled {
    fn of(rule: Rule, decl: &DeclType) -> Compiled {
        let environment = environment(decl, rule.optional_old_self);
        let compile = |text: &str, wanted: &str, fits: fn(&Type) -> bool| {
            let program = environment.compile(text.trim()).map_err(|errors| errors.detail())?;
            if fits(program.output_type()) { Ok(program) } else { Err(wanted.to_string()) }
        };
        let program =
            compile(&rule.rule, "cel expression must evaluate to a bool", |ty| matches!(ty, Type::Bool));
        let message = (!rule.message_expression.trim().is_empty()).then(|| {
            compile(&rule.message_expression, "messageExpression must evaluate to a string", |ty| {
                matches!(ty, Type::String)
            })
            .map_err(|why| match why.starts_with("messageExpression") {
                true => why,
                false => format!("messageExpression {why}"),
            })
        });
        let uses_old_self = program.as_ref().is_ok_and(|program| program.references("oldSelf"));
        Compiled { rule, program, message, uses_old_self }
    }

    /// What the rule is called in messages.
    fn shown(&self) -> &str {
        let message = self.rule.message.trim();
        if message.is_empty() { self.rule.rule.trim() } else { message }
    }

    fn failure(&self) -> String {
        let message = self.rule.message.trim();
        if message.is_empty() {
            format!("failed rule: {}", self.rule.rule.trim())
        } else {
            message.to_string()
        }
    }
}

impl Rules {
    /// Compiles the rules of an `openAPIV3Schema`; `None` when it has none.
    pub fn compile(schema: &Value) -> Option<Rules> {
        Rules::of(schema, true)
    }

    /// Compiles the rules of a schema; a `resource` has `apiVersion`, `kind` and `metadata`.
    pub(crate) fn of(schema: &Value, resource: bool) -> Option<Rules> {
        if !has_rules(schema) {
            return None;
        }
        Node::of(schema, schema, "selfType", resource).map(|root| Rules { root })
    }

    /// What the rules say about an object, and about its change from `old`.
    pub fn evaluate(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        self.evaluate_at(&Path::root(), object, old, &mut Budget::new(orlop_cel::RUNTIME_BUDGET))
    }

    /// The same about a value at `path`, within what is left of a budget.
    pub(crate) fn evaluate_at(
        &self,
        path: &Path,
        value: &Value,
        old: Option<&Value>,
        budget: &mut Budget,
    ) -> ErrorList {
        let mut run = Run { errors: ErrorList::new(), budget };
        run.node(&self.root, path, value, old, false);
        run.errors
    }
}

impl Node {
    /// `rules` has the rules, `schema` the types: inside of `allOf` they are not the same.
    fn of(rules: &Value, schema: &Value, name: &str, resource: bool) -> Option<Node> {
        if !has_rules(rules) {
            return None;
        }
        let decl = orlop_cel::declare(schema, name, resource)?;
        let below = |rules: &Value, schema: Option<&Value>, name: &str| {
            let schema = schema?;
            let embedded = flag(schema, "x-kubernetes-embedded-resource");
            Node::of(rules, schema, name, embedded)
        };
        let properties = rules.get("properties").and_then(Value::as_object).into_iter().flatten();
        Some(Node {
            ty: text(schema, "type").to_string(),
            rules: list(rules, "x-kubernetes-validations")
                .iter()
                .map(|rule| Compiled::of(Rule::of(rule), &decl))
                .collect(),
            items: object_at(rules, "items")
                .and_then(|items| below(items, object_at(schema, "items"), &format!("{name}.@items")))
                .map(Box::new),
            keys: (text(schema, "x-kubernetes-list-type") == "map").then(|| {
                let keys = list(schema, "x-kubernetes-list-map-keys").iter();
                keys.filter_map(|key| key.as_str().map(String::from)).collect()
            }),
            properties: properties
                .filter_map(|(property, rules)| {
                    let schema = schema.get("properties").and_then(|all| all.get(property));
                    Some((property.clone(), below(rules, schema, &format!("{name}.{property}"))?))
                })
                .collect(),
            additional: object_at(rules, "additionalProperties")
                .and_then(|inner| {
                    below(inner, object_at(schema, "additionalProperties"), &format!("{name}.@values"))
                })
                .map(Box::new),
            atomic: text(schema, "x-kubernetes-map-type") == "atomic",
            all_of: list(rules, "allOf")
                .iter()
                .filter_map(|rules| Node::of(rules, schema, name, resource))
                .collect(),
            decl,
        })
    }
}

struct Run<'b> {
    errors: ErrorList,
    budget: &'b mut Budget,
}

impl Run<'_> {
    /// Whether there is budget to go on. `unchanged`: an ancestor is what it was.
    fn node(
        &mut self,
        node: &Node,
        path: &Path,
        value: &Value,
        old: Option<&Value>,
        unchanged: bool,
    ) -> bool {
        if value.is_null() {
            return true;
        }
        let old = old.filter(|old| !old.is_null());
        let same = unchanged || old == Some(value);
        if !self.rules(node, path, value, old, same) {
            return false;
        }
        for nested in &node.all_of {
            if !self.node(nested, path, value, old, unchanged) {
                return false;
            }
        }
        match value {
            Value::Array(items) => {
                let Some(inner) = node.items.as_deref() else { return true };
                let olds = old.and_then(Value::as_array);
                items.iter().enumerate().all(|(at, item)| {
                    let before = node.keys.as_ref().zip(olds).and_then(|(keys, olds)| {
                        let key = keys_with(item, keys);
                        olds.iter().find(|old| keys_with(old, keys) == key)
                    });
                    self.node(inner, &path.index(at), item, before, same)
                })
            }
            Value::Object(map) => map.iter().all(|(key, value)| {
                let before = old.filter(|_| !node.atomic).and_then(|old| old.get(key));
                match (node.properties.get(key), node.additional.as_deref()) {
                    (Some(inner), _) => self.node(inner, &path.child(key), value, before, same),
                    (None, Some(inner)) => self.node(inner, &path.key(key), value, before, same),
                    (None, None) => true,
                }
            }),
            _ => true,
        }
    }

    fn rules(&mut self, node: &Node, path: &Path, value: &Value, old: Option<&Value>, same: bool) -> bool {
        for compiled in &node.rules {
            if compiled.uses_old_self && old.is_none() && !compiled.rule.optional_old_self {
                continue;
            }
            // What was wrong before and has not changed may stay.
            let forgiven = !compiled.uses_old_self && same;
            match self.rule(node, compiled, path, value, old) {
                Outcome::Holds => {}
                Outcome::Broken(error) if forgiven => drop(error),
                Outcome::Broken(error) => self.errors.push(*error),
                Outcome::Stop(error) => {
                    self.errors.push(*error);
                    return false;
                }
            }
        }
        true
    }

    fn rule(
        &mut self,
        node: &Node,
        compiled: &Compiled,
        path: &Path,
        value: &Value,
        old: Option<&Value>,
    ) -> Outcome {
        let of_type = |detail: String| Box::new(field::invalid(path, node.ty.as_str(), detail));
        let program = match &compiled.program {
            Ok(program) => program,
            Err(why) => return Outcome::Broken(of_type(format!("rule compile error: {why}"))),
        };
        let failed = |error: &EvalError| {
            let (text, rule) = (error.to_string(), compiled.shown());
            if text.starts_with("no such overload") {
                format!(
                    "'{text}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
                )
            } else if *error == EvalError::CostLimitExceeded {
                format!(
                    "'{text}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"
                )
            } else {
                format!("{text} evaluating rule: {rule}")
            }
        };
        let bindings = match bind(node, compiled, value, old) {
            Ok(bindings) => bindings,
            Err(error) => return Outcome::Broken(of_type(failed(&error))),
        };
        let result = program.eval(&bindings, self.budget);
        if self.budget.exceeded() {
            return Outcome::Stop(of_type(OUT_OF_BUDGET.to_string()));
        }
        match result {
            Ok(Val::Bool(true)) => return Outcome::Holds,
            Ok(_) => {}
            Err(error @ EvalError::CostLimitExceeded) => return Outcome::Stop(of_type(failed(&error))),
            Err(error) => return Outcome::Broken(of_type(failed(&error))),
        }
        let mut detail = compiled.failure();
        if let Some(Ok(message)) = &compiled.message {
            let made = message.eval(&bindings, self.budget);
            if self.budget.exceeded() {
                return Outcome::Stop(of_type(OUT_OF_BUDGET.to_string()));
            }
            // A message that cannot be made, is empty or has line breaks is none.
            if let Ok(made) = made
                && let Some(made) = made.as_str().map(str::trim)
                && !made.is_empty()
                && !made.contains(['\n', '\r'])
            {
                detail = made.to_string();
            }
        }
        let place = below(path, &compiled.rule.field_path);
        let whole = matches!(value, Value::Object(_) | Value::Array(_));
        let shown = (!whole).then(|| value.clone());
        Outcome::Broken(Box::new(error_of(&compiled.rule.reason, &place, shown, detail)))
    }
}

enum Outcome {
    Holds,
    Broken(Box<FieldError>),
    /// No more rules are run.
    Stop(Box<FieldError>),
}

fn bind<'a>(
    node: &'a Node,
    compiled: &Compiled,
    value: &'a Value,
    old: Option<&'a Value>,
) -> Result<Vars<'a>, EvalError> {
    let mut vars = vec![("self", Val::from_declared(value, &node.decl)?)];
    if compiled.uses_old_self {
        let before = old.map(|old| Val::from_declared(old, &node.decl)).transpose()?;
        if compiled.rule.optional_old_self {
            vars.push(("oldSelf", Val::Optional(before.map(Arc::new))));
        } else if let Some(before) = before {
            vars.push(("oldSelf", before));
        }
    }
    Ok(Vars(vars))
}

/// The field that a rule points at.
fn below(path: &Path, field_path: &str) -> Path {
    let Ok(steps) = paths::steps(field_path.trim(), true) else { return path.clone() };
    steps.iter().fold(
        path.clone(),
        |path, step| {
            if step.bracket { path.key(&step.name) } else { path.child(&step.name) }
        },
    )
}

fn error_of(reason: &str, path: &Path, value: Option<Value>, detail: String) -> FieldError {
    match reason {
        "FieldValueForbidden" => field::forbidden(path, detail),
        "FieldValueRequired" => field::required(path, &detail),
        "FieldValueDuplicate" => {
            let mut error = field::duplicate(path, value.clone().unwrap_or_default());
            error.bad_value = value;
            error
        }
        _ => {
            let mut error = field::invalid(path, value.clone().unwrap_or_default(), detail);
            error.bad_value = value;
            error
        }
    }
}

/// What is wrong with the rules of a structural schema. `old` is the definition's spec before an update: an expression
/// that was there may cost what it costs. `broken` are fields with other errors: rules are read only where there are
/// none, here and below.
pub(crate) fn validate(schema: &Value, path: &Path, old: Option<&Value>, broken: &[String]) -> ErrorList {
    let mut check =
        Check { errors: ErrorList::new(), total: 0, expensive: Vec::new(), unchanged: false, broken };
    check.unchanged = old.is_some_and(|spec| {
        let versions = list(spec, "versions").iter();
        versions.filter_map(|version| version.pointer("/schema/openAPIV3Schema")).any(|old| old == schema)
    });
    if has_rules(schema) {
        check.walk(schema, path, "selfType", true, Some(1), None);
    }
    if check.total > orlop_cel::TOTAL_ESTIMATE_LIMIT {
        check.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (place, _) in check.expensive.iter().take(MOST_EXPENSIVE) {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            check.errors.push(field::forbidden(place, detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let detail = cost_message(what, check.total, orlop_cel::TOTAL_ESTIMATE_LIMIT);
        check.errors.push(field::forbidden(path, detail));
    }
    check.errors
}

/// So many of the most expensive rules are named when all together cost too much.
const MOST_EXPENSIVE: usize = 4;

struct Check<'a> {
    errors: ErrorList,
    total: u64,
    expensive: Vec<(Path, u64)>,
    /// Whether the schema is what it was: its costs were accepted.
    unchanged: bool,
    broken: &'a [String],
}

fn cost_message(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_string()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// How many values a list or map of this schema has at most; `None` = nobody knows.
fn max_elements(schema: &Value) -> Option<u64> {
    let bound = |field: &str| schema.get(field).and_then(Value::as_i64).map(|n| n.max(0).unsigned_abs());
    match text(schema, "type") {
        "object" if schema.get("additionalProperties").is_some_and(|all| !all.is_null()) => {
            bound("maxProperties")
        }
        "array" => bound("maxItems"),
        _ => Some(1),
    }
}

impl Check<'_> {
    fn walk(
        &mut self,
        schema: &Value,
        path: &Path,
        name: &str,
        resource: bool,
        cardinality: Option<u64>,
        uncorrelatable: Option<&Path>,
    ) {
        let inner_count = cardinality.zip(max_elements(schema)).map(|(a, b)| a.saturating_mul(b));
        let embedded = |schema: &Value| flag(schema, "x-kubernetes-embedded-resource");
        if let Some(additional) = object_at(schema, "additionalProperties") {
            let (at, name) = (path.child("additionalProperties"), format!("{name}.@values"));
            self.walk(additional, &at, &name, embedded(additional), inner_count, uncorrelatable);
        }
        let atomic = text(schema, "x-kubernetes-map-type") == "atomic";
        for (property, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = path.child("properties").key(property);
            let uncorrelatable = uncorrelatable.or(atomic.then_some(path));
            let name = format!("{name}.{property}");
            self.walk(inner, &at, &name, embedded(inner), inner_count, uncorrelatable);
        }
        if let Some(items) = object_at(schema, "items") {
            let keyed = text(schema, "x-kubernetes-list-type") == "map";
            let uncorrelatable = uncorrelatable.or((!keyed).then_some(path));
            let (at, name) = (path.child("items"), format!("{name}.@items"));
            self.walk(items, &at, &name, embedded(items), inner_count, uncorrelatable);
        }
        let rules = list(schema, "x-kubernetes-validations");
        if rules.is_empty() || self.is_broken(path) {
            return;
        }
        let rules_path = path.child("x-kubernetes-validations");
        let Some(decl) = orlop_cel::declare(schema, name, resource) else {
            let detail = "internal error: failed to retrieve type information for x-kubernetes-validations";
            self.errors.push(field::internal(&rules_path, detail));
            return;
        };
        for (at, raw) in rules.iter().enumerate() {
            self.rule(raw, &decl, &rules_path.index(at), cardinality, uncorrelatable);
        }
    }

    /// Whether something else is wrong at a path or below.
    fn is_broken(&self, path: &Path) -> bool {
        let path = path.to_string();
        let below = |field: &&String| {
            field.strip_prefix(&path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.broken.iter().any(|field| below(&field))
    }

    fn rule(
        &mut self,
        raw: &Value,
        decl: &DeclType,
        path: &Path,
        cardinality: Option<u64>,
        uncorrelatable: Option<&Path>,
    ) {
        let compiled = Compiled::of(Rule::of(raw), decl);
        let declared = |name: &str| matches!(name, "self" | "oldSelf").then_some(decl);
        let times =
            cardinality.unwrap_or_else(|| orlop_cel::decl::MAX_REQUEST_SIZE / (decl.min_serialized_size + 1));
        let rule_path = path.child("rule");
        match &compiled.program {
            Err(why) => self.errors.push(field::invalid(&rule_path, raw.clone(), why.as_str())),
            Ok(program) => {
                let cost = program.estimate_cost(declared).max.saturating_mul(times);
                self.observe("estimated rule cost", &rule_path, cost);
            }
        }
        let message_path = path.child("messageExpression");
        // A message is read only with its rule.
        match compiled.message.as_ref().filter(|_| compiled.program.is_ok()) {
            Some(Err(why)) => self.errors.push(field::invalid(&message_path, raw.clone(), why.as_str())),
            Some(Ok(program)) => {
                let cost = program.estimate_cost(declared).max;
                self.observe("estimated messageExpression cost", &message_path, cost);
            }
            None => {}
        }
        if compiled.uses_old_self {
            if let Some(within) = uncorrelatable {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                );
                self.errors.push(field::invalid(&rule_path, text(raw, "rule"), detail));
            }
        } else if let Some(optional) = raw.get("optionalOldSelf").filter(|value| !value.is_null()) {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.push(field::invalid(&path.child("optionalOldSelf"), optional.clone(), detail));
        }
    }

    fn observe(&mut self, what: &str, path: &Path, cost: u64) {
        if cost > orlop_cel::PER_EXPRESSION_ESTIMATE_LIMIT && !self.unchanged {
            let detail = cost_message(what, cost, orlop_cel::PER_EXPRESSION_ESTIMATE_LIMIT);
            self.errors.push(field::forbidden(path, detail));
        }
        self.total = self.total.saturating_add(cost);
        self.expensive.push((path.clone(), cost));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check(spec: &Value, new: Value, old: Option<Value>, expected: &[&str]) {
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        let rules = Rules::compile(&schema).unwrap();
        let old = old.map(|old| json!({"spec": old}));
        assert_eq!(texts(&rules.evaluate(&json!({"spec": new}), old.as_ref())), expected);
    }

    #[test]
    fn objects() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [
            {"rule": "self.a < 5", "messageExpression": "self.a > 6 ? 'huge' : 'big'", "reason": "FieldValueForbidden", "fieldPath": ".a"},
            {"rule": "self.a != 9", "message": "nine", "reason": "FieldValueDuplicate"},
            {"rule": "10 / self.a > 0"}]});
        check(&schema, json!({"a": 1}), None, &[]);
        check(&schema, json!({"a": 6}), None, &["spec.a: Forbidden: big"]);
        check(&schema, json!({"a": 9}), None, &["spec.a: Forbidden: huge", "spec: Duplicate value"]);
        check(
            &schema,
            json!({"a": 0}),
            None,
            &[r#"spec: Invalid value: "object": division by zero evaluating rule: 10 / self.a > 0"#],
        );
    }

    #[test]
    fn changes() {
        let schema = json!({"type": "object", "properties": {
            "imm": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
            "n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 5"}]},
            "o": {"type": "string", "x-kubernetes-validations": [
                {"rule": "!oldSelf.hasValue() || self == oldSelf.value()", "optionalOldSelf": true, "message": "opt"}]}}});
        check(&schema, json!({"imm": "a", "n": 1, "o": "x"}), None, &[]);
        check(
            &schema,
            json!({"imm": "b", "o": "y"}),
            Some(json!({"imm": "a", "o": "x"})),
            &[r#"spec.imm: Invalid value: "b": is immutable"#, r#"spec.o: Invalid value: "y": opt"#],
        );
        // What was wrong before may stay, and may not get worse.
        check(&schema, json!({"n": 7, "imm": "a"}), Some(json!({"n": 7})), &[]);
        check(
            &schema,
            json!({"n": 8}),
            Some(json!({"n": 7})),
            &["spec.n: Invalid value: 8: failed rule: self < 5"],
        );
    }

    #[test]
    fn definitions() {
        let problems = |rule: Value| {
            let schema = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 10, "items": {
                "type": "string", "maxLength": 10, "x-kubernetes-validations": [rule]}}}});
            texts(&validate(&schema, &Path::new("s"), None, &[]))
        };
        assert_eq!(problems(json!({"rule": "self == 'a'"})).len(), 0);
        assert!(
            problems(json!({"rule": "self.x"}))[0].contains("compilation failed: ERROR: <input>:1:5"),
            "{:?}",
            problems(json!({"rule": "self.x"}))
        );
        assert_eq!(
            problems(json!({"rule": "self == oldSelf"})),
            [
                r#"s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]"#
            ]
        );
        let unbounded = json!({"type": "object", "properties": {"l": {"type": "array", "items": {
            "type": "string", "x-kubernetes-validations": [{"rule": "self.matches('a+b+c')"}]}}}});
        let found = texts(&validate(&unbounded, &Path::new("s"), None, &[]));
        assert!(
            found[0].contains("Forbidden: estimated rule cost exceeds budget by factor of more than 100x"),
            "{found:?}"
        );
    }
}
