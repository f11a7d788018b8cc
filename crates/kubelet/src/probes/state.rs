//! When a probe's result counts: thresholds, and the pause after a liveness failure. Pure; answers to upstream's
//! `prober/worker.go`.

/// Which of a container's three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    /// As events name it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    /// The result before the first one that counts.
    pub(crate) fn initial(self) -> Option<bool> {
        match self {
            Self::Startup => None,
            Self::Readiness => Some(false),
            Self::Liveness => Some(true),
        }
    }
}

/// One container instance's run of results.
#[derive(Debug)]
pub(crate) struct State {
    kind: Kind,
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
    result: Option<bool>,
}

impl State {
    pub(crate) fn new(kind: Kind, success_threshold: i32, failure_threshold: i32) -> Self {
        let at_least_one = |n: i32| u32::try_from(n).unwrap_or(1).max(1);
        Self {
            kind,
            success_threshold: at_least_one(success_threshold),
            failure_threshold: at_least_one(failure_threshold),
            last: None,
            run: 0,
            result: kind.initial(),
        }
    }

    /// Takes one outcome. Returns the result that counts now.
    pub(crate) fn record(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run += 1;
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run >= threshold {
            self.result = Some(success);
        }
        self.result
    }

    /// Whether this instance needs no further probing: it started, or it is going to be restarted.
    pub(crate) fn is_settled(&self) -> bool {
        match self.kind {
            Kind::Startup => self.result.is_some(),
            Kind::Liveness => self.result == Some(false),
            Kind::Readiness => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, thresholds: (i32, i32), outcomes: &[(bool, Option<bool>)], settled: bool) {
        let mut state = State::new(kind, thresholds.0, thresholds.1);
        for (index, (outcome, expected)) in outcomes.iter().enumerate() {
            assert_eq!(state.record(*outcome), *expected, "{kind:?} outcome {index}");
        }
        assert_eq!(state.is_settled(), settled, "{kind:?}");
    }

    #[test]
    fn thresholds() {
        let (ok, bad) = (Some(true), Some(false));
        check(
            Kind::Readiness,
            (1, 3),
            &[(true, ok), (false, ok), (false, ok), (false, bad), (true, ok)],
            false,
        );
        check(Kind::Readiness, (2, 1), &[(true, bad), (false, bad), (true, bad), (true, ok)], false);
        check(
            Kind::Liveness,
            (1, 3),
            &[(false, ok), (false, ok), (true, ok), (false, ok), (false, ok), (false, bad)],
            true,
        );
        check(Kind::Startup, (1, 3), &[(false, None), (false, None), (true, ok)], true);
        check(Kind::Startup, (1, 2), &[(false, None), (false, bad)], true);
    }
}
