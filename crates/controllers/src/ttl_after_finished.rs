//! Deletes finished Jobs when their `ttlSecondsAfterFinished` has passed. Answers to upstream's
//! `ttl-after-finished-controller`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, Preconditions};
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let jobs: Informer<Job> = shell.informers.informer();
    jobs.synced().await;
    let queue = WorkQueue::named("ttl_jobs_to_delete");
    let own = queue.clone();
    jobs.subscribe(move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) && expires(event.object()).is_some() {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    let (jobs, client) = (&jobs, &shell.client);
    run_workers("ttl-after-finished-controller", queue, 5, shell.shutdown, |key: ObjectKey| async move {
        let Some(cached) = jobs.get_key(&key) else { return Ok(None) };
        if let Some(left) = left(&cached, Timestamp::now()).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        // The cached time to live may be old: a Job that shall stay longer must not be deleted.
        let api = Api::<Job>::namespaced(client.clone(), &key.namespace);
        let Some(job) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(left) = left(&job, Timestamp::now()) else { return Ok(None) };
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let mut how = DeleteParams::foreground();
        how.preconditions = Some(Preconditions { uid: job.metadata.uid.clone(), resource_version: None });
        unless_gone(api.delete(&key.name, &how).await)?;
        Ok::<_, Error>(None)
    })
    .await;
    Ok(())
}

/// When a Job's time is over; `None` when it is not finished, has no such time, or is being deleted already.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished.filter(|_| !job.deleting())?;
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    let end = conditions.into_iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    end.last_transition_time.as_ref()?.0.checked_add(SignedDuration::from_secs(i64::from(ttl))).ok()
}

fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    Some(Duration::try_from(expires(job)?.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::{Value, json};

    #[test]
    fn time_to_live() {
        let now = at("2026-01-01T00:01:00Z");
        let check = |what: &str, ttl: Value, condition: Value, expected: Option<u64>| {
            let job: Job = object(json!({"metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl,
                "template": {}}, "status": {"conditions": [condition]}}));
            assert_eq!(left(&job, now).map(|left| left.as_secs()), expected, "{what}");
        };
        let end = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:30Z"});
        check("no time", json!(null), end("Complete", "True"), None);
        check("running", json!(10), end("Suspended", "True"), None);
        check("ending", json!(10), end("SuccessCriteriaMet", "True"), None);
        check("complete", json!(100), end("Complete", "True"), Some(70));
        check("failed", json!(100), end("Failed", "True"), Some(70));
        check("over", json!(30), end("Complete", "True"), Some(0));
        check("long over", json!(0), end("Failed", "True"), Some(0));
        check("not any more", json!(0), end("Failed", "False"), None);
    }
}
