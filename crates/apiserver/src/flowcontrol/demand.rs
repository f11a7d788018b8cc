//! How many seats each priority level has asked for, and how seats are lent from those that need fewer to those that
//! need more. Upstream's counterpart is the borrowing of KEP-1040.

use std::time::Instant;

/// How slowly the remembered demand fades, for each adjustment.
const SMOOTHING: f64 = 0.977;
/// Smallest target, so that fractions are defined.
const MIN_TARGET: f64 = 0.001;

/// Integrates a number of seats over time.
#[derive(Debug)]
pub struct Integrator {
    since: Instant,
    value: f64,
    seconds: f64,
    sum: f64,
    squares: f64,
    high: f64,
}

/// What was seen in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// Its length in seconds.
    pub seconds: f64,
    /// Mean over time.
    pub average: f64,
    /// Standard deviation over time.
    pub deviation: f64,
    /// Highest value.
    pub high: f64,
}

impl Integrator {
    /// Begins with zero.
    pub fn new(now: Instant) -> Integrator {
        Integrator { since: now, value: 0.0, seconds: 0.0, sum: 0.0, squares: 0.0, high: 0.0 }
    }

    fn advance(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.seconds += seconds;
        self.sum += seconds * self.value;
        self.squares += seconds * self.value * self.value;
    }

    /// The number from now on.
    pub fn set(&mut self, now: Instant, value: f64) {
        self.advance(now);
        self.value = value;
        self.high = self.high.max(value);
    }

    /// What was seen since the last call.
    pub fn take(&mut self, now: Instant) -> Observation {
        self.advance(now);
        let average = if self.seconds > 0.0 { self.sum / self.seconds } else { 0.0 };
        let variance = if self.seconds > 0.0 { self.squares / self.seconds - average * average } else { 0.0 };
        let seen = Observation {
            seconds: self.seconds,
            average,
            deviation: variance.max(0.0).sqrt(),
            high: self.high,
        };
        *self = Integrator { value: self.value, high: self.value, ..Integrator::new(now) };
        seen
    }
}

/// The remembered demand of a priority level.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Mean of the last period.
    pub average: f64,
    /// Standard deviation of the last period.
    pub deviation: f64,
    /// Highest value of the last period.
    pub high: f64,
    /// Mean plus deviation, rising at once and falling slowly.
    pub smoothed: f64,
}

impl Demand {
    /// Takes a period in.
    pub fn update(&mut self, seen: Observation) {
        self.high = seen.high;
        if seen.seconds <= 0.0 {
            return;
        }
        self.average = seen.average;
        self.deviation = seen.deviation;
        let envelope = seen.average + seen.deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
    }
}

/// What a priority level can get and would like to get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// At least this.
    pub lower: f64,
    /// At most this.
    pub upper: f64,
    /// What it would like; its weight.
    pub target: f64,
}

/// Divides `total` seats: every level gets the same fraction of its target, within its bounds. The allocations and that
/// fraction; `None` when the bounds cannot be kept.
pub fn allocate(total: f64, shares: &[Share]) -> Option<(Vec<f64>, f64)> {
    let (low, high) = shares.iter().fold((0.0, 0.0), |(low, high), s| (low + s.lower, high + s.upper));
    let slack = total.abs() * 1e-9;
    if shares.is_empty() || low > total + slack || high < total - slack {
        return None;
    }
    if shares.iter().any(|s| s.lower < 0.0 || s.upper < s.lower) {
        return None;
    }
    let target = |share: &Share| share.target.max(MIN_TARGET);
    let at = |fraction: f64| -> Vec<f64> {
        shares.iter().map(|s| (fraction * target(s)).clamp(s.lower, s.upper)).collect()
    };
    // The sum grows piecewise linearly with the fraction; it bends where a level leaves its lower or meets its upper
    // bound. Between the two bends that surround the total the fraction follows from the slope.
    let mut bends: Vec<f64> = shares
        .iter()
        .flat_map(|s| [s.lower / target(s), s.upper / target(s)])
        .filter(|b| b.is_finite())
        .collect();
    bends.sort_by(f64::total_cmp);
    bends.insert(0, 0.0);
    let sum = |fraction: f64| at(fraction).iter().sum::<f64>();
    let after = bends.partition_point(|bend| sum(*bend) < total - slack);
    let Some(end) = bends.get(after).copied() else {
        let last = bends.last().copied().unwrap_or(0.0);
        return Some((at(last), last));
    };
    if after == 0 {
        return Some((at(end), end));
    }
    let start = bends[after - 1];
    let (below, above) = (sum(start), sum(end));
    let fraction =
        if above > below { start + (end - start) * (total - below) / (above - below) } else { end };
    Some((at(fraction), fraction))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn integrates() {
        let start = Instant::now();
        let mut integrator = Integrator::new(start);
        integrator.set(start + Duration::from_secs(1), 4.0);
        integrator.set(start + Duration::from_secs(2), 0.0);
        let seen = integrator.take(start + Duration::from_secs(4));
        assert_eq!((seen.seconds, seen.average, seen.high), (4.0, 1.0, 4.0));
        assert!((seen.deviation - 3.0f64.sqrt()).abs() < 1e-9);
        let mut demand = Demand::default();
        demand.update(seen);
        assert_eq!(demand.smoothed, 1.0 + seen.deviation);
        demand.update(Observation { seconds: 10.0, ..Default::default() });
        assert!(demand.smoothed > 2.6, "demand is forgotten slowly");
    }

    #[track_caller]
    fn check(total: f64, shares: &[(f64, f64, f64)], expected: Option<&[f64]>) {
        let shares: Vec<Share> = shares
            .iter()
            .map(|(lower, target, upper)| Share { lower: *lower, upper: *upper, target: *target })
            .collect();
        let got = allocate(total, &shares);
        match (got, expected) {
            (None, None) => {}
            (Some((got, _)), Some(expected)) => {
                assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{got:?} {expected:?}");
            }
            (got, expected) => panic!("{got:?} {expected:?}"),
        }
    }

    #[test]
    fn allocations() {
        check(10.0, &[(0.0, 1.0, 10.0), (0.0, 1.0, 10.0)], Some(&[5.0, 5.0]));
        check(10.0, &[(0.0, 3.0, 10.0), (0.0, 1.0, 10.0)], Some(&[7.5, 2.5]));
        check(10.0, &[(6.0, 1.0, 10.0), (0.0, 1.0, 10.0)], Some(&[6.0, 4.0]));
        check(10.0, &[(0.0, 9.0, 2.0), (0.0, 1.0, 10.0)], Some(&[2.0, 8.0]));
        check(10.0, &[(6.0, 1.0, 9.0), (5.0, 1.0, 9.0)], None);
        check(10.0, &[(0.0, 1.0, 4.0), (0.0, 1.0, 5.0)], None);
        check(10.0, &[(4.0, 1.0, 4.0), (6.0, 1.0, 6.0)], Some(&[4.0, 6.0]));
        check(10.0, &[(0.0, 0.0, 10.0), (2.0, 0.0, 10.0), (0.0, 0.0, 10.0)], Some(&[3.333, 3.333, 3.333]));
        check(5.0, &[], None);
    }

    proptest::proptest! {
        #[test]
        fn allocations_keep_bounds_and_sum(
            rows in proptest::collection::vec((0.0..50.0f64, 0.0..100.0f64, 0.0..200.0f64), 1..12),
            part in 0.0..1.0f64,
        ) {
            let shares: Vec<Share> = rows.iter()
                .map(|(lower, more, target)| Share { lower: *lower, upper: lower + more, target: *target })
                .collect();
            let (low, high) = shares.iter().fold((0.0, 0.0), |(l, h), s| (l + s.lower, h + s.upper));
            let total = low + (high - low) * part;
            let (got, fraction) = allocate(total, &shares).unwrap();
            let sum: f64 = got.iter().sum();
            proptest::prop_assert!((sum - total).abs() < 1e-6 * total.max(1.0), "{} {}", sum, total);
            for (value, share) in got.iter().zip(&shares) {
                proptest::prop_assert!(*value >= share.lower - 1e-9 && *value <= share.upper + 1e-9);
                let wanted = fraction * share.target.max(MIN_TARGET);
                let inside = *value > share.lower + 1e-9 && *value < share.upper - 1e-9;
                proptest::prop_assert!(!inside || (wanted - value).abs() < 1e-6 * wanted.max(1.0));
            }
        }
    }
}
