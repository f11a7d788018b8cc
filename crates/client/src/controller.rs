//! The loop every controller runs: take a key, reconcile it, retry with back-off when that fails.

use std::any::Any;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::queue::WorkQueue;

/// Runs `workers` loops over `queue` until `shutdown`: `reconcile` gets a key and returns when to look at it again
/// (`None`: when something changes). An error or a panic costs that key a back-off and nothing else.
pub async fn run_workers<T, E, F, Fut>(
    controller: &'static str,
    queue: WorkQueue<T>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Debug + Send + 'static,
    E: Display,
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<Option<Duration>, E>>,
{
    let work = || async {
        while let Some(key) = queue.get().await {
            match AssertUnwindSafe(reconcile(key.clone())).catch_unwind().await {
                Ok(Ok(again)) => {
                    queue.forget(&key);
                    if let Some(delay) = again {
                        queue.add_after(key.clone(), delay);
                    }
                }
                Ok(Err(reason)) => {
                    // A conflict with another writer is everyday; what keeps failing is worth a line.
                    if queue.failures(&key) < 3 {
                        debug!(controller, ?key, %reason, "reconcile failed; retrying");
                    } else {
                        error!(controller, ?key, %reason, "reconcile keeps failing; retrying with back-off");
                    }
                    queue.add_rate_limited(key.clone());
                }
                Err(panic) => {
                    error!(
                        controller,
                        ?key,
                        reason = panic_text(&*panic),
                        "reconcile panicked; retrying with back-off"
                    );
                    queue.add_rate_limited(key.clone());
                }
            }
            queue.done(&key);
        }
    };
    let all = join_all((0..workers.max(1)).map(|_| work()));
    tokio::select! {
        () = shutdown.cancelled() => queue.close(),
        _ = all => {}
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_error_cost_a_retry_only() {
        let queue = WorkQueue::new();
        let stop = CancellationToken::new();
        let tries = AtomicU32::new(0);
        queue.add("key");
        run_workers("test", queue.clone(), 2, stop.clone(), |_| {
            let (stop, tries) = (stop.clone(), &tries);
            async move {
                match tries.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("first"),
                    1 => Err("second"),
                    _ => {
                        stop.cancel();
                        Ok(None)
                    }
                }
            }
        })
        .await;
        assert_eq!(tries.load(Ordering::SeqCst), 3);
    }
}
