//! The plain limit that stands in for priority and fairness when that is switched off: so many reading and so many
//! changing requests at once (`--max-requests-inflight`, `--max-mutating-requests-inflight`; 0 sets no limit).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Both limits.
pub struct MaxInFlight {
    read_only: Option<Arc<Semaphore>>,
    mutating: Option<Arc<Semaphore>>,
}

/// Whether there was a place.
#[derive(Debug)]
pub enum Place {
    /// There is no limit.
    Unlimited,
    /// There was one.
    Held(OwnedSemaphorePermit),
    /// There was none.
    Full,
}

fn limit(count: usize) -> Option<Arc<Semaphore>> {
    (count > 0).then(|| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
}

impl MaxInFlight {
    /// With these numbers.
    pub fn new(read_only: usize, mutating: usize) -> MaxInFlight {
        MaxInFlight { read_only: limit(read_only), mutating: limit(mutating) }
    }

    /// A place, held until it is dropped.
    pub fn enter(&self, read_only: bool) -> Place {
        match if read_only { &self.read_only } else { &self.mutating } {
            None => Place::Unlimited,
            Some(places) => places.clone().try_acquire_owned().map_or(Place::Full, Place::Held),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_places() {
        let limits = MaxInFlight::new(1, 0);
        let first = limits.enter(true);
        assert!(matches!((&first, limits.enter(true)), (Place::Held(_), Place::Full)));
        assert!((0..5).all(|_| matches!(limits.enter(false), Place::Unlimited)));
        drop(first);
        assert!(matches!(limits.enter(true), Place::Held(_)));
    }
}
