//! What every cluster has from its first second: system namespaces, RBAC defaults, the `kubernetes` Service, and
//! the CA that in-cluster clients trust. Each start adds what is missing and leaves what was changed.

use std::net::IpAddr;
use std::sync::Arc;

use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use crate::ApiServer;
use crate::authn::UserInfo;
use crate::authn::legacy_use;
use crate::registry::object::{meta, set_meta};
use crate::registry::options::DeleteOptions;
use crate::registry::update::Replace;
use crate::registry::{Call, CallOptions, Warnings};
use crate::resources::Resource;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The priority classes of the system's own pods.
const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
const RBAC: &str = include_str!("../data/bootstrap-rbac.json");
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const API_SERVICES: &str = include_str!("../data/bootstrap-apiservices.json");
const FLOW_GROUP: &str = "flowcontrol.apiserver.k8s.io";
const FLOW_MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
/// Whether the server keeps the spec of a flow control object up to date.
const AUTOUPDATE_SPEC: &str = "apf.kubernetes.io/autoupdate-spec";
/// Roles with this annotation set to `false` are left alone.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The rules of the bootstrap role `system:node`.
pub fn node_rules() -> Vec<crate::authz::rbac::PolicyRule> {
    let all: Value = orlop_json::from_str(RBAC).unwrap_or_default();
    all["clusterRoles"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|role| role["name"] == "system:node")
        .map(|role| crate::authz::rbac::PolicyRule::list(role.get("rules")))
        .unwrap_or_default()
}

struct Bootstrap<'a> {
    server: &'a ApiServer,
    user: UserInfo,
    warnings: Warnings,
}

impl Bootstrap<'_> {
    /// The server's own call.
    fn call<'b>(
        &'b self,
        resource: &'b Arc<Resource>,
        namespace: &'b str,
        name: &'b str,
        manager: &'b str,
    ) -> Call<'b> {
        Call {
            user: &self.user,
            resource,
            namespace,
            name,
            subresource: "",
            dry_run: false,
            field_manager: manager,
            warnings: &self.warnings,
            annotations: None,
            options: CallOptions::None,
        }
    }

    /// Creates an object unless it exists; a kind that is not served is passed over.
    async fn ensure(&self, group: &str, object: Value) -> Result<(), ApiError> {
        let kind = object["kind"].as_str().unwrap_or("");
        let Some(resource) = self.server.registry.resources.of_kind(group, kind) else { return Ok(()) };
        let namespace = meta(&object, "namespace").to_string();
        let name = meta(&object, "name").to_string();
        let call = self.call(&resource, &namespace, &name, "kube-apiserver");
        if let Ok(entry) = self.server.registry.get(&call) {
            if group == RBAC_GROUP {
                self.reconcile(&call, entry.value(), object).await?;
            }
            return Ok(());
        }
        let body = object.to_string();
        let gvk = orlop_api::decode::Gvk { group, version: &resource.version, kind };
        let decoded = orlop_api::decode::decode(
            body.as_bytes(),
            orlop_api::decode::Media::Json,
            &gvk,
            orlop_api::decode::FieldValidation::Ignore,
        )?;
        let mut value = decoded.value;
        if let Some(strategy) = resource.strategy() {
            strategy.defaults(&mut value);
        }
        match self.server.registry.create(&call, value).await {
            Ok(_) => Ok(()),
            Err(error) if error.reason() == "AlreadyExists" => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Creates an object, or gives it back the spec it shall have: unless its annotation says that it has been taken
    /// over. The mandatory ones are never given up.
    async fn keep_spec(&self, object: Value) -> Result<(), ApiError> {
        let kind = object["kind"].as_str().unwrap_or("").to_string();
        let Some(resource) = self.server.registry.resources.of_kind(FLOW_GROUP, &kind) else { return Ok(()) };
        let name = meta(&object, "name").to_string();
        let call = self.call(&resource, "", &name, FLOW_MANAGER);
        let Ok(entry) = self.server.registry.get(&call) else {
            return self.ensure(FLOW_GROUP, object).await;
        };
        let mut current = entry.value();
        let ours = current["metadata"]["annotations"].get(AUTOUPDATE_SPEC).and_then(Value::as_str);
        let untouched = orlop_kinds::flowcontrol::is_mandatory(&name)
            || match ours {
                Some(value) => value == "true",
                None => current["metadata"]["generation"] == 1,
            };
        // The shares of the exempt level are the operator's.
        if !untouched || name == "exempt" || current["spec"] == object["spec"] {
            return Ok(());
        }
        current["spec"] = object["spec"].clone();
        set_meta(&mut current, "resourceVersion", None);
        self.server.registry.update(&call, &Replace(current)).await.map(|_| ())
    }

    /// Gives a default role the rules and a default binding the subjects it lacks, as upstream's reconciliation.
    async fn reconcile(&self, call: &Call<'_>, current: Value, wanted: Value) -> Result<(), ApiError> {
        if current.pointer("/metadata/annotations").and_then(|a| a.get(AUTOUPDATE)).and_then(Value::as_str)
            == Some("false")
        {
            return Ok(());
        }
        let mut object = current.clone();
        for list in ["rules", "subjects"] {
            let mut items = object[list].as_array().cloned().unwrap_or_default();
            let before = items.len();
            for item in wanted[list].as_array().into_iter().flatten() {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
            if items.len() > before {
                object[list] = Value::Array(items);
            }
        }
        if object == current {
            return Ok(());
        }
        set_meta(&mut object, "resourceVersion", None);
        self.server.registry.update(call, &Replace(object)).await.map(|_| ())
    }
}

/// Creates and reconciles everything.
pub async fn run(server: &ApiServer) -> Result<(), ApiError> {
    let bootstrap = Bootstrap { server, user: UserInfo::loopback(), warnings: Warnings::default() };
    for name in NAMESPACES {
        bootstrap
            .ensure("", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}))
            .await?;
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let object = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name},
            "value": value, "description": description,
        });
        bootstrap.ensure("scheduling.k8s.io", object).await?;
    }
    rbac(&bootstrap).await?;
    flow_control(&bootstrap).await?;
    api_services(&bootstrap).await?;
    service_range(&bootstrap).await?;
    let tracking = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": legacy_use::TRACKING, "namespace": "kube-system"},
        "data": {"since": legacy_use::today()},
    });
    bootstrap.ensure("", tracking).await?;
    overwrite(&bootstrap, "", server.aggregator.headers.config_map(&server.client_ca_pem)).await
}

/// Priority levels and flow schemas, as long as nobody has taken them over.
async fn flow_control(bootstrap: &Bootstrap<'_>) -> Result<(), ApiError> {
    let all = orlop_kinds::flowcontrol::bootstrap();
    for (list, kind) in
        [("priorityLevelConfigurations", "PriorityLevelConfiguration"), ("flowSchemas", "FlowSchema")]
    {
        for row in all[list].as_array().into_iter().flatten() {
            let object = json!({
                "kind": kind, "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
                "metadata": {"name": row["name"], "annotations": row["annotations"]},
                "spec": row["spec"],
            });
            bootstrap.keep_spec(object).await?;
        }
    }
    Ok(())
}

/// Says that the server keeps an APIService: `onstart` when it starts, `true` always.
pub(crate) const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// The APIServices of the groups and versions that this server serves itself: what is missing is made, what the server
/// keeps is brought back to what it shall be, and what it kept and does not serve any more goes.
async fn api_services(bootstrap: &Bootstrap<'_>) -> Result<(), ApiError> {
    const GROUP: &str = crate::aggregation::GROUP;
    let registry = &bootstrap.server.registry;
    let Some(resource) = registry.resources.of_kind(GROUP, "APIService") else { return Ok(()) };
    let all: Value = orlop_json::from_str(API_SERVICES).map_err(ApiError::internal)?;
    let table = registry.resources.table();
    for row in all.as_array().into_iter().flatten() {
        let text = |key: &str| row["spec"].get(key).and_then(Value::as_str).unwrap_or("");
        let served = table.list.iter().any(|r| r.group == text("group") && r.version == text("version"));
        let name = row["name"].as_str().unwrap_or("");
        let call = bootstrap.call(&resource, "", name, "kube-apiserver");
        let Ok(entry) = registry.get(&call) else {
            if served {
                let object = json!({
                    "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                    "metadata": {"name": row["name"], "labels": row["labels"]},
                    "spec": row["spec"],
                });
                bootstrap.ensure(GROUP, object).await?;
            }
            continue;
        };
        // Without the label it is somebody else's.
        if !matches!(entry.label(AUTOMANAGED), Some("onstart" | "true")) {
            continue;
        }
        if !served {
            registry.delete(&call, &DeleteOptions::default()).await?;
            continue;
        }
        let mut object = entry.value();
        if object["spec"] != row["spec"] {
            object["spec"] = row["spec"].clone();
            set_meta(&mut object, "resourceVersion", None);
            registry.update(&call, &Replace(object)).await?;
        }
    }
    Ok(())
}

/// The range of the server's own settings, from which Services get their addresses, and an IPAddress for each that one
/// has already.
async fn service_range(bootstrap: &Bootstrap<'_>) -> Result<(), ApiError> {
    let registry = &bootstrap.server.registry;
    let object = json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": registry.allocators.configured()},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": crate::registry::now(),
            "message": "Kubernetes default Service CIDR is ready",
        }]},
    });
    let wanted = object["spec"]["cidrs"].clone();
    bootstrap.ensure("networking.k8s.io", object).await?;
    widen(bootstrap, wanted).await?;
    registry.allocators.repair(registry).await
}

/// Gives the range of a cluster that becomes dual stack its second half; any other difference is told of.
async fn widen(bootstrap: &Bootstrap<'_>, wanted: Value) -> Result<(), ApiError> {
    let registry = &bootstrap.server.registry;
    let Some(resource) = registry.resources.of_kind("networking.k8s.io", "ServiceCIDR") else {
        return Ok(());
    };
    let call = bootstrap.call(&resource, "", "kubernetes", "kube-apiserver");
    let Ok(entry) = registry.get(&call) else { return Ok(()) };
    let mut object = entry.value();
    let known = &object["spec"]["cidrs"];
    if *known == wanted {
        return Ok(());
    }
    let one = known.as_array().map(Vec::len) == Some(1);
    if !one || known[0] != wanted[0] {
        tracing::warn!(
            stored = %known, configured = %wanted,
            "the ServiceCIDR kubernetes differs from --service-cluster-ip-range; delete it to take the new range in"
        );
        return Ok(());
    }
    object["spec"]["cidrs"] = wanted;
    registry.update(&call, &Replace(object)).await.map(|_| ())
}

async fn rbac(bootstrap: &Bootstrap<'_>) -> Result<(), ApiError> {
    let all: Value = orlop_json::from_str(RBAC).map_err(ApiError::internal)?;
    for (list, kind) in [
        ("clusterRoles", "ClusterRole"),
        ("clusterRoleBindings", "ClusterRoleBinding"),
        ("roles", "Role"),
        ("roleBindings", "RoleBinding"),
    ] {
        for row in all[list].as_array().into_iter().flatten() {
            let mut object =
                json!({"kind": kind, "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {}});
            for (key, value) in row.as_object().into_iter().flatten() {
                match key.as_str() {
                    "name" | "namespace" | "labels" | "annotations" => {
                        object["metadata"][key] = value.clone()
                    }
                    _ => object[key] = value.clone(),
                }
            }
            bootstrap.ensure(RBAC_GROUP, object).await?;
        }
    }
    Ok(())
}

/// Publishes where this server is: the `kubernetes` Service with its Endpoints and EndpointSlice.
pub async fn publish(server: &ApiServer, address: IpAddr, port: u16) -> Result<(), ApiError> {
    let bootstrap = Bootstrap { server, user: UserInfo::loopback(), warnings: Warnings::default() };
    let first = server.registry.allocators.first();
    let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut ports = json!([{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]);
    let node_port = server.options.kubernetes_node_port;
    if node_port > 0 {
        ports[0]["nodePort"] = json!(node_port);
    }
    let first = first.to_string();
    bootstrap
        .ensure(
            "",
            json!({
                "kind": "Service", "apiVersion": "v1",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
                "spec": {
                    "clusterIP": first, "clusterIPs": [first], "sessionAffinity": "None",
                    "type": if node_port > 0 { "NodePort" } else { "ClusterIP" },
                    "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "ports": ports,
                },
            }),
        )
        .await?;
    if address.is_loopback() {
        tracing::warn!(%address, "the advertise address is a loopback address: pods cannot reach the API, and the kubernetes Service gets no endpoints");
        return Ok(());
    }
    let metadata = json!({"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}});
    overwrite(
        &bootstrap,
        "",
        json!({
            "kind": "Endpoints", "apiVersion": "v1", "metadata": metadata,
            "subsets": [{
                "addresses": [{"ip": address.to_string()}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }],
        }),
    )
    .await?;
    overwrite(
        &bootstrap,
        "discovery.k8s.io",
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    )
    .await
}

/// Creates an object, or brings everything but its metadata back to what it shall be.
pub(crate) async fn keep(server: &ApiServer, group: &str, object: Value) -> Result<(), ApiError> {
    let bootstrap = Bootstrap { server, user: UserInfo::loopback(), warnings: Warnings::default() };
    overwrite(&bootstrap, group, object).await
}

async fn overwrite(bootstrap: &Bootstrap<'_>, group: &str, object: Value) -> Result<(), ApiError> {
    let kind = object["kind"].as_str().unwrap_or("").to_string();
    let Some(resource) = bootstrap.server.registry.resources.of_kind(group, &kind) else { return Ok(()) };
    let (namespace, name) = (meta(&object, "namespace").to_string(), meta(&object, "name").to_string());
    let call = bootstrap.call(&resource, &namespace, &name, "kube-apiserver");
    let Ok(entry) = bootstrap.server.registry.get(&call) else {
        return bootstrap.ensure(group, object).await;
    };
    let mut current = entry.value();
    let mut changed = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if key != "metadata" && current.get(key) != Some(value) {
            current[key] = value.clone();
            changed = true;
        }
    }
    if !changed {
        return Ok(());
    }
    set_meta(&mut current, "resourceVersion", None);
    bootstrap.server.registry.update(&call, &Replace(current)).await.map(|_| ())
}
