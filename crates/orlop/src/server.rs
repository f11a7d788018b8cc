//! `orlop server`: components started in order and stopped together.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use orlop_apiserver::components::Running;
use orlop_apiserver::pki::{self, CertificateAuthority, Subject};
use orlop_apiserver::{ApiServer, Options, UserInfo};
use orlop_metrics_server::MetricsServer;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::addons;
use crate::cli::ServerArguments;
use crate::control_plane::{Tasks, client, informers, open_store, start_controllers, start_scheduler};
use crate::layout::Layout;
use crate::metrics;
use crate::node::{self, Identities, NodeName};

/// How long components may take to end after a signal. Nothing is lost when they do not.
pub(crate) const STOP: Duration = Duration::from_secs(5);

/// What the API server serves and no part of `orlop server` acts on yet. Nobody shall wait for an Ingress that never routes.
const UNATTENDED: [&str; 2] = ["ingresses", "networkpolicies"];

/// A whole cluster.
pub async fn run(arguments: ServerArguments) -> anyhow::Result<()> {
    let begun = Instant::now();
    let layout = Layout::open(&arguments.location)?;
    let ranges = [
        format!("--service-cidr={}", arguments.service_cidr),
        format!("--cluster-cidr={}", arguments.cluster_cidr),
        format!("--cluster-dns={}", arguments.dns_address()?),
    ];
    std::fs::write(layout.ranges_file(), ranges.join("\n"))?;
    let node = if arguments.disable_agent { None } else { Some(NodeName::of(&arguments)?) };

    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new();
    let (controllers, scheduler) = (Running::default(), Running::default());
    let metrics_server = (!arguments.disable_metrics_server).then(|| {
        MetricsServer::new(orlop_metrics_server::Options { resolution: arguments.metrics_resolution })
    });
    let options = Options {
        more_metrics: Some(crate::component::metrics::render),
        in_process: metrics_server.iter().map(metrics::in_process).collect(),
        components: vec![
            ("controller-manager".to_owned(), Arc::new(controllers.clone())),
            ("scheduler".to_owned(), Arc::new(scheduler.clone())),
        ],
        bind_address: arguments.listen(),
        advertise_address: node.as_ref().map(|node| node.ip),
        extra_sans: arguments.tls_san.clone(),
        cert_dir: Some(layout.pki()),
        token_auth_file: arguments.token_auth_file.clone(),
        unattended_resources: UNATTENDED.map(str::to_owned).to_vec(),
        service_cidrs: vec![(arguments.service_cidr.network().into(), arguments.service_cidr.prefix_len())],
        ..Options::default()
    };
    let store = open_store(&layout.store()).await?;
    let server = ApiServer::new(options, store).await?;
    listen(&server, &shutdown, &mut tasks).await?;
    write_kubeconfig(&server, &arguments.write_kubeconfig, arguments.https_listen_port)?;
    info!(after = ?begun.elapsed(), kubeconfig = %arguments.write_kubeconfig.display(), "API server is ready");

    let admin = client(&server, UserInfo::new("system:addon-manager", &["system:masters"]), "addon-manager");
    addons::grant(&admin).await.context("rights of the provisioner of volumes")?;
    if let Some(found) = metrics_server {
        let client = client(&server, metrics::user(), "metrics-server");
        let started = metrics::start(&server, found, &admin, client, &shutdown, &mut tasks);
        started.await.context("the metrics server")?;
    }
    tokio::spawn(addons::ensure(admin, shutdown.clone()));
    let options = orlop_controllers::Options {
        cluster_cidr: Some(arguments.cluster_cidr.to_string()),
        service_cidr: Some(arguments.service_cidr.to_string()),
        ..orlop_controllers::Options::default()
    };
    let informers = informers(&server, &shutdown);
    start_controllers(&server, &informers, options, controllers, &shutdown, &mut tasks);
    start_scheduler(&server, &informers, scheduler, &shutdown, &mut tasks);
    if let Some(node) = node {
        let ca = CertificateAuthority::load_or_generate(&layout.pki(), "ca", "orlop-ca")?;
        let identities = Identities {
            kubelet: client(&server, UserInfo::node(&node.name), "kubelet"),
            proxy: client(&server, UserInfo::new("system:kube-proxy", &["system:nodes"]), "kube-proxy"),
            provisioner: client(
                &server,
                UserInfo::service_account("kube-system", addons::PROVISIONER_ACCOUNT),
                "local-path-provisioner",
            ),
        };
        node::start(&layout, &arguments, &node, &ca, identities, &shutdown, &mut tasks).await?;
        info!(after = ?begun.elapsed(), node = node.name, ip = %node.ip, "node started");
    }
    until_told(tasks, shutdown, STOP).await
}

/// Binds, publishes and serves.
pub(crate) async fn listen(
    server: &Arc<ApiServer>,
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let address = server.options.bind_address;
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("port {} is not free; choose another one with --https-listen-port", address.port())
    })?;
    serve(server, listener, shutdown, tasks).await
}

/// Publishes and serves.
pub(crate) async fn serve(
    server: &Arc<ApiServer>,
    listener: tokio::net::TcpListener,
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let tls = server.tls_config()?;
    server.publish(listener.local_addr()?.port()).await?;
    let (server, shutdown) = (server.clone(), shutdown.clone());
    tasks.spawn(async move {
        server.serve(listener, tls, shutdown).await;
        Ok(())
    });
    Ok(())
}

/// The administrator's way in: a client certificate of the cluster's own CA, renewed at every start.
pub(crate) fn write_kubeconfig(server: &ApiServer, path: &Path, port: u16) -> anyhow::Result<()> {
    let leaf = server.ca().issue(&Subject::client("kubernetes-admin", &["system:masters"]), 365)?;
    let text = pki::kubeconfig("orlop", &format!("https://127.0.0.1:{port}"), server.ca().cert_pem(), &leaf);
    Ok(pki::write_file(path, &text, true)?)
}

/// Runs until a signal, or until a component ends that should not; then everything has `patience` to end.
pub(crate) async fn until_told(
    mut tasks: Tasks,
    shutdown: CancellationToken,
    patience: Duration,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panic)) => Err(panic.into()),
            _ => Err(anyhow::anyhow!("a component ended by itself; the log says which")),
        },
    };
    if let Err(error) = &result {
        error!(error = format!("{error:#}"), "stopping");
    } else {
        info!("stopping");
    }
    shutdown.cancel();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(patience, ended).await.is_err() {
        info!("not everything ended in time; leaving it");
    }
    result
}
