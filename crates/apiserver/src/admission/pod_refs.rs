//! What a pod's spec refers to.

use orlop_json::Value;

use super::fields::Fields as _;

/// Volume sources that name a secret in `secretRef`.
const WITH_SECRET_REF: [&str; 7] = ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"];

/// Whether a pod refers to any secret: in volumes, in the environment of its containers, to pull images.
pub(super) fn refers_to_secrets(spec: &Value) -> bool {
    let by_volume = |volume: &Value| {
        volume.has("secret")
            || volume["projected"].items("sources").iter().any(|source| source.has("secret"))
            || !volume["azureFile"].text("secretName").is_empty()
            || volume["csi"].has("nodePublishSecretRef")
            || WITH_SECRET_REF.iter().any(|kind| volume[*kind].has("secretRef"))
    };
    let by_container = |container: &Value| {
        container.items("envFrom").iter().any(|source| source.has("secretRef"))
            || container.items("env").iter().any(|variable| variable["valueFrom"].has("secretKeyRef"))
    };
    !spec.items("imagePullSecrets").is_empty()
        || spec.items("volumes").iter().any(by_volume)
        || ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(|list| spec.items(list))
            .any(by_container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn secrets() {
        let check = |spec: Value, expected: bool| assert_eq!(refers_to_secrets(&spec), expected, "{spec}");
        check(json!({"containers": [{"name": "c", "env": [{"name": "A", "value": "b"}]}]}), false);
        check(json!({"imagePullSecrets": [{"name": "s"}]}), true);
        check(json!({"volumes": [{"name": "v", "rbd": {"secretRef": {"name": "s"}}}]}), true);
        check(json!({"volumes": [{"name": "v", "rbd": {"image": "i"}}]}), false);
        check(
            json!({"ephemeralContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}),
            true,
        );
    }
}
