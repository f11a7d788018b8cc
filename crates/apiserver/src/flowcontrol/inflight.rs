//! The plain limit that stands in for priority and fairness when that is switched off: so many reading and so many
//! changing requests at once (`--max-requests-inflight`, `--max-mutating-requests-inflight`; 0 sets no limit).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Both limits.
pub struct MaxInFlight {
    read_only: Option<Arc<Semaphore>>,
    mutating: Option<Arc<Semaphore>>,
}

fn limit(count: usize) -> Option<Arc<Semaphore>> {
    (count > 0).then(|| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
}

impl MaxInFlight {
    /// With these numbers.
    pub fn new(read_only: usize, mutating: usize) -> MaxInFlight {
        MaxInFlight { read_only: limit(read_only), mutating: limit(mutating) }
    }

    /// A place, held until it is dropped; `Err` when there is none.
    pub fn enter(&self, read_only: bool) -> Result<Option<OwnedSemaphorePermit>, ()> {
        match if read_only { &self.read_only } else { &self.mutating } {
            None => Ok(None),
            Some(places) => places.clone().try_acquire_owned().map(Some).map_err(|_| ()),
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
        assert!(first.is_ok() && limits.enter(true).is_err());
        assert!((0..5).all(|_| limits.enter(false).is_ok()));
        drop(first);
        assert!(limits.enter(true).is_ok());
    }
}
