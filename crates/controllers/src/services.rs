//! What the two endpoint controllers share: which pods stand behind a Service, on which ports, and since when.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue};
use parking_lot::Mutex;

use crate::labels;
use crate::objects::{Labels, Meta, condition, is_finished};

pub(crate) const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const BY_SELECTOR: &str = "selector";
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The Service's selector, when it has one and the controllers serve it.
pub(crate) fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    selector(service)
        .is_some_and(|wanted| wanted.iter().all(|(key, value)| pod.label(key) == Some(value.as_str())))
}

/// The pods of a Service's namespace that its selector matches, by name; [`queue_for_pods`] prepares for it.
pub(crate) fn pods_of(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let wanted = selector(service);
    wanted.map_or_else(Vec::new, |wanted| labels::with_labels(pods, service.namespace(), wanted))
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| matches!(spec.cluster_ip.as_deref(), Some("None" | "")))
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

pub(crate) fn ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

/// All addresses of a pod.
pub(crate) fn pod_ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<_> =
        status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).filter(|ip| !ip.is_empty()).collect();
    if all.is_empty() {
        status.pod_ip.iter().map(String::as_str).filter(|ip| !ip.is_empty()).collect()
    } else {
        all
    }
}

/// Whether a pod may be an endpoint at all: it has an address and has not ended.
pub(crate) fn has_endpoint(pod: &Pod, include_terminating: bool) -> bool {
    !is_finished(pod) && !pod_ips(pod).is_empty() && (include_terminating || !pod.deleting())
}

/// The number of the port of `pod` that a Service's port means; a name is looked up in the containers.
pub(crate) fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(0)) | None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let is_it = |candidate: &&ContainerPort| {
        candidate.name.as_ref() == Some(name) && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut containers = spec.containers.iter().chain(sidecars);
    containers
        .find_map(|container| container.ports.iter().flatten().find(is_it))
        .map(|found| found.container_port)
}

/// The name a pod has of its own below the Service's name, e.g. for a StatefulSet's pods.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    let ours = spec.subdomain.as_deref() == Some(service.name()) && pod.namespace() == service.namespace();
    ours.then_some(hostname)
}

pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Queues every Service that a changed pod is or was behind.
pub(crate) fn queue_for_pods(
    pods: &Informer<Pod>,
    services: &Informer<Service>,
    queue: &WorkQueue<ObjectKey>,
) {
    labels::index(pods);
    // One label of the selector is enough to find a Service by a pod that has all of them.
    services.add_index(BY_SELECTOR, |service: &Service| {
        let first = selector(service).and_then(Labels::first_key_value);
        first.map(|(key, value)| labels::entry(service.namespace(), key, value)).into_iter().collect()
    });
    let (services, queue) = (services.clone(), queue.clone());
    pods.subscribe(move |event| {
        let pod = event.object();
        let before = match event {
            InformerEvent::Updated { old, .. } if same_endpoint(old, pod) => return,
            InformerEvent::Updated { old, .. } => Some(old),
            _ => None,
        };
        for pod in before.into_iter().chain([pod]) {
            for label in labels::entries(&**pod) {
                let candidates = services.by_index(BY_SELECTOR, &label);
                let behind = candidates.iter().filter(|service| selects(service, pod));
                behind.for_each(|service| queue.add(ObjectKey::of(&service.metadata)));
            }
        }
    });
}

/// Whether two states of a pod make the same endpoints.
fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    let ready = |pod: &Pod| condition(pod, "Ready").map(|ready| ready.status.clone());
    let spec = |pod: &Pod| {
        pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.hostname.clone(), spec.subdomain.clone()))
    };
    old.deleting() == new.deleting()
        && old.metadata.labels == new.metadata.labels
        && pod_ips(old) == pod_ips(new)
        && is_finished(old) == is_finished(new)
        && ready(old) == ready(new)
        && spec(old) == spec(new)
}

/// Remembers what each Service's endpoints were last made from, to tell when the change happened that a write answers
/// to (KEP "network programming latency").
#[derive(Default)]
pub(crate) struct TriggerTimes {
    known: Mutex<HashMap<ObjectKey, Known>>,
}

#[derive(Default)]
struct Known {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The earliest change since the last call for this Service, as the annotation's value.
    pub(crate) fn next(&self, service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
        let mut all = self.known.lock();
        let known = all.entry(ObjectKey::of(&service.metadata)).or_default();
        let mut earliest: Option<Timestamp> = None;
        let mut note = |time: Timestamp| earliest = Some(earliest.map_or(time, |earlier| earlier.min(time)));
        let mut times = HashMap::new();
        for pod in pods {
            let ready = condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
            let Some(time) = ready.map(|time| time.0) else { continue };
            if known.pods.get(pod.name()).is_none_or(|before| *before < time) {
                note(time);
            }
            times.insert(pod.name().to_owned(), time);
        }
        known.pods = times;
        if known.service.is_none_or(|before| before < service.created()) {
            note(service.created());
        }
        known.service = Some(service.created());
        earliest.map(|time| jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", time).unwrap_or_default())
    }

    pub(crate) fn forget(&self, service: &ObjectKey) {
        self.known.lock().remove(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::{Value, json};

    #[test]
    fn ports_by_number_and_name() {
        let pod: Pod = object(json!({"spec": {
            "containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9}]},
                               {"name": "i", "ports": [{"name": "once", "containerPort": 10}]}]}}));
        let check = |port: Value, expected: Option<i32>| {
            assert_eq!(find_port(&pod, &object(port.clone())), expected, "{port}");
        };
        check(json!({"port": 80}), Some(80));
        check(json!({"port": 80, "targetPort": 81}), Some(81));
        check(json!({"port": 80, "targetPort": "web"}), Some(8080));
        check(json!({"port": 53, "targetPort": "dns", "protocol": "UDP"}), Some(53));
        check(json!({"port": 53, "targetPort": "dns", "protocol": "TCP"}), None);
        check(json!({"port": 80, "targetPort": "side"}), Some(9));
        check(json!({"port": 80, "targetPort": "once"}), None);
    }

    #[tokio::test]
    async fn a_pods_labels_lead_to_its_services() {
        let service = |name: &str, version: u32, selector: Value| -> Service {
            object(
                json!({"metadata": {"namespace": "n", "name": name, "resourceVersion": version.to_string()},
                "spec": {"selector": selector}}),
            )
        };
        let pod = |namespace: &str, version: u32, labels: Value| -> Pod {
            object(
                json!({"metadata": {"namespace": namespace, "name": "p", "resourceVersion": version.to_string(),
                "labels": labels}}),
            )
        };
        let pods = Informer::fixed([pod("n", 1, json!({"app": "web", "tier": "front"}))]);
        let services = Informer::fixed([
            service("web", 1, json!({"app": "web"})),
            service("front", 1, json!({"app": "web", "tier": "front"})),
            service("back", 1, json!({"app": "web", "tier": "back"})),
            service("none", 1, json!({})),
        ]);
        let queue = WorkQueue::new();
        queue_for_pods(&pods, &services, &queue);
        let queued = async |expected: &[&str]| {
            let mut names = Vec::new();
            while !queue.is_empty() {
                let key = queue.get().await.unwrap();
                queue.done(&key);
                names.push(key.name);
            }
            names.sort();
            assert_eq!(names, expected);
        };
        let behind = |name: &str| pods_of(&services.get("n", name).unwrap(), &pods).len();
        queued(&["front", "web"]).await;
        assert_eq!([behind("web"), behind("front"), behind("back"), behind("none")], [1, 1, 0, 0]);
        // Where it goes and where it comes.
        pods.insert(pod("n", 2, json!({"app": "web", "tier": "back"})));
        queued(&["back", "front", "web"]).await;
        assert_eq!([behind("web"), behind("front"), behind("back")], [1, 0, 1]);
        // A Service that selects by something else now.
        services.insert(service("web", 2, json!({"app": "other"})));
        pods.insert(pod("n", 3, json!({"app": "other"})));
        queued(&["back", "web"]).await;
        assert_eq!([behind("web"), behind("back")], [1, 0]);
        pods.insert(pod("elsewhere", 1, json!({"app": "other"})));
        queued(&[]).await;
        pods.remove(&ObjectKey::new("n", "p"));
        queued(&["web"]).await;
        assert_eq!(behind("web"), 0);
    }

    #[test]
    fn trigger_time_is_the_earliest_change() {
        let times = TriggerTimes::default();
        let service: Service = object(
            json!({"metadata": {"name": "s", "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}}),
        );
        let pod = |time: &str| {
            Arc::new(object::<Pod>(json!({"metadata": {"name": "p"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": time}]}})))
        };
        assert_eq!(times.next(&service, &[]).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(times.next(&service, &[]), None);
        let ready = [pod("2026-01-01T00:00:05Z")];
        assert_eq!(times.next(&service, &ready).as_deref(), Some("2026-01-01T00:00:05Z"));
        assert_eq!(times.next(&service, &ready), None, "nothing changed");
    }
}
