//! Sets the number of replicas of anything with a scale by what its pods, or the world, measure. Answers to upstream's
//! `horizontal-pod-autoscaler-controller`.

mod behavior;
mod metrics;
mod replicas;
mod scale;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use orlop_api::Quantity;
use orlop_api::quantity::Format;
use orlop_api::selector::LabelSelector;
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;

use crate::error::{Error, unless_gone};
use crate::labels;
use crate::shell::Shell;
use behavior::History;
use metrics::Metrics;
use replicas::{Proposal, Target, Tolerances};
use scale::{Scale, Scales};

/// Metrics cannot be watched: each autoscaler looks at them so often.
const PERIOD: Duration = Duration::from_secs(15);
const TOLERANCE: f64 = 0.1;

struct Controller {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    metrics: Metrics,
    scales: Scales,
    client: kube::Client,
    recorder: EventRecorder,
    histories: Mutex<HashMap<ObjectKey, History>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        autoscalers: shell.informers.informer(),
        pods: shell.informers.informer(),
        metrics: Metrics { client: shell.client.clone() },
        scales: Scales::new(shell.client.clone()),
        client: shell.client,
        recorder: shell.recorder,
        histories: Mutex::default(),
    };
    labels::index(&controller.pods);
    controller.autoscalers.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::named("horizontalpodautoscaler");
    let own = queue.clone();
    controller.autoscalers.subscribe(move |event| {
        let written = matches!(event, InformerEvent::Updated { old, new } if old.spec == new.spec);
        if !written {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    let name = "horizontal-pod-autoscaler-controller";
    run_workers(name, queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// One look at one autoscaler: its status grows with it.
struct Look<'a> {
    hpa: HorizontalPodAutoscaler,
    controller: &'a Controller,
    now: Timestamp,
}

/// A metric that could not be used: the reason of the condition, and the error with and without its introduction.
struct Unusable {
    reason: &'static str,
    error: String,
    told: String,
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(hpa) = self.autoscalers.get_key(&key) else {
            self.histories.lock().remove(&key);
            return Ok(None);
        };
        let mut look = Look { hpa: (*hpa).clone(), controller: self, now: Timestamp::now() };
        let result = look.reconcile(&key).await;
        let before = serde_json::to_value(&hpa.status).ok();
        if serde_json::to_value(&look.hpa.status).ok() != before {
            let api = Api::<HorizontalPodAutoscaler>::namespaced(self.client.clone(), &key.namespace);
            unless_gone(api.replace_status(&key.name, &PostParams::default(), &look.hpa).await)?;
        }
        if let Err(error) = result {
            tracing::debug!(%key, error, "autoscaler cannot decide");
        }
        Ok(Some(PERIOD))
    }
}

impl Look<'_> {
    fn condition(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        let now = Time(self.now);
        let conditions = self.hpa.status.get_or_insert_default().conditions.get_or_insert_default();
        let status = if status { "True" } else { "False" }.to_owned();
        let (reason, message) = (Some(reason.to_owned()), Some(message.into()));
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(known) => {
                if known.status != status {
                    known.last_transition_time = Some(now);
                }
                (known.status, known.reason, known.message) = (status, reason, message);
            }
            None => conditions.push(HorizontalPodAutoscalerCondition {
                type_: kind.to_owned(),
                status,
                reason,
                message,
                last_transition_time: Some(now),
            }),
        }
    }

    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.controller.recorder.event(&self.hpa, kind, reason, message);
    }

    fn counts(&mut self, current: i32, desired: i32) {
        let status = self.hpa.status.get_or_insert_default();
        status.current_replicas = Some(current).filter(|current| *current != 0);
        status.desired_replicas = desired;
    }

    async fn reconcile(&mut self, key: &ObjectKey) -> Result<(), String> {
        let target = self.hpa.spec.scale_target_ref.clone();
        let scale = match self.controller.scales.get(&key.namespace, &target).await {
            Ok(scale) => scale,
            Err(error) => {
                self.event(EventType::Warning, "FailedGetScale", &error);
                let text =
                    format!("the HPA controller was unable to get the target's current scale: {error}");
                self.condition("AbleToScale", false, "FailedGetScale", text);
                return Err(format!("failed to query scale subresource: {error}"));
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        self.condition("AbleToScale", true, "SucceededGetScale", text);
        let (current, now) = (scale.replicas, self.now);
        self.controller.histories.lock().entry(key.clone()).or_default().begin(current, now);
        let (min, max) = (self.hpa.spec.min_replicas.unwrap_or(1), self.hpa.spec.max_replicas);
        let (desired, reason) = if current == 0 && min != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            self.condition("ScalingActive", false, "ScalingDisabled", text);
            (0, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let proposed = self.propose(key, &scale).await;
            let (desired, metric) = match proposed {
                Ok(proposed) => proposed,
                Err(error) => {
                    let desired = self.hpa.status.as_ref().map_or(0, |status| status.desired_replicas);
                    self.counts(current, desired);
                    self.event(EventType::Warning, "FailedComputeMetricsReplicas", &error);
                    return Err(error);
                }
            };
            let allowed = {
                let mut histories = self.controller.histories.lock();
                let history = histories.entry(key.clone()).or_default();
                behavior::allow(&self.hpa.spec, history, current, desired, now)
            };
            self.condition("AbleToScale", true, allowed.able.0, allowed.able.1);
            self.condition("ScalingLimited", allowed.limited, allowed.limit.0, allowed.limit.1);
            let reason = if desired > current {
                format!("{metric} above target")
            } else {
                "All metrics below target".to_owned()
            };
            (allowed.replicas, reason)
        };
        if desired == current {
            self.counts(current, current);
            return Ok(());
        }
        if let Err(error) = self.controller.scales.set(&scale, desired).await {
            let text = format!("New size: {desired}; reason: {reason}; error: {error}");
            self.event(EventType::Warning, "FailedRescale", text);
            let text = format!("the HPA controller was unable to update the target scale: {error}");
            self.condition("AbleToScale", false, "FailedUpdateScale", text);
            self.counts(current, current);
            return Err(format!("failed to rescale: {error}"));
        }
        let text = format!("the HPA controller was able to update the target scale to {desired}");
        self.condition("AbleToScale", true, "SucceededRescale", text);
        self.event(EventType::Normal, "SuccessfulRescale", format!("New size: {desired}; reason: {reason}"));
        let mut histories = self.controller.histories.lock();
        histories.entry(key.clone()).or_default().scaled(current, desired, &self.hpa.spec, now);
        drop(histories);
        self.counts(current, desired);
        self.hpa.status.get_or_insert_default().last_scale_time = Some(Time(now));
        Ok(())
    }

    /// The highest of what the metrics ask for, with the name of that metric.
    async fn propose(&mut self, key: &ObjectKey, scale: &Scale) -> Result<(i32, String), String> {
        let selector = self.selector(scale)?;
        let pods = labels::selected(&self.controller.pods, &key.namespace, &selector);
        let metrics = self.hpa.spec.metrics.clone().unwrap_or_default();
        let (mut best, mut statuses, mut failures) = (None::<(i32, String)>, Vec::new(), Vec::new());
        for metric in &metrics {
            match self.metric(key, metric, scale, &pods).await {
                Ok((proposal, name, status)) => {
                    statuses.push(status);
                    if best.as_ref().is_none_or(|(replicas, _)| proposal.replicas > *replicas) {
                        best = Some((proposal.replicas, name));
                    }
                }
                Err(failure) => {
                    self.event(EventType::Warning, failure.reason, &failure.told);
                    failures.push(failure);
                }
            }
        }
        self.hpa.status.get_or_insert_default().current_metrics =
            Some(statuses).filter(|list| !list.is_empty());
        // A metric that cannot be read may be the one that needs the replicas there are.
        let falls = best.as_ref().is_none_or(|(replicas, _)| *replicas < scale.replicas);
        if let (Some(first), true) = (failures.first(), falls) {
            let text = format!("the HPA was unable to compute the replica count: {}", first.told);
            let (reason, count, all) = (first.reason, failures.len(), metrics.len());
            let error =
                format!("invalid metrics ({count} invalid out of {all}), first error is: {}", first.error);
            self.condition("ScalingActive", false, reason, text);
            return Err(error);
        }
        let (replicas, name) = best.ok_or("no metrics")?;
        let text = format!("the HPA was able to successfully calculate a replica count from {name}");
        self.condition("ScalingActive", true, "ValidMetricFound", text);
        Ok((replicas, name))
    }

    fn selector(&mut self, scale: &Scale) -> Result<LabelSelector, String> {
        if scale.selector.is_empty() {
            let text = "selector is required";
            self.event(EventType::Warning, "SelectorRequired", text);
            let told = "the HPA target's scale is missing a selector";
            self.condition("ScalingActive", false, "InvalidSelector", told);
            return Err(text.to_owned());
        }
        LabelSelector::parse(&scale.selector).map_err(|error| {
            let text =
                format!("couldn't convert selector into a corresponding internal selector object: {error}");
            self.event(EventType::Warning, "InvalidSelector", &text);
            self.condition("ScalingActive", false, "InvalidSelector", &text);
            text
        })
    }

    async fn metric(
        &self,
        key: &ObjectKey,
        metric: &MetricSpec,
        scale: &Scale,
        pods: &[Arc<Pod>],
    ) -> Result<(Proposal, String, MetricStatus), Unusable> {
        let (namespace, tolerances, reader) =
            (&key.namespace, tolerances(&self.hpa.spec), &self.controller.metrics);
        let of_pods = |samples, of, target| {
            replicas::of_pods(scale.replicas, pods, samples, of, target, tolerances, self.now)
        };
        let mut status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
        if let Some(source) = &metric.resource {
            let fail = |told| unusable("FailedGetResourceMetric", &format!("{} resource", source.name), told);
            let (target, name) = resource_target(&source.name, &source.target, "").map_err(fail)?;
            let samples = reader.resource(namespace, &source.name, None, &scale.selector).await;
            let proposal = samples
                .map_err(|error| format!("unable to get metrics for resource {}: {error}", source.name))
                .and_then(|samples| of_pods(samples, (&source.name, None), target))
                .map_err(|error| fail(introduced(&source.name, target, &error)))?;
            let current = resource_value(&proposal);
            status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
            Ok((proposal, name, status))
        } else if let Some(source) = &metric.container_resource {
            let fail = |told| {
                unusable("FailedGetContainerResourceMetric", &format!("{} container", source.name), told)
            };
            let (target, name) = resource_target(&source.name, &source.target, "container ").map_err(fail)?;
            let container = Some(source.container.as_str());
            let samples = reader.resource(namespace, &source.name, container, &scale.selector).await;
            let proposal = samples
                .map_err(|error| format!("unable to get metrics for resource {}: {error}", source.name))
                .and_then(|samples| of_pods(samples, (&source.name, container), target))
                .map_err(|error| fail(introduced(&source.name, target, &error)))?;
            status.container_resource = Some(ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current: resource_value(&proposal),
            });
            Ok((proposal, name, status))
        } else if let Some(source) = &metric.pods {
            let (of, fail) = (&source.metric, |told| unusable("FailedGetPodsMetric", "pods", told));
            let target =
                average(&source.target).ok_or_else(|| fail("the target has no average value".to_owned()))?;
            let samples = reader.pods(namespace, &of.name, of.selector.as_ref(), &scale.selector).await;
            let proposal = samples
                .map_err(|error| format!("unable to get metric {}: {error}", of.name))
                .and_then(|samples| of_pods(samples, ("", None), Target::Average(target)))
                .map_err(fail)?;
            status.pods = Some(PodsMetricStatus { metric: of.clone(), current: averaged(&proposal) });
            Ok((proposal, format!("pods metric {}", of.name), status))
        } else if let Some(source) = &metric.object {
            let (of, object, fail) = (&source.metric, &source.described_object, |told| {
                unusable("FailedGetObjectMetric", "object", told)
            });
            let resource = self.controller.scales.resource(object).await.map_err(fail)?;
            let value =
                reader.object(namespace, (&resource, &object.name), &of.name, of.selector.as_ref()).await;
            let value = value.map_err(|error| {
                let what = format!("{} on {namespace} {}/{}", of.name, object.kind, object.name);
                fail(format!("unable to get metric {what}: {error}"))
            })?;
            let (proposal, current) = whole(&source.target, value, scale, pods, tolerances).map_err(fail)?;
            status.object =
                Some(ObjectMetricStatus { metric: of.clone(), described_object: object.clone(), current });
            Ok((proposal, format!("{} metric {}", object.kind, of.name), status))
        } else if let Some(source) = &metric.external {
            let (of, fail) = (&source.metric, |told| {
                unusable("FailedGetExternalMetric", &format!("{} external", source.metric.name), told)
            });
            let value = reader.external(namespace, &of.name, of.selector.as_ref()).await;
            let value = value.map_err(|error| {
                let selector = of.selector.clone().unwrap_or_default();
                fail(format!("unable to get external metric {namespace}/{}/{selector:?}: {error}", of.name))
            })?;
            let (proposal, current) = whole(&source.target, value, scale, pods, tolerances).map_err(fail)?;
            status.external = Some(ExternalMetricStatus { metric: of.clone(), current });
            Ok((proposal, format!("external metric {}(nil)", of.name), status))
        } else {
            let error = format!("unknown metric source type \"{}\"", metric.type_);
            Err(Unusable { reason: "InvalidMetricSourceType", told: error.clone(), error })
        }
    }
}

fn unusable(reason: &'static str, what: &str, told: String) -> Unusable {
    Unusable { reason, error: format!("failed to get {what} metric value: {told}"), told }
}

fn introduced(resource: &str, target: Target, error: &str) -> String {
    let what = if matches!(target, Target::Utilization(_)) { "utilization" } else { "usage" };
    format!("failed to get {resource} {what}: {error}")
}

fn milli(quantity: &ApiQuantity) -> Option<i64> {
    Quantity::parse(&quantity.0).ok().map(|quantity| quantity.milli_value()).filter(|milli| *milli > 0)
}

fn average(target: &MetricTarget) -> Option<i64> {
    target.average_value.as_ref().and_then(milli)
}

fn resource_target(
    resource: &str,
    target: &MetricTarget,
    container: &str,
) -> Result<(Target, String), String> {
    if let Some(average) = average(target) {
        return Ok((Target::Average(average), format!("{resource} {container}resource")));
    }
    let none = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
    let percent = target.average_utilization.filter(|percent| *percent > 0).ok_or(none)?;
    let name = format!("{resource} {container}resource utilization (percentage of request)");
    Ok((Target::Utilization(percent), name))
}

fn quantity(milli: i64) -> ApiQuantity {
    ApiQuantity(Quantity::from_milli(milli, Format::DecimalSI).to_string())
}

fn averaged(proposal: &Proposal) -> MetricValueStatus {
    MetricValueStatus { average_value: Some(quantity(proposal.milli)), ..MetricValueStatus::default() }
}

fn resource_value(proposal: &Proposal) -> MetricValueStatus {
    MetricValueStatus { average_utilization: proposal.utilization, ..averaged(proposal) }
}

/// A value that is not one of each pod: all pods together, or each with its share, bring it to the target.
fn whole(
    target: &MetricTarget,
    value: i64,
    scale: &Scale,
    pods: &[Arc<Pod>],
    tolerances: Tolerances,
) -> Result<(Proposal, MetricValueStatus), String> {
    if let Some(share) = average(target) {
        let proposal = replicas::of_share(scale.status_replicas, value, share, tolerances);
        return Ok((proposal, averaged(&proposal)));
    }
    let none = "invalid metric source: neither a value target nor an average value target was set";
    let target = target.value.as_ref().and_then(milli).ok_or(none)?;
    let proposal = replicas::of_value(scale.replicas, pods, value, target, tolerances)?;
    let current = MetricValueStatus { value: Some(quantity(proposal.milli)), ..MetricValueStatus::default() };
    Ok((proposal, current))
}

fn tolerances(spec: &HorizontalPodAutoscalerSpec) -> Tolerances {
    let of = |up: bool| {
        let behavior = spec.behavior.as_ref()?;
        let rules = if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() };
        Some(Quantity::parse(&rules?.tolerance.as_ref()?.0).ok()?.as_f64())
    };
    Tolerances { down: of(false).unwrap_or(TOLERANCE), up: of(true).unwrap_or(TOLERANCE) }
}
