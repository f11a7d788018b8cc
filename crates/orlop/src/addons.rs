//! What a cluster of `orlop server` has beyond upstream's API server: the StorageClass `local-path` and the rights of
//! its provisioner. Answers to upstream's addon manager, with its two modes. Rights are *reconciled* at every start; the
//! class is *ensured to exist* once: a ConfigMap remembers that it was made, so that who changes it, deletes it or makes
//! another class the default keeps that choice. Whoever wants it back deletes its key there and starts the server again.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The service account, in `kube-system`, that provisions volumes.
pub const PROVISIONER_ACCOUNT: &str = "local-path-provisioner";

const MANAGER: &str = "orlop";
const RIGHTS: &str = "system:orlop:local-path-provisioner";
const CLASS: &str = "local-path";
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// The ConfigMap in `kube-system` that remembers what was made, and its key of the class.
const MADE: &str = "orlop-addons";
const MADE_CLASS: &str = "storageclass.local-path";

/// Gives the provisioner its rights: before any node starts, so that none begins with a refusal.
pub async fn grant(client: &kube::Client) -> Result<(), kube::Error> {
    let apply = PatchParams::apply(MANAGER).force();
    Api::<ClusterRole>::all(client.clone()).patch(RIGHTS, &apply, &Patch::Apply(role())).await?;
    Api::<ClusterRoleBinding>::all(client.clone()).patch(RIGHTS, &apply, &Patch::Apply(binding())).await?;
    Ok(())
}

/// Sees to the class, however long the API server takes to let it.
pub async fn ensure(client: kube::Client, shutdown: CancellationToken) {
    let mut pause = Duration::from_millis(50);
    let work = async {
        while let Err(error) = ensure_class(&client).await {
            if pause > Duration::from_secs(1) {
                warn!(%error, "StorageClass local-path is not made; trying again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    };
    shutdown.run_until_cancelled(work).await;
}

async fn ensure_class(client: &kube::Client) -> Result<(), kube::Error> {
    let marks = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let known = marks.get_opt(MADE).await?.and_then(|map| map.data);
    if known.is_some_and(|data| data.contains_key(MADE_CLASS)) {
        return Ok(());
    }
    let classes = Api::<StorageClass>::all(client.clone());
    let there = classes.list(&ListParams::default()).await?;
    // A cluster that has a default keeps it.
    let default = !there.items.iter().any(is_default);
    match classes.create(&PostParams::default(), &class(default)).await {
        Ok(_) => info!(default, "StorageClass local-path created"),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    let mark = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MADE}, "data": {MADE_CLASS: "created"}});
    marks.patch(MADE, &PatchParams::apply(MANAGER).force(), &Patch::Apply(mark)).await?;
    Ok(())
}

fn is_default(class: &StorageClass) -> bool {
    class.metadata.annotations.iter().flatten().any(|(key, value)| key == IS_DEFAULT && value == "true")
}

fn class(default: bool) -> StorageClass {
    let mut class = StorageClass {
        provisioner: orlop_provisioner::PROVISIONER.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    };
    class.metadata.name = Some(CLASS.to_owned());
    class.metadata.annotations = Some([(IS_DEFAULT.to_owned(), default.to_string())].into());
    class
}

fn role() -> Value {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": RIGHTS}, "rules": [
        rule("", &["persistentvolumes"], &["create", "delete", "get", "list", "patch", "watch"]),
        rule("", &["persistentvolumeclaims"], &["get", "list", "update", "watch"]),
        rule("", &["persistentvolumeclaims/status"], &["patch"]),
        rule("", &["nodes"], &["get"]),
        rule("storage.k8s.io", &["storageclasses"], &["get", "list", "watch"]),
        rule("", &["events"], &["create", "patch", "update"]),
    ]})
}

fn binding() -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": RIGHTS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RIGHTS},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": PROVISIONER_ACCOUNT}]})
}
