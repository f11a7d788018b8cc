//! How far the caches have followed the store. Upstream's counterpart is the ready wait of the watch cache.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How far the event stream has been taken in, and who waits for it.
#[derive(Default)]
pub struct Applied {
    revision: AtomicU64,
    waiters: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
}

impl Applied {
    /// How far.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Everything up to `revision` has been taken in.
    pub fn advance(&self, revision: u64) {
        let mut waiters = self.waiters.lock();
        self.revision.fetch_max(revision, Ordering::Release);
        let later = waiters.split_off(&(revision + 1));
        let ready = std::mem::replace(&mut *waiters, later);
        drop(waiters);
        for waiter in ready.into_values().flatten() {
            let _ = waiter.send(());
        }
    }

    /// Waits until `revision` has been taken in.
    pub async fn wait(&self, revision: u64) {
        if self.revision() >= revision {
            return;
        }
        let receiver = {
            let mut waiters = self.waiters.lock();
            if self.revision() >= revision {
                return;
            }
            let (sender, receiver) = oneshot::channel();
            waiters.entry(revision).or_default().push(sender);
            receiver
        };
        let _ = receiver.await;
    }
}
