//! What is made of configuration objects and must be at hand for every request: made again, away from the requests,
//! whenever one of the objects changes, and swapped in whole.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Interest, Mailbox, Snapshot};

/// The present state of something made of configuration objects. Cheap to clone; reading takes no lock.
pub struct Following<T>(Arc<ArcSwap<T>>);

impl<T> Clone for Following<T> {
    fn clone(&self) -> Self {
        Following(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> Following<T> {
    /// Makes the state from the caches' objects and keeps it in step with them until `stop`. `make` is given a snapshot
    /// of each cache and the former state, of which it may keep what has not changed.
    pub fn start(
        caches: Vec<Arc<Cache>>,
        stop: CancellationToken,
        empty: T,
        make: impl Fn(&[Snapshot], &T) -> T + Send + 'static,
    ) -> Following<T> {
        let state = Arc::new(ArcSwap::from_pointee(empty));
        let following = Following(state.clone());
        let mut receivers = subscribe(&caches);
        let refresh = move |caches: &[Arc<Cache>]| {
            let snapshots: Vec<Snapshot> = caches.iter().map(|cache| cache.snapshot().0).collect();
            let made = make(&snapshots, &state.load());
            state.store(Arc::new(made));
        };
        refresh(&caches);
        if caches.is_empty() {
            return following;
        }
        tokio::spawn(async move {
            loop {
                let changes = receivers.iter_mut().map(|receiver| Box::pin(receiver.recv()));
                let changed = tokio::select! {
                    () = stop.cancelled() => return,
                    (changed, _, _) = futures::future::select_all(changes) => changed,
                };
                if changed.is_none() {
                    // This reader was too slow and was cut: begin again with everything.
                    receivers = subscribe(&caches);
                }
                // One making serves all changes that have come meanwhile.
                for receiver in &mut receivers {
                    while receiver.try_recv().is_ok() {}
                }
                refresh(&caches);
            }
        });
        following
    }

    /// The state as it is now.
    pub fn load(&self) -> arc_swap::Guard<Arc<T>> {
        self.0.load()
    }
}

fn subscribe(caches: &[Arc<Cache>]) -> Vec<Mailbox> {
    caches
        .iter()
        .filter_map(|cache| cache.subscribe(None, Interest::All).ok().and_then(|s| s.receiver))
        .collect()
}
