//! `DefaultStorageClass`: a claim that does not say which class it wants gets the default one.

use std::cmp::Reverse;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

/// Marks the default among the classes; the second is how it was written before `storage.k8s.io/v1`.
const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// How a claim named its class before there was a field for it.
const BY_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) struct DefaultStorageClass;

/// The newest of the default classes, the first by name when several are as new.
fn default_of(classes: impl Iterator<Item = Value>) -> Option<String> {
    classes
        .filter(|class| IS_DEFAULT.iter().any(|key| class.annotation(key) == Some("true")))
        .map(|class| {
            let created = object::meta(&class, "creationTimestamp").to_string();
            (Reverse(created), object::meta(&class, "name").to_string())
        })
        .min()
        .map(|(_, name)| name)
}

#[async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("persistentvolumeclaims") && request.operation == Operation::Create
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        // An empty class is a choice too: no class.
        if request.object["spec"].has("storageClassName")
            || request.object.annotation(BY_ANNOTATION).is_some()
        {
            return Ok(());
        }
        let Some(classes) = registry.resources.cache("storage.k8s.io", "StorageClass") else { return Ok(()) };
        if let Some(name) = default_of(classes.snapshot().0.values().map(|entry| entry.value())) {
            request.object["spec"]["storageClassName"] = json!(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_default_wins() {
        let class = |name: &str, created: &str, key: &str, value: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {key: value}}});
        let check = |classes: Vec<Value>, expected: Option<&str>| {
            assert_eq!(default_of(classes.into_iter()).as_deref(), expected);
        };
        let [ga, beta] = IS_DEFAULT;
        check(vec![class("a", "2020-01-01T00:00:00Z", ga, "false")], None);
        check(vec![class("a", "2020-01-01T00:00:00Z", beta, "true")], Some("a"));
        check(
            vec![
                class("a", "2020-01-01T00:00:00Z", ga, "true"),
                class("b", "2021-01-01T00:00:00Z", ga, "true"),
            ],
            Some("b"),
        );
    }
}
