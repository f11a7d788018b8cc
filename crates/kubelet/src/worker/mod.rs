//! Pod workers: one task per pod, which alone acts for it. It sleeps until something about its pod happens: the object
//! changes, the runtime reports an event, a probe changes its mind, a ConfigMap it uses changes, or a back-off is over.
//! Answers to upstream's `pod_workers.go`.

mod kill;
mod pod;
mod start;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::context::Context;
use crate::pod::PodExt;

pub(crate) use kill::kill_orphan;

/// The way to a pod's worker.
pub(crate) struct Handle {
    pod: Mutex<Arc<Pod>>,
    /// The object is gone from the API.
    removed: AtomicBool,
    /// The kubelet accepted the pod: it counts against the node's resources.
    admitted: AtomicBool,
    pub wake: Arc<Notify>,
}

impl Handle {
    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.pod.lock().clone()
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}

/// All workers, by pod uid.
pub(crate) struct PodWorkers {
    context: Arc<Context>,
    workers: Mutex<HashMap<String, Arc<Handle>>>,
    shutdown: CancellationToken,
}

impl PodWorkers {
    pub(crate) fn new(context: Arc<Context>, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { context, workers: Mutex::default(), shutdown })
    }

    /// Takes a new or changed pod object.
    pub(crate) fn update(self: &Arc<Self>, pod: &Arc<Pod>) {
        let uid = pod.uid().to_owned();
        let mut workers = self.workers.lock();
        if let Some(handle) = workers.get(&uid) {
            *handle.pod.lock() = pod.clone();
            handle.wake.notify_one();
            return;
        }
        let handle = Arc::new(Handle {
            pod: Mutex::new(pod.clone()),
            removed: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
            wake: Arc::default(),
        });
        workers.insert(uid.clone(), handle.clone());
        drop(workers);
        let all = self.clone();
        tokio::spawn(async move {
            let worker = pod::Worker::new(all.context.clone(), handle, all.clone());
            let shutdown = all.shutdown.clone();
            let ended = AssertUnwindSafe(shutdown.run_until_cancelled(worker.run())).catch_unwind().await;
            all.workers.lock().remove(&uid);
            if ended.is_err() {
                error!(uid, "the pod's worker panicked; the next relist starts another");
            }
        });
    }

    /// The object is gone from the API.
    pub(crate) fn remove(&self, pod: &Pod) {
        if let Some(handle) = self.workers.lock().get(pod.uid()) {
            *handle.pod.lock() = Arc::new(pod.clone());
            handle.removed.store(true, Ordering::Release);
            handle.wake.notify_one();
        }
    }

    /// Something happened to a pod's containers.
    pub(crate) fn wake(&self, uid: &str) {
        if let Some(handle) = self.workers.lock().get(uid) {
            handle.wake.notify_one();
        }
    }

    /// Something happened that concerns every pod.
    pub(crate) fn wake_all(&self) {
        self.workers.lock().values().for_each(|handle| handle.wake.notify_one());
    }

    pub(crate) fn knows(&self, uid: &str) -> bool {
        self.workers.lock().contains_key(uid)
    }

    /// Brings the CPU weights of the classes in line with the pods there are.
    fn update_weights(&self) {
        let pods = self.admitted("");
        crate::qos::update(&self.context.options.cgroup_parent, pods.iter().map(|pod| &**pod));
    }

    /// Pods that take resources of the node, but for `uid`.
    fn admitted(&self, uid: &str) -> Vec<Arc<Pod>> {
        let workers = self.workers.lock();
        let others = workers.values().filter(|h| h.admitted.load(Ordering::Acquire)).map(|h| h.pod());
        others.filter(|pod| pod.uid() != uid && !pod.is_terminal()).collect()
    }
}
