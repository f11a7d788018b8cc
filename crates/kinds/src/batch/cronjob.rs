//! CronJob: jobs at times of the clock.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::job::spec_warnings;
use super::job::validation::validate_job_spec;
use crate::core::pod_template;
use crate::cursor::{Cursor, child, default_empty_to, default_to};
use crate::duration;
use crate::validate::{nonnegative, require_one_of};
use crate::workload::{self, Workload};
use crate::{NameRule, Strategy, metadata, printer};
use orlop_api::cron;

/// The strategy of CronJobs.
pub struct CronJob;

const RULES: Workload = Workload { pod_spec: "/spec/jobTemplate/spec/template/spec", ..Workload::PLAIN };

/// Longest name: a job's, less the suffix that tells its time.
const NAME_MAX: usize = 63 - 11;

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    let schedule = spec["schedule"].text();
    let at = path.child("schedule");
    if schedule.is_empty() {
        errs.push(field::required(&at, ""));
    } else {
        let allowed = old.is_some_and(|old| old["schedule"].text().contains("TZ"));
        validate_schedule(errs, &at, schedule, allowed, spec["timeZone"].is_set());
    }
    nonnegative(errs, &path.child("startingDeadlineSeconds"), &spec["startingDeadlineSeconds"]);
    if old.is_none_or(|old| old["timeZone"] != spec["timeZone"]) {
        validate_time_zone(errs, &path.child("timeZone"), &spec["timeZone"]);
    }
    require_one_of(
        errs,
        &path.child("concurrencyPolicy"),
        spec["concurrencyPolicy"].text(),
        &["Allow", "Forbid", "Replace"],
    );
    let template = &spec["jobTemplate"]["spec"];
    let at = path.child("jobTemplate").child("spec");
    validate_job_spec(errs, &at, template, old.map(|old| &old["jobTemplate"]["spec"]));
    if template["selector"].is_set() {
        let selector = template["selector"].clone();
        errs.push(field::invalid(&at.child("selector"), selector, "`selector` will be auto-generated"));
    }
    if template["manualSelector"].flag() {
        errs.push(field::not_supported(&at.child("manualSelector"), true, &["nil", "false"]));
    }
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        nonnegative(errs, &path.child(key), &spec[key]);
    }
}

/// `allowed` says that a time zone in front of the schedule is one that was there before.
fn validate_schedule(errs: &mut ErrorList, path: &Path, schedule: &str, allowed: bool, zone: bool) {
    if let Err(why) = cron::Schedule::parse(schedule) {
        errs.push(field::invalid(path, schedule, why));
    }
    if !schedule.contains("TZ") {
        return;
    }
    if !allowed {
        errs.push(field::invalid(
            path,
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ));
    } else if zone {
        errs.push(field::invalid(
            path,
            schedule,
            "cannot use both timeZone field and TZ or CRON_TZ in schedule",
        ));
    }
}

fn validate_time_zone(errs: &mut ErrorList, path: &Path, zone: &Value) {
    if !zone.is_set() {
        return;
    }
    let zone = zone.text();
    if zone.is_empty() {
        errs.push(field::invalid(path, zone, "timeZone must be nil or non-empty string"));
        return;
    }
    let unknown = format!("unknown time zone {zone}");
    let legal = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    let well_formed = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.starts_with('-')
            && part.len() <= 14
            && part.bytes().all(legal)
    };
    if !zone.split('/').all(well_formed) {
        errs.push(field::invalid(path, zone, unknown));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        errs.push(field::invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    }
    if zone != "Local" && !cron::is_time_zone(zone) {
        errs.push(field::invalid(path, zone, unknown));
    }
}

impl Strategy for CronJob {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_empty_to(spec, "concurrencyPolicy", "Allow");
        default_to(spec, "suspend", false);
        pod_template::set_defaults(child(child(spec, "jobTemplate"), "spec"));
        default_to(spec, "successfulJobsHistoryLimit", 3);
        default_to(spec, "failedJobsHistoryLimit", 1);
    }

    fn prepare_create(&self, obj: &mut Value) {
        RULES.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        RULES.prepare_update(obj, old);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], None);
        let name = obj["metadata"]["name"].text();
        if name.len() > NAME_MAX {
            errs.push(field::invalid(
                &Path::new("metadata").child("name"),
                name,
                format!("must be no more than {NAME_MAX} characters"),
            ));
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            out.extend(workload::pod_name_warning(obj));
        }
        if !workload::same_generation(obj, old) {
            let path = Path::new("spec").child("jobTemplate").child("spec");
            out.extend(spec_warnings(&path, &obj["spec"]["jobTemplate"]["spec"]));
        }
        if obj["spec"]["schedule"].text().contains("TZ") {
            // The doubled step of the path is upstream's.
            out.push(
                "CRON_TZ or TZ used in spec.spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, _obj: &Value, _old: &Value) -> ErrorList {
        // Upstream checks nothing here beyond what every update is checked for.
        ErrorList::new()
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let suspend = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = match status["lastScheduleTime"].text() {
            "" => "<none>".to_owned(),
            time => duration::age(time, now),
        };
        let template = &spec["jobTemplate"]["spec"];
        let (containers, images) = printer::containers_and_images(&template["template"]["spec"]);
        vec![
            printer::name(obj),
            spec["schedule"].text().into(),
            spec["timeZone"].as_str().unwrap_or("<none>").into(),
            suspend.into(),
            status["active"].items().len().into(),
            last.into(),
            printer::age(obj, now),
            containers.into(),
            images.into(),
            printer::format_label_selector(&template["selector"]).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_update, check_warnings};
    use orlop_json::json;

    fn cron_job(extra: Value) -> Value {
        let mut spec = json!({"schedule": "0 1 * * *", "jobTemplate": {"spec": {"template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn defaults() {
        let mut obj = cron_job(json!({}));
        CronJob.defaults(&mut obj);
        let spec = &obj["spec"];
        assert_eq!(spec["concurrencyPolicy"], "Allow");
        assert_eq!(spec["suspend"], false);
        assert_eq!(spec["successfulJobsHistoryLimit"], 3);
        assert_eq!(spec["failedJobsHistoryLimit"], 1);
        assert_eq!(spec["jobTemplate"]["spec"]["template"]["spec"]["schedulerName"], "default-scheduler");
        assert!(!spec["jobTemplate"]["spec"].has("backoffLimit"));
    }

    #[test]
    fn validation() {
        let check = |extra: Value, expected: &[&str]| {
            check_create("batch", "CronJob", cron_job(extra), expected);
        };
        check(json!({}), &[]);
        check(json!({"schedule": ""}), &["spec.schedule: Required value"]);
        check(
            json!({"schedule": "61 * * * *"}),
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"],
        );
        check(
            json!({"schedule": "TZ=UTC 0 * * * *"}),
            &[
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ],
        );
        check(json!({"timeZone": "Europe/Paris"}), &[]);
        for (zone, expected) in [
            ("", "timeZone must be nil or non-empty string"),
            ("Mars/Base", "unknown time zone Mars/Base"),
            ("europe/paris", "unknown time zone europe/paris"),
            ("../etc", "unknown time zone ../etc"),
            ("Local", "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"),
        ] {
            check(
                json!({"timeZone": zone}),
                &[&format!("spec.timeZone: Invalid value: \"{zone}\": {expected}")],
            );
        }
        check(
            json!({"concurrencyPolicy": "Foo", "startingDeadlineSeconds": -1, "failedJobsHistoryLimit": -1}),
            &[
                "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.concurrencyPolicy: Unsupported value: \"Foo\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        let mut obj = cron_job(json!({}));
        obj["spec"]["jobTemplate"]["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
        obj["spec"]["jobTemplate"]["spec"]["manualSelector"] = true.into();
        obj["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        check_create(
            "batch",
            "CronJob",
            obj,
            &[
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
                "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` will be auto-generated",
                "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
            ],
        );
        let mut obj = cron_job(json!({}));
        let name = "a".repeat(53);
        obj["metadata"] = json!({"name": name});
        check_create(
            "batch",
            "CronJob",
            obj,
            &[&format!("metadata.name: Invalid value: \"{name}\": must be no more than 52 characters")],
        );
    }

    #[test]
    fn updates() {
        let old = cron_job(json!({"schedule": "TZ=UTC 0 * * * *"}));
        check_update("batch", "CronJob", old.clone(), old.clone(), &[]);
        check_update(
            "batch",
            "CronJob",
            cron_job(json!({"schedule": "TZ=UTC 1 * * * *", "timeZone": "UTC"})),
            old,
            &[
                "spec.schedule: Invalid value: \"TZ=UTC 1 * * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule",
            ],
        );
    }

    #[test]
    fn warnings_and_rows() {
        let obj = cron_job(json!({"schedule": "TZ=UTC 0 * * * *"}));
        check_warnings(
            "batch",
            "CronJob",
            obj,
            None,
            &[
                "CRON_TZ or TZ used in spec.spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            ],
        );
        let mut obj = cron_job(json!({"suspend": true, "timeZone": "UTC"}));
        obj["metadata"] = json!({"name": "c", "creationTimestamp": "2024-01-01T00:00:00Z"});
        obj["status"] = json!({"active": [{}], "lastScheduleTime": "2024-01-01T23:00:00Z"});
        check_cells(
            "batch",
            "CronJob",
            obj,
            json!(["c", "0 1 * * *", "UTC", "True", 1, "60m", "24h", "c", "i", "<none>"]),
        );
    }
}
