//! `ImagePolicyWebhook`: a service outside decides which images pods may use (`imagepolicy.k8s.io/v1alpha1`
//! ImageReview).

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use parking_lot::Mutex;

use super::fields::Fields as _;
use super::{Admission, Request};
use crate::outbound::Webhook;
use crate::registry::Registry;

/// Begins the keys of audit annotations.
const AUDIT: &str = "imagepolicywebhook.image-policy.k8s.io/";
/// What annotations of a pod the service is shown have in their keys.
const FOR_THE_SERVICE: &str = ".image-policy.k8s.io/";
/// Answers that are remembered.
const REMEMBERED: usize = 1024;
/// How long the service may take, attempts included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A setting of time: its unit, what it may be, and what it is when it is not said.
struct Setting {
    name: &'static str,
    unit: Duration,
    least: Duration,
    most: Duration,
    default: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

const ALLOW_TTL: Setting = Setting {
    name: "allowTTL",
    unit: SECOND,
    least: SECOND,
    most: Duration::from_secs(30 * 60),
    default: Duration::from_secs(5 * 60),
};
const DENY_TTL: Setting = Setting { name: "denyTTL", default: Duration::from_secs(30), ..ALLOW_TTL };
const RETRY_BACKOFF: Setting = Setting {
    name: "retryBackoff",
    unit: MILLISECOND,
    least: MILLISECOND,
    most: Duration::from_secs(5 * 60),
    default: Duration::from_millis(500),
};

impl Setting {
    /// 0 stands for the default, -1 for none at all.
    fn read(&self, policy: &Value) -> Result<Duration, String> {
        let number = policy.get(self.name).and_then(Value::as_i64).unwrap_or(0);
        let value = match number {
            -1 => return Ok(Duration::ZERO),
            0 => return Ok(self.default),
            number => u32::try_from(number).ok().and_then(|number| self.unit.checked_mul(number)),
        };
        value.filter(|value| (self.least..=self.most).contains(value)).ok_or_else(|| {
            let Setting { name, least, most, .. } = self;
            format!("{name}: valid value is between {least:?} and {most:?}, got {number}")
        })
    }
}

/// What the service says of some images.
#[derive(Clone)]
struct Verdict {
    allowed: bool,
    reason: String,
    annotations: Vec<(String, String)>,
}

impl Verdict {
    fn of(review: &Value) -> Verdict {
        let status = &review["status"];
        let annotations = status["auditAnnotations"].as_object().into_iter().flatten();
        Verdict {
            allowed: status["allowed"] == true,
            reason: status.text("reason").to_owned(),
            annotations: annotations
                .filter_map(|(key, value)| Some((key.to_string(), value.as_str()?.to_owned())))
                .collect(),
        }
    }
}

/// The plugin.
pub struct ImagePolicyWebhook {
    service: Webhook,
    allow_ttl: Duration,
    deny_ttl: Duration,
    retry_backoff: Duration,
    default_allow: bool,
    /// By what was asked: the answer, and until when it holds.
    remembered: Mutex<HashMap<String, (Instant, Verdict)>>,
}

impl ImagePolicyWebhook {
    /// Reads the configuration, `{"imagePolicy": {…}}`.
    pub fn new(configuration: Option<&Value>) -> Result<ImagePolicyWebhook, String> {
        let policy = &configuration.ok_or("no config specified")?["imagePolicy"];
        let (allow_ttl, deny_ttl) = (ALLOW_TTL.read(policy)?, DENY_TTL.read(policy)?);
        let retry_backoff = RETRY_BACKOFF.read(policy)?;
        let file = policy.text("kubeConfigFile");
        if file.is_empty() {
            return Err(
                "imagePolicy.kubeConfigFile: a kubeconfig file that names the service is needed".into()
            );
        }
        Ok(ImagePolicyWebhook {
            service: Webhook::load(Path::new(file)).map_err(|error| error.to_string())?,
            allow_ttl,
            deny_ttl,
            retry_backoff,
            default_allow: policy["defaultAllow"] == true,
            remembered: Mutex::default(),
        })
    }

    /// The service's word, from memory or from itself.
    async fn ask(&self, spec: Value) -> Result<Verdict, String> {
        let key = spec.to_string();
        if let Some((until, verdict)) = self.remembered.lock().get(&key)
            && *until > Instant::now()
        {
            return Ok(verdict.clone());
        }
        let review = json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1",
            "metadata": {}, "spec": spec, "status": {"allowed": false}});
        let answer = self.service.review_with(&review, TIMEOUT, self.retry_backoff).await;
        let verdict = Verdict::of(&answer.map_err(|error| error.to_string())?);
        let now = Instant::now();
        let ttl = if verdict.allowed { self.allow_ttl } else { self.deny_ttl };
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, (until, _)| *until > now);
        }
        if !ttl.is_zero() && remembered.len() < REMEMBERED {
            remembered.insert(key, (now + ttl, verdict.clone()));
        }
        Ok(verdict)
    }
}

/// What the service is asked about a pod.
fn spec(request: &Request<'_>) -> Value {
    let pod = &*request.object;
    let lists: &[&str] = match request.call.subresource {
        "" => &["containers", "initContainers"],
        _ => &["ephemeralContainers"],
    };
    let containers = lists.iter().flat_map(|list| pod["spec"].items(list));
    let mut spec = json!({"containers": containers
        .map(|container| json!({"image": container.text("image")}))
        .collect::<Vec<_>>()});
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    let shown: orlop_json::Map = annotations
        .filter(|(key, _)| key.contains(FOR_THE_SERVICE))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !shown.is_empty() {
        spec["annotations"] = Value::Object(shown);
    }
    spec["namespace"] = json!(request.attribute_namespace());
    spec
}

#[async_trait]
impl Admission for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        "ImagePolicyWebhook"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.writes_containers()
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let begun = Instant::now();
        let verdict = self.ask(spec(request)).await;
        request.call.waited(begun.elapsed());
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(error) if self.default_allow => {
                tracing::warn!(error, "the image policy service could not be asked; the pod is let pass");
                request.call.annotate(format!("{AUDIT}failed-open"), "true");
                return Ok(());
            }
            Err(error) => return Err(request.forbidden(error)),
        };
        for (key, value) in &verdict.annotations {
            request.call.annotate(format!("{AUDIT}{key}"), value.as_str());
        }
        if verdict.allowed {
            return Ok(());
        }
        Err(request.forbidden(match verdict.reason.as_str() {
            "" => "one or more images rejected by webhook backend".to_owned(),
            reason => format!("image policy webhook backend denied one or more images: {reason}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn configurations() {
        let check = |policy: Value, expected: &str| {
            let error = ImagePolicyWebhook::new(Some(&json!({"imagePolicy": policy}))).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        check(json!({}), "imagePolicy.kubeConfigFile");
        check(json!({"allowTTL": 1801}), "allowTTL: valid value is between 1s and 1800s, got 1801");
        check(json!({"denyTTL": -2}), "denyTTL: valid value is between");
        check(json!({"retryBackoff": 300_001}), "retryBackoff: valid value is between 1ms and 300s");
        check(json!({"kubeConfigFile": "/does/not/exist"}), "/does/not/exist");
        assert_eq!(ImagePolicyWebhook::new(None).err().unwrap(), "no config specified");
        assert_eq!(ALLOW_TTL.read(&json!({})), Ok(Duration::from_secs(300)));
        assert_eq!(DENY_TTL.read(&json!({"denyTTL": -1})), Ok(Duration::ZERO));
        assert_eq!(RETRY_BACKOFF.read(&json!({"retryBackoff": 20})), Ok(Duration::from_millis(20)));
    }
}
