//! Objects by their labels: who asks for what a selector matches looks at the objects with its rarest label, and not at
//! a whole namespace.

use std::sync::Arc;

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

/// Prepares for [`with_labels`].
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
