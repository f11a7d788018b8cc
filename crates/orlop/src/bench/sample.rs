//! Times of single operations and what they say together.

use std::time::Duration;

/// Durations of the operations of one measurement.
#[derive(Debug, Default)]
pub struct Sample {
    times: Vec<Duration>,
}

impl Sample {
    /// A sample of these times, in any order.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { times }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// The smallest time that `percent` of the operations did not exceed (nearest rank), in milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sample = Sample::new((1..=200).rev().map(Duration::from_millis).collect());
        let check = |percent, expected: f64| {
            assert!((sample.percentile(percent) - expected).abs() < 1e-9, "{percent}")
        };
        check(50, 100.0);
        check(99, 198.0);
        check(100, 200.0);
        check(0, 1.0);
        assert!(Sample::default().percentile(50).is_nan());
    }
}
