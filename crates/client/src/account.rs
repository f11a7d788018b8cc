//! Requests in the name of a service account, with tokens that only this process's memory knows. Answers to
//! `controller-manager/pkg/clientbuilder` and client-go's cached token source.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::Body;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{BoxError, service_fn};
use tracing::{info, warn};

/// How long a token is asked for, in seconds, and how much of its life it is used before a new one is asked for.
const LIFETIME: i64 = 3600;
const USED: f64 = 0.8;
/// How long one try for a token may take, and the pause after one that failed.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// Why a request could not be sent in the account's name.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no token of service account {namespace}/{name}: {reason}")]
struct NoToken {
    namespace: String,
    name: String,
    reason: String,
}

struct Token {
    header: HeaderValue,
    begun: Instant,
    lifetime: Duration,
}

/// Clients of the service accounts of a namespace. All share the connections of one client.
pub struct ServiceAccounts {
    /// Shows no credentials.
    anonymous: kube::Client,
    /// Asks for tokens, and makes the accounts that are missing.
    own: kube::Client,
    namespace: String,
    clients: Mutex<HashMap<String, kube::Client>>,
}

impl ServiceAccounts {
    /// Requests go through `anonymous`, and the tokens that they show come through `own`.
    pub fn new(anonymous: kube::Client, own: kube::Client, namespace: impl Into<String>) -> Self {
        Self { anonymous, own, namespace: namespace.into(), clients: Mutex::default() }
    }

    /// The client of an account. Nothing is asked for before its first request.
    pub fn client(&self, name: &str) -> kube::Client {
        let mut clients = self.clients.lock();
        let make = || authorized(&self.anonymous, Tokens::new(self.own.clone(), &self.namespace, name));
        clients.entry(name.to_owned()).or_insert_with(make).clone()
    }
}

/// A client whose requests show a token each.
fn authorized(anonymous: &kube::Client, tokens: Arc<Tokens>) -> kube::Client {
    let anonymous = anonymous.clone();
    let namespace = tokens.namespace.clone();
    let send = move |mut request: Request<Body>| {
        let (anonymous, tokens) = (anonymous.clone(), tokens.clone());
        async move {
            let header = tokens.header().await?;
            request.headers_mut().insert(AUTHORIZATION, header.clone());
            let response = anonymous.send(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                tokens.refused(&header);
            }
            Ok::<_, BoxError>(response)
        }
    };
    kube::Client::new(service_fn(send), namespace)
}

type Renewal = Shared<BoxFuture<'static, Result<HeaderValue, NoToken>>>;

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// Under way, if any: however many requests wait, one asks.
    renewal: Option<Renewal>,
    /// The last try, when it failed.
    failed: Option<(Instant, NoToken)>,
}

/// The tokens of one account. They are asked for when a request needs one: an idle controller asks for none.
struct Tokens {
    /// Who may ask for tokens.
    requests: kube::Client,
    namespace: String,
    name: String,
    state: Mutex<State>,
}

impl Tokens {
    fn new(requests: kube::Client, namespace: &str, name: &str) -> Arc<Self> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Arc::new(Self { requests, namespace, name, state: Mutex::default() })
    }

    /// A token that the server accepts, as far as this process knows.
    async fn header(self: &Arc<Self>) -> Result<HeaderValue, NoToken> {
        let renewal = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let valid = state.token.as_ref().filter(|token| now < token.begun + token.lifetime);
            if let Some(token) = valid.filter(|token| now < token.begun + token.lifetime.mul_f64(USED)) {
                return Ok(token.header.clone());
            }
            let valid = valid.map(|token| token.header.clone());
            if let Some((at, reason)) = &state.failed
                && now < *at + PAUSE
            {
                return valid.ok_or_else(|| reason.clone());
            }
            let renewal = state.renewal.get_or_insert_with(|| {
                // A task, so that it goes on when whoever needed it has given up or goes on with the old token.
                let task = tokio::spawn(self.clone().renewed());
                let tokens = self.clone();
                let outcome = task.then(async move |outcome| match outcome {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        tokens.state.lock().renewal = None;
                        Err(tokens.no_token(&error.to_string()))
                    }
                });
                outcome.boxed().shared()
            });
            match valid {
                Some(header) => return Ok(header),
                None => renewal.clone(),
            }
        };
        renewal.await
    }

    /// The server does not accept this token: it has restarted with other keys, or the account is another one now.
    fn refused(&self, header: &HeaderValue) {
        let mut state = self.state.lock();
        let young = |token: &Token| token.begun.elapsed() < PAUSE;
        // A new token that is refused is no reason to ask for the next at once.
        state.token.take_if(|token| token.header == *header && !young(token));
    }

    async fn renewed(self: Arc<Self>) -> Result<HeaderValue, NoToken> {
        let begun = Instant::now();
        let asked = tokio::time::timeout(PATIENCE, self.ask()).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}").into()));
        let mut state = self.state.lock();
        state.renewal = None;
        match asked {
            Ok((header, lifetime)) => {
                if state.failed.take().is_some() {
                    info!(account = self.name, "the account has a token again");
                }
                state.token = Some(Token { header: header.clone(), begun, lifetime });
                Ok(header)
            }
            Err(error) => {
                let reason = self.no_token(&error.to_string());
                if state.failed.is_none() {
                    warn!(account = self.name, %error, "no new token; trying again until there is one");
                }
                state.failed = Some((Instant::now(), reason.clone()));
                Err(reason)
            }
        }
    }

    fn no_token(&self, reason: &str) -> NoToken {
        NoToken { namespace: self.namespace.clone(), name: self.name.clone(), reason: reason.to_owned() }
    }

    /// Asks the server, and makes the account when there is none.
    async fn ask(&self) -> Result<(HeaderValue, Duration), BoxError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.requests.clone(), &self.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(LIFETIME),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let how = PostParams::default();
        let ask = || accounts.create_token_request(&self.name, &how, &request);
        let answer = match ask().await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let account = ServiceAccount { metadata, ..ServiceAccount::default() };
                match accounts.create(&how, &account).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    other => drop(other?),
                }
                ask().await?
            }
            answer => answer?,
        };
        let token = answer.status.map(|status| status.token.unwrap_or_default()).unwrap_or_default();
        if token.is_empty() {
            return Err("the answer has no token".into());
        }
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        // The server may grant less than was asked for.
        let granted = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(LIFETIME);
        Ok((header, Duration::from_secs(granted.max(0).unsigned_abs())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Response;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};
    use tracing::{Metadata, Subscriber, span};

    use super::*;

    /// What the API server knows, and what it was asked.
    #[derive(Default)]
    struct Server {
        away: bool,
        /// Its transport panics.
        panics: bool,
        hangs: bool,
        account: bool,
        /// Tokens issued, and the first that is still accepted.
        issued: usize,
        accepts_from: usize,
        lifetime: i64,
        log: Vec<String>,
    }

    fn answer(server: &Mutex<Server>, request: &Request<Body>) -> (u16, Value) {
        let mut server = server.lock();
        let path = request.uri().path().to_owned();
        if path.ends_with("/token") {
            server.log.push("token".to_owned());
            if !server.account {
                return (404, json!({"kind": "Status", "code": 404, "status": "Failure"}));
            }
            server.issued += 1;
            return (
                201,
                json!({"spec": {"audiences": [], "expirationSeconds": server.lifetime},
                    "status": {"token": server.issued.to_string(), "expirationTimestamp": "2026-01-01T00:00:00Z"}}),
            );
        }
        if path.ends_with("/serviceaccounts") {
            server.log.push("account".to_owned());
            server.account = true;
            return (201, json!({"metadata": {"name": "a"}}));
        }
        let shown = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
        server.log.push(shown.clone());
        match shown.strip_prefix("Bearer ").unwrap().parse::<usize>().unwrap() >= server.accepts_from {
            true => (200, json!({"metadata": {"name": "c"}})),
            false => (401, json!({"kind": "Status", "code": 401, "status": "Failure"})),
        }
    }

    struct Bed {
        server: Arc<Mutex<Server>>,
        client: kube::Client,
    }

    fn bed(lifetime: i64) -> Bed {
        let server = Arc::new(Mutex::new(Server { account: true, lifetime, ..Server::default() }));
        let seen = server.clone();
        let transport = service_fn(move |request: Request<Body>| {
            let server = seen.clone();
            async move {
                if server.lock().away {
                    return Err::<_, BoxError>("connection refused".into());
                }
                let panics = server.lock().panics;
                assert!(!panics, "as asked");
                if server.lock().hangs {
                    std::future::pending::<Infallible>().await;
                }
                let (code, body) = answer(&server, &request);
                Ok(Response::builder().status(code).body(Body::from(body.to_string().into_bytes()))?)
            }
        });
        let own = kube::Client::new(transport, "default");
        let client = ServiceAccounts::new(own.clone(), own, "kube-system").client("a");
        Bed { server, client }
    }

    impl Bed {
        /// One request; says how it ended.
        async fn request(&self) -> String {
            match Api::<ConfigMap>::namespaced(self.client.clone(), "default").get("c").await {
                Ok(_) => "ok".to_owned(),
                Err(kube::Error::Api(status)) => status.code.to_string(),
                Err(error) => error.to_string(),
            }
        }

        /// What the server was asked since the last call.
        fn log(&self) -> Vec<String> {
            std::mem::take(&mut self.server.lock().log)
        }
    }

    /// Counts what this module logs at a level.
    struct Log(tracing::Level, Arc<AtomicUsize>);

    impl Subscriber for Log {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == self.0 && metadata.target() == "orlop_client::account"
        }

        fn event(&self, _: &tracing::Event<'_>) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_serves_four_fifths_of_its_life_and_the_next_comes_beside_it() {
        let bed = bed(600);
        assert_eq!(bed.log(), [""; 0], "nothing is asked for before it is needed");
        assert_eq!(bed.request().await, "ok");
        pass(479).await;
        assert_eq!(bed.request().await, "ok");
        assert_eq!(bed.log(), ["token", "Bearer 1", "Bearer 1"]);
        pass(2).await;
        assert_eq!(bed.request().await, "ok");
        pass(1).await;
        assert_eq!(bed.request().await, "ok");
        let log = bed.log();
        assert_eq!(log.iter().filter(|entry| *entry == "token").count(), 1, "{log:?}");
        assert_eq!(log.last().unwrap(), "Bearer 2");
        // One that nobody needed until it had expired.
        pass(10_000).await;
        assert_eq!(bed.request().await, "ok");
        assert_eq!(bed.log(), ["token", "Bearer 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_dies_takes_nothing_with_it() {
        let bed = bed(600);
        bed.server.lock().panics = true;
        let outcome = bed.request().await;
        assert!(outcome.contains("no token of service account kube-system/a"), "{outcome}");
        bed.server.lock().panics = false;
        assert_eq!(bed.request().await, "ok");
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_ask_for_one_token() {
        let bed = bed(600);
        let all = futures::future::join_all((0..50).map(|_| bed.request())).await;
        assert!(all.iter().all(|outcome| outcome == "ok"), "{all:?}");
        assert_eq!(bed.log().iter().filter(|entry| *entry == "token").count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_is_tried_again_while_the_old_token_serves() {
        let bed = bed(600);
        assert_eq!(bed.request().await, "ok");
        pass(500).await;
        bed.server.lock().account = false;
        // The account cannot be made again either.
        bed.server.lock().away = true;
        assert!(bed.request().await.contains("connection refused"), "the request itself");
        bed.server.lock().away = false;
        bed.log();
        // Within the pause nothing is asked for; after it, the account and its token come again.
        assert_eq!(bed.request().await, "ok");
        assert_eq!(bed.log(), ["Bearer 1"]);
        pass(1).await;
        assert_eq!(bed.request().await, "ok");
        pass(1).await;
        assert_eq!(bed.request().await, "ok");
        let log = bed.log();
        assert!(log.contains(&"account".to_owned()), "{log:?}");
        assert_eq!(log.last().unwrap(), "Bearer 2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_expired_while_the_server_was_away_is_replaced() {
        let warnings = Arc::new(AtomicUsize::new(0));
        let _logged = tracing::subscriber::set_default(Log(tracing::Level::WARN, warnings.clone()));
        let bed = bed(600);
        assert_eq!(bed.request().await, "ok");
        bed.log();
        bed.server.lock().away = true;
        for _ in 0..1000 {
            pass(1).await;
            assert!(bed.request().await.contains("connection refused"));
        }
        assert_eq!(warnings.load(Ordering::Relaxed), 1, "hundreds of tries, one line");
        bed.server.lock().away = false;
        pass(1).await;
        assert_eq!(bed.request().await, "ok");
        assert_eq!(bed.log(), ["token", "Bearer 2"]);

        // A server that does not answer holds a request up for a while only.
        pass(600).await;
        bed.server.lock().hangs = true;
        assert!(bed.request().await.contains("no answer within 10s"));
        bed.server.lock().hangs = false;
        pass(1).await;
        assert_eq!(bed.request().await, "ok");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_the_server_no_longer_accepts_is_replaced() {
        let bed = bed(3600);
        assert_eq!(bed.request().await, "ok");
        pass(60).await;
        bed.server.lock().accepts_from = 2;
        assert_eq!(bed.request().await, "401");
        assert_eq!(bed.request().await, "ok");
        // A server that accepts nothing is not asked for a token by each request.
        pass(60).await;
        bed.server.lock().accepts_from = usize::MAX;
        bed.log();
        for _ in 0..10 {
            assert_eq!(bed.request().await, "401");
        }
        let asked = bed.log().iter().filter(|entry| *entry == "token").count();
        assert_eq!(asked, 1);
    }
}
