//! Service account tokens bound to pods: asked for once, kept, and renewed at 80 % of their life. Answers to upstream's
//! `pkg/kubelet/token` (KEP-1205).

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tracing::warn;

use crate::pod::PodExt;

/// Upstream never keeps a token longer than this before it asks for another.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Debug, Clone)]
struct Token {
    token: String,
    issued: Timestamp,
    expires: Timestamp,
}

impl Token {
    /// When to ask for the next one: at 80 % of its life, or after a day.
    fn renew_at(&self) -> Timestamp {
        let life = self.expires.duration_since(self.issued);
        let at_eighty = self.issued.saturating_add(life * 4 / 5).unwrap_or(self.expires);
        let at_a_day = self.issued.saturating_add(MAX_AGE).unwrap_or(self.expires);
        at_eighty.min(at_a_day)
    }
}

/// The tokens of the node's pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TokenManager {
    client: kube::Client,
    tokens: Arc<Mutex<HashMap<Key, Token>>>,
}

impl TokenManager {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, tokens: Arc::default() }
    }

    /// A valid token for a projection in a pod, and when it will be renewed.
    pub(crate) async fn token(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<(String, Timestamp), String> {
        let key = Key {
            uid: pod.uid().to_owned(),
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(3600),
        };
        let known = self.tokens.lock().get(&key).cloned();
        let now = Timestamp::now();
        if let Some(known) = &known
            && now < known.renew_at()
        {
            return Ok((known.token.clone(), known.renew_at()));
        }
        let account = pod
            .pod_spec()
            .service_account_name
            .clone()
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        match self.request(pod, &account, &key).await {
            Ok(token) => {
                let answer = (token.token.clone(), token.renew_at());
                self.tokens.lock().insert(key, token);
                Ok(answer)
            }
            Err(error) => match known.filter(|known| now < known.expires) {
                Some(known) => {
                    warn!(pod = %pod.described(), %error, "service account token not renewed; the old one is still valid, trying again");
                    let again = now.saturating_add(SignedDuration::from_secs(30)).unwrap_or(now);
                    Ok((known.token, again))
                }
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }

    async fn request(&self, pod: &Pod, account: &str, key: &Key) -> Result<Token, String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(key.audience.clone()).filter(|a| !a.is_empty()).map(|a| vec![a]),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name().to_owned()),
                    uid: Some(pod.uid().to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let mut body = serde_json::to_value(&request).map_err(|error| error.to_string())?;
        // Upstream's clients send the list even when it is empty.
        if body["spec"].get("audiences").is_none() {
            body["spec"]["audiences"] = serde_json::Value::Array(Vec::new());
        }
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), pod.namespace());
        let issued = Timestamp::now();
        let answer: TokenRequest = api
            .create_subresource("token", account, &PostParams::default(), &body)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status.ok_or("the API server answered without a token")?;
        let expires = status.expiration_timestamp.map(|time| time.0);
        let token = status.token.ok_or("the API server answered without a token")?;
        let expires = expires.ok_or("the API server answered without an expiration time")?;
        Ok(Token { token, issued, expires })
    }

    /// Forgets a pod's tokens.
    pub(crate) fn forget(&self, uid: &str) {
        self.tokens.lock().retain(|key, _| key.uid != uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_are_renewed_at_eighty_percent_or_after_a_day() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (life, expected) in [(3600, 2880), (600, 480), (10 * 86400, 86400)] {
            let token = Token { token: String::new(), issued: at(0), expires: at(life) };
            assert_eq!(token.renew_at(), at(expected), "{life}");
        }
    }
}
