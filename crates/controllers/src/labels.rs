//! Objects by their labels: who asks for what a selector matches looks at the objects with its rarest label, and not at
//! a whole namespace.

use std::sync::Arc;

use orlop_api::selector::{LabelSelector, Operator};
use orlop_client::{Informer, Object};

use crate::objects::{Labels, Meta};

const BY_LABEL: &str = "label";

/// One label in one namespace, as indexes hold it.
pub(crate) fn entry(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// What an object is found under: all of its labels.
pub(crate) fn entries<K: Meta>(object: &K) -> Vec<String> {
    let labels = object.meta().labels.iter().flatten();
    labels.map(|(key, value)| entry(object.namespace(), key, value)).collect()
}

/// Prepares for [`with_labels`] and [`selected`].
pub(crate) fn index<K: Object + Meta>(objects: &Informer<K>) {
    objects.add_index(BY_LABEL, entries);
}

/// The objects of a namespace that have all of the labels, of which there is at least one, by name. Finds nothing
/// without [`index`].
pub(crate) fn with_labels<K: Object + Meta>(
    objects: &Informer<K>,
    namespace: &str,
    wanted: &Labels,
) -> Vec<Arc<K>> {
    let asked: Vec<String> = wanted.iter().map(|(key, value)| entry(namespace, key, value)).collect();
    let mut found = objects.by_rarest(BY_LABEL, &asked);
    found.retain(|object| wanted.iter().all(|(key, value)| object.label(key) == Some(value.as_str())));
    found
}

/// The objects of a namespace that a selector matches, by name. Needs [`index`]; a selector that asks for no certain
/// value of any label looks at the whole namespace.
pub(crate) fn selected<K: Object + Meta>(
    objects: &Informer<K>,
    namespace: &str,
    by: &LabelSelector,
) -> Vec<Arc<K>> {
    let exact = by.requirements().iter().filter_map(|requirement| match &requirement.values[..] {
        [value] if matches!(requirement.operator, Operator::In | Operator::Equals) => {
            Some(entry(namespace, &requirement.key, value))
        }
        _ => None,
    });
    let exact: Vec<String> = exact.collect();
    let mut found = if exact.is_empty() {
        objects.list_namespace(namespace)
    } else {
        objects.by_rarest(BY_LABEL, &exact)
    };
    found.retain(|object| {
        let labels = Meta::meta(&**object).labels.iter().flatten();
        let labels = labels.map(|(key, value)| (key.into(), value.as_str().into())).collect();
        by.matches(Some(&labels))
    });
    found
}
