//! `PodNodeSelector`: a namespace says in an annotation on which nodes its pods run, and an administrator's file which
//! labels they may select by at all.

use std::collections::BTreeMap;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// The entry of the configuration for namespaces without the annotation.
const CLUSTER_DEFAULT: &str = "clusterDefaultNodeSelector";

type Labels = BTreeMap<String, String>;

pub(super) struct PodNodeSelector {
    /// Selectors by namespace.
    configured: BTreeMap<String, String>,
}

impl PodNodeSelector {
    /// With the plugin's configuration, if it has one.
    pub(super) fn new(configuration: Option<&Value>) -> Result<PodNodeSelector, String> {
        let map = configuration.and_then(|c| c.map("podNodeSelectorPluginConfig"));
        let configured =
            map.into_iter().flatten().filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.to_string())));
        Ok(PodNodeSelector { configured: configured.collect() })
    }

    fn configured(&self, name: &str) -> Result<Labels, ApiError> {
        parse(self.configured.get(name).map_or("", String::as_str))
    }

    /// What the namespace adds to every pod.
    fn of_namespace(&self, registry: &Registry, namespace: &str) -> Result<Labels, ApiError> {
        let entry = registry
            .resources
            .cache("", "Namespace")
            .and_then(|namespaces| namespaces.get(namespace))
            .ok_or_else(|| ApiError::not_found("", "namespaces", namespace))?;
        match entry.value().annotation(ANNOTATION) {
            Some(text) => parse(text),
            None => self.configured(CLUSTER_DEFAULT),
        }
    }
}

/// `a=b, c=d`.
fn parse(text: &str) -> Result<Labels, ApiError> {
    if text.is_empty() {
        return Ok(Labels::new());
    }
    let pairs = text.split(',').map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| ApiError::generic(500, "", format!("invalid selector: [{pair}]")))?;
        let (key, value) = (key.trim(), value.trim().trim_start_matches('='));
        let mut errors = orlop_api::names::is_qualified_name(key);
        errors.extend(orlop_api::names::is_valid_label_value(value));
        match errors.first() {
            Some(error) => Err(ApiError::generic(500, "", error.clone())),
            None => Ok((key.to_string(), value.to_string())),
        }
    });
    pairs.collect()
}

fn selector_of(pod: &Value) -> Labels {
    let map = pod["spec"].map("nodeSelector").into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.to_string(), value.as_str()?.to_string()))).collect()
}

fn conflicts(a: &Labels, b: &Labels) -> bool {
    a.iter().any(|(key, value)| b.get(key).is_some_and(|other| other != value))
}

#[async_trait]
impl Admission for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && request.operation == Operation::Create
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let mut merged = self.of_namespace(registry, request.call.namespace)?;
        let own = selector_of(request.object);
        if !conflicts(&merged, &own) {
            merged.extend(own);
            if !merged.is_empty() {
                request.object["spec"]["nodeSelector"] = json!(merged);
            }
        }
        self.validate(registry, request).await
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let own = selector_of(request.object);
        if conflicts(&self.of_namespace(registry, request.call.namespace)?, &own) {
            return Err(
                request.forbidden("pod node label selector conflicts with its namespace node label selector")
            );
        }
        let allowed = self.configured(request.call.namespace)?;
        if !allowed.is_empty() && own.iter().any(|(key, value)| allowed.get(key) != Some(value)) {
            return Err(
                request.forbidden("pod node label selector labels conflict with its namespace whitelist")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn selectors() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected: Labels = expected.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            assert_eq!(parse(text).unwrap(), expected);
        };
        check("", &[]);
        check("env=test, tier = db", &[("env", "test"), ("tier", "db")]);
        assert_eq!(parse("x").unwrap_err().status().message, "invalid selector: [x]");
    }
}
