//! Starts every controller, keeps each running on its own, and gives each what it works with.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use orlop_client::{EventRecorder, SharedInformerFactory};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::Error;
use crate::names::is_enabled;

/// Makes a client that acts as somebody: the name of a service account in `kube-system` (`deployment-controller`), or
/// a whole user name when it begins with `system:` (`system:kube-controller-manager`, used for all reads).
pub type ClientFor = Arc<dyn Fn(&str) -> kube::Client + Send + Sync>;

/// What a token in a Secret is about.
#[derive(Debug, Clone, Copy)]
pub struct SecretToken<'a> {
    /// Namespace of the account and of the Secret.
    pub namespace: &'a str,
    /// Name of the ServiceAccount.
    pub account: &'a str,
    /// Its uid.
    pub account_uid: &'a str,
    /// Name of the Secret.
    pub secret: &'a str,
}

type Sign = dyn Fn(SecretToken<'_>) -> Result<String, String> + Send + Sync;

/// Signs tokens with the cluster's key for service accounts. Cheap to clone.
#[derive(Clone)]
pub struct TokenSigner(Arc<Sign>);

impl TokenSigner {
    /// A signer from a function; its error is a text for the log.
    pub fn new(sign: impl Fn(SecretToken<'_>) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(sign))
    }

    pub(crate) fn sign(&self, token: SecretToken<'_>) -> Result<String, Error> {
        (self.0)(token).map_err(Error::Object)
    }
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSigner")
    }
}

/// What an administrator can set. The defaults are upstream's, with node addresses handed out.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which controllers run, as `--controllers` says it: `*` for all, a name to add one, `-` and a name to leave one out.
    pub controllers: Vec<String>,
    /// The range that nodes get their pod ranges from, e.g. `10.244.0.0/16`; `None` hands out none.
    pub cluster_cidr: Option<String>,
    /// The range of Service addresses, never handed to a node, e.g. `10.96.0.0/16`.
    pub service_cidr: Option<String>,
    /// The prefix length of a node's pod range in an IPv4 `cluster_cidr`.
    pub node_cidr_mask_size: u8,
    /// PEM of the CA that the API server's certificate is verified with: what `kube-root-ca.crt` tells pods.
    pub root_ca_pem: Option<String>,
    /// Signs CertificateSigningRequests; `None` signs none.
    pub signing: Option<crate::Signing>,
    /// Signs the tokens of Secrets; `None` fills no Secret.
    pub token_signer: Option<TokenSigner>,
    /// How long a node may be silent before its conditions become Unknown.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that never posted a status.
    pub node_startup_grace_period: Duration,
    /// How many finished pods stay; 0 or less keeps all.
    pub terminated_pod_gc_threshold: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controllers: vec![
                "*".to_owned(),
                "bootstrap-signer-controller".into(),
                "token-cleaner-controller".into(),
            ],
            cluster_cidr: Some("10.244.0.0/16".to_owned()),
            service_cidr: Some("10.96.0.0/16".to_owned()),
            node_cidr_mask_size: 24,
            root_ca_pem: None,
            signing: None,
            token_signer: None,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            terminated_pod_gc_threshold: 12500,
        }
    }
}

/// Who reads for all controllers.
pub const READER: &str = "system:kube-controller-manager";

/// What [`run`] needs.
#[derive(Clone)]
pub struct Context {
    /// Clients by identity.
    pub client_for: ClientFor,
    /// Settings.
    pub options: Options,
    /// Informers that others in this process use too; `None` makes some of their own, which read as
    /// `system:kube-controller-manager`.
    pub informers: Option<SharedInformerFactory>,
    /// Ends all controllers.
    pub shutdown: CancellationToken,
}

/// What one controller works with.
#[derive(Clone)]
pub(crate) struct Shell {
    pub(crate) informers: SharedInformerFactory,
    /// Writes under the controller's own identity.
    pub(crate) client: kube::Client,
    pub(crate) recorder: EventRecorder,
    pub(crate) options: Arc<Options>,
    pub(crate) shutdown: CancellationToken,
}

type Run = fn(Shell) -> BoxFuture<'static, Result<(), Error>>;

pub(crate) struct Controller {
    pub(crate) name: &'static str,
    /// The service account it writes as.
    pub(crate) account: &'static str,
    /// `source.component` of its events.
    component: &'static str,
    run: Run,
}

macro_rules! controllers {
    ($($name:literal, $account:literal, $component:literal, $run:path;)*) => {
        /// The names of all controllers, as upstream's `--controllers` flag knows them.
        pub const CONTROLLERS: &[&str] = &[$($name),*];
        // A static, so that its functions are compiled here and not in every crate that runs them.
        pub(crate) static TABLE: &[Controller] = &[$(Controller {
            name: $name, account: $account, component: $component, run: |shell| $run(shell).boxed(),
        }),*];
    };
}

controllers! {
    "deployment-controller", "deployment-controller", "deployment-controller", crate::deployment::run;
    "replicaset-controller", "replicaset-controller", "replicaset-controller", crate::replicaset::run;
    "replicationcontroller-controller", "replication-controller", "replication-controller", crate::replicaset::run_replication_controllers;
    "daemonset-controller", "daemon-set-controller", "daemonset-controller", crate::daemonset::run;
    "statefulset-controller", "statefulset-controller", "statefulset-controller", crate::statefulset::run;
    "disruption-controller", "disruption-controller", "controllermanager", crate::disruption::run;
    "job-controller", "job-controller", "job-controller", crate::job::run;
    "cronjob-controller", "cronjob-controller", "cronjob-controller", crate::cronjob::run;
    "ttl-after-finished-controller", "ttl-after-finished-controller", "ttl-after-finished-controller", crate::ttl_after_finished::run;
    "persistentvolume-binder-controller", "persistent-volume-binder", "persistentvolume-controller", crate::volume::binder::run;
    "persistentvolumeclaim-protection-controller", "pvc-protection-controller", "pvc-protection-controller", crate::volume::protection::claims;
    "persistentvolume-protection-controller", "pv-protection-controller", "pv-protection-controller", crate::volume::protection::volumes;
    "volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller", crate::volume::protection::attributes_classes;
    "persistentvolume-attach-detach-controller", "attachdetach-controller", "attachdetach-controller", crate::volume::attach::run;
    "persistentvolume-expander-controller", "expand-controller", "volume_expand", crate::volume::expand::run;
    "ephemeral-volume-controller", "ephemeral-volume-controller", "ephemeral_volume", crate::volume::ephemeral::run;
    "horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler", "horizontal-pod-autoscaler", crate::hpa::run;
    "endpoints-controller", "endpoint-controller", "endpoint-controller", crate::endpoints::run;
    "endpointslice-controller", "endpointslice-controller", "endpoint-slice-controller", crate::endpointslice::run;
    "endpointslice-mirroring-controller", "endpointslicemirroring-controller", "endpoint-slice-mirroring-controller", crate::endpointslice::run_mirroring;
    "service-cidr-controller", "service-cidrs-controller", "service-cidr-controller", crate::service_cidr::run;
    "service-lb-controller", "service-controller", "service-controller", crate::service_lb::run;
    "namespace-controller", "namespace-controller", "namespace-controller", crate::namespace::run;
    "resourceclaim-controller", "resource-claim-controller", "resource_claim", crate::resource_claim::run;
    "resourcequota-controller", "resourcequota-controller", "resourcequota-controller", crate::resourcequota::run;
    "serviceaccount-controller", "service-account-controller", "service-account-controller", crate::service_account::run;
    "serviceaccount-token-controller", "system:kube-controller-manager", "serviceaccount-token-controller", crate::service_account_tokens::run;
    "legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", "legacy-service-account-token-cleaner", crate::legacy_tokens::run;
    "bootstrap-signer-controller", "bootstrap-signer", "bootstrap-signer-controller", crate::bootstrap::run_signer;
    "token-cleaner-controller", "token-cleaner", "token-cleaner-controller", crate::bootstrap::run_cleaner;
    "root-ca-certificate-publisher-controller", "root-ca-cert-publisher", "root-ca-cert-publisher", crate::root_ca::run;
    "garbage-collector-controller", "generic-garbage-collector", "garbage-collector-controller", crate::garbage::run;
    "node-lifecycle-controller", "node-controller", "node-controller", crate::node::lifecycle::run;
    "taint-eviction-controller", "node-controller", "taint-eviction-controller", crate::node::eviction::run;
    "device-taint-eviction-controller", "device-taint-eviction-controller", "device-taint-eviction-controller", crate::device_eviction::run;
    "ttl-controller", "ttl-controller", "ttl-controller", crate::node::ttl::run;
    "node-ipam-controller", "node-controller", "cidrAllocator", crate::node::ipam::run;
    "certificatesigningrequest-approving-controller", "certificate-controller", "certificate-controller", crate::certificates::approve;
    "certificatesigningrequest-signing-controller", "certificate-controller", "certificate-controller", crate::certificates::sign;
    "certificatesigningrequest-cleaner-controller", "certificate-controller", "certificate-controller", crate::certificates::clean;
    "clusterrole-aggregation-controller", "clusterrole-aggregation-controller", "clusterrole-aggregation-controller", crate::cluster_role_aggregation::run;
    "pod-garbage-collector-controller", "pod-garbage-collector", "pod-garbage-collector", crate::podgc::run;
    "validatingadmissionpolicy-status-controller", "validatingadmissionpolicy-status-controller", "validatingadmissionpolicy-status-controller", crate::policy_status::run;
}

/// Runs all controllers until `context.shutdown`. Only one process of a cluster may do so at a time: callers with
/// several hold the lease `kube-controller-manager` first.
pub fn run(context: Context) -> BoxFuture<'static, ()> {
    run_all(context).boxed()
}

async fn run_all(context: Context) {
    let informers = context.informers.unwrap_or_else(|| {
        SharedInformerFactory::new((context.client_for)(READER), context.shutdown.clone())
    });
    let options = Arc::new(context.options.clone());
    let wanted = TABLE.iter().filter(|controller| is_enabled(controller.name, &options.controllers));
    join_all(wanted.map(|controller| {
        let client = (context.client_for)(controller.account);
        let shell = Shell {
            informers: informers.clone(),
            recorder: EventRecorder::new(client.clone(), controller.component, ""),
            client,
            options: options.clone(),
            shutdown: context.shutdown.clone(),
        };
        // A task each, so that a busy controller does not hold up the others.
        tokio::spawn(supervise(controller.name, controller.run, shell))
    }))
    .await;
}

/// Runs one controller again and again: whatever kills it, the others do not notice.
async fn supervise(controller: &'static str, run: Run, shell: Shell) {
    let mut wait = Duration::from_secs(1);
    while !shell.shutdown.is_cancelled() {
        let mut own = shell.clone();
        // Ends what the controller started when it dies, before it starts again.
        own.shutdown = shell.shutdown.child_token();
        let guard = own.shutdown.clone().drop_guard();
        let started = Instant::now();
        let ended = AssertUnwindSafe(run(own)).catch_unwind().await;
        drop(guard);
        if shell.shutdown.is_cancelled() {
            break;
        }
        match ended {
            Ok(Ok(())) => info!(controller, "controller ended; starting it again"),
            Ok(Err(reason)) => error!(controller, %reason, "controller failed; starting it again"),
            Err(_) => error!(controller, "controller panicked; starting it again"),
        }
        if started.elapsed() > Duration::from_secs(60) {
            wait = Duration::from_secs(1);
        }
        let _ = shell.shutdown.run_until_cancelled(tokio::time::sleep(wait)).await;
        wait = (wait * 2).min(Duration::from_secs(60));
    }
}
