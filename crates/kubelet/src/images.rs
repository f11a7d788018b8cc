//! Makes a container's image present: pull policy, credentials, back-off and upstream's events. Answers to upstream's
//! `pkg/kubelet/images`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Secret};
use orlop_client::{EventRecorder, EventType};
use orlop_cri::{AuthConfig, CriError, Image, Runtime};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::image_ref;
use crate::pod::PodExt;

/// Why a container has no image: waiting reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageError {
    pub reason: &'static str,
    pub message: String,
    /// When another try may succeed.
    pub again: Option<Duration>,
}

impl ImageError {
    fn final_(reason: &'static str, message: String) -> Self {
        Self { reason, message, again: None }
    }
}

/// Pulls images for pods.
pub(crate) struct ImageManager {
    runtime: Arc<dyn Runtime>,
    recorder: EventRecorder,
    backoff: Mutex<Backoff>,
    /// The last error by back-off key, shown while waiting.
    last_error: Mutex<HashMap<String, (Timestamp, String)>>,
}

impl ImageManager {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, recorder: EventRecorder) -> Self {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        Self { runtime, recorder, backoff: Mutex::new(backoff), last_error: Mutex::default() }
    }

    /// The image, pulled if the policy says so. `cancel` ends a pull whose pod goes away.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        object: &ObjectReference,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
    ) -> Result<(String, Image), ImageError> {
        let asked = container.image.as_deref().unwrap_or_default();
        let warn = |reason: &str, message: String| {
            self.recorder.event_for(object.clone(), EventType::Warning, reason, message)
        };
        let info = |reason: &str, message: String| {
            self.recorder.event_for(object.clone(), EventType::Normal, reason, message)
        };
        let image = image_ref::with_default_tag(asked).map_err(|why| {
            let message = format!("Failed to apply default image tag \"{asked}\": {why}");
            warn("InspectFailed", message.clone());
            ImageError::final_("InvalidImageName", message)
        })?;
        let present = self.runtime.image_status(&image).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{image}\": {error}");
            warn("InspectFailed", message.clone());
            ImageError { reason: "ImageInspectError", message, again: Some(Duration::from_secs(10)) }
        })?;
        let default_policy = if image_ref::tag(&image) == Some("latest") { "Always" } else { "IfNotPresent" };
        match (container.image_pull_policy.as_deref().unwrap_or(default_policy), present) {
            ("IfNotPresent", Some(image_found)) | ("Never", Some(image_found)) => {
                info(
                    "Pulled",
                    format!(
                        "Container image \"{asked}\" already present on machine and can be accessed by the pod"
                    ),
                );
                return Ok((image, image_found));
            }
            ("Never", None) => {
                let message = format!("Container image \"{asked}\" is not present with pull policy of Never");
                warn("ErrImageNeverPull", message.clone());
                return Err(ImageError::final_("ErrImageNeverPull", message));
            }
            _ => {}
        }
        let key = format!("{}_{image}", pod.uid());
        let now = Timestamp::now();
        let known = self.last_error.lock().get(&key).cloned();
        if let Some((since, error)) = &known
            && let Some((_, left)) = self.backoff.lock().waiting(&key, *since, now)
        {
            let message = format!("Back-off pulling image \"{asked}\"");
            info("BackOff", message.clone());
            return Err(ImageError {
                reason: "ImagePullBackOff",
                message: format!("{message}: ErrImagePull: {error}"),
                again: Some(left),
            });
        }
        info("Pulling", format!("Pulling image \"{asked}\""));
        let started = Instant::now();
        let pulled = tokio::select! {
            pulled = self.pull(&image, secrets) => pulled,
            () = cancel.cancelled() => Err(CriError::Internal("the pod is being deleted".to_owned())),
        };
        let found = match pulled {
            Ok(id) => match self.runtime.image_status(&id).await {
                Ok(Some(found)) => Ok(found),
                Ok(None) => Err(CriError::ImagePull(format!("image {id} is gone right after its pull"))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => {
                self.backoff.lock().reset(&key);
                self.last_error.lock().remove(&key);
                let took = go_duration(started.elapsed());
                info(
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{asked}\" in {took} ({took} including waiting). Image size: {} bytes.",
                        found.size
                    ),
                );
                Ok((image, found))
            }
            Err(error) => {
                let failed_at = Timestamp::now();
                self.backoff.lock().next(&key, failed_at, failed_at);
                self.last_error.lock().insert(key.clone(), (failed_at, error.to_string()));
                let again = self.backoff.lock().waiting(&key, failed_at, failed_at).map(|(_, left)| left);
                warn("Failed", format!("Failed to pull image \"{asked}\": {error}"));
                warn("Failed", "Error: ErrImagePull".to_owned());
                Err(ImageError { reason: "ErrImagePull", message: error.to_string(), again })
            }
        }
    }

    /// Tries each credential that fits the registry, and none when there is none.
    async fn pull(&self, image: &str, secrets: &[Arc<Secret>]) -> Result<String, CriError> {
        let credentials = credentials(image_ref::registry(image), secrets);
        if credentials.is_empty() {
            return self.runtime.pull_image(image, None).await;
        }
        let mut last = CriError::ImagePull("no credential was accepted".to_owned());
        for auth in credentials {
            match self.runtime.pull_image(image, Some(auth)).await {
                Ok(id) => return Ok(id),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Forgets a pod's back-offs.
    pub(crate) fn forget(&self, uid: &str) {
        let mut errors = self.last_error.lock();
        let keys: Vec<String> = errors.keys().filter(|key| key.starts_with(uid)).cloned().collect();
        for key in keys {
            errors.remove(&key);
            self.backoff.lock().reset(&key);
        }
    }
}

/// Credentials for a registry in image pull secrets of both types.
fn credentials(registry: &str, secrets: &[Arc<Secret>]) -> Vec<AuthConfig> {
    let mut out = Vec::new();
    for secret in secrets {
        let data = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .and_then(|b| serde_json::from_slice::<Value>(&b.0).ok())
        };
        let modern = data(".dockerconfigjson").and_then(|config| config.get("auths").cloned());
        let Some(Value::Object(auths)) = modern.or_else(|| data(".dockercfg")) else { continue };
        for (server, auth) in auths {
            let host = server.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or_default();
            let hub = registry == "docker.io"
                && matches!(host, "index.docker.io" | "docker.io" | "registry-1.docker.io");
            if host != registry && !hub {
                continue;
            }
            let text = |key: &str| auth.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (mut username, mut password) = (text("username"), text("password"));
            if username.is_empty()
                && let Some(decoded) =
                    STANDARD.decode(text("auth")).ok().and_then(|b| String::from_utf8(b).ok())
                && let Some((user, secret)) = decoded.split_once(':')
            {
                (username, password) = (user.to_owned(), secret.to_owned());
            }
            out.push(AuthConfig { username, password, registry_token: text("registrytoken") });
        }
    }
    out
}

/// A duration rounded to milliseconds, as Go prints it.
pub(crate) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match minutes {
        0 => format!("{seconds}s"),
        m if m < 60 => format!("{m}m{seconds}s"),
        m => format!("{}h{}m{seconds}s", m / 60, m % 60),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_read_as_in_go() {
        for (millis, expected) in [
            (5, "5ms"),
            (1000, "1s"),
            (1234, "1.234s"),
            (10_000, "10s"),
            (61_500, "1m1.5s"),
            (300_000, "5m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:pw")},
            "localhost:5000": {"username": "u", "password": "p"},
        }});
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "s"}, "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
        }))
        .unwrap();
        let secrets = [Arc::new(secret)];
        let user = |registry: &str| {
            credentials(registry, &secrets).into_iter().map(|a| a.username).collect::<Vec<_>>()
        };
        assert_eq!(user("docker.io"), ["hub"]);
        assert_eq!(user("localhost:5000"), ["u"]);
        assert!(user("quay.io").is_empty());
    }
}
