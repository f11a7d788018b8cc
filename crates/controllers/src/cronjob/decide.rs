//! When a CronJob's next Job is due and what becomes of its earlier ones: pure functions of the clock.

use std::sync::Arc;
use std::time::Duration;

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job, JobCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use orlop_api::cron::{Schedule, time_zone};

use crate::objects::{Meta, controller_ref};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A Job is due a little after its time, so that the clock has surely passed it.
const DELTA: SignedDuration = SignedDuration::from_millis(100);
/// More missed times than this are worth a warning.
const MANY_MISSED: i64 = 100;

/// An event about the CronJob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Told {
    pub(super) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub(super) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until the CronJob changes.
    Nothing,
    Wait(Duration),
    /// Start the Job of this time, and look again after the wait.
    Start(Timestamp, Option<Duration>),
}

/// Complete or Failed, once a Job is over.
pub(super) fn end_of(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.into_iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })
}

pub(super) fn is_listed(cron: &CronJob, uid: &str) -> bool {
    let active = cron.status.iter().flat_map(|status| status.active.iter().flatten());
    active.into_iter().any(|reference| reference.uid.as_deref() == Some(uid))
}

/// Takes a Job off the list of active ones; whether it was there.
pub(super) fn unlist(cron: &mut CronJob, uid: &str) -> bool {
    let status = cron.status.get_or_insert_default();
    let Some(active) = &mut status.active else { return false };
    let before = active.len();
    active.retain(|reference| reference.uid.as_deref() != Some(uid));
    let gone = active.len() < before;
    if active.is_empty() {
        status.active = None;
    }
    gone
}

/// Brings the status up to date with the Jobs that ended; whether it changed.
pub(super) fn take_note(cron: &mut CronJob, jobs: &[Arc<Job>], told: &mut Vec<Told>) -> bool {
    let mut changed = false;
    for job in jobs {
        let Some(end) = end_of(job) else { continue };
        if unlist(cron, job.uid()) {
            let text = format!("Saw completed job: {}, condition: {}", job.name(), end.type_);
            told.push(Told::normal("SawCompletedJob", text));
            changed = true;
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if end.type_ == "Complete" {
            let status = cron.status.get_or_insert_default();
            if completed > status.last_successful_time {
                status.last_successful_time = completed;
                changed = true;
            }
        }
    }
    changed
}

/// The Jobs beyond the history limits, oldest first.
pub(super) fn history(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let limits =
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    let mut remove = Vec::new();
    for (end, limit) in limits {
        let Some(keep) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let mut ended: Vec<_> =
            jobs.iter().filter(|job| end_of(job).is_some_and(|seen| seen.type_ == end)).cloned().collect();
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
        // Those that never started come last.
        ended.sort_by_key(|job| (started(job).is_none(), started(job), job.name().to_owned()));
        ended.truncate(ended.len().saturating_sub(keep));
        remove.append(&mut ended);
    }
    remove
}

/// Decides. Only an unfinished Job of an earlier time can stand in the way (`Forbid`).
pub(super) fn next(cron: &CronJob, now: Timestamp, told: &mut Vec<Told>) -> Next {
    if cron.deleting() {
        return Next::Nothing;
    }
    let spec = &cron.spec;
    let zone = spec.time_zone.as_deref().map(|name| (name, time_zone(name)));
    if let Some((name, None)) = &zone {
        let text = format!("invalid timeZone: {name:?}: unknown time zone {name}");
        told.push(Told::warning("UnknownTimeZone", text));
        return Next::Nothing;
    }
    if spec.suspend == Some(true) {
        return Next::Nothing;
    }
    if spec.schedule.contains("TZ") {
        let text = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        told.push(Told::warning("UnsupportedSchedule", text));
    }
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule.in_zone(zone.and_then(|(_, zone)| zone).unwrap_or(TimeZone::UTC)),
        Err(why) => {
            let text = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            told.push(Told::warning("UnparseableSchedule", text));
            return Next::Nothing;
        }
    };
    let Ok(recent) = recent(cron, spec, &schedule, now, true) else {
        let why = "time difference between two schedules is less than 1 second";
        told.push(Told::warning("InvalidSchedule", format!("invalid schedule: {} : {why}", spec.schedule)));
        return Next::Nothing;
    };
    let again = until_next(cron, spec, &schedule, now);
    let wait = again.map_or(Next::Nothing, Next::Wait);
    let Some(due) = recent.due else { return wait };
    if recent.missed > MANY_MISSED {
        let text =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        told.push(Told::warning("TooManyMissedTimes", text));
    }
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if deadline.is_some_and(|deadline| due.checked_add(deadline).is_ok_and(|last| last < now)) {
        let at = strtime::format("%a, %d %b %Y %H:%M:%S +0000", due).unwrap_or_default();
        told.push(Told::warning("MissSchedule", format!("Missed scheduled time to start a job: {at}")));
        return wait;
    }
    let active = cron.status.as_ref().and_then(|status| status.active.as_deref()).unwrap_or_default();
    let name = job_name(cron, due);
    let started = active.iter().any(|reference| reference.name.as_ref() == Some(&name));
    if started || last_scheduled(cron) == Some(due) {
        return wait;
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
        told.push(Told::normal("JobAlreadyActive", text));
        return wait;
    }
    Next::Start(due, again)
}

fn last_scheduled(cron: &CronJob) -> Option<Timestamp> {
    cron.status.as_ref()?.last_schedule_time.as_ref().map(|time| time.0)
}

struct Recent {
    /// From when on times were looked for.
    from: Timestamp,
    /// The latest time that has passed since.
    due: Option<Timestamp>,
    /// About how many passed.
    missed: i64,
}

/// The latest time of the schedule that has passed without a Job. `Err` for a schedule without times.
fn recent(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    now: Timestamp,
    within_deadline: bool,
) -> Result<Recent, ()> {
    let mut from = last_scheduled(cron).unwrap_or(cron.created());
    if let Some(seconds) = spec.starting_deadline_seconds.filter(|_| within_deadline)
        && let Ok(earliest) = now.checked_sub(SignedDuration::from_secs(seconds))
    {
        from = from.max(earliest);
    }
    let first = schedule.after(from).ok_or(())?;
    if now < first {
        return Ok(Recent { from, due: None, missed: 0 });
    }
    let second = schedule.after(first).ok_or(())?;
    if now < second {
        return Ok(Recent { from, due: Some(first), missed: 0 });
    }
    // Jump close to now instead of listing all times: an hour may have been missed, or ten years.
    let interval = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / interval + 1;
    let jump = SignedDuration::from_secs((missed - 2) * interval);
    let start = first.checked_add(jump).map_err(|_| ())?;
    let passed = std::iter::successors(schedule.after(start), |at| schedule.after(*at));
    let due = passed.take_while(|at| *at <= now).last();
    Ok(Recent { from, due, missed })
}

/// How long until the next time.
fn until_next(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match recent(cron, spec, schedule, now, false) {
        Ok(Recent { due: Some(due), .. }) => due,
        Ok(Recent { from, missed: 0, .. }) => from,
        _ => now,
    };
    let at = schedule.after(from)?.checked_add(DELTA).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// How long a CronJob with a new schedule waits: times that only the new schedule has are not made up for.
pub(super) fn after_change(cron: &CronJob, now: Timestamp) -> Result<Option<Duration>, Told> {
    let spec = &cron.spec;
    let Ok(schedule) = Schedule::parse(&spec.schedule) else {
        let text = format!("unparseable schedule for cronjob: {}", spec.schedule);
        return Err(Told::warning("UnParseableCronJobSchedule", text));
    };
    let zone = spec.time_zone.as_deref().and_then(time_zone).unwrap_or(TimeZone::UTC);
    Ok(until_next(cron, spec, &schedule.in_zone(zone), now))
}

/// Whether two versions of a CronJob have the same times.
pub(super) fn same_schedule(a: &CronJob, b: &CronJob) -> bool {
    a.spec.schedule == b.spec.schedule && a.spec.time_zone == b.spec.time_zone
}

/// The name says the time, so that a time cannot have two Jobs.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name(), at.as_second().div_euclid(60))
}

/// The Job of a time.
pub(super) fn job_at(cron: &CronJob, at: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let template = spec.job_template.metadata.unwrap_or_default();
    let zone = spec.time_zone.as_deref().and_then(time_zone).unwrap_or(TimeZone::UTC);
    let format = if zone == TimeZone::UTC { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    let local = strtime::format(format, &at.to_zoned(zone)).unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), local);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec,
        status: None,
    }
}

/// Notes a Job that was started.
pub(super) fn list(cron: &mut CronJob, job: &Job, at: Timestamp) {
    let status = cron.status.get_or_insert_default();
    status.active.get_or_insert_default().push(orlop_client::object_reference(job));
    status.last_schedule_time = Some(Time(at));
}
