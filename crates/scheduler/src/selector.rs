//! Label selectors, node selectors and tolerations in a form that can be compared, hashed and evaluated quickly.
//! Answers to `apimachinery/pkg/labels` and `component-helpers/scheduling/corev1`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// How a requirement compares a label's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// An operator that the API does not know; matches nothing.
    Invalid,
}

impl Operator {
    fn parse(text: &str) -> Self {
        match text {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => Self::Invalid,
        }
    }
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|wanted| wanted == value);
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => self.compare(value, |value, bound| value > bound),
            Operator::Lt => self.compare(value, |value, bound| value < bound),
            Operator::Invalid => false,
        }
    }

    fn compare(&self, value: Option<&str>, holds: fn(i64, i64) -> bool) -> bool {
        let [bound] = self.values.as_slice() else { return false };
        match (value.and_then(|value| value.parse().ok()), bound.parse().ok()) {
            (Some(value), Some(bound)) => holds(value, bound),
            _ => false,
        }
    }
}

/// A label selector. The default selects nothing, as an absent selector does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector {
    /// `None` selects nothing, an empty list everything.
    requirements: Option<Vec<Requirement>>,
}

impl Selector {
    /// From the API's form; `None` selects nothing, an empty one everything.
    pub fn of(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::default() };
        let mut compiled = Self::from_labels(selector.match_labels.iter().flatten());
        for expression in selector.match_expressions.iter().flatten() {
            let mut values = expression.values.clone().unwrap_or_default();
            values.sort();
            compiled.require(&expression.key, Operator::parse(&expression.operator), values);
        }
        compiled
    }

    /// Every label must have this value; an empty map selects everything.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        };
        Self { requirements: Some(labels.into_iter().map(equals).collect()) }
    }

    /// Adds a requirement. A selector of nothing stays one.
    pub fn require(&mut self, key: &str, operator: Operator, values: Vec<String>) {
        let Some(requirements) = &mut self.requirements else { return };
        let requirement = Requirement { key: key.to_owned(), operator, values };
        if let Err(place) = requirements.binary_search(&requirement) {
            requirements.insert(place, requirement);
        }
    }

    /// Adds everything that another selector requires.
    pub fn extend(&mut self, other: Self) {
        for requirement in other.requirements.into_iter().flatten() {
            self.require(&requirement.key, requirement.operator, requirement.values);
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.as_ref().is_some_and(|all| {
            all.iter()
                .all(|requirement| requirement.matches(labels.get(&requirement.key).map(String::as_str)))
        })
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Term {
    expressions: Vec<Requirement>,
    /// On `metadata.name`, the only field there is.
    names: Vec<Requirement>,
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Self {
        Self { expressions: requirements(&term.match_expressions), names: requirements(&term.match_fields) }
    }

    /// An empty term matches nothing.
    fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.expressions.is_empty() && self.names.is_empty() {
            return false;
        }
        self.expressions
            .iter()
            .all(|requirement| requirement.matches(labels.get(&requirement.key).map(String::as_str)))
            && self.names.iter().all(|field| field.matches((field.key == "metadata.name").then_some(name)))
    }
}

fn requirements(list: &Option<Vec<NodeSelectorRequirement>>) -> Vec<Requirement> {
    let compile = |requirement: &NodeSelectorRequirement| Requirement {
        key: requirement.key.clone(),
        operator: Operator::parse(&requirement.operator),
        values: requirement.values.clone().unwrap_or_default(),
    };
    list.iter().flatten().map(compile).collect()
}

/// Which nodes: a map of labels, and terms of which one has to match.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeMatcher {
    labels: Vec<(String, String)>,
    /// `None` when no terms are given; an empty list matches no node.
    terms: Option<Vec<Term>>,
}

impl NodeMatcher {
    pub fn new(labels: Option<&Labels>, selector: Option<&NodeSelector>) -> Self {
        Self {
            labels: labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
            terms: selector.map(|selector| selector.node_selector_terms.iter().map(Term::of).collect()),
        }
    }

    /// From one term that is not in a list.
    pub fn of_term(term: &NodeSelectorTerm) -> Self {
        Self { labels: Vec::new(), terms: Some(vec![Term::of(term)]) }
    }

    /// Whether it matches every node by asking for nothing.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.terms.is_none()
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }

    /// The names of the only nodes it can match, when every term names its nodes by `metadata.name In`. An empty list:
    /// the terms contradict themselves.
    pub fn node_names(&self) -> Option<Vec<String>> {
        let terms = self.terms.as_ref().filter(|terms| !terms.is_empty())?;
        let mut names = Vec::new();
        for term in terms {
            let mut fields = term
                .names
                .iter()
                .filter(|field| field.key == "metadata.name" && field.operator == Operator::In);
            let mut own = fields.next()?.values.clone();
            for field in fields {
                own.retain(|name| field.values.contains(name));
            }
            names.extend(own);
        }
        names.sort();
        names.dedup();
        Some(names)
    }
}

/// Whether a toleration covers a taint. `effect` empty covers all effects; `Exists` without key covers all taints.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = given(&toleration.key);
    if key.as_ref().is_some_and(|key| *key != taint.key) {
        return false;
    }
    let own = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => own == value,
        "Exists" => true,
        // KEP-5471.
        "Lt" | "Gt" => match (value.parse::<i64>(), own.parse::<i64>()) {
            (Ok(value), Ok(bound)) if toleration.operator.as_deref() == Some("Lt") => value < bound,
            (Ok(value), Ok(bound)) => value > bound,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labels(value: Value) -> Labels {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn label_selectors() {
        let check = |selector: Value, object: Value, expected: bool| {
            let parsed: Option<LabelSelector> = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(Selector::of(parsed.as_ref()).matches(&labels(object)), expected, "{selector}");
        };
        check(json!(null), json!({}), false);
        check(json!({}), json!({"a": "b"}), true);
        check(json!({"matchLabels": {"a": "b"}}), json!({"a": "b"}), true);
        check(json!({"matchLabels": {"a": "b"}}), json!({"a": "c"}), false);
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]});
        check(expression("In", json!(["b", "c"])), json!({"a": "c"}), true);
        check(expression("NotIn", json!(["b"])), json!({}), true);
        check(expression("NotIn", json!(["b"])), json!({"a": "b"}), false);
        check(expression("Exists", json!(null)), json!({"a": ""}), true);
        check(expression("DoesNotExist", json!(null)), json!({"a": ""}), false);
    }

    #[test]
    fn selectors_are_equal_whatever_the_order() {
        let parse = |value: Value| Selector::of(Some(&serde_json::from_value(value).unwrap()));
        let one = parse(json!({"matchExpressions": [
            {"key": "b", "operator": "In", "values": ["2", "1"]}, {"key": "a", "operator": "Exists"}]}));
        let other = parse(json!({"matchExpressions": [
            {"key": "a", "operator": "Exists"}, {"key": "b", "operator": "In", "values": ["1", "2"]}]}));
        assert_eq!(one, other);
    }

    #[test]
    fn tolerations() {
        let check = |toleration: Value, taint: Value, expected: bool| {
            let parse = |value: &Value| serde_json::from_value(value.clone()).unwrap();
            let verdict = tolerates(&serde_json::from_value(toleration.clone()).unwrap(), &parse(&taint));
            assert_eq!(verdict, expected, "{toleration} {taint}");
        };
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        check(
            json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}),
            taint.clone(),
            true,
        );
        check(json!({"key": "k", "value": "v"}), taint.clone(), true);
        check(json!({"key": "k", "value": "w"}), taint.clone(), false);
        check(json!({"key": "k", "operator": "Exists"}), taint.clone(), true);
        check(json!({"operator": "Exists"}), taint.clone(), true);
        check(json!({"operator": "Exists", "effect": "NoExecute"}), taint.clone(), false);
        check(json!({"key": "l", "operator": "Exists"}), taint, false);
        let number = json!({"key": "k", "value": "5", "effect": "NoSchedule"});
        check(json!({"key": "k", "operator": "Gt", "value": "3"}), number.clone(), true);
        check(json!({"key": "k", "operator": "Lt", "value": "3"}), number, false);
    }
}
