//! HTTP services that take part in scheduling. Answers to upstream's `extender.go` and `kube-scheduler/extender/v1`,
//! whose fields are written with capitals; answers are read whatever the case.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, LengthLimitError, Limited};
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::{Cache, NodeIndex};
use crate::config::{ConfigError, ExtenderConfig};
use crate::framework::status::{Diagnosis, Status};
use crate::pod_info::PodInfo;
use crate::preemption::Candidate;

/// Under which pods wait that an extender has rejected: it cannot say what for, so any event will do.
pub const NAME: &str = "Extender";

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Extenders score from 0 to 10.
const SCALE: i64 = 10;
/// An answer has at most so many bytes, or so many times those of its question (an extender may send all nodes back and
/// say something of each).
const MAX_ANSWER: usize = 4 << 20;
const MAX_GROWTH: usize = 4;
/// So much of what an extender says is shown to people, in characters.
const MAX_TEXT: usize = 1024;

/// One extender.
pub struct Extender {
    config: ExtenderConfig,
    client: kube::Client,
    timeout: Duration,
    managed: HashSet<String>,
}

/// Why an extender's answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExtenderError {
    /// Not reached, or no good answer.
    #[error("extender {url}: {reason}")]
    Call { url: String, reason: String },
    /// It says that something failed.
    #[error("{0}")]
    Answer(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct FilterResult {
    nodes: Option<Value>,
    nodenames: Option<Vec<String>>,
    failednodes: Option<BTreeMap<String, String>>,
    failedandunresolvablenodes: Option<BTreeMap<String, String>>,
    error: String,
}

#[derive(Debug, Deserialize)]
struct HostPriority {
    host: String,
    score: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PreemptionResult {
    nodenametometavictims: HashMap<String, MetaVictims>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaVictims {
    pods: Vec<MetaPod>,
    numpdbviolations: i64,
}

#[derive(Debug, Deserialize)]
struct MetaPod {
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BindingResult {
    error: String,
}

/// What an extender says, short enough for a condition or an event.
fn shown(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(at);
        text.push_str("...");
    }
    text
}

/// Field names in lower case. Maps by node name keep their keys: node names are in lower case already.
fn lower_case(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().map(|(key, value)| (key.to_lowercase(), lower_case(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(lower_case).collect(),
        other => other,
    }
}

impl Extender {
    pub async fn new(config: ExtenderConfig) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::Profile(format!("extender {}: {reason}", config.url_prefix));
        let mut url = config.url_prefix.trim_end_matches('/').to_owned();
        if !url.contains("://") {
            url = format!("{}://{url}", if config.enable_https { "https" } else { "http" });
        }
        let tls = config.tls_config.clone().unwrap_or_default();
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let kubeconfig = json!({
            "current-context": "extender",
            "contexts": [{"name": "extender", "context": {"cluster": "extender", "user": "extender"}}],
            "clusters": [{"name": "extender", "cluster": {
                "server": url,
                "insecure-skip-tls-verify": tls.insecure,
                "tls-server-name": given(&tls.server_name),
                "certificate-authority": given(&tls.ca_file),
                "certificate-authority-data": given(&tls.ca_data),
            }}],
            "users": [{"name": "extender", "user": {
                "client-certificate": given(&tls.cert_file),
                "client-certificate-data": given(&tls.cert_data),
                "client-key": given(&tls.key_file),
                "client-key-data": given(&tls.key_data),
            }}],
        });
        let kubeconfig = serde_json::from_value(kubeconfig).map_err(|error| fail(error.to_string()))?;
        let connection = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
        let connection = connection.map_err(|error| fail(error.to_string()))?;
        let client = kube::Client::try_from(connection).map_err(|error| fail(error.to_string()))?;
        let nanos = config.http_timeout.as_deref().and_then(crate::go_duration::parse).unwrap_or(0);
        let timeout = u64::try_from(nanos)
            .ok()
            .filter(|nanos| *nanos > 0)
            .map_or(DEFAULT_TIMEOUT, Duration::from_nanos);
        let managed = config.managed_resources.iter().map(|resource| resource.name.clone()).collect();
        Ok(Self { config, client, timeout, managed })
    }

    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        self.managed.is_empty() || pod.requests.scalar.keys().any(|name| self.managed.contains(name))
    }

    pub fn is_filter(&self) -> bool {
        !self.config.filter_verb.is_empty()
    }

    pub fn is_prioritizer(&self) -> bool {
        !self.config.prioritize_verb.is_empty()
    }

    pub fn is_binder(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    pub fn supports_preemption(&self) -> bool {
        !self.config.preempt_verb.is_empty()
    }

    /// Whether scheduling goes on without it when it fails.
    pub fn is_ignorable(&self) -> bool {
        self.config.ignorable
    }

    async fn call<T: DeserializeOwned>(
        &self,
        verb: &str,
        arguments: &impl Serialize,
    ) -> Result<T, ExtenderError> {
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let fail = |reason: String| ExtenderError::Call { url: url.clone(), reason };
        let body = serde_json::to_vec(arguments).map_err(|error| fail(error.to_string()))?;
        let most = MAX_ANSWER.max(body.len().saturating_mul(MAX_GROWTH));
        let request = http::Request::post(format!("/{verb}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| fail(error.to_string()))?;
        let answer = tokio::time::timeout(self.timeout, self.exchange(request, most)).await;
        let answer = answer.map_err(|_| fail("context deadline exceeded".to_owned()))?;
        let answer: Value = answer
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            .map_err(fail)?;
        serde_json::from_value(lower_case(answer)).map_err(|error| fail(shown(error.to_string())))
    }

    /// The body of a good answer.
    async fn exchange(&self, request: http::Request<Body>, most: usize) -> Result<Bytes, String> {
        let answer =
            self.client.send(request).await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("code {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), most).collect().await;
        body.map(Collected::to_bytes).map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => format!("the answer is longer than {most} bytes"),
            Err(error) => format!("{:#}", anyhow::Error::from_boxed(error)),
        })
    }

    fn arguments(&self, pod: &PodInfo, nodes: &[NodeIndex], cache: &Cache) -> Value {
        let infos = || nodes.iter().map(|index| cache.node(*index));
        match self.config.node_cache_capable {
            true => {
                let names: Vec<_> = infos().map(|info| &info.name).collect();
                json!({"Pod": *pod.pod, "Nodes": null, "NodeNames": names})
            }
            false => {
                let items: Vec<_> = infos().filter_map(|info| info.node.as_deref()).collect();
                json!({"Pod": *pod.pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
            }
        }
    }

    /// Prepares a call of the filter, so that the cache is not needed while it goes on.
    pub fn filter_arguments(&self, pod: &PodInfo, nodes: &[NodeIndex], cache: &Cache) -> Value {
        self.arguments(pod, nodes, cache)
    }

    /// The names of the nodes that pass, and why the others do not.
    pub async fn filter(&self, arguments: &Value) -> Result<Filtered, ExtenderError> {
        let answer: FilterResult = self.call(&self.config.filter_verb, arguments).await?;
        if !answer.error.is_empty() {
            return Err(ExtenderError::Answer(shown(answer.error)));
        }
        let items = answer.nodes.as_ref().and_then(|nodes| nodes.get("items")).and_then(Value::as_array);
        let named = items.into_iter().flatten().filter_map(|node| node.pointer("/metadata/name")?.as_str());
        let passed = match (self.config.node_cache_capable, answer.nodenames) {
            (true, Some(names)) => names.into_iter().collect(),
            _ => named.map(str::to_owned).collect(),
        };
        Ok(Filtered {
            passed,
            failed: answer.failednodes.unwrap_or_default(),
            unresolvable: answer.failedandunresolvablenodes.unwrap_or_default(),
        })
    }

    /// Scores by node name, weighted and scaled to those of plugins.
    pub async fn prioritize(&self, arguments: &Value) -> Result<HashMap<String, i64>, ExtenderError> {
        let answer: Vec<HostPriority> = self.call(&self.config.prioritize_verb, arguments).await?;
        let scaled = answer
            .into_iter()
            .map(|host| (host.host, host.score.saturating_mul(self.config.weight).saturating_mul(SCALE)));
        Ok(scaled.collect())
    }

    /// The candidates that the extender agrees to, with the victims it wants.
    pub async fn process_preemption(
        &self,
        pod: &PodInfo,
        candidates: &[Candidate],
    ) -> Result<Vec<Candidate>, ExtenderError> {
        let meta: BTreeMap<_, _> = candidates
            .iter()
            .map(|candidate| {
                let pods: Vec<_> = candidate.victims.iter().map(|pod| json!({"UID": pod.uid})).collect();
                (&candidate.node, json!({"Pods": pods, "NumPDBViolations": candidate.violations}))
            })
            .collect();
        let full: BTreeMap<_, _> = candidates
            .iter()
            .map(|candidate| {
                let pods: Vec<_> = candidate.victims.iter().map(|pod| &*pod.pod).collect();
                (&candidate.node, json!({"Pods": pods, "NumPDBViolations": candidate.violations}))
            })
            .collect();
        let arguments = match self.config.node_cache_capable {
            true => json!({"Pod": *pod.pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": meta}),
            false => json!({"Pod": *pod.pod, "NodeNameToVictims": full, "NodeNameToMetaVictims": null}),
        };
        let answer: PreemptionResult = self.call(&self.config.preempt_verb, &arguments).await?;
        let mut agreed = Vec::new();
        for candidate in candidates {
            let Some(wanted) = answer.nodenametometavictims.get(&candidate.node) else { continue };
            let uids: HashSet<_> = wanted.pods.iter().map(|pod| pod.uid.as_str()).collect();
            let victims: Vec<_> = candidate
                .victims
                .iter()
                .filter(|victim| uids.contains(victim.uid.as_str()))
                .cloned()
                .collect();
            if !victims.is_empty() {
                let violations = usize::try_from(wanted.numpdbviolations).unwrap_or(0);
                agreed.push(Candidate { node: candidate.node.clone(), victims, violations });
            }
        }
        Ok(agreed)
    }

    /// Binds a pod.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), ExtenderError> {
        let arguments = json!({
            "PodName": pod.key.name,
            "PodNamespace": pod.key.namespace,
            "PodUID": pod.uid,
            "Node": node,
        });
        let answer: BindingResult = self.call(&self.config.bind_verb, &arguments).await?;
        if answer.error.is_empty() { Ok(()) } else { Err(ExtenderError::Answer(shown(answer.error))) }
    }
}

/// What an extender's filter leaves.
#[derive(Debug, Default)]
pub struct Filtered {
    passed: HashSet<String>,
    failed: BTreeMap<String, String>,
    unresolvable: BTreeMap<String, String>,
}

impl Filtered {
    /// Keeps the nodes that passed and notes why the others did not.
    pub fn apply(&self, nodes: &mut Vec<NodeIndex>, cache: &Cache, diagnosis: &mut Diagnosis) {
        nodes.retain(|index| {
            let name = &cache.node(*index).name;
            if self.passed.contains(name) {
                return true;
            }
            let reason = |from: &BTreeMap<String, String>| from.get(name).cloned().map(shown);
            let status = match (reason(&self.unresolvable), reason(&self.failed)) {
                (Some(reason), _) => Status::unresolvable(reason),
                (None, reason) => Status::unschedulable(reason.unwrap_or_default()),
            };
            diagnosis.refuse(*index, &status.by(NAME));
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whatever_the_case() {
        let check = |answer: Value| {
            let parsed: FilterResult = serde_json::from_value(lower_case(answer)).unwrap();
            assert_eq!(parsed.nodenames.unwrap(), ["a"]);
            assert_eq!(parsed.failednodes.unwrap()["b"], "No");
        };
        check(json!({"NodeNames": ["a"], "FailedNodes": {"b": "No"}, "Error": ""}));
        check(json!({"nodenames": ["a"], "failedNodes": {"b": "No"}}));
    }

    /// What an extender at the other end of a connection does once it was asked.
    #[derive(Clone)]
    enum Answer {
        /// Sends this and closes.
        Bytes(Vec<u8>),
        /// Sends this again and again.
        Endless(Vec<u8>),
        /// Sends this and nothing more.
        Stalls(Vec<u8>),
    }

    async fn answer(listener: tokio::net::TcpListener, answer: Answer) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            match answer.clone() {
                Answer::Bytes(bytes) => _ = stream.write_all(&bytes).await,
                Answer::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
                Answer::Stalls(bytes) => {
                    _ = stream.write_all(&bytes).await;
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Asks an extender that gives this answer; what the scheduler says of it, after the address.
    async fn check(given: Answer, expected: &str) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(answer(listener, given));
        let config = json!({"urlPrefix": url, "filterVerb": "filter", "bindVerb": "bind", "weight": 1,
            "enableHTTPS": false, "httpTimeout": "2s", "nodeCacheCapable": true});
        let extender = Extender::new(serde_json::from_value(config).unwrap()).await.unwrap();
        let begun = std::time::Instant::now();
        let error = extender.filter(&json!({"Pod": {}})).await.map(|_| ()).unwrap_err().to_string();
        assert!(begun.elapsed() < Duration::from_secs(10), "{expected}");
        server.abort();
        assert!(error.len() < 2 * MAX_TEXT, "{} characters", error.len());
        let error = error.replace(&format!("extender {url}/filter: "), "");
        assert!(error.starts_with(expected), "{error}");
    }

    fn http(body: &str) -> Answer {
        Answer::Bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into())
    }

    #[tokio::test]
    async fn hostile_answers_are_errors_in_bounded_time_and_memory() {
        const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut chunks = HEAD.to_vec();
        chunks.extend(b"10000\r\n");
        chunks.extend([b' '; 0x10000]);
        chunks.extend(b"\r\n");
        // The first chunk has a head of its own; the rest of what is repeated is garbage to a reader of chunks.
        let mut long = chunks.clone();
        for _ in 0..80 {
            long.extend(&chunks[HEAD.len()..]);
        }
        check(Answer::Endless(long), "the answer is longer than 4194304 bytes").await;
        let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", u64::MAX / 2);
        check(Answer::Stalls(huge.into()), "context deadline exceeded").await;
        check(Answer::Stalls(Vec::new()), "context deadline exceeded").await;
        check(Answer::Stalls(HEAD.to_vec()), "context deadline exceeded").await;
        check(Answer::Bytes(b"\x16\x03\x01garbage".to_vec()), "").await;
        check(Answer::Bytes(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec()), "code 500").await;
        check(Answer::Endless(b"HTTP/1.1 200 OK\r\nx: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(50)), "").await;
        check(http(""), "EOF while parsing a value").await;
        check(http("{\"nodenames\": ["), "EOF while parsing a list").await;
        check(http(&"[".repeat(100_000)), "recursion limit exceeded").await;
        check(http("{\"nodenames\": 5}"), "invalid type: integer `5`, expected a sequence").await;
        check(http("5"), "").await;
        let text = json!({"error": "x".repeat(1 << 20)}).to_string();
        check(http(&text), &format!("{}...", "x".repeat(MAX_TEXT))).await;
    }
}
