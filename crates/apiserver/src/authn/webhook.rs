//! Tokens that only a service outside knows (`TokenReview` over HTTP), with its answers remembered for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use orlop_json::{Value, json};
use parking_lot::Mutex;

use super::{TokenError, UserInfo};
use crate::options::WebhookOptions;
use crate::outbound::{OutboundError, Webhook};

/// Answers remembered before the memory is emptied.
const REMEMBERED: usize = 8192;
/// How long the service may take.
const TIMEOUT: Duration = Duration::from_secs(30);

type Answer = Result<(UserInfo, Vec<String>), TokenError>;
type Key = ([u8; 32], Vec<String>);

/// The service.
pub struct TokenWebhook {
    service: Webhook,
    version: String,
    ttl: Duration,
    remembered: Mutex<HashMap<Key, (Instant, Answer)>>,
}

impl TokenWebhook {
    /// Reads the service's kubeconfig file.
    pub fn new(options: &WebhookOptions) -> Result<TokenWebhook, OutboundError> {
        Ok(TokenWebhook {
            service: Webhook::load(&options.config_file)?,
            version: options.version.clone(),
            ttl: options.authorized_ttl,
            remembered: Mutex::default(),
        })
    }

    /// Asks the service about a token.
    pub async fn authenticate(&self, token: &str, audiences: &[String]) -> Answer {
        use sha2::Digest as _;
        let key = (sha2::Sha256::digest(token.as_bytes()).into(), audiences.to_vec());
        if let Some((until, answer)) = self.remembered.lock().get(&key)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let review = json!({
            "kind": "TokenReview",
            "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": {},
            "spec": {"token": token, "audiences": audiences},
        });
        let answer = match self.service.review(&review, TIMEOUT).await {
            Ok(answer) => read(&answer["status"], audiences),
            // Whether the token is good is not known: nothing to remember.
            Err(error) => {
                tracing::warn!(%error, "the token webhook did not answer");
                return Err(TokenError::Refused(error.to_string()));
            }
        };
        if !self.ttl.is_zero() {
            let mut remembered = self.remembered.lock();
            if remembered.len() >= REMEMBERED {
                remembered.clear();
            }
            remembered.insert(key, (Instant::now() + self.ttl, answer.clone()));
        }
        answer
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

fn read(status: &Value, audiences: &[String]) -> Answer {
    if status["authenticated"] != true {
        let text = status["error"].as_str().unwrap_or("");
        return Err(if text.is_empty() {
            TokenError::Invalid
        } else {
            TokenError::Refused(text.to_string())
        });
    }
    let user = &status["user"];
    let mut identity = UserInfo {
        name: user["username"].as_str().unwrap_or("").to_string(),
        uid: user["uid"].as_str().unwrap_or("").to_string(),
        groups: strings(&user["groups"]),
        ..UserInfo::default()
    };
    for (key, values) in user["extra"].as_object().into_iter().flatten() {
        identity.extra.insert(key.clone().into(), strings(values));
    }
    // A service that knows no audiences answers for ours.
    let named = strings(&status["audiences"]);
    let meant: Vec<String> = match named.is_empty() {
        true => audiences.to_vec(),
        false => audiences.iter().filter(|a| named.contains(a)).cloned().collect(),
    };
    if meant.is_empty() && !audiences.is_empty() {
        return Err(TokenError::Invalid);
    }
    Ok((identity, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let ours = ["api".to_string()];
        let check = |status: Value, expected: Option<&str>| {
            let name = read(&status, &ours).ok().map(|(user, _)| user.name);
            assert_eq!(name.as_deref(), expected, "{status}");
        };
        check(json!({"authenticated": true, "user": {"username": "jane"}}), Some("jane"));
        check(
            json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["api"]}),
            Some("jane"),
        );
        check(json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["other"]}), None);
        check(json!({"authenticated": false}), None);
        check(json!({"error": "no"}), None);
    }
}
