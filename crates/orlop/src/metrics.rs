//! The metrics server of `orlop server`: the resource metrics API, answered in this process.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_apiserver::aggregation::{InProcess, Priority};
use orlop_apiserver::http::body;
use orlop_apiserver::pki::{self, Subject};
use orlop_apiserver::{ApiServer, UserInfo};
use orlop_client::SharedInformerFactory;
use orlop_metrics_server::{GROUP, MetricsServer, VERSION};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Who reads nodes and pods, and whom the kubelets see.
const USER: &str = "system:metrics-server";
const MANAGER: &str = "orlop";
const RIGHTS: &str = "system:orlop:metrics-server";
const READER: &str = "system:aggregated-metrics-reader";

/// The server as the API server sees it. The priority is that of metrics-server's APIService.
pub fn in_process(metrics: &MetricsServer) -> InProcess {
    let metrics = metrics.clone();
    InProcess::new(GROUP, VERSION, Priority { group: 100, version: 100 }, move |request| {
        let (metrics, (parts, _)) = (metrics.clone(), request.into_parts());
        async move { metrics.answer(&parts.method, &parts.uri, &parts.headers).await.map(body::full) }
    })
}

/// Starts to ask the kubelets, with rights of its own; as long as somebody else serves the group, nobody is asked.
pub async fn start(
    server: &Arc<ApiServer>,
    metrics: MetricsServer,
    admin: &kube::Client,
    client: kube::Client,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    grant(admin).await?;
    let leaf = server.ca().issue(&Subject::client(USER, &[]), 365)?;
    let tls = pki::client_config(server.ca().cert_pem(), Some(&leaf))?;
    let (server, shutdown) = (server.clone(), shutdown.clone());
    let informers = SharedInformerFactory::new(client, shutdown.clone());
    tasks.spawn(async move {
        let wanted = move || !server.is_served_elsewhere(GROUP, VERSION);
        metrics.run(&informers, tls, wanted, shutdown).await;
        Ok(())
    });
    Ok(())
}

/// Whose client [`start`] takes.
pub fn user() -> UserInfo {
    UserInfo::new(USER, &[])
}

async fn grant(client: &kube::Client) -> Result<(), kube::Error> {
    let apply = PatchParams::apply(MANAGER).force();
    let (roles, bindings) =
        (Api::<ClusterRole>::all(client.clone()), Api::<ClusterRoleBinding>::all(client.clone()));
    roles.patch(RIGHTS, &apply, &Patch::Apply(role())).await?;
    bindings.patch(RIGHTS, &apply, &Patch::Apply(binding())).await?;
    // metrics-server brings a role of the same name: whose is there first stays.
    let reader = serde_json::from_value(reader()).map_err(kube::Error::SerdeError)?;
    match roles.create(&PostParams::default(), &reader).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        made => made.map(drop),
    }
}

fn role() -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": RIGHTS}, "rules": [
        {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
    ]})
}

fn binding() -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": RIGHTS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RIGHTS},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]})
}

/// Lets everybody who may view a namespace view its metrics.
fn reader() -> Value {
    let aggregate = |to: &str| (format!("rbac.authorization.k8s.io/aggregate-to-{to}"), json!("true"));
    let labels: serde_json::Map<String, Value> =
        ["view", "edit", "admin"].into_iter().map(aggregate).collect();
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": READER, "labels": labels},
        "rules": [{"apiGroups": [GROUP], "resources": ["pods", "nodes"], "verbs": ["get", "list"]}]})
}
