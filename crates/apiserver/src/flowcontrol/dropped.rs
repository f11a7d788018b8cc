//! When a refused client may come back: longer while many are refused, shorter again when few are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Longest advice, seconds.
const MAX_RETRY_AFTER: u64 = 32;

#[derive(Debug, Default)]
struct State {
    /// Refusals of past seconds, oldest first.
    history: VecDeque<(u64, u64)>,
    second: u64,
    refused: u64,
    updated: u64,
}

/// Refusals of one priority level.
#[derive(Debug)]
pub struct Dropped {
    retry_after: AtomicU64,
    state: Mutex<State>,
}

impl Dropped {
    /// None yet; `now` in seconds.
    pub fn new(now: u64) -> Dropped {
        Dropped {
            retry_after: AtomicU64::new(1),
            state: Mutex::new(State { second: now, updated: now, ..State::default() }),
        }
    }

    /// Seconds a client should wait.
    pub fn retry_after(&self) -> u64 {
        self.retry_after.load(Ordering::Relaxed)
    }

    /// Takes a refusal in.
    pub fn record(&self, now: u64) {
        let mut state = self.state.lock();
        if now < state.second {
            return;
        }
        if now == state.second {
            state.refused += 1;
            return;
        }
        let past = (state.second, state.refused);
        state.history.push_back(past);
        let keep = (2 * self.retry_after()).min(MAX_RETRY_AFTER);
        while state.history.front().is_some_and(|(second, _)| past.0 - second > keep) {
            state.history.pop_front();
        }
        state.second = now;
        state.refused = 1;
        self.update(&mut state, now);
    }

    /// At most once in `retry_after` seconds: fewer refusals than that many lower it, three times as many double it.
    fn update(&self, state: &mut State, now: u64) {
        let retry_after = self.retry_after();
        if now - state.updated < retry_after {
            return;
        }
        let refused: u64 = state
            .history
            .iter()
            .filter(|(second, _)| now - second <= retry_after)
            .map(|(_, refused)| refused)
            .sum();
        let next = if refused < retry_after {
            retry_after.saturating_sub(1).max(1)
        } else if refused >= 3 * retry_after {
            (2 * retry_after).min(MAX_RETRY_AFTER)
        } else {
            return;
        };
        if next != retry_after {
            self.retry_after.store(next, Ordering::Relaxed);
            state.updated = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backs_off_and_recovers() {
        let dropped = Dropped::new(0);
        let mut at = 0;
        for _ in 0..40 {
            at += 1;
            for _ in 0..200 {
                dropped.record(at);
            }
        }
        assert_eq!(dropped.retry_after(), MAX_RETRY_AFTER);
        for _ in 0..60 {
            at += 40;
            dropped.record(at);
        }
        assert_eq!(dropped.retry_after(), 1);
    }
}
