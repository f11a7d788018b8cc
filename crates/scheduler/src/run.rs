//! The shell: informers feed the loop, the loop decides, tasks of their own write what it decided.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::Selector;
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, SharedInformerFactory};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::cache::Cache;
use crate::framework::{ClusterEvent, FitError};
use crate::plugins;
use crate::pod_info::PodInfo;
use crate::queue::SchedulingQueue;
use crate::schedule::Profile;

/// Bindings that may be under way at once.
const BINDERS: usize = 64;

/// What a scheduler is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `spec.schedulerName` of the pods it is responsible for.
    pub scheduler_name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".to_owned() }
    }
}

/// What reaches the loop.
enum Message {
    Pod(Arc<Pod>),
    PodGone(ObjectKey),
    Node {
        old: Option<Arc<Node>>,
        new: Arc<Node>,
    },
    NodeGone(String),
    /// A binding was refused; the pod has to be tried again.
    BindFailed {
        key: ObjectKey,
        uid: String,
    },
}

/// Schedules pods until `shutdown`.
pub async fn run(factory: SharedInformerFactory, options: Options, shutdown: CancellationToken) {
    let client = factory.client().clone();
    let pods = factory.informer::<Pod>();
    let nodes = factory.informer::<Node>();
    let groups = Groups { services: factory.informer(), replica_sets: factory.informer() };
    tokio::join!(pods.synced(), nodes.synced(), groups.services.synced(), groups.replica_sets.synced());

    let (sender, messages) = mpsc::unbounded_channel();
    let to_loop = sender.clone();
    nodes.subscribe(move |event| {
        let message = match event {
            InformerEvent::Added(node) => Message::Node { old: None, new: node.clone() },
            InformerEvent::Updated { old, new } => Message::Node { old: Some(old.clone()), new: new.clone() },
            InformerEvent::Deleted(node) => Message::NodeGone(node.metadata.name.clone().unwrap_or_default()),
        };
        // Fails only once the loop has ended.
        let _ = to_loop.send(message);
    });
    let to_loop = sender.clone();
    pods.subscribe(move |event| {
        let message = match event {
            InformerEvent::Deleted(pod) => Message::PodGone(ObjectKey::of(&pod.metadata)),
            event => Message::Pod(event.object().clone()),
        };
        let _ = to_loop.send(message);
    });

    let scheduler = Scheduler {
        profile: Profile { filters: plugins::filters(), scores: plugins::scores() },
        cache: Cache::default(),
        queue: SchedulingQueue::default(),
        recorder: EventRecorder::new(client.clone(), &options.scheduler_name, ""),
        binders: Arc::new(Semaphore::new(BINDERS)),
        options,
        client,
        groups,
        sender,
    };
    scheduler.work(messages, shutdown).await;
}

/// Which pods belong together when their spec does not say.
struct Groups {
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
}

impl Groups {
    /// The selectors of all Services of a pod and of the ReplicaSet that owns it, together; `None` without any.
    fn default_selector(&self, pod: &Pod) -> Option<Selector> {
        let namespace = pod.metadata.namespace.as_deref()?;
        let labels = pod.metadata.labels.as_ref()?;
        let mut selector = Selector::default();
        for service in self.services.list_namespace(namespace) {
            let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty())
                && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            {
                selector.extend(Selector::from_iter(wanted.clone()));
            }
        }
        let owner =
            pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        if let Some(owner) = owner.filter(|owner| owner.kind == "ReplicaSet")
            && let Some(set) = self.replica_sets.get(namespace, &owner.name)
            && let Some(spec) = &set.spec
            && let Ok(own) = Selector::try_from(spec.selector.clone())
        {
            selector.extend(own);
        }
        Some(selector).filter(|selector| !selector.selects_all())
    }
}

struct Scheduler {
    profile: Profile,
    cache: Cache,
    queue: SchedulingQueue,
    recorder: EventRecorder,
    binders: Arc<Semaphore>,
    options: Options,
    client: kube::Client,
    groups: Groups,
    sender: mpsc::UnboundedSender<Message>,
}

impl Scheduler {
    async fn work(mut self, mut messages: mpsc::UnboundedReceiver<Message>, shutdown: CancellationToken) {
        loop {
            while let Ok(message) = messages.try_recv() {
                self.apply(message);
            }
            if let Some(pod) = self.queue.pop(Instant::now()) {
                self.schedule(&pod);
                // A long queue must not keep the runtime's thread from everybody else.
                tokio::task::yield_now().await;
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            let wake = self.queue.next_wake();
            let alarm = async {
                match wake {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = alarm => {}
                message = messages.recv() => match message {
                    Some(message) => self.apply(message),
                    None => return,
                },
            }
        }
    }

    fn apply(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.pod_changed(pod),
            Message::PodGone(key) => {
                self.queue.remove(&key);
                if self.cache.displace(&key) {
                    self.event(ClusterEvent::PlacedPodDeleted);
                }
            }
            Message::Node { old, new } => {
                self.cache.set_node(new.clone());
                node_events(old.as_deref(), &new).into_iter().for_each(|event| self.event(event));
            }
            Message::NodeGone(name) => self.cache.remove_node(&name),
            Message::BindFailed { key, uid } => {
                // A pod of the same name may have come in its place.
                let same = self.queue.get(&key).is_some_and(|info| info.uid() == uid);
                self.cache.displace(&key);
                if same {
                    self.queue.failed(&key, Instant::now());
                }
                self.event(ClusterEvent::PlacedPodDeleted);
            }
        }
    }

    fn pod_changed(&mut self, pod: Arc<Pod>) {
        let info = PodInfo::new(pod);
        if let Some(node) = info.node_name().map(str::to_owned) {
            self.queue.remove(&info.key);
            if info.is_terminal() {
                if self.cache.displace(&info.key) {
                    self.event(ClusterEvent::PlacedPodDeleted);
                }
            } else {
                self.cache.place(Arc::new(info), &node);
                self.event(ClusterEvent::PlacedPodAdded);
            }
            return;
        }
        let ours = info.spec().and_then(|spec| spec.scheduler_name.as_deref());
        let ours = ours.is_none_or(|name| name == self.options.scheduler_name);
        if !ours || info.is_terminal() || info.pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&info.key);
            return;
        }
        let selector = self.groups.default_selector(&info.pod);
        self.queue.set(Arc::new(info.with_default_selector(selector)), Instant::now());
    }

    fn event(&mut self, event: ClusterEvent) {
        let filters = &self.profile.filters;
        let concerned = |plugin: &'static str, event| {
            filters.iter().any(|filter| filter.name() == plugin && filter.events().contains(&event))
        };
        self.queue.event(event, concerned, Instant::now());
    }

    fn schedule(&mut self, pod: &Arc<PodInfo>) {
        match self.profile.schedule(pod, &self.cache, &mut rand::rng()) {
            Ok(node) => {
                // From here on its resources are taken; the binding follows in its own time.
                self.cache.place(pod.clone(), &node);
                self.bind(pod.clone(), node);
            }
            Err(error) => self.reject(pod, error),
        }
    }

    fn bind(&self, pod: Arc<PodInfo>, node: String) {
        let (client, recorder, sender) = (self.client.clone(), self.recorder.clone(), self.sender.clone());
        let binders = self.binders.clone();
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = binders.acquire().await;
            let pods: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
            let binding = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid()},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let bound: Result<serde_json::Value, _> =
                pods.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await;
            match bound {
                Ok(_) => {
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    recorder.event(&*pod.pod, EventType::Normal, "Scheduled", message);
                }
                Err(reason) => {
                    // A pod that was deleted or bound by somebody else meanwhile is none of ours any more.
                    match &reason {
                        kube::Error::Api(status) if matches!(status.code, 404 | 409) => {
                            debug!(pod = %pod.key, node, error = status.message, "not bound");
                        }
                        _ => error!(pod = %pod.key, node, error = %reason, "binding failed; trying again"),
                    }
                    let _ =
                        sender.send(Message::BindFailed { key: pod.key.clone(), uid: pod.uid().to_owned() });
                }
            }
        });
    }

    fn reject(&mut self, pod: &Arc<PodInfo>, error: FitError) {
        let message = error.to_string();
        let rejected_by: BTreeSet<_> = error.rejected_by;
        self.queue.unschedulable(&pod.key, rejected_by, Instant::now());
        self.recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", message.clone());
        if has_condition(&pod.pod, &message) {
            return;
        }
        let (client, key, generation) = (self.client.clone(), pod.key.clone(), pod.pod.metadata.generation);
        tokio::spawn(async move {
            let pods: Api<Pod> = Api::namespaced(client, &key.namespace);
            let condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "observedGeneration": generation,
            });
            let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
            match pods.patch_status(&key.name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => warn!(pod = %key, %error, "could not write why the pod is unschedulable"),
                Ok(_) => {}
            }
        });
    }
}

fn has_condition(pod: &Pod, message: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.message.as_deref() == Some(message)
    })
}

/// What a node's change can mean for pods that wait.
fn node_events(old: Option<&Node>, new: &Node) -> Vec<ClusterEvent> {
    let Some(old) = old else { return vec![ClusterEvent::NodeAdded] };
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let repels = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable));
    let mut events = Vec::new();
    if allocatable(old) != allocatable(new) {
        events.push(ClusterEvent::NodeAllocatable);
    }
    if old.metadata.labels != new.metadata.labels {
        events.push(ClusterEvent::NodeLabels);
    }
    if repels(old) != repels(new) {
        events.push(ClusterEvent::NodeTaints);
    }
    events
}
