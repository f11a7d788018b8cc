//! CPU weights of the cgroups of the quality of service classes, so that pods without requests get only what the
//! others leave. Answers to upstream's `cm/qos_container_manager_linux.go`.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use tracing::debug;

use crate::resources::{QosClass, cpu_shares, pod_request, qos_class};

/// Shares (v1 scale) of the burstable class: what its pods ask for together.
fn burstable_shares<'a>(pods: impl Iterator<Item = &'a Pod>) -> u64 {
    let burstable = pods.filter(|pod| qos_class(pod) == QosClass::Burstable);
    cpu_shares(burstable.map(|pod| pod_request(pod, "cpu").milli_value()).sum())
}

/// The v2 weight that stands for v1 shares, as runtimes convert it.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

/// Writes the weights of both classes below `parent` (a cgroup path), where the host has them.
pub(crate) fn update<'a>(parent: &str, pods: impl Iterator<Item = &'a Pod>) {
    let burstable = burstable_shares(pods);
    let relative = Path::new(parent.trim_start_matches('/'));
    for (class, shares) in [("burstable", burstable), ("besteffort", cpu_shares(0))] {
        let candidates: [(PathBuf, u64); 3] = [
            (Path::new("/sys/fs/cgroup/cpu").join(relative).join(class).join("cpu.shares"), shares),
            (Path::new("/sys/fs/cgroup/cpu,cpuacct").join(relative).join(class).join("cpu.shares"), shares),
            (Path::new("/sys/fs/cgroup").join(relative).join(class).join("cpu.weight"), weight(shares)),
        ];
        let Some((file, value)) = candidates.into_iter().find(|(file, _)| file.exists()) else { continue };
        if let Err(error) = fs::write(&file, value.to_string()) {
            debug!(file = %file.display(), %error, "CPU weight of a class not set");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_and_weights() {
        let pod = |cpu: &str| -> Pod {
            let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [container]}})).unwrap()
        };
        let pods = [pod("500m"), pod("1500m"), pod("0")];
        assert_eq!(burstable_shares(pods.iter()), 2048);
        assert_eq!(burstable_shares([].iter()), 2);
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
    }
}
