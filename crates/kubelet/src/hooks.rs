//! postStart and preStop hooks. Answers to upstream's `pkg/kubelet/lifecycle`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use orlop_cri::Runtime;

use crate::net;

const AGENT: &str = "kube-lifecycle/1.36";
/// An HTTP hook has no limit of its own upstream but the client's; this is that limit.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a hook in (or towards) a running container. The error is for the log; events say only that it failed.
pub(crate) async fn run(
    runtime: &dyn Runtime,
    id: &str,
    container: &Container,
    pod_ip: &str,
    handler: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output =
            runtime.exec_sync(id, &command, Duration::ZERO).await.map_err(|error| error.to_string())?;
        if output.exit_code == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("command '{}' exited with {}: {said}", command.join(" "), output.exit_code));
    }
    if let Some(action) = &handler.http_get {
        return net::http_get(action, container, pod_ip, AGENT, HTTP_TIMEOUT).await;
    }
    if let Some(action) = &handler.tcp_socket {
        return net::tcp(action, container, pod_ip, HTTP_TIMEOUT).await;
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler: it has no action".to_owned())
}
