//! The loop: informers feed it, it decides, and tasks of their own write what it has decided.

mod binding;
mod feed;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use orlop_client::{ObjectKey, SharedInformerFactory};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::cache::{Cache, NodeIndex};
use crate::config::{ConfigError, KubeSchedulerConfiguration};
use crate::dynamic_resources::beneficiary;
use crate::extender::{self, Extender};
use crate::framework::status::{Diagnosis, Status};
use crate::framework::{
    ClusterEvent, EventResource, ExtensionPoint, Framework, PostFilter, QueueingHint, SortKey,
};
use crate::metrics::{self, Outcome};
use crate::nominator::Nominator;
use crate::plugins;
use crate::pod_info::PodInfo;
use crate::preemption::{Preemption, select_candidate};
use crate::queue::{Policy, SchedulingQueue};
use crate::schedule::{Cursor, Cycle, Feasible, select_host};
use crate::shared::Shared;
use crate::shell::{Caches, Nomination, Refusal, Shell};

/// What a scheduler is told at its start.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Profiles, extenders and all else; by default one profile with upstream's plugins.
    pub configuration: Option<KubeSchedulerConfiguration>,
    /// How long a bound pod is counted on its node without having been seen there; forever by default, as upstream.
    pub assumed_pod_expiry: Option<Duration>,
}

/// Something for the loop to do.
type Message = Box<dyn FnOnce(&mut Scheduler) + Send>;

/// Schedules pods until `shutdown`. Fails when the configuration cannot be used.
pub fn run(
    factory: SharedInformerFactory,
    options: Options,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), ConfigError>> {
    Box::pin(start(factory, options, shutdown))
}

async fn start(
    factory: SharedInformerFactory,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), ConfigError> {
    let configuration = options.configuration.clone().unwrap_or_else(KubeSchedulerConfiguration::defaulted);
    let registry = plugins::registry();
    let mut profiles = HashMap::new();
    for profile in &configuration.profiles {
        let framework = Framework::new(profile, &registry)?;
        profiles.insert(framework.scheduler_name.clone(), Arc::new(framework));
    }
    let mut extenders = Vec::new();
    for extender in &configuration.extenders {
        extenders.push(Extender::new(extender.clone()).await?);
    }
    let (sender, messages) = mpsc::unbounded_channel();
    let names: Vec<_> = profiles.keys().cloned().collect();
    let caches = Caches {
        nodes: factory.informer(),
        volumes: factory.informer(),
        claims: factory.informer(),
        pods: factory.informer::<Pod>(),
        resource_claims: factory.informer(),
    };
    let shell = Shell::new(factory.client().clone(), &names, caches);
    feed::subscribe(&factory, &sender).await;
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
    let scheduler = Scheduler {
        profiles,
        extenders: extenders.into(),
        cache: Cache::default(),
        queue: SchedulingQueue::new(
            seconds(configuration.pod_initial_backoff_seconds),
            seconds(configuration.pod_max_backoff_seconds),
        ),
        nominator: Nominator::default(),
        cursor: Cursor::default(),
        shared: Shared::default(),
        percentage: configuration.percentage_of_nodes_to_score.unwrap_or(0),
        expiry: options.assumed_pod_expiry,
        shell,
        sender,
    };
    metrics::begin();
    // A thread of its own: a long cycle keeps no worker of the runtime from others, and their tasks do not keep the
    // next pod waiting. It ends when nobody waits for it any more, too.
    let shutdown = shutdown.child_token();
    let _stop = shutdown.clone().drop_guard();
    let runtime = Handle::current();
    let work = tokio::task::spawn_blocking(move || runtime.block_on(scheduler.work(messages, shutdown)));
    if let Err(panicked) = work.await
        && let Ok(panic) = panicked.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
    Ok(())
}

struct Scheduler {
    /// By `spec.schedulerName`.
    profiles: HashMap<String, Arc<Framework>>,
    extenders: Arc<[Extender]>,
    cache: Cache,
    queue: SchedulingQueue,
    nominator: Nominator,
    cursor: Cursor,
    shared: Shared,
    percentage: i32,
    expiry: Option<Duration>,
    shell: Arc<Shell>,
    sender: mpsc::UnboundedSender<Message>,
}

/// The plugins' view of waiting pods.
struct Judge<'a> {
    profiles: &'a HashMap<String, Arc<Framework>>,
    cache: &'a Cache,
}

impl Judge<'_> {
    fn framework(&self, pod: &PodInfo) -> Option<&Arc<Framework>> {
        self.profiles.get(pod.scheduler_name())
    }
}

impl Policy for Judge<'_> {
    fn gate(&self, pod: &PodInfo) -> Option<&'static str> {
        self.framework(pod)?.run_pre_enqueue(pod, self.cache).err().map(|status| status.plugin)
    }

    fn sort_key(&self, pod: &PodInfo, sequence: u64) -> SortKey {
        let sorter =
            self.framework(pod).and_then(|framework| framework.at(ExtensionPoint::QueueSort).first());
        sorter.map_or((0, sequence), |plugin| plugin.queue_sort(pod, sequence))
    }

    fn hint(&self, plugin: &'static str, pod: &PodInfo, event: &ClusterEvent) -> QueueingHint {
        self.framework(pod)
            .map_or(QueueingHint::Queue, |framework| framework.hint(plugin, pod, event, self.cache))
    }
}

impl Scheduler {
    async fn work(mut self, mut messages: mpsc::UnboundedReceiver<Message>, shutdown: CancellationToken) {
        loop {
            while let Ok(message) = messages.try_recv() {
                message(&mut self);
            }
            let now = Instant::now();
            self.expire(now);
            let judge = Judge { profiles: &self.profiles, cache: &self.cache };
            if let Some(pod) = self.queue.pop(&judge, now) {
                metrics::pending(self.queue.pending());
                self.schedule_one(pod).await;
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            metrics::pending(self.queue.pending());
            let wake = self.queue.next_wake().into_iter().chain(self.cache.next_expiry()).min();
            let alarm = async {
                match wake {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = alarm => {}
                message = messages.recv() => match message {
                    Some(message) => message(&mut self),
                    None => return,
                },
            }
        }
    }

    /// Gives up assumed pods that were never seen bound.
    fn expire(&mut self, now: Instant) {
        if self.expiry.is_none() {
            return;
        }
        for key in self.cache.expired(now) {
            if let Some(pod) = self.cache.displace(&key) {
                self.event(&ClusterEvent::assigned_pod_deleted(pod));
            }
        }
    }

    fn event(&mut self, event: &ClusterEvent) {
        let judge = Judge { profiles: &self.profiles, cache: &self.cache };
        let concerned = self.profiles.values().flat_map(|framework| framework.concerned(event));
        let concerned = concerned.map(|plugin| plugin.name());
        self.queue.event(event, concerned, &judge, Instant::now());
    }

    /// A pod that is new or has changed.
    fn pod_changed(&mut self, old: Option<Arc<Pod>>, new: Arc<Pod>) {
        let info = Arc::new(PodInfo::new(new));
        if let Some(node) = info.node_name().map(str::to_owned) {
            self.assigned_pod_changed(info, &node);
            return;
        }
        let ours = self.profiles.contains_key(info.scheduler_name());
        if !ours || info.is_terminal() || info.terminating {
            self.forget_waiting(&info.key);
            return;
        }
        // Until it is seen bound, what the API server shows of an assumed pod is old news.
        if self.cache.placed(&info.key).is_some_and(|(assumed, _)| assumed.uid == info.uid) {
            return;
        }
        self.unscheduled_pod_changed(old, info);
    }

    fn assigned_pod_changed(&mut self, info: Arc<PodInfo>, node: &str) {
        self.forget_waiting(&info.key);
        if info.is_terminal() {
            if let Some(pod) = self.cache.displace(&info.key) {
                self.event(&ClusterEvent::assigned_pod_deleted(pod));
            }
            return;
        }
        let assumed = self.cache.is_assumed(&info.key);
        let before = self.cache.placed(&info.key).map(|(pod, on)| (pod.clone(), on.name == node));
        self.cache.place(info.clone(), node);
        match before {
            // What was assumed is confirmed: others may have waited for it.
            Some((old, true)) if old.uid == info.uid && assumed => {
                self.event(&ClusterEvent::assigned_pod_added(info));
            }
            Some((old, true)) if old.uid == info.uid => {
                if let Some(event) = ClusterEvent::pod_updated(EventResource::AssignedPod, &old, &info) {
                    self.event(&event);
                }
            }
            Some((old, _)) => {
                self.event(&ClusterEvent::assigned_pod_deleted(old));
                self.event(&ClusterEvent::assigned_pod_added(info));
            }
            None => self.event(&ClusterEvent::assigned_pod_added(info)),
        }
    }

    fn unscheduled_pod_changed(&mut self, old: Option<Arc<Pod>>, info: Arc<PodInfo>) {
        let replaced = self.queue.get(&info.key).is_some_and(|known| known.uid != info.uid);
        if replaced {
            self.forget_waiting(&info.key);
        }
        let old = old.map(|old| Arc::new(PodInfo::new(old)));
        let event = old.and_then(|old| ClusterEvent::pod_updated(EventResource::TargetPod, &old, &info));
        match info.nominated_node_name() {
            Some(node) if self.nominator.node_of(&info.key).is_none() => {
                let node = node.to_owned();
                self.nominator.nominate(info.clone(), &node);
            }
            _ => self.nominator.update(&info),
        }
        let judge = Judge { profiles: &self.profiles, cache: &self.cache };
        self.queue.set(info, event.as_ref(), &judge, Instant::now());
    }

    fn pod_gone(&mut self, key: &ObjectKey) {
        self.forget_waiting(key);
        if let Some(pod) = self.cache.displace(key) {
            // Its claim may have come and gone unseen.
            self.cache.claims.release(&beneficiary(&pod));
            self.event(&ClusterEvent::assigned_pod_deleted(pod));
        }
    }

    /// A waiting pod that is not ours to schedule any more. What it was nominated to is free for others.
    fn forget_waiting(&mut self, key: &ObjectKey) {
        self.queue.remove(key);
        self.nominator.remove(key);
    }

    async fn schedule_one(&mut self, pod: Arc<PodInfo>) {
        let Some(framework) = self.profiles.get(pod.scheduler_name()).cloned() else {
            self.queue.remove(&pod.key);
            return;
        };
        framework.prepare(&pod, &mut self.cache);
        let extended =
            self.extenders.iter().any(|extender| extender.is_filter() || extender.is_prioritizer());
        let cycle = Cycle {
            framework: &framework,
            cache: &self.cache,
            nominator: &self.nominator,
            percentage: self.percentage,
            extenders: extended,
        };
        self.shared.begin(&framework, &pod);
        let found = cycle.find_feasible(&pod, &mut self.cursor, &mut self.shared);
        let mut feasible = match found {
            Ok(feasible) => feasible,
            Err(status) => return self.errored(&pod, &status.message()),
        };
        if let Err(message) = self.ask_extenders_to_filter(&pod, &mut feasible).await {
            return self.errored(&pod, &message);
        }
        match feasible.nodes.as_slice() {
            [] => self.no_node(&framework, &pod, feasible.diagnosis).await,
            [only] => self.place(&framework, &pod, *only),
            nodes => {
                let nodes = nodes.to_vec();
                let cycle = Cycle {
                    framework: &framework,
                    cache: &self.cache,
                    nominator: &self.nominator,
                    percentage: self.percentage,
                    extenders: extended,
                };
                let mut scores = cycle.prioritize(&pod, &nodes, &mut self.shared);
                self.ask_extenders_to_prioritize(&pod, &nodes, &mut scores).await;
                if let Some(node) = select_host(&nodes, &scores, &mut rand::rng()) {
                    self.place(&framework, &pod, node);
                }
            }
        }
    }

    async fn ask_extenders_to_filter(
        &mut self,
        pod: &PodInfo,
        feasible: &mut Feasible,
    ) -> Result<(), String> {
        let extenders = self.extenders.clone();
        for extender in
            extenders.iter().filter(|extender| extender.is_filter() && extender.is_interested(pod))
        {
            if feasible.nodes.is_empty() {
                break;
            }
            let arguments = extender.filter_arguments(pod, &feasible.nodes, &self.cache);
            match extender.filter(&arguments).await {
                Ok(filtered) => filtered.apply(&mut feasible.nodes, &self.cache, &mut feasible.diagnosis),
                Err(error) if extender.is_ignorable() => debug!(%error, "extender skipped"),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    async fn ask_extenders_to_prioritize(&self, pod: &PodInfo, nodes: &[NodeIndex], scores: &mut [i64]) {
        let extenders = self.extenders.clone();
        for extender in
            extenders.iter().filter(|extender| extender.is_prioritizer() && extender.is_interested(pod))
        {
            let arguments = extender.filter_arguments(pod, nodes, &self.cache);
            match extender.prioritize(&arguments).await {
                Ok(own) => {
                    for (node, score) in nodes.iter().zip(&mut *scores) {
                        *score += own.get(&self.cache.node(*node).name).copied().unwrap_or(0);
                    }
                }
                // Others may still have a preference.
                Err(error) => debug!(%error, "extender has no scores"),
            }
        }
    }

    /// From here on what the pod needs is taken; the binding follows in its own time.
    fn place(&mut self, framework: &Arc<Framework>, pod: &Arc<PodInfo>, node: NodeIndex) {
        let name = self.cache.node(node).name.clone();
        self.cache.assume(pod.clone(), node);
        self.nominator.remove(&pod.key);
        let refused = match framework.run_reserve(pod, &name, &mut self.cache) {
            Err(status) => status,
            Ok(reservations) => match binding::permit(framework, pod, &name) {
                Ok(waits) => {
                    self.bind(framework, pod, name, reservations, waits);
                    return;
                }
                Err(status) => {
                    reservations.iter().rev().for_each(|held| held.unreserve(&mut self.cache));
                    status
                }
            },
        };
        self.cache.displace(&pod.key);
        if !refused.is_rejected() {
            return self.errored(pod, &refused.message());
        }
        let mut diagnosis = Diagnosis::new(1);
        diagnosis.refuse(node, &refused);
        self.rejected(pod, diagnosis, Nomination::Clear);
    }

    /// No node can take the pod: perhaps one can when room is made.
    async fn no_node(&mut self, framework: &Arc<Framework>, pod: &Arc<PodInfo>, mut diagnosis: Diagnosis) {
        if diagnosis.nodes == 0 {
            return self.rejected(pod, diagnosis, Nomination::Clear);
        }
        let plugins = framework.at(ExtensionPoint::PostFilter);
        let mut nomination = if plugins.is_empty() { Nomination::Clear } else { Nomination::Keep };
        let mut messages = Vec::new();
        for plugin in plugins {
            match plugin.post_filter(framework, pod, &self.cache, &diagnosis, &self.nominator) {
                PostFilter::Preempt(preemption) => {
                    if let Some(node) = self.preempt(pod, preemption).await {
                        messages.clear();
                        nomination = Nomination::Set(node);
                        break;
                    }
                    messages.push("preemption: no candidate node for preemption".to_owned());
                }
                PostFilter::Deallocate(claim) => {
                    let shell = self.shell.clone();
                    tokio::spawn(async move {
                        if let Err(error) = shell.update_claim_status(&claim).await {
                            warn!(claim = %ObjectKey::of(&claim.metadata), %error, "not deallocated");
                        }
                    });
                    diagnosis.pending_plugins.insert(plugin.name());
                    messages = vec!["deallocation of ResourceClaim completed".to_owned()];
                    break;
                }
                PostFilter::DeleteClaim(claim) => {
                    self.shell.delete_claim(*claim);
                    diagnosis.pending_plugins.insert(plugin.name());
                    messages = vec!["deletion of ResourceClaim completed".to_owned()];
                    break;
                }
                PostFilter::Unschedulable { message, clear } => {
                    if clear {
                        nomination = Nomination::Clear;
                    }
                    messages.push(message);
                }
                PostFilter::Unresolvable(message) => {
                    messages = vec![message];
                    break;
                }
                PostFilter::Error(message) => {
                    error!(pod = %pod.key, plugin = plugin.name(), message, "post filter failed");
                    messages = vec![message];
                    break;
                }
            }
        }
        messages.retain(|message| !message.is_empty());
        diagnosis.post_filter = messages.join(", ");
        self.rejected(pod, diagnosis, nomination);
    }

    /// Begins to evict the victims of the best candidate. Gives the node where.
    async fn preempt(&mut self, pod: &Arc<PodInfo>, preemption: Preemption) -> Option<String> {
        let mut candidates = preemption.candidates;
        let extenders = self.extenders.clone();
        let able = |extender: &&Extender| extender.supports_preemption() && extender.is_interested(pod);
        for extender in extenders.iter().filter(able) {
            match extender.process_preemption(pod, &candidates).await {
                Ok(agreed) => candidates = agreed,
                Err(error) if extender.is_ignorable() => debug!(%error, "extender skipped"),
                Err(error) => {
                    error!(pod = %pod.key, %error, "no preemption");
                    return None;
                }
            }
        }
        let best = select_candidate(&candidates)?.clone();
        let node = best.node.clone();
        metrics::victims(best.victims.len());
        // Less important pods that hoped for the same room will not fit any more.
        let others = self.nominator.on(&node).to_vec();
        for other in others.iter().filter(|other| other.priority < pod.priority) {
            self.nominator.remove(&other.key);
            self.shell.write_status(other, None, Nomination::Clear);
        }
        self.cache.preempting.insert(pod.uid.clone());
        let (shell, sender, pod) = (self.shell.clone(), self.sender.clone(), pod.clone());
        tokio::spawn(async move {
            shell.evict(&pod, &best).await;
            let done: Message = Box::new(move |scheduler| scheduler.preempted(&pod));
            // Fails only once the loop has ended.
            let _ = sender.send(done);
        });
        Some(node)
    }

    /// The evictions for a pod are written.
    fn preempted(&mut self, pod: &PodInfo) {
        self.cache.preempting.remove(&pod.uid);
        let judge = Judge { profiles: &self.profiles, cache: &self.cache };
        self.queue.ungate(&pod.key, &judge, Instant::now());
    }

    /// Puts a pod back that no node can take, and says why.
    fn rejected(&mut self, pod: &Arc<PodInfo>, diagnosis: Diagnosis, nomination: Nomination) {
        let message = diagnosis.to_string();
        debug!(pod = %pod.key, message, "unschedulable");
        self.attempted(pod, Outcome::Unschedulable);
        let (rejected, pending) = (diagnosis.unschedulable_plugins, diagnosis.pending_plugins);
        self.queue.unschedulable(&pod.key, rejected, pending, Instant::now());
        match &nomination {
            Nomination::Set(node) => self.nominator.nominate(pod.clone(), node),
            Nomination::Clear => self.nominator.remove(&pod.key),
            Nomination::Keep => {}
        }
        self.report(pod, Refusal { reason: "Unschedulable", message }, nomination);
    }

    /// Puts a pod back for which something failed.
    fn errored(&mut self, pod: &Arc<PodInfo>, message: &str) {
        error!(pod = %pod.key, message, "scheduling failed; trying again");
        self.attempted(pod, Outcome::Error);
        self.queue.failed(&pod.key, Instant::now());
        self.nominator.remove(&pod.key);
        let refusal = Refusal { reason: "SchedulerError", message: message.to_owned() };
        self.report(pod, refusal, Nomination::Clear);
    }

    fn attempted(&self, pod: &PodInfo, outcome: Outcome) {
        if let Some(attempt) = self.queue.attempt(&pod.key) {
            metrics::attempted(pod.scheduler_name(), outcome, attempt);
        }
    }

    fn report(&self, pod: &Arc<PodInfo>, refusal: Refusal, nomination: Nomination) {
        self.shell.failed_scheduling(pod, &refusal.message);
        // The newest state knows best what its status says.
        let newest = self.queue.get(&pod.key).unwrap_or(pod);
        self.shell.write_status(newest, Some(refusal), nomination);
    }
}

/// A refusal that came after a node was chosen.
fn refused_by(status: &Status) -> &'static str {
    if status.plugin.is_empty() { extender::NAME } else { status.plugin }
}
