//! A server and a small client that speaks JSON.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use orlop_apiserver::{ApiServer, InMemory, Options, UserInfo};
use orlop_json::Value;
use orlop_store::memory::MemoryStore;
use tower::Service as _;

/// A fresh server.
pub async fn server() -> Arc<ApiServer> {
    ApiServer::new(Options::default(), Arc::new(MemoryStore::new())).await.unwrap()
}

/// A client with all rights.
pub fn admin(server: &Arc<ApiServer>) -> Client {
    Client::new(server, UserInfo::new("admin", &["system:masters"]))
}

#[derive(Clone)]
pub struct Client(InMemory);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, self.body);
        self.body
    }

    #[track_caller]
    pub fn refused(self, code: u16, reason: &str, message: &str) {
        let got = (
            self.code,
            self.body["reason"].as_str().unwrap_or(""),
            self.body["message"].as_str().unwrap_or(""),
        );
        assert_eq!(got, (code, reason, message));
    }
}

impl Client {
    pub fn new(server: &Arc<ApiServer>, user: UserInfo) -> Client {
        Client(server.in_memory(user))
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<orlop_apiserver::http::Body> {
        let mut request = http::Request::builder().method(method).uri(path).header("user-agent", "it/1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let mut service = self.0.clone();
        tower::ServiceExt::<http::Request<Full<Bytes>>>::ready(&mut service)
            .await
            .unwrap()
            .call(request)
            .await
            .unwrap()
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let response = self.send(method, path, headers, bytes).await;
        let code = response.status().as_u16();
        let warnings = response
            .headers()
            .get_all("warning")
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = orlop_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code, body, warnings }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[], &body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, &[], &body).await
    }

    pub async fn delete(&self, path: &str, body: Value) -> Answer {
        self.call("DELETE", path, &[], &body).await
    }

    /// A patch: `json`, `merge`, `strategic-merge` or `apply`.
    pub async fn patch(&self, kind: &str, path: &str, body: Value) -> Answer {
        let content_type = match kind {
            "apply" => "application/apply-patch+yaml".to_string(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.call("PATCH", path, &[("content-type", &content_type)], &body).await
    }

    /// Starts a watch.
    pub async fn watch(&self, path: &str) -> Events {
        let response = self.send("GET", path, &[], Bytes::new()).await;
        assert_eq!(response.status(), 200, "{path}");
        Events { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The events of a watch.
pub struct Events {
    body: orlop_apiserver::http::Body,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end or after two seconds of silence.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(orlop_json::from_slice(&line).unwrap());
            }
            let frame =
                tokio::time::timeout(std::time::Duration::from_secs(2), self.body.frame()).await.ok()??;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// `TYPE name` of the next event.
    pub async fn next_name(&mut self) -> String {
        let Some(event) = self.next().await else { return "nothing".to_string() };
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("");
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

/// A ConfigMap.
pub fn config_map(name: &str, data: Value) -> Value {
    orlop_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}
