//! What admission webhooks did, what validating policies found, and what their match conditions came to.

use std::time::Duration;

use super::series::Family;
use super::text::{Counter, Exposition, Histogram};

/// Upper bounds of the durations of calls, seconds.
const CALLS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Upper bounds of the durations of policies, seconds.
const CHECKS: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];
/// Upper bounds of the durations of match conditions, seconds.
const CONDITIONS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
/// Codes above it count as it.
const MAX_CODE: u16 = 600;

/// How a call of a webhook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It let the request pass.
    Allowed,
    /// It refused with this code.
    Refused(u16),
    /// It could not be called.
    Failed {
        /// Says why.
        code: u16,
        /// Whether the request goes on without it.
        passed_over: bool,
    },
    /// The server could not do what it asked for.
    Internal,
}

/// Whose match conditions: kind (`webhook` or `policy`), name, operation, and type (`admit`, `validating`, `validate`).
pub type ConditionsOf<'a> = [&'a str; 4];

/// Counters of webhooks and policies.
#[derive(Debug)]
pub struct Extensions {
    condition_errors: Family<Counter, 4>,
    condition_exclusions: Family<Counter, 4>,
    condition_durations: Family<Histogram, 4>,
    durations: Family<Histogram, 4>,
    requests: Family<Counter, 5>,
    rejections: Family<Counter, 5>,
    fail_open: Family<Counter, 2>,
    checks: Family<(Counter, Histogram), 4>,
}

impl Default for Extensions {
    fn default() -> Extensions {
        const OF: [&str; 4] = ["kind", "name", "operation", "type"];
        Extensions {
            condition_errors: Family::new(OF, Counter::default),
            condition_exclusions: Family::new(OF, Counter::default),
            condition_durations: Family::new(OF, || Histogram::seconds(CONDITIONS)),
            durations: Family::new(["name", "operation", "rejected", "type"], || Histogram::seconds(CALLS)),
            requests: Family::new(["code", "name", "operation", "rejected", "type"], Counter::default),
            rejections: Family::new(
                ["error_type", "name", "operation", "rejection_code", "type"],
                Counter::default,
            ),
            fail_open: Family::new(["name", "type"], Counter::default),
            checks: Family::new(["enforcement_action", "error_type", "policy", "policy_binding"], || {
                (Counter::default(), Histogram::seconds(CHECKS))
            }),
        }
    }
}

impl Extensions {
    /// Notes a call. `kind` is `admit` or `validating`, `operation` in upstream's words.
    pub fn called(&self, name: &str, kind: &str, operation: &str, outcome: Outcome, elapsed: Duration) {
        let (code, error) = match outcome {
            Outcome::Allowed => (200, None),
            Outcome::Refused(code) => (code, Some("no_error")),
            Outcome::Failed { code, passed_over: true } => (code, None),
            Outcome::Failed { code, passed_over: false } => (code, Some("calling_webhook_error")),
            Outcome::Internal => (0, Some("apiserver_internal_error")),
        };
        let code = code.min(MAX_CODE).to_string();
        let rejected = if error.is_some() { "true" } else { "false" };
        self.durations.of([name, operation, rejected, kind]).time(elapsed);
        self.requests.of([&code, name, operation, rejected, kind]).inc();
        if let Some(error) = error {
            self.rejections.of([error, name, operation, &code, kind]).inc();
        }
        if matches!(outcome, Outcome::Failed { passed_over: true, .. }) {
            self.fail_open.of([name, kind]).inc();
        }
    }

    /// Notes what was done (`deny`, `audit`, `warn`) about a finding of a policy.
    pub fn checked(&self, action: &str, error: &str, policy: &str, binding: &str, elapsed: Duration) {
        let series = self.checks.of([action, error, policy, binding]);
        series.0.inc();
        series.1.time(elapsed);
    }

    /// Notes an evaluation of match conditions.
    pub fn conditions(&self, of: ConditionsOf<'_>, errors: u64, elapsed: Duration) {
        if errors > 0 {
            self.condition_errors.of(of).add(errors);
        }
        self.condition_durations.of(of).time(elapsed);
    }

    /// Notes that match conditions kept a request from a webhook.
    pub fn excluded(&self, of: ConditionsOf<'_>) {
        self.condition_exclusions.of(of).inc();
    }

    /// Writes the families.
    pub fn render(&self, out: &mut Exposition) {
        let name = "apiserver_admission_match_condition_evaluation_errors_total";
        out.family(name, "counter", "[ALPHA] Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).");
        self.condition_errors.each(|labels, series| out.sample(name, labels, series.get() as f64));
        let name = "apiserver_admission_match_condition_evaluation_seconds";
        out.family(name, "histogram", "[ALPHA] Admission match condition evaluation time in seconds, identified by name and broken out for each kind containing matchConditions (webhook or policy), operation and type (validate or admit).");
        self.condition_durations.each(|labels, series| out.histogram(name, labels, series));
        let name = "apiserver_admission_match_condition_exclusions_total";
        out.family(name, "counter", "[ALPHA] Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).");
        self.condition_exclusions.each(|labels, series| out.sample(name, labels, series.get() as f64));
        let name = "apiserver_admission_webhook_admission_duration_seconds";
        out.family(name, "histogram", "[STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).");
        self.durations.each(|labels, series| out.histogram(name, labels, series));
        let name = "apiserver_admission_webhook_fail_open_count";
        out.family(name, "counter", "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type (validating or mutating).");
        self.fail_open.each(|labels, series| out.sample(name, labels, series.get() as f64));
        let name = "apiserver_admission_webhook_rejection_count";
        out.family(name, "counter", "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.");
        self.rejections.each(|labels, series| out.sample(name, labels, series.get() as f64));
        let name = "apiserver_admission_webhook_request_total";
        out.family(name, "counter", "[ALPHA] Admission webhook request total, identified by name and broken out for each admission type (validating or mutating) and operation. Additional labels specify whether the request was rejected or not and an HTTP status code. Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.");
        self.requests.each(|labels, series| out.sample(name, labels, series.get() as f64));
        let name = "apiserver_validating_admission_policy_check_duration_seconds";
        out.family(name, "histogram", "[BETA] Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.");
        self.checks.each(|labels, series| out.histogram(name, labels, &series.1));
        let name = "apiserver_validating_admission_policy_check_total";
        out.family(name, "counter", "[BETA] Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.");
        self.checks.each(|labels, series| out.sample(name, labels, series.0.get() as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted() {
        let extensions = Extensions::default();
        for outcome in [
            Outcome::Allowed,
            Outcome::Refused(403),
            Outcome::Failed { code: 503, passed_over: true },
            Outcome::Failed { code: 999, passed_over: false },
            Outcome::Internal,
        ] {
            extensions.called("w", "admit", "CREATE", outcome, Duration::from_millis(7));
        }
        extensions.checked("deny", "no_error", "p", "b", Duration::from_millis(2));
        let of = ["webhook", "w", "CREATE", "admit"];
        extensions.conditions(of, 2, Duration::from_millis(3));
        extensions.conditions(of, 0, Duration::from_millis(3));
        extensions.excluded(of);
        let mut out = Exposition::default();
        extensions.render(&mut out);
        let text = out.finish();
        for line in [
            "apiserver_admission_match_condition_evaluation_errors_total{kind=\"webhook\",name=\"w\",operation=\"CREATE\",type=\"admit\"} 2",
            "apiserver_admission_match_condition_evaluation_seconds_bucket{kind=\"webhook\",name=\"w\",operation=\"CREATE\",type=\"admit\",le=\"0.005\"} 2",
            "apiserver_admission_match_condition_exclusions_total{kind=\"webhook\",name=\"w\",operation=\"CREATE\",type=\"admit\"} 1",
            "apiserver_admission_webhook_admission_duration_seconds_count{name=\"w\",operation=\"CREATE\",rejected=\"true\",type=\"admit\"} 3",
            "apiserver_admission_webhook_request_total{code=\"200\",name=\"w\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"} 1",
            "apiserver_admission_webhook_request_total{code=\"503\",name=\"w\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"} 1",
            "apiserver_admission_webhook_rejection_count{error_type=\"no_error\",name=\"w\",operation=\"CREATE\",rejection_code=\"403\",type=\"admit\"} 1",
            "apiserver_admission_webhook_rejection_count{error_type=\"calling_webhook_error\",name=\"w\",operation=\"CREATE\",rejection_code=\"600\",type=\"admit\"} 1",
            "apiserver_admission_webhook_rejection_count{error_type=\"apiserver_internal_error\",name=\"w\",operation=\"CREATE\",rejection_code=\"0\",type=\"admit\"} 1",
            "apiserver_admission_webhook_fail_open_count{name=\"w\",type=\"admit\"} 1",
            "apiserver_validating_admission_policy_check_total{enforcement_action=\"deny\",error_type=\"no_error\",policy=\"p\",policy_binding=\"b\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}
