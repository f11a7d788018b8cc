//! Leader election by a `coordination.k8s.io/v1` Lease, as client-go's `tools/leaderelection` does it.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Where and how to compete.
#[derive(Debug, Clone)]
pub struct LeaderElectionOptions {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease, e.g. `kube-scheduler`.
    pub name: String,
    /// Who we are; unique among the competitors.
    pub identity: String,
    /// How long a lease holds without renewal. Upstream: 15 s.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up. Upstream: 10 s. Shorter than `lease_duration`.
    pub renew_deadline: Duration,
    /// Pause between tries. Upstream: 2 s.
    pub retry_period: Duration,
}

impl LeaderElectionOptions {
    /// Upstream's defaults, with the Lease in `kube-system`.
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// What is wrong with the times, in client-go's words.
    pub fn check(&self) -> Result<(), &'static str> {
        // How far client-go spreads its tries.
        const JITTER: f64 = 1.2;
        if self.lease_duration <= self.renew_deadline {
            return Err("leaseDuration must be greater than renewDeadline");
        }
        if self.renew_deadline <= self.retry_period.mul_f64(JITTER) {
            return Err("renewDeadline must be greater than retryPeriod*JitterFactor");
        }
        if self.retry_period.is_zero() {
            return Err("retryPeriod must be greater than zero");
        }
        Ok(())
    }
}

/// What the leader holds.
pub struct Leadership {
    /// Cancelled when this process no longer leads: it must stop at once then.
    pub lost: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Leadership {
    /// Waits until nothing is done about the lease any more: after a shutdown, until it has been released.
    pub async fn ended(self) {
        // It panics only with the process.
        let _ = self.renewal.await;
    }
}

/// One competitor.
pub struct LeaderElection {
    leases: Api<Lease>,
    options: LeaderElectionOptions,
    /// The record last seen, and when we saw it change: remote clocks are not trusted.
    observed: Option<(LeaseSpec, Instant)>,
}

impl LeaderElection {
    /// A competitor that writes its Lease through `client`.
    pub fn new(client: kube::Client, options: LeaderElectionOptions) -> Self {
        Self { leases: Api::namespaced(client, &options.namespace), options, observed: None }
    }

    /// Waits until this process leads. `None` when `shutdown` came first. On shutdown the lease is released for the
    /// next one.
    pub fn lead(self, shutdown: CancellationToken) -> BoxFuture<'static, Option<Leadership>> {
        Box::pin(self.acquire(shutdown))
    }

    async fn acquire(mut self, shutdown: CancellationToken) -> Option<Leadership> {
        loop {
            match self.try_acquire().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => warn!(lease = self.options.name, %error, "cannot reach the lease; retrying"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(self.options.retry_period)).await?;
        }
        info!(lease = self.options.name, identity = self.options.identity, "became leader");
        let lost = CancellationToken::new();
        let renewal = tokio::spawn(self.renew(lost.clone(), shutdown));
        Some(Leadership { lost, renewal })
    }

    async fn renew(mut self, leading: CancellationToken, shutdown: CancellationToken) {
        let lost = leading.drop_guard();
        let mut renewed = Instant::now();
        loop {
            if shutdown.run_until_cancelled(tokio::time::sleep(self.options.retry_period)).await.is_none() {
                // What the leader did must have stopped before somebody else begins.
                drop(lost);
                self.release().await;
                return;
            }
            match tokio::time::timeout(self.options.renew_deadline, self.try_acquire()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => break,
                Ok(Err(error)) => warn!(lease = self.options.name, %error, "lease not renewed; retrying"),
                Err(_) => warn!(lease = self.options.name, "lease not renewed in time; retrying"),
            }
            if renewed.elapsed() >= self.options.renew_deadline {
                break;
            }
        }
        warn!(lease = self.options.name, identity = self.options.identity, "lost the leader lease");
    }

    /// One try: creates, renews or takes over the lease. `false` when somebody else holds it.
    async fn try_acquire(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.leases.get_opt(&self.options.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.options.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.record(now.clone(), now, 0)),
            };
            return self.settle(self.leases.create(&PostParams::default(), &lease).await);
        };
        let seen = lease.spec.clone().unwrap_or_default();
        let since = match &self.observed {
            Some((known, since)) if *known == seen => *since,
            _ => Instant::now(),
        };
        self.observed = Some((seen.clone(), since));
        let holder = seen.holder_identity.unwrap_or_default();
        let mine = holder == self.options.identity;
        let held_for =
            Duration::from_secs(seen.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs().into());
        if !mine && !holder.is_empty() && since.elapsed() < held_for {
            return Ok(false);
        }
        let transitions = seen.lease_transitions.unwrap_or(0) + i32::from(!mine);
        let acquired = if mine { seen.acquire_time.unwrap_or(now.clone()) } else { now.clone() };
        lease.spec = Some(self.record(acquired, now, transitions));
        self.settle(self.leases.replace(&self.options.name, &PostParams::default(), &lease).await)
    }

    fn settle(&mut self, written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match written {
            Ok(lease) => {
                self.observed = lease.spec.map(|spec| (spec, Instant::now()));
                Ok(true)
            }
            // Another competitor was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&self) {
        let Ok(Some(mut lease)) = self.leases.get_opt(&self.options.name).await else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() == Some(&self.options.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            // If this fails the lease simply runs out.
            let _ = self.leases.replace(&self.options.name, &PostParams::default(), &lease).await;
        }
    }

    fn record(&self, acquired: MicroTime, renewed: MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: i32::try_from(self.options.lease_duration.as_secs()).ok(),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}
