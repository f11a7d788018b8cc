//! From metrics to a number of replicas: what the pods use against what they should, with care for pods that are not
//! ready yet and for those without metrics. Answers to upstream's `ReplicaCalculator`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use orlop_api::Quantity;

use crate::objects::{Meta, condition, is_ready, phase};

/// A young pod's processor time says little: it counts only when the pod is ready.
const INITIALISATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that was unready since so soon after its start was never ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What one pod uses, in thousandths, over the window that ended at `at`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

pub(super) type Samples = BTreeMap<String, Sample>;

/// How far the ratio of use to target may be from 1 without any consequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of the requests, for utilisation.
    pub(super) utilization: Option<i32>,
    /// The average (or for a plain value the whole), in thousandths.
    pub(super) milli: i64,
}

/// What pods are to be compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// Percent of what they request.
    Utilization(i32),
    /// Thousandths for each pod.
    Average(i64),
}

/// Counts and amounts here are far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn float(number: i64) -> f64 {
    number as f64
}

/// The next whole number, within the range of replica counts.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn ceil(number: f64) -> i32 {
    // A float beyond the range becomes the bound.
    number.ceil() as i32
}

struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], samples: &Samples, resource: &str, now: Timestamp) -> Groups {
    let mut groups =
        Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new(), ignored: BTreeSet::new() };
    for pod in pods {
        let name = pod.name().to_owned();
        let sample = samples.get(&name);
        if pod.deleting() || phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(sample) = sample {
            if resource == "cpu" && says_little(pod, sample, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

fn says_little(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else { return true };
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let unready = ready.status == "False";
    if started.0 + INITIALISATION > now {
        unready || sample.at < since + sample.window
    } else {
        unready && started.0 + INITIAL_READINESS > since
    }
}

/// What each pod requests of a resource, in thousandths; of one container, or of all that run.
fn requests(
    pods: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let containers = pod.spec.iter().flat_map(|spec| {
            // A sidecar is an init container that stays.
            let init = spec.init_containers.iter().flatten();
            let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            spec.containers.iter().chain(sidecars)
        });
        let mut sum: Option<i64> = None;
        for candidate in containers.filter(|candidate| container.is_none_or(|name| candidate.name == name)) {
            let requests = candidate.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            let request = requests.and_then(|requests| requests.get(resource));
            let quantity = request.and_then(|request| Quantity::parse(&request.0).ok()).ok_or_else(|| {
                format!(
                    "missing request for {resource} in container {} of Pod {}",
                    candidate.name,
                    pod.name()
                )
            })?;
            sum = Some(sum.unwrap_or(0).saturating_add(quantity.milli_value()));
        }
        let missing =
            || format!("container {} not found in Pod {}", container.unwrap_or_default(), pod.name());
        all.insert(pod.name().to_owned(), sum.ok_or_else(missing)?);
    }
    Ok(all)
}

/// Use against target: the ratio, the percentage of the requests, and the average in thousandths.
fn ratio(
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
    target: Target,
) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Average(milli) => {
            let total: i64 = samples.values().map(|sample| sample.milli).sum();
            let average = total / i64::try_from(samples.len().max(1)).unwrap_or(i64::MAX);
            Ok((float(average) / float(milli), None, average))
        }
        Target::Utilization(percent) => {
            let known =
                || samples.iter().filter_map(|(name, sample)| Some((sample.milli, *requests.get(name)?)));
            let (used, requested) = known().fold((0_i64, 0_i64), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
            let average = used / i64::try_from(known().count().max(1)).unwrap_or(i64::MAX);
            Ok((f64::from(utilization) / f64::from(percent), Some(utilization), average))
        }
    }
}

/// The replicas that a metric of the pods asks for. `resource` is empty for other metrics than resources.
pub(super) fn of_pods(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: Samples,
    (resource, container): (&str, Option<&str>),
    target: Target,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &samples, resource, now);
    samples.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match target {
        Target::Utilization(_) => requests(pods, resource, container)?,
        Target::Average(_) => BTreeMap::new(),
    };
    let (first, utilization, milli) = ratio(&samples, &requests, target)?;
    let stay = Proposal { replicas: current, utilization, milli };
    let rises_with_unready = !groups.unready.is_empty() && first > 1.0;
    if !rises_with_unready && groups.missing.is_empty() {
        if tolerances.allow(first) {
            return Ok(stay);
        }
        let ready = i64::try_from(groups.ready).unwrap_or(i64::MAX);
        return Ok(Proposal { replicas: ceil(first * float(ready)), ..stay });
    }
    // What is not known is assumed so that it dampens: pods without metrics do all they should when the number would
    // fall, and nothing when it would rise.
    let mut assume = |names: &BTreeSet<String>, milli: &dyn Fn(&str) -> i64| {
        for name in names {
            let sample = Sample { milli: milli(name), at: now, window: SignedDuration::ZERO };
            samples.insert(name.clone(), sample);
        }
    };
    if first < 1.0 {
        assume(&groups.missing, &|name| match target {
            Target::Average(milli) => milli,
            Target::Utilization(percent) => {
                let request = requests.get(name).copied().unwrap_or(0);
                request.saturating_mul(i64::from(percent.max(100))) / 100
            }
        });
    } else if first > 1.0 {
        assume(&groups.missing, &|_| 0);
    }
    if rises_with_unready {
        assume(&groups.unready, &|_| 0);
    }
    let (second, ..) = ratio(&samples, &requests, target)?;
    let turns = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    let replicas = ceil(second * float(i64::try_from(samples.len()).unwrap_or(i64::MAX)));
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    if tolerances.allow(second) || turns || against {
        return Ok(stay);
    }
    Ok(Proposal { replicas, ..stay })
}

/// The replicas that one value asks for, which all pods together bring about.
pub(super) fn of_value(
    current: i32,
    pods: &[Arc<Pod>],
    milli: i64,
    target: i64,
    tolerances: Tolerances,
) -> Result<Proposal, String> {
    let ratio = float(milli) / float(target);
    let replicas = if current == 0 {
        ceil(ratio)
    } else if tolerances.allow(ratio) {
        current
    } else {
        if pods.is_empty() {
            return Err("unable to calculate ready pods: no pods returned by selector while calculating replica count"
                .to_owned());
        }
        let ready = pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)).count();
        ceil(ratio * float(i64::try_from(ready).unwrap_or(i64::MAX)))
    };
    Ok(Proposal { replicas, utilization: None, milli })
}

/// The replicas among which a value is to be divided so that each has its share.
pub(super) fn of_share(status_replicas: i32, milli: i64, share: i64, tolerances: Tolerances) -> Proposal {
    let ratio = float(milli) / (float(share) * f64::from(status_replicas));
    let replicas = if tolerances.allow(ratio) { status_replicas } else { ceil(float(milli) / float(share)) };
    let average =
        if status_replicas > 0 { i64::from(ceil(float(milli) / f64::from(status_replicas))) } else { milli };
    Proposal { replicas, utilization: None, milli: average }
}
