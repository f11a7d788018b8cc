//! The connection to a conversion webhook.

use serde_json::Value;

use crate::registry::Registry;

/// A client of one webhook.
#[derive(Clone, Debug, Default)]
pub struct WebhookClient;

impl WebhookClient {
    /// Posts a review and reads the answer.
    pub async fn post(&self, _registry: &Registry, _config: &Value, _review: Value) -> Result<Value, String> {
        Err("conversion webhooks are not called by this server".to_string())
    }
}
