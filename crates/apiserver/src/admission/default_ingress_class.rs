//! `DefaultIngressClass`: an Ingress that names no class gets the default one.

use std::cmp::Reverse;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

/// Marks the default among the classes.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How a class was named before there was a field for it.
const BY_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(super) struct DefaultIngressClass;

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"].get("annotations")?.get(key)?.as_str()
}

/// The newest of the default classes, the first by name when several are as new.
fn default_of(classes: impl Iterator<Item = Value>) -> Option<String> {
    classes
        .filter(|class| annotation(class, IS_DEFAULT) == Some("true"))
        .map(|class| {
            let created = object::meta(&class, "creationTimestamp").to_string();
            (Reverse(created), object::meta(&class, "name").to_string())
        })
        .min()
        .map(|(_, name)| name)
}

#[async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is("networking.k8s.io", "ingresses") && request.operation == Operation::Create
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if request.object["spec"].get("ingressClassName").is_some_and(|name| !name.is_null())
            || annotation(request.object, BY_ANNOTATION).is_some()
        {
            return Ok(());
        }
        let Some(cache) = registry.resources.cache("networking.k8s.io", "IngressClass") else {
            return Ok(());
        };
        if let Some(name) = default_of(cache.snapshot().0.values().map(|entry| entry.value())) {
            request.object["spec"]["ingressClassName"] = json!(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_default_wins() {
        let class = |name: &str, created: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {IS_DEFAULT: default}}});
        let check = |classes: Vec<Value>, expected: Option<&str>| {
            assert_eq!(default_of(classes.into_iter()).as_deref(), expected);
        };
        check(vec![class("a", "2020-01-01T00:00:00Z", "false")], None);
        check(
            vec![class("a", "2020-01-01T00:00:00Z", "true"), class("b", "2021-01-01T00:00:00Z", "true")],
            Some("b"),
        );
        check(
            vec![class("b", "2020-01-01T00:00:00Z", "true"), class("a", "2020-01-01T00:00:00Z", "true")],
            Some("a"),
        );
    }
}
