//! Compaction in the background: keeps a window of history, as upstream's API server does (every five minutes it
//! compacts to what was the latest revision five minutes before).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Revision, Store, StoreError};

/// How much history to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoCompaction {
    /// Revisions younger than this stay readable. Upstream's default: 5 minutes.
    pub keep: Duration,
    /// At most this many revisions are kept, however young; `None`: no such bound.
    pub keep_revisions: Option<u64>,
    /// How often to look. History is kept up to this much longer than `keep`.
    pub interval: Duration,
}

impl Default for AutoCompaction {
    fn default() -> Self {
        AutoCompaction {
            keep: Duration::from_secs(300),
            keep_revisions: None,
            interval: Duration::from_secs(60),
        }
    }
}

/// What was the latest revision when.
#[derive(Debug, Default)]
struct Window(VecDeque<(Instant, Revision)>);

impl Window {
    /// Notes the present and answers the revision to compact to, if any.
    fn observe(&mut self, policy: &AutoCompaction, now: Instant, revision: Revision) -> Option<Revision> {
        let mut target = None;
        while let Some((seen, old)) = self.0.front().copied()
            && now.duration_since(seen) >= policy.keep
        {
            target = Some(old);
            self.0.pop_front();
        }
        // A store at rest needs no second note; the older one compacts sooner.
        if self.0.back().is_none_or(|(_, last)| *last < revision) {
            self.0.push_back((now, revision));
        }
        let bound = policy.keep_revisions.and_then(|keep| revision.0.checked_sub(keep)).map(Revision);
        target.max(bound)
    }
}

/// Compacts `store` by `policy` until `shutdown`. A failed compaction is logged and tried again at the next interval.
pub async fn auto_compact(store: Arc<dyn Store>, policy: AutoCompaction, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(policy.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut window = Window::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(target) = window.observe(&policy, Instant::now(), store.revision()) else {
            continue;
        };
        if target <= store.compact_revision() {
            continue;
        }
        match store.compact(target).await {
            Ok(()) => tracing::debug!(revision = target.0, "compacted history"),
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(revision = target.0, %error, "cannot compact history; will try again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_moves() {
        let policy = AutoCompaction { keep: Duration::from_secs(300), ..AutoCompaction::default() };
        let start = Instant::now();
        let mut window = Window::default();
        let mut check = |secs: u64, revision: u64, expected: Option<u64>| {
            let got = window.observe(&policy, start + Duration::from_secs(secs), Revision(revision));
            assert_eq!(got, expected.map(Revision), "at {secs} s");
        };
        check(0, 10, None);
        check(60, 20, None);
        check(120, 20, None);
        check(300, 50, Some(10));
        check(360, 50, Some(20));
        check(420, 50, None);
        check(600, 50, Some(50));
        check(900, 50, Some(50));
    }

    #[test]
    fn a_bound_on_revisions() {
        let policy = AutoCompaction { keep_revisions: Some(100), ..AutoCompaction::default() };
        let now = Instant::now();
        assert_eq!(Window::default().observe(&policy, now, Revision(50)), None);
        assert_eq!(Window::default().observe(&policy, now, Revision(150)), Some(Revision(50)));
    }
}
