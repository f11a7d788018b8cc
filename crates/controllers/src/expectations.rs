//! What a controller has done but its cache does not show yet. Without it a stale cache would make a controller create
//! the same pods again. Answers to upstream's `ControllerExpectations` and `UIDTrackingControllerExpectations`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_client::ObjectKey;
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long a missing watch event is not waited for any more.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

struct Expected {
    creations: i64,
    /// Deletions by uid: one deletion shows in several events and must count once.
    deletions: HashSet<String>,
    since: Instant,
}

/// The open expectations of one controller, by the object that has them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Expectations {
    open: Arc<Mutex<HashMap<ObjectKey, Expected>>>,
}

impl Expectations {
    /// Whether the cache shows all that was done for `key`, so that counting in it is safe.
    pub(crate) fn satisfied(&self, key: &ObjectKey) -> bool {
        self.open.lock().get(key).is_none_or(|expected| {
            (expected.creations <= 0 && expected.deletions.is_empty()) || expected.since.elapsed() > TIMEOUT
        })
    }

    /// To be called before the creations and the deletions (by uid), because their events may arrive before the calls
    /// return.
    pub(crate) fn expect(
        &self,
        key: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
    ) {
        let expected = Expected {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            since: Instant::now(),
        };
        self.open.lock().insert(key.clone(), expected);
    }

    /// [`expect`](Self::expect) creations only.
    pub(crate) fn expect_creations(&self, key: &ObjectKey, count: usize) {
        self.expect(key, count, []);
    }

    /// [`expect`](Self::expect) deletions only.
    pub(crate) fn expect_deletions(&self, key: &ObjectKey, uids: impl IntoIterator<Item = String>) {
        self.expect(key, 0, uids);
    }

    /// A creation showed up in the cache, or failed.
    pub(crate) fn creation_observed(&self, key: &ObjectKey) {
        if let Some(expected) = self.open.lock().get_mut(key) {
            expected.creations -= 1;
        }
    }

    /// A deletion showed up in the cache, or failed.
    pub(crate) fn deletion_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.open.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// The object is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.open.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn they_hold_until_seen_or_too_old() {
        let (all, key) = (Expectations::default(), ObjectKey::new("ns", "web"));
        assert!(all.satisfied(&key), "nothing was done");
        all.expect_creations(&key, 2);
        all.creation_observed(&key);
        assert!(!all.satisfied(&key));
        all.creation_observed(&key);
        assert!(all.satisfied(&key));

        all.expect_deletions(&key, ["a".to_owned(), "b".to_owned()]);
        all.deletion_observed(&key, "a");
        all.deletion_observed(&key, "a");
        assert!(!all.satisfied(&key), "one deletion counts once");
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(all.satisfied(&key), "a lost event does not block for ever");
        all.forget(&key);
        assert!(all.satisfied(&key));
    }
}
