//! Runs one pod on every node that fits. Answers to upstream's `daemonset-controller`.

mod decide;
mod nodes;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_client::{EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::claim::claim_all;
use crate::deployment::template_hash;
use crate::error::{Error, unless_gone};
use crate::expectations::Expectations;
use crate::history::{self, History, Newest, REVISION_LABEL};
use crate::objects::{Meta, claimable, controller_ref, index_by_controller};
use crate::pod_control::{PodControl, pod_from_template, slow_start};
use crate::shell::Shell;
use crate::workload::queue_for_pods;
use decide::{Backoff, Plan, State};
use nodes::Demands;

/// What `spec.revisionHistoryLimit` defaults to.
const HISTORY_LIMIT: i32 = 10;

struct Controller {
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    history: History,
    expectations: Expectations,
    backoff: Mutex<Backoff>,
    control: PodControl,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        sets: shell.informers.informer(),
        pods: shell.informers.informer(),
        nodes: shell.informers.informer(),
        history: History { revisions: shell.informers.informer(), client: shell.client.clone() },
        expectations: Expectations::default(),
        backoff: Mutex::default(),
        control: PodControl { client: shell.client, recorder: shell.recorder },
    };
    index_by_controller(&controller.pods);
    index_by_controller(&controller.history.revisions);
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.history.revisions.synced().await;
    let queue = WorkQueue::named("daemonset");
    let own = queue.clone();
    controller.sets.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    queue_for_pods(&controller.pods, &controller.sets, &controller.expectations, &queue, Duration::ZERO);
    queue_for_nodes(&controller.nodes, &controller.sets, &queue);
    run_workers("daemonset-controller", queue, 2, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// Queues the sets for which a change of a node makes a difference; its heartbeats make none.
fn queue_for_nodes(nodes: &Informer<Node>, sets: &Informer<DaemonSet>, queue: &WorkQueue<ObjectKey>) {
    let (sets, queue) = (sets.clone(), queue.clone());
    nodes.subscribe(move |event| {
        let old = match event {
            InformerEvent::Updated { old, new } => {
                let about = |node: &Node| {
                    (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()))
                };
                if about(old) == about(new) {
                    return;
                }
                Some(old)
            }
            _ => None,
        };
        for set in sets.list() {
            let demands = Demands::of(&set);
            if old.is_none_or(|old| demands.fit(old) != demands.fit(event.object())) {
                queue.add(ObjectKey::of(&set.metadata));
            }
        }
    });
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        if spec.selector == Default::default() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder.event(&*set, EventType::Warning, "SelectingAll", text);
            return Ok(None);
        }
        // Its history may be gone already, and with it what the status is told by.
        if set.deleting() {
            return Ok(None);
        }
        let may_act = self.expectations.satisfied(&key);
        let candidates = claimable(&self.pods, &set.metadata);
        let pods = claim_all(&self.control.client, &*set, &spec.selector, candidates, |_| true).await?;
        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let (current, old) = self.revisions(&set, spec, &pods, &mut collisions).await?;
        let hash = current.label(REVISION_LABEL).unwrap_or_default();

        let nodes = self.nodes.list();
        let state = State {
            set: &set,
            spec,
            nodes: &nodes,
            pods: &pods,
            hash,
            collisions,
            may_act,
            now: Timestamp::now(),
        };
        let plan = decide::plan(&state, &mut self.backoff.lock());
        let worked = if may_act { self.carry_out(&key, &set, hash, &plan).await } else { Ok(()) };
        let cut = if may_act { self.cut_history(spec, old, &pods).await } else { Ok(()) };
        let again = plan.again;
        let told = self.write_status(&set, plan).await;
        Error::all([worked, cut, told].into_iter().filter_map(Result::err).collect())?;
        Ok(again)
    }

    /// The revision of the present template, made if need be, and all others, oldest first.
    async fn revisions(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        pods: &[Arc<Pod>],
        collisions: &mut Option<i32>,
    ) -> Result<(Arc<ControllerRevision>, Vec<Arc<ControllerRevision>>), Error> {
        let mut revisions = self.history.of(set, &spec.selector).await?;
        for revision in &mut revisions {
            if revision.label(REVISION_LABEL).is_none() {
                *revision = Arc::new(self.label(revision).await?);
            }
        }
        let data = history::template_patch(&spec.template);
        let current = match history::newest(&revisions, &data) {
            Newest::Is(revision) => revision,
            Newest::Renumber(revision, number) => Arc::new(self.history.renumber(&revision, number).await?),
            Newest::Create(number) => {
                let mut count = collisions.unwrap_or(0);
                let build = |count: i32| {
                    let hash = template_hash(&spec.template, Some(count).filter(|count| *count > 0));
                    history::new_revision(set, &spec.template, &data, (REVISION_LABEL, &hash), number)
                };
                let made = self.history.create(&mut count, build).await?;
                *collisions = Some(count).filter(|count| *count > 0);
                Arc::new(made)
            }
        };
        let (twins, others): (Vec<_>, Vec<_>) = revisions
            .into_iter()
            .filter(|revision| revision.name() != current.name())
            .partition(|revision| revision.data == current.data);
        self.merge(set, &current, &twins, pods).await?;
        Ok((current, others))
    }

    async fn label(&self, revision: &ControllerRevision) -> Result<ControllerRevision, Error> {
        let mut changed = revision.clone();
        let labels = changed.metadata.labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.to_owned(), revision.name().to_owned());
        let api = Api::<ControllerRevision>::namespaced(self.control.client.clone(), revision.namespace());
        Ok(api.replace(revision.name(), &PostParams::default(), &changed).await?)
    }

    /// Revisions with the same data become one: their pods get its label, and they go.
    async fn merge(
        &self,
        set: &DaemonSet,
        kept: &ControllerRevision,
        twins: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let api = Api::<Pod>::namespaced(self.control.client.clone(), set.namespace());
        let hash = kept.label(REVISION_LABEL);
        for twin in twins {
            let of_twin = |pod: &&Arc<Pod>| {
                pod.label(REVISION_LABEL).is_some() && pod.label(REVISION_LABEL) == twin.label(REVISION_LABEL)
            };
            for pod in pods.iter().filter(of_twin) {
                let body = json!({"metadata": {"labels": {REVISION_LABEL: hash}}});
                unless_gone(api.patch(pod.name(), &PatchParams::default(), &Patch::Merge(body)).await)?;
            }
            self.history.delete(twin).await?;
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        hash: &str,
        plan: &Plan,
    ) -> Result<(), Error> {
        for (kind, reason, text) in &plan.events {
            self.control.recorder.event(set, *kind, reason, text.as_str());
        }
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let uids = plan.delete.iter().map(|pod| pod.uid().to_owned());
        self.expectations.expect(key, plan.create.len(), uids);
        let pod = pod_from_template(&nodes::pod_template(set, hash), set.name(), controller_ref(set));
        let create = |place: usize| {
            let mut pod = pod.clone();
            nodes::aim(pod.spec.get_or_insert_default(), &plan.create[place]);
            async move {
                let created = self.control.create(set, &pod).await;
                if !matches!(created, Ok(true)) {
                    self.expectations.creation_observed(key);
                }
                created
            }
        };
        let (_, skipped, mut errors) = slow_start(plan.create.len(), create).await;
        (0..skipped).for_each(|_| self.expectations.creation_observed(key));
        let deletions = plan.delete.iter().map(|pod| async {
            let deleted = self.control.delete(set, pod.name()).await;
            if !matches!(deleted, Ok(true)) {
                self.expectations.deletion_observed(key, pod.uid());
            }
            deleted.err()
        });
        errors.extend(join_all(deletions).await.into_iter().flatten());
        Error::all(errors)
    }

    /// Deletes the oldest revisions that no pod is of, down to the limit.
    async fn cut_history(
        &self,
        spec: &DaemonSetSpec,
        old: Vec<Arc<ControllerRevision>>,
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let limit = usize::try_from(spec.revision_history_limit.unwrap_or(HISTORY_LIMIT)).unwrap_or(0);
        let excess = old.len().saturating_sub(limit);
        let is_live = |revision: &ControllerRevision| {
            let hash = revision.label(REVISION_LABEL);
            pods.iter().any(|pod| pod.label(REVISION_LABEL) == hash)
        };
        for revision in old.iter().filter(|revision| !is_live(revision)).take(excess) {
            self.history.delete(revision).await?;
        }
        Ok(())
    }

    async fn write_status(&self, set: &DaemonSet, plan: Plan) -> Result<(), Error> {
        if !decide::differs(set.status.as_ref(), &plan.status) {
            return Ok(());
        }
        let changed = DaemonSet { status: Some(plan.status), ..set.clone() };
        let api = Api::<DaemonSet>::namespaced(self.control.client.clone(), set.namespace());
        Ok(unless_gone(api.replace_status(set.name(), &PostParams::default(), &changed).await)?)
    }
}
