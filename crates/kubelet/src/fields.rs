//! The downward API: values of `fieldRef` and `resourceFieldRef`, for environments and files. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use orlop_api::Quantity;

use crate::pod::PodExt;
use crate::resources::{self, ResourceList};

/// What the downward API knows besides the pod object.
#[derive(Debug, Clone, Default)]
pub(crate) struct FieldContext {
    /// The node's addresses, primary first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses, primary first.
    pub pod_ips: Vec<IpAddr>,
    /// The node's allocatable resources: what a container without a limit may use.
    pub allocatable: ResourceList,
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The value of a `fieldRef`.
pub(crate) fn field_value(
    pod: &Pod,
    selector: &ObjectFieldSelector,
    context: &FieldContext,
) -> Result<String, String> {
    let spec = pod.pod_spec();
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let path = selector.field_path.as_str();
    if let Some((map, key)) = subscript(path) {
        let found = match map {
            "metadata.labels" => pod.metadata.labels.as_ref(),
            "metadata.annotations" => pod.metadata.annotations.as_ref(),
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(found.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&context.host_ips),
        "status.hostIPs" => joined(&context.host_ips),
        "status.podIP" => first(&context.pod_ips),
        "status.podIPs" => joined(&context.pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['a/b']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as downward API files show it: `key="value"` lines, sorted, values quoted as Go's `%q` does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`; `container` is the one it is asked in, used when the selector names none.
pub(crate) fn resource_value(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    container: Option<&Container>,
    context: &FieldContext,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let found = named
        .map(|name| pod.find_container(name).ok_or_else(|| format!("container {name} not found")))
        .transpose()?;
    let container = match (&found, container) {
        (Some((_, container)), _) => container.as_ref(),
        (None, Some(container)) => container,
        (None, None) => return Err("resourceFieldRef needs a containerName here".to_owned()),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => Quantity::parse(&divisor.0).map_err(|error| format!("divisor: {error}"))?,
        None => Quantity::ZERO,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .filter(|(kind, _)| matches!(*kind, "limits" | "requests"))
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let value = match kind {
        "limits" => resources::limit(container, name)
            .filter(|q| !q.is_zero())
            .or_else(|| resources::quantity(Some(&context.allocatable), name)),
        _ => resources::quantity(container.resources.as_ref().and_then(|r| r.requests.as_ref()), name)
            .or_else(|| resources::limit(container, name)),
    }
    .unwrap_or(Quantity::ZERO);
    let (value, divisor) = if name == "cpu" {
        (value.milli_value(), if divisor.is_zero() { 1000 } else { divisor.milli_value() })
    } else {
        (value.value(), if divisor.is_zero() { 1 } else { divisor.value() })
    };
    // The quotient rounds up: 1.5 cores of 1 are 2.
    Ok((value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k/l": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": "250m"}}},
                {"name": "d"},
            ]},
        }))
        .unwrap()
    }

    fn context() -> FieldContext {
        FieldContext {
            host_ips: vec!["10.0.0.1".parse().unwrap()],
            pod_ips: vec!["10.244.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            allocatable: serde_json::from_value(json!({"cpu": "4", "memory": "2Gi"})).unwrap(),
        }
    }

    #[test]
    fn pod_fields() {
        for (path, expected) in [
            ("metadata.name", Ok("p")),
            ("metadata.labels", Ok("a=\"x\\\"y\"\nb=\"2\"")),
            ("metadata.labels['b']", Ok("2")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.annotations['k/l']", Ok("v")),
            ("spec.nodeName", Ok("node")),
            ("status.hostIP", Ok("10.0.0.1")),
            ("status.podIPs", Ok("10.244.0.2,fd00::2")),
            ("spec.hostname", Err("unsupported fieldPath: spec.hostname")),
        ] {
            let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
            let got = field_value(&pod(), &selector, &context());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{path}");
        }
    }

    #[test]
    fn container_resources() {
        for (container, resource, divisor, expected) in [
            ("c", "limits.cpu", "0", "2"),
            ("c", "limits.cpu", "1m", "1500"),
            ("c", "limits.memory", "1Mi", "1024"),
            ("c", "requests.cpu", "1m", "250"),
            ("c", "requests.memory", "0", "1073741824"),
            ("d", "limits.cpu", "0", "4"),
            ("d", "limits.memory", "1Gi", "2"),
            ("d", "requests.cpu", "1m", "0"),
        ] {
            let selector: ResourceFieldSelector = serde_json::from_value(
                json!({"containerName": container, "resource": resource, "divisor": divisor}),
            )
            .unwrap();
            assert_eq!(
                resource_value(&pod(), &selector, None, &context()).as_deref(),
                Ok(expected),
                "{container} {resource}"
            );
        }
    }
}
