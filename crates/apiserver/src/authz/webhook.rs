//! A service outside that decides (`SubjectAccessReview` over HTTP), with its answers remembered for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use orlop_api::selector::{FieldSelector, LabelSelector, Operator};
use orlop_json::{Value, json};
use parking_lot::Mutex;

use super::{Attributes, Decision, Failure};
use crate::expressions::MatchConditions;
use crate::outbound::Webhook;

/// Answers remembered before the memory is emptied.
const REMEMBERED: usize = 8192;
/// Longer questions are not remembered.
const LONGEST_REMEMBERED: usize = 10_000;

/// How the service is asked.
pub struct Settings {
    /// Its name in messages.
    pub name: String,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long it may take.
    pub timeout: Duration,
    /// How long a yes is remembered.
    pub authorized_ttl: Duration,
    /// How long a no is remembered.
    pub unauthorized_ttl: Duration,
    /// Whether no answer means no (`failurePolicy: Deny`) rather than no opinion.
    pub fails_closed: bool,
    /// All must hold for the service to be asked.
    pub conditions: MatchConditions,
}

/// The service.
pub struct WebhookAuthorizer {
    service: Webhook,
    settings: Settings,
    remembered: Mutex<HashMap<String, (Instant, Decision)>>,
}

impl WebhookAuthorizer {
    /// Asks this service in this way.
    pub fn new(service: Webhook, settings: Settings) -> WebhookAuthorizer {
        WebhookAuthorizer { service, settings, remembered: Mutex::default() }
    }

    /// What the service says.
    pub async fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        let spec = spec(attributes);
        if !self.settings.conditions.is_empty() {
            match self.settings.conditions.hold(&spec) {
                Ok(true) => {}
                Ok(false) => return Decision::NoOpinion(String::new()),
                Err(error) => {
                    tracing::warn!(webhook = self.settings.name, error, "a match condition failed");
                    return self.failed(error);
                }
            }
        }
        let key = spec.to_string();
        if let Some((until, decision)) = self.remembered.lock().get(&key)
            && *until > Instant::now()
        {
            return decision.clone();
        }
        let review = json!({
            "kind": "SubjectAccessReview",
            "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
            "metadata": {},
            "spec": self.wire_spec(spec),
        });
        let answer = match self.service.review(&review, self.settings.timeout).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(webhook = self.settings.name, %error, "the authorization webhook did not answer");
                return self.failed(error.to_string());
            }
        };
        let decision = read(&answer["status"]);
        let ttl = match decision {
            Decision::Allow(_) => self.settings.authorized_ttl,
            _ => self.settings.unauthorized_ttl,
        };
        if !ttl.is_zero() && key.len() < LONGEST_REMEMBERED {
            let mut remembered = self.remembered.lock();
            if remembered.len() >= REMEMBERED {
                remembered.clear();
            }
            remembered.insert(key, (Instant::now() + ttl, decision.clone()));
        }
        decision
    }

    fn failed(&self, error: String) -> Decision {
        Decision::Failed(Failure { error, reason: String::new(), denied: self.settings.fails_closed })
    }

    /// In `v1beta1` the groups are called `group`.
    fn wire_spec(&self, mut spec: Value) -> Value {
        if self.settings.version == "v1beta1"
            && let Some(map) = spec.as_object_mut()
            && let Some(groups) = map.remove("groups")
        {
            map.insert("group".into(), groups);
        }
        spec
    }
}

fn read(status: &Value) -> Decision {
    let reason = status["reason"].as_str().unwrap_or("").to_string();
    match (status["denied"] == true, status["allowed"] == true) {
        (true, true) => Decision::Failed(Failure {
            error: "webhook subject access review returned both allow and deny response".into(),
            reason,
            denied: true,
        }),
        (true, false) => Decision::Deny(reason),
        (false, true) => Decision::Allow(reason),
        (false, false) => Decision::NoOpinion(reason),
    }
}

/// The `spec` of a review of these attributes.
pub fn spec(a: &Attributes<'_>) -> Value {
    let mut spec = json!({});
    let put = |object: &mut Value, field: &str, text: &str| {
        if !text.is_empty() {
            object[field] = json!(text);
        }
    };
    if a.is_resource {
        let mut resource = json!({});
        for (field, text) in [
            ("namespace", a.namespace),
            ("verb", a.verb),
            ("group", a.group),
            ("version", a.version),
            ("resource", a.resource),
            ("subresource", a.subresource),
            ("name", a.name),
        ] {
            put(&mut resource, field, text);
        }
        if let Some(requirements) = fields(a.field_selector) {
            resource["fieldSelector"] = json!({"requirements": requirements});
        }
        if let Some(requirements) = labels(a.label_selector) {
            resource["labelSelector"] = json!({"requirements": requirements});
        }
        spec["resourceAttributes"] = resource;
    } else {
        let mut path = json!({});
        put(&mut path, "path", a.path);
        put(&mut path, "verb", a.verb);
        spec["nonResourceAttributes"] = path;
    }
    put(&mut spec, "user", &a.user.name);
    if !a.user.groups.is_empty() {
        spec["groups"] = json!(a.user.groups);
    }
    if !a.user.extra.is_empty() {
        spec["extra"] = json!(a.user.extra);
    }
    put(&mut spec, "uid", &a.user.uid);
    spec
}

/// Requirements of a field selector that can be understood.
fn fields(selector: &str) -> Option<Vec<Value>> {
    let selector = FieldSelector::parse(selector).ok().filter(|selector| !selector.is_empty())?;
    let requirement = |r: &orlop_api::selector::FieldRequirement| {
        let operator = if r.negated { "NotIn" } else { "In" };
        json!({"key": r.field, "operator": operator, "values": [r.value]})
    };
    Some(selector.requirements().iter().map(requirement).collect())
}

/// Requirements of a label selector that can be understood; comparisons of numbers cannot be passed on.
fn labels(selector: &str) -> Option<Vec<Value>> {
    let selector = LabelSelector::parse(selector).ok().filter(|selector| !selector.is_empty())?;
    let requirements: Vec<Value> = selector
        .requirements()
        .iter()
        .filter_map(|r| {
            let operator = match r.operator {
                Operator::In | Operator::Equals => "In",
                Operator::NotIn | Operator::NotEquals => "NotIn",
                Operator::Exists => "Exists",
                Operator::DoesNotExist => "DoesNotExist",
                Operator::GreaterThan | Operator::LessThan => return None,
            };
            let mut requirement = json!({"key": r.key, "operator": operator});
            if !r.values.is_empty() {
                requirement["values"] = json!(r.values);
            }
            Some(requirement)
        })
        .collect();
    (!requirements.is_empty()).then_some(requirements)
}

/// The raw form of a review's selector: what it says itself, or its requirements written out.
pub fn raw_selector(selector: &Value) -> String {
    if let Some(raw) = selector["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return raw.to_string();
    }
    let terms = selector["requirements"].as_array().into_iter().flatten().filter_map(|requirement| {
        let key = requirement["key"].as_str()?;
        let values: Vec<&str> =
            requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        Some(match (requirement["operator"].as_str()?, values.as_slice()) {
            ("In", [one]) => format!("{key}={one}"),
            ("NotIn", [one]) => format!("{key}!={one}"),
            ("In", many) => format!("{key} in ({})", many.join(",")),
            ("NotIn", many) => format!("{key} notin ({})", many.join(",")),
            ("Exists", _) => key.to_string(),
            ("DoesNotExist", _) => format!("!{key}"),
            _ => return None,
        })
    });
    terms.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::UserInfo;

    #[test]
    fn questions() {
        let user = UserInfo::new("jane", &["a"]);
        let a = Attributes {
            namespace: "n",
            version: "v1",
            field_selector: "spec.nodeName=x",
            label_selector: "a in (b,c),!d",
            ..Attributes::resource(&user, "list", "", "pods")
        };
        let expected = json!({
            "resourceAttributes": {"namespace": "n", "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["x"]}]},
                "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b", "c"]},
                    {"key": "d", "operator": "DoesNotExist"}]}},
            "user": "jane", "groups": ["a", "system:authenticated"],
        });
        assert_eq!(spec(&a), expected);
        assert_eq!(raw_selector(&expected["resourceAttributes"]["labelSelector"]), "a in (b,c),!d");
        assert_eq!(raw_selector(&expected["resourceAttributes"]["fieldSelector"]), "spec.nodeName=x");
    }

    #[test]
    fn answers() {
        let check = |status: Value, expected: Decision| assert_eq!(read(&status), expected, "{status}");
        check(json!({"allowed": true, "reason": "r"}), Decision::Allow("r".into()));
        check(json!({"allowed": false, "denied": true, "reason": "r"}), Decision::Deny("r".into()));
        check(json!({"allowed": false}), Decision::NoOpinion(String::new()));
        check(json!({}), Decision::NoOpinion(String::new()));
    }
}
