//! Leader election by a `coordination.k8s.io/v1` Lease, as client-go's `tools/leaderelection` does it.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
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

/// How a try for the lease ended.
enum Try {
    Held,
    /// Somebody else holds it.
    Foreign,
    /// Somebody else wrote to it at the same moment, perhaps no competitor.
    Conflict,
}

impl LeaderElectionOptions {
    /// How long one try may take, so that a request that hangs does not cost the lease. That is client-go's rule.
    fn patience(&self) -> Duration {
        (self.renew_deadline / 2).max(Duration::from_secs(1))
    }

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
    /// Dropped when what the leader did has stopped.
    working: DropGuard,
    renewal: JoinHandle<()>,
}

impl Leadership {
    /// To be called when what the leader did has stopped. Waits until nothing is done about the lease any more: after a
    /// shutdown, until it has been released.
    pub async fn ended(self) {
        drop(self.working);
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
        let renewed = loop {
            let begun = Instant::now();
            match shutdown.run_until_cancelled(self.try_acquire()).await? {
                Ok(Try::Held) => break begun,
                Ok(Try::Foreign | Try::Conflict) => {}
                Err(error) => warn!(lease = self.options.name, error, "cannot reach the lease; retrying"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(self.options.retry_period)).await?;
        };
        info!(lease = self.options.name, identity = self.options.identity, "became leader");
        let (lost, stopped) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(self.renew(renewed, lost.clone(), stopped.clone(), shutdown));
        Some(Leadership { lost, working: stopped.drop_guard(), renewal })
    }

    /// Renews until shutdown, or until nothing was written for the renew deadline. That counts from the beginning of the
    /// last try that succeeded: others count the lease's duration from then at the earliest, and that is longer.
    async fn renew(
        mut self,
        mut renewed: Instant,
        leading: CancellationToken,
        stopped: CancellationToken,
        shutdown: CancellationToken,
    ) {
        let lost = leading.drop_guard();
        loop {
            let deadline = renewed + self.options.renew_deadline;
            let pause = (Instant::now() + self.options.retry_period).min(deadline);
            if shutdown.run_until_cancelled(tokio::time::sleep_until(pause)).await.is_none() {
                // What the leader did must have stopped before somebody else begins.
                drop(lost);
                stopped.cancelled().await;
                self.release().await;
                return;
            }
            let begun = Instant::now();
            match tokio::time::timeout_at(deadline, self.try_acquire()).await {
                Ok(Ok(Try::Held)) => renewed = begun,
                Ok(Ok(Try::Foreign)) => break,
                Ok(Ok(Try::Conflict)) => {}
                Ok(Err(error)) => warn!(lease = self.options.name, error, "lease not renewed; retrying"),
                Err(_) => break,
            }
        }
        warn!(lease = self.options.name, identity = self.options.identity, "lost the leader lease");
    }

    /// One try: creates, renews or takes over the lease.
    async fn try_acquire(&mut self) -> Result<Try, String> {
        let patience = self.options.patience();
        match tokio::time::timeout(patience, self.try_to_write()).await {
            Ok(tried) => tried.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {patience:?}")),
        }
    }

    async fn try_to_write(&mut self) -> Result<Try, kube::Error> {
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
            return Ok(Try::Foreign);
        }
        let transitions = seen.lease_transitions.unwrap_or(0) + i32::from(!mine);
        let acquired = if mine { seen.acquire_time.unwrap_or(now.clone()) } else { now.clone() };
        lease.spec = Some(self.record(acquired, now, transitions));
        self.settle(self.leases.replace(&self.options.name, &PostParams::default(), &lease).await)
    }

    fn settle(&mut self, written: Result<Lease, kube::Error>) -> Result<Try, kube::Error> {
        match written {
            Ok(lease) => {
                self.observed = lease.spec.map(|spec| (spec, Instant::now()));
                Ok(Try::Held)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Try::Conflict),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use http::{Method, Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tower::{BoxError, service_fn};

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Link {
        Whole,
        /// Every request fails at once.
        Refuses,
        /// No request is answered.
        Silent,
        /// Requests arrive; answers do not.
        Deaf,
    }

    /// The one lease, with a version that each write must name.
    type Store = Arc<Mutex<(u64, Option<Value>)>>;

    fn serve(store: &Store, method: &Method, body: &[u8]) -> (u16, Value) {
        let mut store = store.lock();
        let failure = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}))
        };
        if *method == Method::GET {
            return store.1.clone().map_or_else(|| failure(404, "NotFound"), |lease| (200, lease));
        }
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        if *method == Method::PUT && lease["metadata"]["resourceVersion"] != json!(store.0.to_string()) {
            return failure(409, "Conflict");
        }
        store.0 += 1;
        lease["metadata"]["resourceVersion"] = json!(store.0.to_string());
        store.1 = Some(lease.clone());
        (200, lease)
    }

    /// A client at the end of a link.
    fn client(store: &Store, link: &Arc<Mutex<Link>>) -> kube::Client {
        let (store, link) = (store.clone(), link.clone());
        let transport = service_fn(move |request: Request<Body>| {
            let (store, link) = (store.clone(), *link.lock());
            async move {
                match link {
                    Link::Refuses => return Err::<_, BoxError>("connection reset by peer".into()),
                    Link::Silent => std::future::pending().await,
                    Link::Whole | Link::Deaf => {}
                }
                let (parts, body) = request.into_parts();
                let (code, answer) = serve(&store, &parts.method, &body.collect().await?.to_bytes());
                if link == Link::Deaf {
                    std::future::pending::<()>().await;
                }
                Ok(Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))?)
            }
        });
        kube::Client::new(transport, "default")
    }

    fn elect(store: &Store, link: &Arc<Mutex<Link>>, name: &str) -> BoxFuture<'static, Option<Leadership>> {
        let options = LeaderElectionOptions::new("tested", name);
        LeaderElection::new(client(store, link), options).lead(CancellationToken::new())
    }

    async fn pass(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_cut_changes_nothing_and_a_long_one_hands_over() {
        for cut in [Link::Refuses, Link::Silent, Link::Deaf] {
            // Wherever in the round of renewals it happens.
            for offset in [0, 700, 1990] {
                let (store, link) = (Store::default(), Arc::new(Mutex::new(Link::Whole)));
                let first = elect(&store, &link, "first").await.unwrap();
                let second = tokio::spawn(elect(&store, &Arc::new(Mutex::new(Link::Whole)), "second"));
                pass(10_000 + offset).await;
                *link.lock() = cut;
                pass(3000).await;
                *link.lock() = Link::Whole;
                pass(20_000).await;
                assert!(
                    !first.lost.is_cancelled() && !second.is_finished(),
                    "3 s are less than the deadline"
                );

                *link.lock() = cut;
                let begun = Instant::now();
                first.lost.cancelled().await;
                let stopped = begun.elapsed();
                assert!(
                    stopped >= Duration::from_secs(8) && stopped <= Duration::from_secs(10),
                    "{stopped:?}"
                );
                assert!(!second.is_finished(), "the first stops before the second begins");
                second.await.unwrap().unwrap();
                let taken = begun.elapsed();
                // What arrived without an answer has renewed the lease.
                let late = if cut == Link::Deaf { 28 } else { 18 };
                assert!(taken > stopped && taken <= Duration::from_secs(late), "{taken:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn somebody_else_who_writes_to_the_lease_is_no_competitor() {
        let (store, link) = (Store::default(), Arc::new(Mutex::new(Link::Whole)));
        let first = elect(&store, &link, "first").await.unwrap();
        for _ in 0..100 {
            pass(333).await;
            let mut store = store.lock();
            store.0 += 1;
            let version = store.0.to_string();
            let lease = store.1.as_mut().unwrap();
            lease["metadata"]["resourceVersion"] = json!(version);
            lease["metadata"]["annotations"]["note"] = json!(version);
        }
        assert!(!first.lost.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_given_back_when_the_work_has_stopped() {
        let (store, link) = (Store::default(), Arc::new(Mutex::new(Link::Whole)));
        let options = LeaderElectionOptions::new("tested", "first");
        let stop = CancellationToken::new();
        let first = LeaderElection::new(client(&store, &link), options).lead(stop.clone()).await.unwrap();
        let holder = || store.lock().1.clone().unwrap()["spec"]["holderIdentity"].clone();
        stop.cancel();
        first.lost.cancelled().await;
        pass(3000).await;
        assert_eq!(holder(), "first", "it has not said that it has stopped");
        first.ended().await;
        assert_eq!(holder(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_can_be_told_to_stop_whatever_the_link_does() {
        for state in [Link::Whole, Link::Refuses, Link::Silent] {
            let store = Store::default();
            let _first = elect(&store, &Arc::new(Mutex::new(Link::Whole)), "first").await.unwrap();
            let options = LeaderElectionOptions::new("tested", "second");
            let (stop, link) = (CancellationToken::new(), Arc::new(Mutex::new(state)));
            let second = tokio::spawn(LeaderElection::new(client(&store, &link), options).lead(stop.clone()));
            pass(20_000).await;
            stop.cancel();
            assert!(second.await.unwrap().is_none());
        }
    }
}
