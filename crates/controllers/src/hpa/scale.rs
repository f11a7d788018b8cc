//! The scale subresource of any kind, found by discovery.

use std::collections::HashMap;

use http::Request;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::error::message;

/// How many replicas something shall have and has, and which pods they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Scale {
    pub(super) replicas: i32,
    pub(super) status_replicas: i32,
    pub(super) selector: String,
    path: String,
    object: Value,
}

/// Reads and writes scales. What discovery said is remembered until it proves wrong.
pub(super) struct Scales {
    client: kube::Client,
    /// The plural of a kind, by API version and kind.
    plurals: Mutex<HashMap<(String, String), String>>,
}

impl Scales {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, plurals: Mutex::default() }
    }

    async fn plural(&self, of: &CrossVersionObjectReference) -> Result<String, String> {
        let version = of.api_version.clone().filter(|version| !version.is_empty()).unwrap_or("v1".to_owned());
        let key = (version.clone(), of.kind.clone());
        if let Some(plural) = self.plurals.lock().get(&key) {
            return Ok(plural.clone());
        }
        let list = if version.contains('/') {
            self.client.list_api_group_resources(&version).await
        } else {
            self.client.list_core_api_resources(&version).await
        };
        let unknown = || {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            format!("no matches for kind \"{}\" in group \"{group}\"", of.kind)
        };
        let list = list.map_err(|_| unknown())?;
        let found = list
            .resources
            .into_iter()
            .find(|resource| resource.kind == of.kind && !resource.name.contains('/'));
        let plural = found.ok_or_else(unknown)?.name;
        self.plurals.lock().insert(key, plural.clone());
        Ok(plural)
    }

    /// The resource of an object with its group, as metrics APIs name it: `services`, `deployments.apps`.
    pub(super) async fn resource(&self, of: &CrossVersionObjectReference) -> Result<String, String> {
        let plural = self.plural(of).await?;
        let version = of.api_version.as_deref().unwrap_or_default();
        Ok(version.split_once('/').map_or(plural.clone(), |(group, _)| format!("{plural}.{group}")))
    }

    pub(super) async fn get(
        &self,
        namespace: &str,
        of: &CrossVersionObjectReference,
    ) -> Result<Scale, String> {
        let plural = self.plural(of).await?;
        let version = of.api_version.as_deref().filter(|version| !version.is_empty()).unwrap_or("v1");
        let root = if version.contains('/') { "apis" } else { "api" };
        let path = format!("/{root}/{version}/namespaces/{namespace}/{plural}/{}/scale", of.name);
        let request = Request::get(&path).body(Vec::new()).map_err(|error| error.to_string())?;
        let object: Value = match self.client.request(request).await {
            Ok(object) => object,
            Err(error) => {
                if crate::error::is_not_found(&error) {
                    // The kind may have another resource by now.
                    self.plurals.lock().remove(&(version.to_owned(), of.kind.clone()));
                }
                return Err(message(&error));
            }
        };
        let count = |value: &Value| value.as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(0);
        Ok(Scale {
            replicas: count(&object["spec"]["replicas"]),
            status_replicas: count(&object["status"]["replicas"]),
            selector: object["status"]["selector"].as_str().unwrap_or_default().to_owned(),
            path,
            object,
        })
    }

    pub(super) async fn set(&self, scale: &Scale, replicas: i32) -> Result<(), String> {
        let mut object = scale.object.clone();
        object["spec"]["replicas"] = json!(replicas);
        let request = Request::put(&scale.path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        self.client.request::<Value>(request).await.map(drop).map_err(|error| message(&error))
    }
}
