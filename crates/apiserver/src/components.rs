//! How the components of the control plane are: what ComponentStatus tells. A component in another process is asked at
//! its port; one in this process says itself whether it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Method;

use crate::outbound::{HttpClient, OutboundError, Trust};

/// How long a component may take to answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an answer that are shown.
const SHOWN: usize = 10 * 1024;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is well, and says so in these words.
    Healthy(String),
    /// It is not.
    Unhealthy {
        /// What it says.
        message: String,
        /// Why it could not be asked.
        error: String,
    },
    /// Nobody can tell, for this reason.
    Unknown(String),
}

/// Somebody whose health can be asked for.
pub trait Component: Send + Sync {
    /// Asks.
    fn check(&self) -> BoxFuture<'_, Health>;
}

/// The scheduler and the controller manager at their ports on this host.
pub fn at_their_ports() -> Vec<(String, Arc<dyn Component>)> {
    let at = |name: &str, port: u16| -> (String, Arc<dyn Component>) {
        (name.to_string(), Arc::new(Healthz { address: format!("127.0.0.1:{port}") }))
    };
    vec![at("controller-manager", 10257), at("scheduler", 10259)]
}

/// A component that serves `/healthz` over TLS; whoever answers there is believed.
struct Healthz {
    address: String,
}

impl Healthz {
    async fn ask(&self) -> Health {
        let url = format!("https://{}/healthz", self.address);
        let client = match HttpClient::new(&Trust::Anybody, None, None) {
            Ok(client) => client,
            Err(error) => return Health::Unknown(error.to_string()),
        };
        let unhealthy = |message: String| Health::Unhealthy { message, error: String::new() };
        match client.send(Method::GET, &url, None, TIMEOUT).await {
            Ok((_, body)) => {
                Health::Healthy(String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned())
            }
            Err(OutboundError::Answer(code, _)) => {
                unhealthy(format!("HTTP probe failed with statuscode: {code}"))
            }
            // As Go says it.
            Err(OutboundError::Connection(cause)) if cause.contains("Connection refused") => {
                unhealthy(format!("Get {url:?}: dial tcp {}: connect: connection refused", self.address))
            }
            Err(error) => unhealthy(format!("Get {url:?}: {error}")),
        }
    }
}

impl Component for Healthz {
    fn check(&self) -> BoxFuture<'_, Health> {
        self.ask().boxed()
    }
}

/// A component in this process: well from [`Running::begin`] until what that returned is dropped.
#[derive(Clone, Default)]
pub struct Running(Arc<AtomicBool>);

/// The component runs as long as this lives.
pub struct RunningGuard(Arc<AtomicBool>);

impl Running {
    /// It runs.
    pub fn begin(&self) -> RunningGuard {
        self.0.store(true, Ordering::Release);
        RunningGuard(self.0.clone())
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Component for Running {
    fn check(&self) -> BoxFuture<'_, Health> {
        let health = if self.0.load(Ordering::Acquire) {
            Health::Healthy("ok".to_string())
        } else {
            Health::Unhealthy { message: "not running".to_string(), error: String::new() }
        };
        futures::future::ready(health).boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_component_here() {
        let component = Running::default();
        assert!(matches!(component.check().await, Health::Unhealthy { .. }));
        let guard = component.begin();
        assert_eq!(component.check().await, Health::Healthy("ok".into()));
        drop(guard);
        assert!(matches!(component.check().await, Health::Unhealthy { .. }));
    }

    #[tokio::test]
    async fn a_component_that_is_not_there() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let health = Healthz { address: format!("127.0.0.1:{port}") }.ask().await;
        let message = format!(
            "Get \"https://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(health, Health::Unhealthy { message, error: String::new() });
    }
}
