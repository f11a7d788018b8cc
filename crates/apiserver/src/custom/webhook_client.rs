//! The connection to a conversion webhook: the client that admission uses too, made when it is first needed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use orlop_json::Value;

use crate::admission::webhook::client::Client;
use crate::admission::webhook::credentials::Credentials;
use crate::registry::Registry;

/// How long a conversion may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one webhook.
#[derive(Clone, Default)]
pub struct WebhookClient(Arc<OnceLock<Result<Client, String>>>);

impl std::fmt::Debug for WebhookClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookClient")
    }
}

impl WebhookClient {
    /// Posts a review and reads the answer.
    pub async fn post(&self, registry: &Registry, config: &Value, review: Value) -> Result<Value, String> {
        let client = self
            .0
            .get_or_init(|| {
                // As upstream: nobody says who this server is to the webhooks of definitions.
                let nobody = Credentials::default();
                Client::new(config, registry.resources.cache("", "Service"), &nobody)
                    .map_err(|error| error.to_string())
            })
            .as_ref()
            .map_err(Clone::clone)?;
        client.post(Bytes::from(review.to_string()), TIMEOUT).await.map_err(|error| error.to_string())
    }
}
