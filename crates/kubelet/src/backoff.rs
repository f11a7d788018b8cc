//! Exponential back-off per key, as client-go's `util/flowcontrol.Backoff` that upstream uses for restarts and pulls:
//! doubled by each failure, forgotten when nothing failed for twice the longest delay.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

/// Delays by key. Times are passed in, so decisions can be tested.
#[derive(Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

impl Backoff {
    pub(crate) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, entries: HashMap::new() }
    }

    /// The delay a key is under when its last failure was at `since`: `(delay, what is left of it)`.
    pub(crate) fn waiting(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if self.expired(since, entry) {
            return None;
        }
        let left = entry.delay.checked_sub(elapsed(since, now)).filter(|left| !left.is_zero())?;
        Some((entry.delay, left))
    }

    /// Takes note of another try after a failure at `since`: the next wait is twice as long.
    pub(crate) fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(since, entry) => (entry.delay * 2).min(self.max),
            _ => self.initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    /// Forgets a key: its work succeeded.
    pub(crate) fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }

    fn expired(&self, since: Timestamp, entry: &Entry) -> bool {
        elapsed(entry.updated, since) > self.max * 2
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_restart_is_immediate_and_waits_double_up_to_five_minutes() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let mut now = 1000;
        assert_eq!(backoff.waiting("c", at(now), at(now)), None);
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next("c", at(now), at(now));
            let (delay, left) = backoff.waiting("c", at(now), at(now + 1)).unwrap();
            assert_eq!((delay.as_secs(), left.as_secs()), (expected, expected - 1));
            now += i64::try_from(expected).unwrap();
            assert_eq!(backoff.waiting("c", at(now - i64::try_from(expected).unwrap()), at(now)), None);
        }
    }

    #[test]
    fn ten_quiet_minutes_reset_it() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        backoff.next("c", at(0), at(0));
        backoff.next("c", at(20), at(20));
        // Ran until 700: more than ten minutes after the last note.
        assert_eq!(backoff.waiting("c", at(700), at(700)), None);
        backoff.next("c", at(700), at(700));
        assert_eq!(backoff.waiting("c", at(701), at(701)).unwrap().0.as_secs(), 10);
        backoff.reset("c");
        assert_eq!(backoff.waiting("c", at(701), at(701)), None);
    }
}
