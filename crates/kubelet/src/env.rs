//! A container's environment: `envFrom`, `env`, `valueFrom`, `$(VAR)` expansion and the variables of Services. Pure:
//! the ConfigMaps and Secrets it needs are fetched before and handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use orlop_api::names;

use crate::expansion::expand;
use crate::fields::{self, FieldContext};
use crate::pod::PodExt;

/// Names of the ConfigMaps and Secrets a container's environment reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct EnvSources {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// What [`make`] reads. A name that is mapped to `None` was looked up and does not exist.
#[derive(Debug, Default)]
pub(crate) struct EnvContext {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    pub services: Vec<(String, String)>,
    pub fields: FieldContext,
}

/// An environment and the keys of `envFrom` sources that are no variable names, for an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub variables: Vec<(String, String)>,
    pub skipped: Vec<String>,
}

impl Environment {
    /// A variable's value.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }
}

/// Which objects the container's environment needs.
pub(crate) fn sources(container: &Container) -> EnvSources {
    let mut out = EnvSources::default();
    for from in container.env_from.iter().flatten() {
        out.config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        out.secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        out.config_maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
        out.secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    out
}

/// The environment of `container`. The error is the message of `CreateContainerConfigError`.
pub(crate) fn make(pod: &Pod, container: &Container, context: &EnvContext) -> Result<Environment, String> {
    let mut out = Environment::default();
    let services: BTreeMap<&str, &str> =
        context.services.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let take = |out: &mut Environment, key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if names::is_relaxed_env_var_name(&name).is_empty() {
                out.set(&name, value);
            } else {
                out.skipped.push(name);
            }
        };
        if let Some(source) = &from.config_map_ref {
            match context.config_maps.get(&source.name).and_then(Option::as_ref) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        take(&mut out, key, value.clone());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match context.secrets.get(&source.name).and_then(Option::as_ref) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        take(&mut out, key, String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", source.name)),
            }
        }
    }
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            (_, Some(_)) => referenced(pod, container, env, context)?,
            (Some(text), None) => Some(expand(text, |name| {
                out.get(name).or_else(|| services.get(name).map(|value| (*value).to_owned()))
            })),
            (None, None) => Some(String::new()),
        };
        // An optional reference to nothing leaves the variable unset.
        if let Some(value) = value {
            out.set(&env.name, value);
        }
    }
    for (name, value) in &context.services {
        if out.get(name).is_none() {
            out.set(name, value.clone());
        }
    }
    Ok(out)
}

fn referenced(
    pod: &Pod,
    container: &Container,
    env: &k8s_openapi::api::core::v1::EnvVar,
    context: &EnvContext,
) -> Result<Option<String>, String> {
    let Some(from) = &env.value_from else { return Ok(None) };
    if let Some(field) = &from.field_ref {
        return fields::field_value(pod, field, &context.fields).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return fields::resource_value(pod, resource, Some(container), &context.fields).map(Some);
    }
    let namespace = pod.namespace();
    if let Some(source) = &from.config_map_key_ref {
        let optional = source.optional == Some(true);
        let Some(map) = context.config_maps.get(&source.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("configmap \"{}\" not found", source.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&source.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", source.key, source.name)),
        };
    }
    if let Some(source) = &from.secret_key_ref {
        let optional = source.optional == Some(true);
        let Some(secret) = context.secrets.get(&source.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("secret \"{}\" not found", source.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&source.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", source.key, source.name)),
        };
    }
    Err(format!("environment variable {}: this kind of valueFrom is not supported by this kubelet", env.name))
}

/// The variables of Services a pod sees: all of its own namespace when it wants them, and always those of the
/// `kubernetes` Service.
pub(crate) fn service_variables<'a>(
    pod_namespace: &str,
    enable_links: bool,
    services: impl Iterator<Item = &'a Service>,
) -> Vec<(String, String)> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let has_ip = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None");
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = namespace == "default" && name == "kubernetes";
        let own = namespace == pod_namespace && enable_links;
        if !has_ip || !(own || master) {
            continue;
        }
        // A Service of the pod's own namespace goes before the master Service of the same name.
        if own || !chosen.contains_key(name) {
            chosen.insert(name, service);
        }
    }
    let mut out = Vec::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let prefix = name.to_ascii_uppercase().replace('-', "_");
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let suffix = port_name.to_ascii_uppercase().replace('-', "_");
                out.push((format!("{prefix}_SERVICE_PORT_{suffix}"), port.port.to_string()));
            }
        }
        let shown_ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{shown_ip}:{}", protocol.to_ascii_lowercase(), port.port);
            if index == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            let base = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
            out.push((base.clone(), url));
            out.push((format!("{base}_PROTO"), protocol.to_ascii_lowercase()));
            out.push((format!("{base}_PORT"), port.port.to_string()));
            out.push((format!("{base}_ADDR"), ip.to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn context() -> EnvContext {
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"k": "v", "a=b": "bad"}}))
                .unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"pw": "c2VjcmV0"}})).unwrap();
        EnvContext {
            config_maps: [("m".to_owned(), Some(Arc::new(map))), ("gone".to_owned(), None)].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
            services: vec![("WEB_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned())],
            fields: FieldContext::default(),
        }
    }

    fn check(container: Value, expected: Result<&[(&str, &str)], &str>) {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": []}}),
        )
        .unwrap();
        let mut container = container;
        container["name"] = json!("c");
        let shown = container.to_string();
        let container: Container = serde_json::from_value(container).unwrap();
        let got = make(&pod, &container, &context()).map(|env| env.variables);
        let got = got.as_ref().map(|v| v.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>());
        assert_eq!(got.as_deref().map_err(|e| e.as_str()), expected, "{shown}");
    }

    #[test]
    fn environments() {
        let web = ("WEB_SERVICE_HOST", "10.96.0.7");
        check(json!({}), Ok(&[web]));
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(WEB_SERVICE_HOST)-$(C)"}, {"name": "E"}]}),
            Ok(&[("A", "1"), ("B", "1-10.96.0.7-$(C)"), ("E", ""), web]),
        );
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}], "env": [{"name": "pw", "value": "mine"}]}),
            Ok(&[("P_k", "v"), ("pw", "mine"), web]),
        );
        check(
            json!({"env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            Ok(&[("N", "p"), web]),
        );
        check(
            json!({"env": [{"name": "N", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}}]}),
            Ok(&[("N", "secret"), web]),
        );
        check(
            json!({"env": [{"name": "N", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x", "optional": true}}}]}),
            Ok(&[web]),
        );
        check(
            json!({"env": [{"name": "N", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x"}}}]}),
            Err("couldn't find key x in Secret n/s"),
        );
        check(
            json!({"env": [{"name": "N", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x"}}}]}),
            Err("couldn't find key x in ConfigMap n/m"),
        );
        check(json!({"envFrom": [{"configMapRef": {"name": "gone"}}]}), Err("configmap \"gone\" not found"));
        check(json!({"envFrom": [{"configMapRef": {"name": "gone", "optional": true}}]}), Ok(&[web]));
        check(json!({"envFrom": [{"secretRef": {"name": "none"}}]}), Err("secret \"none\" not found"));
    }

    #[test]
    fn services_become_variables() {
        let service = |namespace: &str, name: &str, ip: &str, ports: Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": ports}})).unwrap()
        };
        let all = [
            service(
                "default",
                "kubernetes",
                "10.96.0.1",
                json!([{"name": "https", "port": 443, "protocol": "TCP"}]),
            ),
            service("n", "my-web", "10.96.0.7", json!([{"port": 80}])),
            service("n", "headless", "None", json!([{"port": 80}])),
            service("other", "web", "10.96.0.9", json!([{"port": 80}])),
        ];
        let names = |links: bool| {
            service_variables("n", links, all.iter())
                .into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
        };
        let master = [
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        ];
        assert_eq!(names(false), master);
        let with_links = names(true);
        assert_eq!(with_links[..8], master);
        assert_eq!(with_links[8], "MY_WEB_SERVICE_HOST=10.96.0.7");
        assert_eq!(with_links.len(), 15);
    }
}
