//! The binding cycle: permit, pre-bind and bind, in a task of its own for each pod.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use super::{Message, Scheduler, refused_by};
use crate::cache::NodeIndex;
use crate::extender::Extender;
use crate::framework::status::{Diagnosis, Status};
use crate::framework::{ClusterEvent, ExtensionPoint, Framework, Permit, Reservation};
use crate::metrics::{self, Attempt, Outcome};
use crate::pod_info::PodInfo;
use crate::shell::{Nomination, Shell};

/// Answers that a binding waits for.
pub type Waits = Vec<(&'static str, Duration, oneshot::Receiver<Result<(), Status>>)>;

/// Asks all plugins whether a pod may be bound.
pub fn permit(framework: &Framework, pod: &PodInfo, node: &str) -> Result<Waits, Status> {
    let mut waits = Waits::new();
    for plugin in framework.at(ExtensionPoint::Permit) {
        match plugin.permit(pod, node).map_err(|status| status.by(plugin.name()))? {
            Permit::Allow => {}
            Permit::Wait(timeout, answer) => waits.push((plugin.name(), timeout, answer)),
        }
    }
    Ok(waits)
}

struct Binding {
    framework: Arc<Framework>,
    extenders: Arc<[Extender]>,
    shell: Arc<Shell>,
    pod: Arc<PodInfo>,
    node: String,
    reservations: Vec<Box<dyn Reservation>>,
    /// Kept here: once the pod is seen bound, the queue knows it no more.
    attempt: Option<Attempt>,
}

impl Binding {
    async fn run(&self, waits: Waits) -> Result<(), Status> {
        for (plugin, timeout, answer) in waits {
            let answer = tokio::time::timeout(timeout, answer).await;
            match answer {
                Ok(Ok(verdict)) => verdict.map_err(|status| status.by(plugin))?,
                Ok(Err(_)) => return Err(Status::unschedulable("waiting pod was forgotten").by(plugin)),
                Err(_) => {
                    return Err(Status::unschedulable("rejected due to timeout after waiting").by(plugin));
                }
            }
        }
        if !self.reservations.is_empty() {
            // It may take a while; others should know where the pod is going (KEP-5278).
            self.shell.write_status(&self.pod, None, Nomination::Set(self.node.clone()));
        }
        for reservation in &self.reservations {
            reservation.pre_bind(self.shell.clone()).await?;
        }
        self.bind().await
    }

    async fn bind(&self) -> Result<(), Status> {
        for extender in self.extenders.iter() {
            if !extender.is_binder() || !extender.is_interested(&self.pod) {
                continue;
            }
            match extender.bind(&self.pod, &self.node).await {
                Err(error) if extender.is_ignorable() => debug!(%error, "extender skipped"),
                result => return result.map_err(|error| Status::error(error.to_string())),
            }
        }
        for plugin in self.framework.at(ExtensionPoint::Bind) {
            if let Some(bound) = plugin.bind(&self.pod, &self.node, &self.shell) {
                return bound.await;
            }
        }
        Err(Status::error("no bind plugin took the pod"))
    }
}

impl Scheduler {
    /// Binds an assumed pod in the background.
    pub(super) fn bind(
        &self,
        framework: &Arc<Framework>,
        pod: &Arc<PodInfo>,
        node: String,
        reservations: Vec<Box<dyn Reservation>>,
        waits: Waits,
    ) {
        let binding = Binding {
            framework: framework.clone(),
            extenders: self.extenders.clone(),
            shell: self.shell.clone(),
            pod: pod.clone(),
            node,
            reservations,
            attempt: self.queue.attempt(&pod.key),
        };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let result = binding.run(waits).await;
            if result.is_ok() {
                binding.shell.scheduled(&binding.pod, &binding.node);
            }
            let done: Message = Box::new(move |scheduler| scheduler.bound(binding, result));
            // Fails only once the loop has ended.
            let _ = sender.send(done);
        });
    }

    fn bound(&mut self, binding: Binding, result: Result<(), Status>) {
        let pod = &binding.pod;
        // A pod of the same name may have come in its place.
        let same = self.queue.get(&pod.key).is_some_and(|known| known.uid == pod.uid);
        let Err(status) = result else {
            self.cache.finish_binding(&pod.key, self.expiry.map(|expiry| Instant::now() + expiry));
            if same {
                self.queue.remove(&pod.key);
            }
            if let Some(attempt) = binding.attempt {
                metrics::attempted(pod.scheduler_name(), Outcome::Scheduled, attempt);
            }
            for plugin in binding.framework.at(ExtensionPoint::PostBind) {
                plugin.post_bind(pod, &binding.node);
            }
            return;
        };
        binding.reservations.iter().rev().for_each(|held| held.unreserve(&mut self.cache));
        let still_assumed = self.cache.is_assumed(&pod.key)
            && self.cache.placed(&pod.key).is_some_and(|(assumed, _)| assumed.uid == pod.uid);
        if still_assumed && let Some(pod) = self.cache.displace(&pod.key) {
            self.event(&ClusterEvent::assigned_pod_deleted(pod));
        }
        if !same {
            // Deleted or bound by somebody else meanwhile: none of ours any more.
            debug!(pod = %pod.key, node = binding.node, %status, "not bound");
            return;
        }
        if status.is_rejected() {
            let mut diagnosis = Diagnosis::new(1);
            let plugin = refused_by(&status);
            diagnosis.refuse(NodeIndex(0), &status.by(plugin));
            self.rejected(pod, diagnosis, Nomination::Clear);
        } else {
            self.errored(pod, &status.message());
        }
    }
}
