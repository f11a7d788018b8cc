//! One request's audit event (`audit.k8s.io/v1` `Event`), as it fills up while the request is served.

use orlop_json::{Map, Value, json};

use super::policy::{Level, Stage, Verdict};
use crate::authn::UserInfo;
use crate::request_info::RequestInfo;

/// Facts about a request, in the order of upstream's JSON.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `Audit-Id`
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// What the request asks for.
    pub info: RequestInfo,
    /// `X-Forwarded-For`, `X-Real-Ip` and the connection's address.
    pub source_ips: Vec<String>,
    /// `User-Agent`
    pub user_agent: String,
    /// When it came in.
    pub received: jiff::Timestamp,
    /// What the policy says.
    pub verdict: Verdict,
    /// Who asks.
    pub user: UserInfo,
    /// As whom.
    pub impersonated: Option<UserInfo>,
    /// By which constrained impersonation.
    pub constraint: String,
    /// What was sent.
    pub request: Option<Value>,
    /// What was answered.
    pub response: Option<Value>,
    /// Code of the answer, and its `Status` when it is a failure.
    pub status: Option<(u16, Option<Value>)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::RequestReceived => "RequestReceived",
        Stage::ResponseStarted => "ResponseStarted",
        Stage::ResponseComplete => "ResponseComplete",
        Stage::Panic => "Panic",
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::None => "None",
        Level::Metadata => "Metadata",
        Level::Request => "Request",
        Level::RequestResponse => "RequestResponse",
    }
}

impl Facts {
    /// Whether an event is recorded at this stage.
    pub fn records(&self, stage: Stage) -> bool {
        self.verdict.level > Level::None && !self.verdict.omit_stages.contains(&stage)
    }

    /// The event at a stage; `limit` bytes and more leave out request and response.
    pub fn event(&self, stage: Stage, limit: Option<usize>) -> Value {
        let mut event = Map::new();
        let mut put = |key: &str, value: Value| {
            event.insert(key.into(), value);
        };
        put("kind", json!("Event"));
        put("apiVersion", json!("audit.k8s.io/v1"));
        put("level", json!(level_name(self.verdict.level)));
        put("auditID", json!(self.id));
        put("stage", json!(stage_name(stage)));
        put("requestURI", json!(self.uri));
        put("verb", json!(self.info.verb));
        put("user", self.user.to_value());
        if let Some(user) = &self.impersonated {
            put("impersonatedUser", user.to_value());
        }
        if !self.constraint.is_empty() {
            put("authenticationMetadata", json!({"impersonationConstraint": self.constraint}));
        }
        if !self.source_ips.is_empty() {
            put("sourceIPs", json!(self.source_ips));
        }
        if !self.user_agent.is_empty() {
            put("userAgent", json!(self.user_agent));
        }
        if self.info.is_resource {
            put("objectRef", self.object_ref());
        }
        if let Some((code, status)) = self.status.as_ref().filter(|_| stage != Stage::RequestReceived) {
            let mut shown = json!({"metadata": {}});
            for field in ["status", "message", "reason", "details"] {
                if let Some(value) = status.as_ref().and_then(|status| status.get(field)) {
                    shown[field] = value.clone();
                }
            }
            shown["code"] = json!(code);
            put("responseStatus", shown);
        }
        if stage != Stage::RequestReceived {
            if let Some(request) = &self.request {
                put("requestObject", self.shown(request));
            }
            if let Some(response) = &self.response {
                put("responseObject", self.shown(response));
            }
        }
        put("requestReceivedTimestamp", json!(time(self.received)));
        put("stageTimestamp", json!(time(jiff::Timestamp::now())));
        let mut annotations: Map =
            self.annotations.iter().rev().map(|(key, value)| (key.into(), json!(value))).collect();
        annotations.sort_keys();
        if !annotations.is_empty() && stage != Stage::RequestReceived {
            put("annotations", Value::Object(annotations));
        }
        let mut event = Value::Object(event);
        if let Some(limit) = limit
            && event.to_string().len() > limit
            && let Some(map) = event.as_object_mut()
        {
            map.remove("requestObject");
            map.remove("responseObject");
            let annotations = map.entry("annotations").or_insert_with(|| json!({}));
            annotations["audit.k8s.io/truncated"] = json!("true");
        }
        event
    }

    fn object_ref(&self) -> Value {
        let info = &self.info;
        let response = |field: &str| {
            let object = self.response.as_ref()?.get("metadata")?;
            object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
        };
        let mut reference = json!({"resource": info.resource});
        // The name of a created object is known only afterwards.
        let sent = self.request.as_ref().and_then(|object| object.pointer("/metadata/name")?.as_str());
        let name = match (info.name.is_empty(), info.verb.as_str()) {
            (true, "create") => response("name").or(sent).unwrap_or(""),
            _ => info.name.as_str(),
        };
        for (field, text) in [
            ("namespace", info.namespace.as_str()),
            ("name", name),
            ("apiGroup", info.group.as_str()),
            ("apiVersion", info.version.as_str()),
            ("subresource", info.subresource.as_str()),
        ] {
            if !text.is_empty() {
                reference[field] = json!(text);
            }
        }
        reference
    }

    /// An object as it is recorded.
    fn shown(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.verdict.omit_managed_fields {
            let strip = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            strip(&mut object);
            for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                strip(item);
            }
        }
        object
    }
}

/// The old text form of an event.
pub fn legacy_line(event: &Value) -> String {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_string();
    let quote = |text: String| orlop_api::field::go_quote(&text);
    let groups = |pointer: &str| {
        let list = event.pointer(pointer).and_then(Value::as_array);
        let quoted: Vec<String> =
            list.into_iter().flatten().filter_map(Value::as_str).map(orlop_api::field::go_quote).collect();
        if quoted.is_empty() { "<lookup>".to_string() } else { quoted.join(",") }
    };
    let or = |text: String, default: &str| if text.is_empty() { default.to_string() } else { text };
    let code = event.pointer("/responseStatus/code").and_then(Value::as_u64);
    let ip = event.pointer("/sourceIPs/0").and_then(Value::as_str).unwrap_or("").to_string();
    format!(
        "{} AUDIT: id={} stage={} ip={} method={} user={} groups={} as={} asgroups={} user-agent={} namespace={} uri={} response=\"{}\"",
        text("/requestReceivedTimestamp"),
        quote(text("/auditID")),
        quote(text("/stage")),
        quote(ip),
        quote(text("/verb")),
        quote(or(text("/user/username"), "<none>")),
        groups("/user/groups"),
        quote(or(text("/impersonatedUser/username"), "<self>")),
        groups("/impersonatedUser/groups"),
        quote(text("/userAgent")),
        quote(or(text("/objectRef/namespace"), "<none>")),
        quote(text("/requestURI")),
        code.map_or("<deferred>".to_string(), |code| code.to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event() {
        let facts = Facts {
            id: "id".into(),
            uri: "/api/v1/namespaces/n/pods".into(),
            info: RequestInfo::parse(
                &http::Method::POST,
                "/api/v1/namespaces/n/pods",
                &crate::request_info::Query::parse(""),
            ),
            source_ips: vec!["::1".into()],
            user_agent: "t".into(),
            received: jiff::Timestamp::UNIX_EPOCH,
            verdict: Verdict {
                level: Level::Request,
                omit_stages: vec![Stage::RequestReceived],
                omit_managed_fields: true,
            },
            user: UserInfo::new("jane", &[]),
            impersonated: None,
            constraint: String::new(),
            request: Some(json!({"metadata": {"name": "p", "managedFields": []}})),
            response: None,
            status: Some((201, None)),
            annotations: vec![("b".into(), "1".into()), ("a".into(), "2".into())],
        };
        assert!(!facts.records(Stage::RequestReceived) && facts.records(Stage::ResponseComplete));
        let event = facts.event(Stage::ResponseComplete, None);
        assert_eq!(
            event["objectRef"],
            json!({"resource": "pods", "namespace": "n", "name": "p", "apiVersion": "v1"})
        );
        assert_eq!(event["requestObject"], json!({"metadata": {"name": "p"}}));
        assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
        assert_eq!(event["requestReceivedTimestamp"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(event["annotations"].to_string(), r#"{"a":"2","b":"1"}"#);
        let cut = facts.event(Stage::ResponseComplete, Some(10));
        assert!(cut.get("requestObject").is_none());
        assert_eq!(cut["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(legacy_line(&event).contains("user=\"jane\" groups=\"system:authenticated\" as=\"<self>\""));
    }
}
