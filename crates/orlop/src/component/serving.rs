//! Health, configuration and metrics of a component over HTTPS. Whoever asks for more than health is looked up at the API
//! server (TokenReview, SubjectAccessReview), as upstream's delegated authentication and authorization do it.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use orlop_apiserver::UserInfo;
use orlop_apiserver::authn::peer::{Authorities, Peer};
use orlop_apiserver::components::Running;
use orlop_apiserver::metrics::{Exposition, process};
use orlop_apiserver::pki::{self, CertificateAuthority, Leaf, ServerTls, Subject};
use orlop_client::{Connection, LeaderElectionOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::control_plane::Tasks;
use crate::flags::Flags;
use crate::flags::table::Table;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is served, where, and to whom.
#[derive(Clone)]
pub struct Serving(Arc<Shared>);

struct Shared {
    name: &'static str,
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    authorities: Authorities,
    /// Asked about tokens.
    authentication: kube::Client,
    /// Asked about rights.
    authorization: kube::Client,
    /// Paths for everybody; one that ends with `*` stands for all that begin so.
    open: Vec<String>,
    configz: Value,
}

impl Serving {
    /// From the flags; `None` when `--secure-port` is 0.
    pub async fn of<T: Table>(
        flags: &Flags<T>,
        client: &kube::Client,
        name: &'static str,
        (section, configuration): (&'static str, Value),
    ) -> anyhow::Result<Option<Serving>> {
        let (port, address): (u16, IpAddr) = (flags.number("secure-port")?, flags.number("bind-address")?);
        let other = async |flag: &str| match flags.path(flag) {
            Some(path) => anyhow::Ok(Connection::open(Some(&path), None, name).await?.client()?),
            None => Ok(client.clone()),
        };
        let authentication = other("authentication-kubeconfig").await?;
        let authorization = other("authorization-kubeconfig").await?;
        let client_ca = match flags.file("client-ca-file")? {
            Some(pem) => Some(pem),
            None if port != 0 => published_ca(&authentication).await,
            None => None,
        };
        let curves = flags
            .list("tls-curve-preferences")
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<u16>, _>>();
        let versions = flags.text("tls-min-version");
        let tls = pki::server_config(
            &certificate(flags, name)?,
            &ServerTls {
                tls13_only: versions == "VersionTLS13",
                cipher_suites: &flags.list("tls-cipher-suites"),
                curves: &curves.context("--tls-curve-preferences")?,
                http1_only: flags.bool("disable-http2-serving")?,
                ..ServerTls::default()
            },
        )?;
        let shared = Shared {
            name,
            address: SocketAddr::new(address, port),
            tls: Arc::new(tls),
            authorities: Authorities::new(client_ca.as_deref(), None)?,
            authentication,
            authorization,
            open: flags.list("authorization-always-allow-paths"),
            configz: json!({section: configuration}),
        };
        Ok((port != 0).then(|| Serving(Arc::new(shared))))
    }

    /// Listens, and serves as a task.
    pub async fn start(
        &self,
        leading: Running,
        election: Option<&LeaderElectionOptions>,
        shutdown: &CancellationToken,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let (shared, shutdown) = (self.0.clone(), shutdown.clone());
        let address = shared.address;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "failed to create listener: failed to listen on {address} (--bind-address, --secure-port)"
            )
        })?;
        info!(%address, "health and metrics are served");
        let lease = election.map(|options| options.name.clone());
        tasks.spawn(async move {
            while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
                let Ok((stream, _)) = accepted else {
                    // Out of file descriptors: give connections a moment to end.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (shared, leading, lease) = (shared.clone(), leading.clone(), lease.clone());
                tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
                    let acceptor = TlsAcceptor::from(shared.tls.clone());
                    // Who connects and says nothing shall not hold a task for ever.
                    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await
                    else {
                        return;
                    };
                    let peer = Arc::new(shared.authorities.peer(stream.get_ref().1.peer_certificates()));
                    let service = service_fn(|request| {
                        let (shared, peer) = (shared.clone(), peer.clone());
                        let (leading, lease) = (leading.clone(), lease.clone());
                        async move {
                            let answer = shared.serve(&peer, &leading, lease.as_deref(), request).await;
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                        debug!(%error, "connection ended with an error");
                    }
                }));
            }
            Ok(())
        });
        Ok(())
    }
}

/// The serving certificate: as told, or self-signed, in a directory if there is one.
fn certificate<T: Table>(flags: &Flags<T>, name: &str) -> anyhow::Result<Leaf> {
    let given = (flags.file("tls-cert-file")?, flags.file("tls-private-key-file")?);
    let directory = flags.path("cert-dir");
    match given {
        (Some(cert_pem), Some(key_pem)) => Ok(Leaf { cert_pem, key_pem }),
        (None, None) => {
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let authority = match directory {
                Some(directory) => {
                    CertificateAuthority::load_or_generate(&directory, name, &format!("{name}-ca"))?
                }
                None => CertificateAuthority::generate(&format!("{name}-ca"))?,
            };
            Ok(authority.issue(&Subject::server(name, names), 365)?)
        }
        _ => anyhow::bail!("--tls-cert-file and --tls-private-key-file go together"),
    }
}

/// The CA of client certificates as the API server publishes it; without it only tokens tell who asks.
async fn published_ca(client: &kube::Client) -> Option<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    match maps.get("extension-apiserver-authentication").await {
        Ok(map) => map.data?.remove("client-ca-file"),
        Err(error) => {
            info!(%error, "the cluster's client CA could not be looked up; only tokens are believed");
            None
        }
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16()});
    answer(code, "application/json", status.to_string())
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Shared {
    async fn serve(
        &self,
        peer: &Peer,
        leading: &Running,
        lease: Option<&str>,
        request: Request<Incoming>,
    ) -> Answer {
        let path = request.uri().path().to_owned();
        let open = self.open.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => *open == path,
        });
        if !open {
            let verb = request.method().as_str().to_lowercase();
            if let Err(refused) =
                self.authorize(peer, request.headers().get(AUTHORIZATION), &verb, &path).await
            {
                return refused;
            }
        }
        let verbose = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
        match path.as_str() {
            // A process that waits for its turn is well, and ready to take it.
            "/healthz" | "/livez" | "/readyz" => {
                let election = lease.map(|_| "[+]leaderElection ok\n").unwrap_or_default();
                let text = match verbose {
                    true => format!("[+]ping ok\n{election}{} check passed\n", path.trim_start_matches('/')),
                    false => "ok".to_owned(),
                };
                answer(StatusCode::OK, TEXT, text)
            }
            "/configz" => answer(StatusCode::OK, "application/json", self.configz.to_string()),
            "/metrics" => {
                let mut out = Exposition::default();
                process::render(&mut out);
                super::metrics::render(&mut out);
                if let Some(lease) = lease {
                    let (name, help) = (
                        "leader_election_master_status",
                        "Whether this process holds the lease (1) or waits for it (0).",
                    );
                    out.family(name, "gauge", help);
                    out.sample(name, &[("name", lease)], f64::from(u8::from(leading.is_running())));
                }
                answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", out.finish())
            }
            _ => answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
        }
    }

    async fn authorize(
        &self,
        peer: &Peer,
        credentials: Option<&HeaderValue>,
        verb: &str,
        path: &str,
    ) -> Result<(), Answer> {
        let unauthorized = || refusal(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        let broken = |error: kube::Error| {
            let text = format!("Internal Server Error: {path:?}: {error}");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &text)
        };
        let token =
            credentials.and_then(|header| header.to_str().ok()?.strip_prefix("Bearer ").map(str::to_owned));
        let user = match (&peer.user, token) {
            (Some(user), _) => user.clone(),
            (None, Some(token)) => self.reviewed(token).await.map_err(broken)?.ok_or_else(unauthorized)?,
            (None, None) if peer.refused || credentials.is_some() => return Err(unauthorized()),
            (None, None) => UserInfo::anonymous(),
        };
        let user = user.authenticated();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.authorization.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(broken)?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        let text = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
        debug!(component = self.name, text, "refused");
        Err(refusal(StatusCode::FORBIDDEN, "Forbidden", &text))
    }

    /// Whose token it is, as the API server says.
    async fn reviewed(&self, token: String) -> Result<Option<UserInfo>, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec { token, ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.authentication.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else { return Ok(None) };
        Ok(Some(UserInfo {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            ..UserInfo::default()
        }))
    }
}
