//! Requests that the server itself makes over HTTP: token and authorization webhooks, audit receivers, OpenID issuers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use orlop_json::Value;

use crate::pki::{self, Leaf, PkiError};

/// Largest answer that is read.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Why a request of our own has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address is none.
    #[error("{0}")]
    Address(String),
    /// Certificates or keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A configuration file.
    #[error("{0}")]
    Config(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// No answer in time.
    #[error("context deadline exceeded")]
    Timeout,
    /// Another answer than 2xx.
    #[error("the server answered {0}: {1}")]
    Answer(u16, String),
}

impl OutboundError {
    /// Whether asking again may help.
    pub fn is_temporary(&self) -> bool {
        match self {
            OutboundError::Connection(_) => true,
            OutboundError::Answer(code, _) => *code == 429 || *code >= 500,
            _ => false,
        }
    }
}

/// Whom the other side is believed to be.
pub enum Trust<'a> {
    /// Certificates of this PEM text.
    Ca(&'a str),
    /// The system's certificates.
    System,
    /// Anybody (`insecure-skip-tls-verify`).
    Anybody,
}

/// A client with its own trust and identity.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
}

impl HttpClient {
    /// A client that believes `trust` and shows `leaf`; `server_name` overrides the name certificates are checked for.
    pub fn new(
        trust: &Trust<'_>,
        leaf: Option<&Leaf>,
        server_name: Option<&str>,
    ) -> Result<HttpClient, OutboundError> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(PkiError::from)?;
        let builder = match trust {
            Trust::Anybody => {
                builder.dangerous().with_custom_certificate_verifier(std::sync::Arc::new(Anybody(provider)))
            }
            Trust::Ca(pem) => builder.with_root_certificates(roots(pki::certificates(pem)?)?),
            Trust::System => {
                builder.with_root_certificates(roots(rustls_native_certs::load_native_certs().certs)?)
            }
        };
        let tls = match leaf {
            Some(leaf) => builder
                .with_client_auth_cert(pki::certificates(&leaf.cert_pem)?, pki::private_key(&leaf.key_pem)?)
                .map_err(PkiError::from)?,
            None => builder.with_no_client_auth(),
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = match server_name {
            Some(name) => {
                let name = rustls_pki_types::ServerName::try_from(name.to_string())
                    .map_err(|error| OutboundError::Address(format!("{name}: {error}")))?;
                connector.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
            }
            None => connector,
        };
        let connector = connector.enable_http1().enable_http2().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Ok(HttpClient { client, headers: HeaderMap::new() })
    }

    /// Sends this header with every request.
    pub fn with_header(mut self, name: header::HeaderName, value: &str) -> Result<HttpClient, OutboundError> {
        let mut value =
            HeaderValue::from_str(value).map_err(|error| OutboundError::Config(error.to_string()))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    /// One request; headers and body of a 2xx answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<Bytes>,
        timeout: Duration,
    ) -> Result<(HeaderMap, Bytes), OutboundError> {
        let uri: http::Uri =
            url.parse().map_err(|error| OutboundError::Address(format!("{url}: {error}")))?;
        let mut request = http::Request::builder().method(method).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
            headers.insert(header::USER_AGENT, HeaderValue::from_static("orlop-apiserver"));
            if body.is_some() {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| OutboundError::Address(format!("{url}: {error}")))?;
        let exchange = async {
            let answer = self
                .client
                .request(request)
                .await
                .map_err(|error| OutboundError::Connection(format!("{:#}", anyhow::Error::new(error))))?;
            let (parts, body) = answer.into_parts();
            let bytes = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| OutboundError::Connection(error.to_string()))?
                .to_bytes();
            if !parts.status.is_success() {
                let text: String = String::from_utf8_lossy(&bytes).chars().take(256).collect();
                return Err(OutboundError::Answer(parts.status.as_u16(), text));
            }
            Ok((parts.headers, bytes))
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(OutboundError::Timeout))
    }

    /// Reads a JSON document.
    pub async fn get_json(&self, url: &str, timeout: Duration) -> Result<(HeaderMap, Value), OutboundError> {
        let (headers, bytes) = self.send(Method::GET, url, None, timeout).await?;
        let value = orlop_json::from_slice(&bytes)
            .map_err(|error| OutboundError::Connection(format!("{url}: {error}")))?;
        Ok((headers, value))
    }
}

fn roots(
    certificates: Vec<rustls_pki_types::CertificateDer<'static>>,
) -> Result<rustls::RootCertStore, OutboundError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates {
        // A system may hold certificates that rustls does not understand; they vouch for nobody.
        let _ = roots.add(certificate);
    }
    Ok(roots)
}

/// Accepts every certificate whose key signs: what `insecureSkipTLSVerify` asks for, and what upstream uses for pods and
/// Services behind `https:` proxy names, whose certificates nobody promised anything about.
#[derive(Debug)]
pub(crate) struct Anybody(pub std::sync::Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A kubeconfig file.
pub struct Kubeconfig {
    config: Value,
    /// Relative file names are below it.
    dir: PathBuf,
}

/// How this server shows itself to another.
#[derive(Clone)]
pub struct Credentials {
    /// A client certificate.
    pub leaf: Option<Leaf>,
    /// The `Authorization` header.
    pub authorization: Option<HeaderValue>,
}

impl Kubeconfig {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Kubeconfig, OutboundError> {
        let fail =
            |error: &dyn std::fmt::Display| OutboundError::Config(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
        let config = serde_saphyr::from_str(&text).map_err(|error| fail(&error))?;
        Ok(Kubeconfig { config, dir: path.parent().unwrap_or(Path::new(".")).to_owned() })
    }

    fn named(&self, list: &str, item: &str, name: &str) -> Option<&Value> {
        self.config[list].as_array()?.iter().find(|entry| entry["name"] == name)?.get(item)
    }

    /// The current context.
    pub fn context(&self) -> Result<&Value, OutboundError> {
        let current = self.config["current-context"].as_str().unwrap_or("");
        self.named("contexts", "context", current)
            .ok_or_else(|| bad(format!("no context {current:?} (current-context)")))
    }

    /// The names of users and what is said of them.
    pub fn users(&self) -> impl Iterator<Item = (&str, &Value)> {
        let users = self.config["users"].as_array().into_iter().flatten();
        users.filter_map(|user| Some((user["name"].as_str()?, user.get("user")?)))
    }

    /// Either the text itself in base64 or a file.
    fn pem(&self, object: &Value, data: &str, file: &str) -> Result<Option<String>, OutboundError> {
        if let Some(text) = object[data].as_str() {
            let bytes = BASE64.decode(text).map_err(|error| bad(format!("{data}: {error}")))?;
            return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
        }
        let Some(name) = object[file].as_str() else { return Ok(None) };
        std::fs::read_to_string(self.dir.join(name))
            .map(Some)
            .map_err(|error| bad(format!("{file} {name}: {error}")))
    }

    /// The credentials of a user.
    pub fn credentials(&self, user: &Value) -> Result<Credentials, OutboundError> {
        let leaf = match (
            self.pem(user, "client-certificate-data", "client-certificate")?,
            self.pem(user, "client-key-data", "client-key")?,
        ) {
            (Some(cert_pem), Some(key_pem)) => Some(Leaf { cert_pem, key_pem }),
            _ => None,
        };
        let token = match (user["token"].as_str(), user["tokenFile"].as_str()) {
            (Some(token), _) => Some(token.to_string()),
            (None, Some(file)) => Some(
                std::fs::read_to_string(self.dir.join(file))
                    .map_err(|error| bad(format!("tokenFile {file}: {error}")))?,
            ),
            (None, None) => None,
        };
        let authorization = match (token, user["username"].as_str()) {
            (Some(token), _) => Some(format!("Bearer {}", token.trim())),
            (None, Some(name)) => {
                let pair = format!("{name}:{}", user["password"].as_str().unwrap_or(""));
                Some(format!("Basic {}", BASE64.encode(pair)))
            }
            (None, None) => None,
        };
        let authorization = authorization
            .map(|text| {
                let mut value = HeaderValue::from_str(&text).map_err(|error| bad(error.to_string()))?;
                value.set_sensitive(true);
                Ok::<_, OutboundError>(value)
            })
            .transpose()?;
        Ok(Credentials { leaf, authorization })
    }
}

fn bad(text: String) -> OutboundError {
    OutboundError::Config(text)
}

/// A service named by a kubeconfig file: where it is and how this server shows itself to it.
#[derive(Clone)]
pub struct Webhook {
    client: HttpClient,
    url: String,
}

/// How often a webhook is asked when it has a temporary fault, and the first pause, which grows by half each time.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

impl Webhook {
    /// Reads the current context of a kubeconfig file.
    pub fn load(path: &Path) -> Result<Webhook, OutboundError> {
        Webhook::of(&Kubeconfig::load(path)?).map_err(|error| bad(format!("{}: {error}", path.display())))
    }

    fn of(config: &Kubeconfig) -> Result<Webhook, OutboundError> {
        let context = config.context()?;
        let cluster = config
            .named("clusters", "cluster", context["cluster"].as_str().unwrap_or(""))
            .ok_or_else(|| bad("the context names no cluster of the file".into()))?;
        let user = config.named("users", "user", context["user"].as_str().unwrap_or(""));
        let url = cluster["server"]
            .as_str()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| bad("no server".into()))?;
        let ca = config.pem(cluster, "certificate-authority-data", "certificate-authority")?;
        let trust = match &ca {
            _ if cluster["insecure-skip-tls-verify"] == true => Trust::Anybody,
            Some(pem) => Trust::Ca(pem),
            None => Trust::System,
        };
        let shown = config.credentials(user.unwrap_or(&Value::Null))?;
        let mut client = HttpClient::new(&trust, shown.leaf.as_ref(), cluster["tls-server-name"].as_str())?;
        client.headers.extend(shown.authorization.map(|value| (header::AUTHORIZATION, value)));
        Ok(Webhook { client, url: url.to_string() })
    }

    /// Posts a review and reads its answer; temporary faults are tried again within `timeout`.
    pub async fn review(&self, review: &Value, timeout: Duration) -> Result<Value, OutboundError> {
        self.review_with(review, timeout, FIRST_PAUSE).await
    }

    /// The same with another first pause between attempts.
    pub async fn review_with(
        &self,
        review: &Value,
        timeout: Duration,
        first_pause: Duration,
    ) -> Result<Value, OutboundError> {
        let body = Bytes::from(review.to_string());
        let attempts = async {
            let mut pause = first_pause;
            for attempt in 1.. {
                match self.client.send(Method::POST, &self.url, Some(body.clone()), timeout).await {
                    Err(error) if error.is_temporary() && attempt < ATTEMPTS => {
                        tokio::time::sleep(pause).await;
                        pause = pause * 3 / 2;
                    }
                    Err(error) => return Err(error),
                    Ok((_, bytes)) => {
                        return orlop_json::from_slice(&bytes)
                            .map_err(|error| OutboundError::Connection(format!("{}: {error}", self.url)));
                    }
                }
            }
            Err(OutboundError::Timeout)
        };
        tokio::time::timeout(timeout, attempts).await.unwrap_or(Err(OutboundError::Timeout))
    }

    /// Posts a document once; the answer's body does not matter.
    pub async fn post(&self, body: Bytes, timeout: Duration) -> Result<(), OutboundError> {
        self.client.send(Method::POST, &self.url, Some(body), timeout).await.map(|_| ())
    }
}
