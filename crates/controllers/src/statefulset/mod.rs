//! Keeps pods with a name and storage of their own, made and replaced in order. Answers to upstream's
//! `statefulset-controller`.

mod claims;
mod decide;
mod identity;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::claim::claim_all;
use crate::error::{Error, is_already_exists, is_namespace_terminating, is_not_found, message, unless_gone};
use crate::expectations::Expectations;
use crate::history::{self, History, Newest};
use crate::objects::{Meta, claimable, index_by_controller};
use crate::pod_control::slow_start;
use crate::shell::Shell;
use crate::workload::queue_for_pods;
use claims::ClaimWork;
use decide::{Op, Plan, Revision, State};

/// The label under which a revision carries its own hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// What `spec.revisionHistoryLimit` defaults to.
const HISTORY_LIMIT: i32 = 10;

struct Controller {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    history: History,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        sets: shell.informers.informer(),
        pods: shell.informers.informer(),
        claims: shell.informers.informer(),
        history: History { revisions: shell.informers.informer(), client: shell.client.clone() },
        client: shell.client,
        recorder: shell.recorder,
    };
    index_by_controller(&controller.pods);
    index_by_controller(&controller.history.revisions);
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.history.revisions.synced().await;
    let queue = WorkQueue::named("statefulset");
    let own = queue.clone();
    controller.sets.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    // Its pods have names, so a stale cache cannot make a double: there is nothing to expect.
    queue_for_pods(&controller.pods, &controller.sets, &Expectations::default(), &queue, Duration::ZERO);
    queue_for_lost_claims(&controller.claims, &controller.sets, &queue);
    run_workers("statefulset-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// A pod may wait for an old claim of its name to go.
fn queue_for_lost_claims(
    claims: &Informer<PersistentVolumeClaim>,
    sets: &Informer<StatefulSet>,
    queue: &WorkQueue<ObjectKey>,
) {
    let (sets, queue) = (sets.clone(), queue.clone());
    claims.subscribe(move |event| {
        if let InformerEvent::Deleted(claim) = event {
            let all = sets.list_namespace(claim.namespace());
            for set in all.iter().filter(|set| claims::may_be_claim_of(set, claim.name())) {
                queue.add(ObjectKey::of(&set.metadata));
            }
        }
    });
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get_key(&key) else { return Ok(None) };
        let Some(spec) = &set.spec else { return Ok(None) };
        let revisions = self.history.of(&*set, &spec.selector).await?;
        let candidates = claimable(&self.pods, &set.metadata);
        let is_member = |pod: &Pod| identity::is_member(&set, pod);
        let mut pods = claim_all(&self.client, &*set, &spec.selector, candidates, is_member).await?;
        pods.retain(|pod| is_member(pod));

        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let (current, update) = self.revisions(&set, spec, &revisions, &mut collisions).await?;
        let plan = decide::plan(&State {
            set: &set,
            spec,
            current: &current,
            update: &update,
            collisions,
            pods: &pods,
            claims: &|name| self.claims.get(&key.namespace, name),
            now: Timestamp::now(),
        });
        let again = plan.again;
        let worked = self.carry_out(&set, &plan).await;
        let told = self.write_status(&set, plan).await;
        let cut = self.cut_history(spec, &revisions, &pods, [&current.name, &update.name]).await;
        Error::all([worked, told, cut].into_iter().filter_map(Result::err).collect())?;
        Ok(again)
    }

    /// The revision that old pods keep and the one that pods are updated to; makes the latter if need be.
    async fn revisions(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        revisions: &[Arc<ControllerRevision>],
        collisions: &mut i32,
    ) -> Result<(Revision, Revision), Error> {
        let data = history::template_patch(&spec.template);
        let update = match history::newest(revisions, &data) {
            Newest::Is(revision) => revision,
            Newest::Renumber(revision, number) => Arc::new(self.history.renumber(&revision, number).await?),
            Newest::Create(number) => {
                let build = |collisions| {
                    let hash = history::data_hash(&data, collisions);
                    history::new_revision(set, &spec.template, &data, (HASH_LABEL, &hash), number)
                };
                Arc::new(self.history.create(collisions, build).await?)
            }
        };
        let name = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let current = revisions.iter().find(|revision| Some(revision.name()) == name);
        let restore = |revision: &ControllerRevision| {
            let template = history::template_of(revision);
            let template = template.ok_or_else(|| {
                Error::Object(format!("ControllerRevision {} has no template", revision.name()))
            })?;
            Ok::<_, Error>(Revision { name: revision.name().to_owned(), template })
        };
        Ok((restore(current.unwrap_or(&update))?, restore(&update)?))
    }

    async fn carry_out(&self, set: &StatefulSet, plan: &Plan) -> Result<(), Error> {
        for phase in &plan.phases {
            if plan.parallel {
                let (.., failures) =
                    slow_start(phase.len(), |place| async move { self.write(set, &phase[place]).await })
                        .await;
                Error::all(failures)?;
            } else {
                for op in phase {
                    self.write(set, op).await?;
                }
            }
        }
        Ok(())
    }

    /// Does one thing. `Ok(false)`: the namespace is being deleted, so there is nothing to do.
    async fn write(&self, set: &StatefulSet, op: &Op) -> Result<bool, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), set.namespace());
        match op {
            Op::Create { pod, claims } => {
                if let Err(error) = self.write_claims(set, pod, claims).await {
                    self.tell(set, "create", pod.name(), Some(&error));
                    return Err(error);
                }
                match api.create(&PostParams::default(), pod).await {
                    Ok(_) => self.tell(set, "create", pod.name(), None),
                    Err(error) if is_namespace_terminating(&error) => return Ok(false),
                    // The cache does not show it yet.
                    Err(error) if is_already_exists(&error) => return Err(error.into()),
                    Err(error) => {
                        let error = error.into();
                        self.tell(set, "create", pod.name(), Some(&error));
                        return Err(error);
                    }
                }
            }
            Op::Claims { pod, claims } => self.write_claims(set, pod, claims).await?,
            Op::Repair { pod, claims } => {
                let written = match self.write_claims(set, pod, claims).await {
                    Ok(()) => api.replace(pod.name(), &PostParams::default(), pod).await.map_err(Error::from),
                    Err(error) => Err(error),
                };
                self.tell(set, "update", pod.name(), written.as_ref().err());
                written?;
            }
            Op::Delete(pod) => {
                // Its successor has the same name and must not be hit.
                let uid = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
                match api.delete(pod.name(), &params).await {
                    Ok(_) => self.tell(set, "delete", pod.name(), None),
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => {
                        let error = error.into();
                        self.tell(set, "delete", pod.name(), Some(&error));
                        return Err(error);
                    }
                }
            }
        }
        Ok(true)
    }

    async fn write_claims(&self, set: &StatefulSet, pod: &Pod, work: &ClaimWork) -> Result<(), Error> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), set.namespace());
        let mut errors = Vec::new();
        for claim in &work.create {
            let (name, pod, set_name) = (claim.name(), pod.name(), set.name());
            match api.create(&PostParams::default(), claim).await {
                Ok(_) => {
                    let text = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                    self.recorder.event(set, EventType::Normal, "SuccessfulCreate", text);
                }
                // The cache does not show it yet.
                Err(error) if is_already_exists(&error) => {}
                Err(error) => {
                    let reason = message(&error);
                    let text = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {reason}"
                    );
                    self.recorder.event(set, EventType::Warning, "FailedCreate", text);
                    errors.push(Error::Object(format!("failed to create PVC {name}: {reason}")));
                }
            }
        }
        errors.extend(work.going.iter().map(|name| Error::Object(format!("pvc {name} is being deleted"))));
        for name in &work.conflicting {
            let text = format!(
                "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
            );
            self.recorder.event(set, EventType::Warning, "ConflictingController", text);
        }
        for claim in &work.update {
            if let Err(error) = api.replace(claim.name(), &PostParams::default(), claim).await
                && !is_not_found(&error)
            {
                let (name, reason) = (claim.name(), message(&error));
                errors.push(Error::Object(format!(
                    "could not update claim {name} for delete policy ownerRefs: {reason}"
                )));
            }
        }
        Error::all(errors)
    }

    fn tell(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&Error>) {
        let (kind, outcome, ending) = match failure {
            None => (EventType::Normal, "Successful", "successful".to_owned()),
            Some(error) => (EventType::Warning, "Failed", format!("failed error: {error}")),
        };
        let title = match verb {
            "create" => "Create",
            "update" => "Update",
            _ => "Delete",
        };
        let text = format!("{verb} Pod {pod} in StatefulSet {} {ending}", set.name());
        self.recorder.event(set, kind, &format!("{outcome}{title}"), text);
    }

    async fn write_status(&self, set: &StatefulSet, plan: Plan) -> Result<(), Error> {
        if !decide::differs(set.status.as_ref(), &plan.status) {
            return Ok(());
        }
        let changed = StatefulSet { status: Some(plan.status), ..set.clone() };
        let api = Api::<StatefulSet>::namespaced(self.client.clone(), set.namespace());
        Ok(unless_gone(api.replace_status(set.name(), &PostParams::default(), &changed).await)?)
    }

    /// Deletes the oldest revisions that nothing uses, down to the limit.
    async fn cut_history(
        &self,
        spec: &StatefulSetSpec,
        revisions: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
        used: [&str; 2],
    ) -> Result<(), Error> {
        let Ok(limit) = usize::try_from(spec.revision_history_limit.unwrap_or(HISTORY_LIMIT)) else {
            return Ok(());
        };
        let is_live =
            |name: &str| used.contains(&name) || pods.iter().any(|pod| identity::revision(pod) == name);
        let dead: Vec<_> = revisions.iter().filter(|revision| !is_live(revision.name())).collect();
        for revision in dead.iter().take(dead.len().saturating_sub(limit)) {
            self.history.delete(revision).await?;
        }
        Ok(())
    }
}
