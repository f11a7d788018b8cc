//! What was written and the cache does not show yet: deciding without it would make double slices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use orlop_client::ObjectKey;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::objects::Meta;

/// How long a write is waited for to show up in the cache.
const STALE_LIMIT: Duration = Duration::from_secs(30);

struct Write {
    owner: ObjectKey,
    generation: i64,
    at: Instant,
}

/// Slices as last written, by uid, until the cache shows them.
#[derive(Default)]
pub(super) struct Written {
    slices: Mutex<HashMap<String, Write>>,
}

impl Written {
    pub(super) fn note(&self, owner: &ObjectKey, slice: &EndpointSlice) {
        let write = Write { owner: owner.clone(), generation: slice.generation(), at: Instant::now() };
        self.slices.lock().insert(slice.uid().to_owned(), write);
    }

    pub(super) fn forget(&self, uid: &str) {
        self.slices.lock().remove(uid);
    }

    /// Whether something written for `owner` is not in its cached slices; forgets what is.
    pub(super) fn is_ahead(&self, owner: &ObjectKey, cached: &[Arc<EndpointSlice>]) -> bool {
        let mut ahead = false;
        self.slices.lock().retain(|uid, write| {
            if write.owner != *owner {
                return true;
            }
            let seen =
                cached.iter().any(|slice| slice.uid() == uid && slice.generation() >= write.generation);
            let waiting = !seen && write.at.elapsed() < STALE_LIMIT;
            ahead |= waiting;
            waiting
        });
        ahead
    }
}
