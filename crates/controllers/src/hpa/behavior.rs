//! How fast the number of replicas may follow the metrics: stabilisation windows, scaling policies and bounds.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};

use super::replicas::ceil;

/// So long a lower recommendation waits for a higher one, unless the behaviour says otherwise.
const DOWN_WINDOW: i32 = 300;
/// An autoscaler remembers at most so many numbers.
const REMEMBERED: usize = 4096;

/// What an autoscaler remembers between looks; a restart begins anew.
#[derive(Debug, Default)]
pub(super) struct History {
    recommendations: VecDeque<(Timestamp, i32)>,
    /// Changes that were made: positive when the number rose.
    changes: VecDeque<(Timestamp, i32)>,
}

impl History {
    /// The first number seen counts as a recommendation.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push_back((now, current));
        }
    }

    /// Notes a change that was made.
    pub(super) fn scaled(&mut self, from: i32, to: i32, spec: &HorizontalPodAutoscalerSpec, now: Timestamp) {
        let rules = [rules(spec, true), rules(spec, false)];
        let periods =
            rules.iter().flat_map(|rules| rules.iter().flat_map(|rules| rules.policies.iter().flatten()));
        let longest = periods.map(|policy| policy.period_seconds).max().unwrap_or(0);
        self.changes.retain(|(at, _)| *at >= ago(now, longest));
        self.changes.push_back((now, to - from));
        if self.changes.len() > REMEMBERED {
            self.changes.pop_front();
        }
    }

    fn changed(&self, period: i32, now: Timestamp) -> i32 {
        self.changes.iter().filter(|(at, _)| *at > ago(now, period)).map(|(_, change)| change).sum()
    }

    /// The lowest and the highest of `desired` and the recommendations of the two windows; `desired` is remembered.
    fn range(&mut self, desired: i32, up: i32, down: i32, now: Timestamp) -> (i32, i32) {
        let (mut lowest, mut highest) = (desired, desired);
        for (at, number) in &self.recommendations {
            if *at > ago(now, up) {
                lowest = lowest.min(*number);
            }
            if *at > ago(now, down) {
                highest = highest.max(*number);
            }
        }
        self.recommendations.retain(|(at, _)| *at > ago(now, up.max(down)));
        self.recommendations.push_back((now, desired));
        if self.recommendations.len() > REMEMBERED {
            self.recommendations.pop_front();
        }
        (lowest, highest)
    }
}

fn ago(now: Timestamp, seconds: i32) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn rules(spec: &HorizontalPodAutoscalerSpec, up: bool) -> Option<&HPAScalingRules> {
    let behavior = spec.behavior.as_ref()?;
    if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() }
}

/// Why a condition is as it is.
pub(super) type Reason = (&'static str, &'static str);

/// The number that may be set, with the reason for being able to scale and whether and why it is limited.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) replicas: i32,
    pub(super) able: Reason,
    pub(super) limited: bool,
    pub(super) limit: Reason,
}

const WITHIN: Reason = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Reason =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Reason =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Reason =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Reason =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const READY: Reason = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABLE: Reason = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABLE: Reason = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

/// What may be set when the metrics ask for `desired`.
pub(super) fn allow(
    spec: &HorizontalPodAutoscalerSpec,
    history: &mut History,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> Allowed {
    let min = spec.min_replicas.unwrap_or(1);
    let window = |up| rules(spec, up).and_then(|rules| rules.stabilization_window_seconds);
    let (up, down) = (window(true).unwrap_or(0), window(false).unwrap_or(DOWN_WINDOW));
    let (lowest, highest) = history.range(desired, up, down, now);
    let stable = if spec.behavior.is_some() { current.max(lowest).min(highest) } else { highest };
    let able = if stable == desired {
        READY
    } else if spec.behavior.is_some() && desired >= current {
        UP_STABLE
    } else {
        DOWN_STABLE
    };
    let (replicas, limit) = if spec.behavior.is_none() {
        let rate = current.saturating_mul(2).max(4);
        bounded(stable, (min, TOO_FEW), upper(spec.max_replicas, rate))
    } else if stable > current {
        let rate = up_limit(rules(spec, true), history, current, now).max(current);
        bounded(stable, (i32::MIN, TOO_FEW), upper(spec.max_replicas, rate))
    } else if stable < current {
        let rate = down_limit(rules(spec, false), history, current, now).min(current);
        let least = if min < rate { (rate, DOWN_LIMIT) } else { (min, TOO_FEW) };
        bounded(stable, least, (i32::MAX, TOO_MANY))
    } else {
        (stable, WITHIN)
    };
    Allowed { replicas, able, limited: replicas != stable, limit }
}

fn upper(max: i32, rate: i32) -> (i32, Reason) {
    if max > rate { (rate, UP_LIMIT) } else { (max, TOO_MANY) }
}

fn bounded(desired: i32, least: (i32, Reason), most: (i32, Reason)) -> (i32, Reason) {
    if desired < least.0 {
        least
    } else if desired > most.0 {
        most
    } else {
        (desired, WITHIN)
    }
}

fn up_limit(rules: Option<&HPAScalingRules>, history: &History, current: i32, now: Timestamp) -> i32 {
    let Some(rules) = rules else { return current.saturating_mul(2).max(4) };
    let limits = rules.policies.iter().flatten().map(|policy| {
        let begin = current - history.changed(policy.period_seconds, now);
        match policy.type_.as_str() {
            "Pods" => begin.saturating_add(policy.value),
            _ => ceil(f64::from(begin) * (1.0 + f64::from(policy.value) / 100.0)),
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.min().unwrap_or(current),
        _ => limits.max().unwrap_or(current),
    }
}

fn down_limit(rules: Option<&HPAScalingRules>, history: &History, current: i32, now: Timestamp) -> i32 {
    let Some(rules) = rules else { return 0 };
    let limits = rules.policies.iter().flatten().map(|policy| {
        let begin = current - history.changed(policy.period_seconds, now);
        match policy.type_.as_str() {
            "Pods" => begin.saturating_sub(policy.value),
            _ => (f64::from(begin) * (1.0 - f64::from(policy.value) / 100.0)).floor() as i32,
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.max().unwrap_or(current),
        _ => limits.min().unwrap_or(current),
    }
}
