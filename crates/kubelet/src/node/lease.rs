//! The node's lease: the heartbeat by which the control plane knows the node (KEP-589).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";
/// `nodeLeaseDurationSeconds`.
const DURATION_SECONDS: i32 = 40;

/// Renews the lease until `shutdown`.
pub(crate) async fn renew(context: &Context, shutdown: CancellationToken) {
    let api = Api::<Lease>::namespaced(context.client.clone(), NAMESPACE);
    let name = context.options.node_name.as_str();
    let mut known: Option<Lease> = None;
    let mut failures = 0_u32;
    loop {
        let wait = match once(&api, context, name, known.take()).await {
            Ok(lease) => {
                known = Some(lease);
                failures = 0;
                context.options.lease_renew_interval
            }
            Err(error) => {
                failures += 1;
                if failures == 3 {
                    warn!(node = name, %error, "node lease not renewed; the node will be shown as unknown if this goes on");
                }
                Duration::from_millis(200 << failures.min(5)).min(context.options.lease_renew_interval)
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

async fn once(
    api: &Api<Lease>,
    context: &Context,
    name: &str,
    known: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let now = MicroTime(Timestamp::now());
    let found = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let Some(mut lease) = found else {
        let spec = LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner(context).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        return api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await;
    };
    if lease.metadata.owner_references.is_none() {
        lease.metadata.owner_references = owner(context).map(|owner| vec![owner]);
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.to_owned());
    spec.lease_duration_seconds = Some(DURATION_SECONDS);
    spec.renew_time = Some(now);
    api.replace(name, &PostParams::default(), &lease).await
}

/// The lease goes when its node goes.
fn owner(context: &Context) -> Option<OwnerReference> {
    let node: std::sync::Arc<Node> = context.nodes.get("", &context.options.node_name)?;
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}
