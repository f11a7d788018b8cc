//! `orlop controller-manager`: the controllers alone, against any API server, under kube-controller-manager's flag names.

mod table;

use std::sync::Arc;

use anyhow::{Context as _, bail};
use orlop_apiserver::authn::SecretTokens;
use orlop_client::ServiceAccounts;
use orlop_controllers::{Context, Options, Signing, TokenSigner};
use serde_json::json;

use crate::component::{self, Component};
use crate::control_plane::Tasks;
use crate::flags::Flags as AnyFlags;

/// The command line.
pub type Flags = AnyFlags<table::ControllerManager>;

/// Runs controllers until a signal.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let options = options(&flags)?;
    let own_accounts = flags.bool("use-service-account-credentials")?;
    let shown = json!({"Controllers": options.controllers});
    let component =
        Component::of("kube-controller-manager", &flags, ("kubecontrollermanager.config.k8s.io", shown))
            .await?;
    flags.settle()?;
    component::run(component, move |component, working| {
        let mut tasks = Tasks::new();
        let (client, connection) = (component.client.clone(), component.connection.clone());
        tasks.spawn(async move {
            let mut options = options;
            options.root_ca_pem = options.root_ca_pem.or_else(|| connection.ca_pem());
            let client_for: orlop_controllers::ClientFor = match own_accounts {
                false => Arc::new(move |_| client.clone()),
                true => {
                    let accounts =
                        ServiceAccounts::new(connection.anonymous()?, client.clone(), "kube-system");
                    Arc::new(move |name| match name.starts_with("system:") {
                        true => client.clone(),
                        false => accounts.client(name),
                    })
                }
            };
            let shutdown = working.clone();
            orlop_controllers::run(Context { client_for, options, informers: None, shutdown }).await;
            Ok(())
        });
        Ok(tasks)
    })
    .await
}

fn options(flags: &Flags) -> anyhow::Result<Options> {
    let given = |name: &str| flags.optional(name);
    let mut controllers = flags.list("controllers");
    if !flags.bool("enable-garbage-collector")? {
        controllers.push("-garbage-collector-controller".to_owned());
    }
    orlop_controllers::check_names(&controllers)
        .map_err(|error| anyhow::anyhow!("--controllers: {error}"))?;
    let signing = match (flags.file("cluster-signing-cert-file")?, flags.file("cluster-signing-key-file")?) {
        (Some(cert_pem), Some(key_pem)) => {
            Some(Signing { cert_pem, key_pem, duration: flags.duration("cluster-signing-duration")? })
        }
        (None, None) => None,
        _ => bail!("--cluster-signing-cert-file and --cluster-signing-key-file go together"),
    };
    flags.duration("cluster-signing-duration")?;
    let token_signer = match flags.file("service-account-private-key-file")? {
        None => None,
        Some(pem) => {
            let tokens = SecretTokens::new(&pem).context("--service-account-private-key-file")?;
            Some(TokenSigner::new(move |token| {
                let account = (token.account, token.account_uid);
                tokens.issue(token.namespace, account, token.secret).map_err(|error| error.to_string())
            }))
        }
    };
    let allocate = flags.bool("allocate-node-cidrs")?;
    let cluster_cidr = given("cluster-cidr");
    if allocate && cluster_cidr.is_none() {
        bail!("--allocate-node-cidrs is set, but --cluster-cidr is not");
    }
    let mask = match given("node-cidr-mask-size-ipv4").or_else(|| given("node-cidr-mask-size")) {
        Some(text) => text.parse().with_context(|| format!("--node-cidr-mask-size {text:?}"))?,
        None => Options::default().node_cidr_mask_size,
    };
    Ok(Options {
        controllers,
        cluster_cidr: cluster_cidr.filter(|_| allocate),
        service_cidr: given("service-cluster-ip-range"),
        node_cidr_mask_size: mask,
        root_ca_pem: flags.file("root-ca-file")?,
        signing,
        token_signer,
        node_monitor_grace_period: flags.duration("node-monitor-grace-period")?,
        node_startup_grace_period: flags.duration("node-startup-grace-period")?,
        terminated_pod_gc_threshold: flags.number("terminated-pod-gc-threshold")?,
    })
}
