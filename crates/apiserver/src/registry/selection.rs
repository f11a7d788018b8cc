//! Which objects a list or watch is about: namespace, labels, fields.

use std::sync::Arc;

use orlop_api::selector::{FieldSelector, LabelSelector, Operator, Requirement};
use orlop_api::status::ApiError;

use crate::cache::{Entry, Interest};
use crate::request_info::Query;
use crate::resources::Resource;

/// A parsed selection; cheap to clone.
#[derive(Clone)]
pub struct Selection {
    labels: Arc<LabelSelector>,
    fields: Arc<FieldSelector>,
    /// The name in the path of an old-style watch.
    name: Option<Arc<str>>,
    /// Prefix of the keys in scope, for watches.
    prefix: Arc<str>,
}

fn label_matches(requirement: &Requirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().any(|known| known == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = |smaller: bool| {
        let wanted = requirement.values.first().and_then(|v| number(v));
        match (value.and_then(number), wanted) {
            (Some(have), Some(wanted)) => {
                if smaller {
                    have < wanted
                } else {
                    have > wanted
                }
            }
            _ => false,
        }
    };
    match requirement.operator {
        Operator::In | Operator::Equals => value.is_some_and(listed),
        Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::GreaterThan => compared(false),
        Operator::LessThan => compared(true),
    }
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`; 400 for what cannot be understood or selected by.
    pub fn parse(query: &Query, resource: &Resource) -> Result<Selection, ApiError> {
        let bad = |error: orlop_api::selector::SelectorError| ApiError::bad_request(error.0);
        let labels = LabelSelector::parse(query.value("labelSelector")).map_err(bad)?;
        let fields = FieldSelector::parse(query.value("fieldSelector")).map_err(bad)?;
        for term in fields.requirements() {
            if !resource.field_labels.contains(&term.field) {
                return Err(ApiError::bad_request(resource.unsupported_field_label(&term.field)));
            }
        }
        Ok(Selection { labels: labels.into(), fields: fields.into(), name: None, prefix: "".into() })
    }

    /// Restricted to one name.
    pub fn named(mut self, name: &str) -> Selection {
        self.name = Some(name.into());
        self
    }

    /// Restricted to a namespace, for [`Selection::matches_scoped`].
    pub fn within(mut self, namespace: &str) -> Selection {
        self.prefix = if namespace.is_empty() { "".into() } else { format!("{namespace}/").into() };
        self
    }

    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    /// The name that all objects must have, if one is given.
    pub fn exact_name(&self) -> Option<&str> {
        self.name.as_deref().or_else(|| self.fields.requires_exact("metadata.name"))
    }

    /// Where a watcher with this selection should be registered.
    pub fn interest(&self, namespace: &str) -> Interest {
        // Without a namespace a name alone is no key of a namespaced kind.
        if let Some(name) = self.exact_name().filter(|_| !namespace.is_empty()) {
            return Interest::Object(format!("{namespace}/{name}").into());
        }
        match self.fields.requires_exact("spec.nodeName") {
            Some(node) if !node.is_empty() => Interest::Node(node.into()),
            _ if namespace.is_empty() => Interest::All,
            _ => Interest::Namespace(namespace.into()),
        }
    }

    /// Whether labels and fields match.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.name.as_deref().is_none_or(|name| entry.name() == name)
            && self
                .fields
                .requirements()
                .iter()
                .all(|term| (entry.field(&term.field).unwrap_or("") == term.value) != term.negated)
            && self
                .labels
                .requirements()
                .iter()
                .all(|requirement| label_matches(requirement, entry.label(&requirement.key)))
    }

    /// Whether an object that has nothing but this name matches.
    pub fn matches_name(&self, name: &str) -> bool {
        let field = |label: &str| if label == "metadata.name" { name } else { "" };
        self.fields.requirements().iter().all(|term| (field(&term.field) == term.value) != term.negated)
            && self.labels.requirements().iter().all(|requirement| label_matches(requirement, None))
    }

    /// Whether namespace, labels and fields match.
    pub fn matches_scoped(&self, entry: &Entry) -> bool {
        entry.key.starts_with(self.prefix.as_ref()) && self.matches(entry)
    }
}
