//! What one flow schema did to one priority level, counted.

use crate::metrics::{Counter, Gauge, Histogram};

use super::queueset::Refusal;

/// Upper bounds of waits, seconds.
const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of queue lengths.
const LENGTHS: &[f64] = &[0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
/// Upper bounds of seats.
const SEATS: &[f64] = &[1.0, 2.0, 4.0, 10.0];

/// Handles of one pair of flow schema and priority level.
#[derive(Debug)]
pub struct FlowMetrics {
    /// Requests that got a seat.
    pub dispatched: Counter,
    /// Refusals, in the order of [`Refusal::ALL`].
    refusals: [Counter; 4],
    /// Requests that wait.
    pub in_queue: Gauge,
    /// Requests that are served.
    pub executing: Gauge,
    /// Seats they hold.
    pub executing_seats: Gauge,
    /// Waits that ended with a seat.
    pub wait_executed: Histogram,
    /// Waits that ended without one.
    pub wait_refused: Histogram,
    /// Times of service.
    pub execution: Histogram,
    /// Lengths of the queue after a request was added.
    pub queue_length: Histogram,
    /// Estimated seats.
    pub seats: Histogram,
}

impl Default for FlowMetrics {
    fn default() -> FlowMetrics {
        FlowMetrics {
            dispatched: Counter::default(),
            refusals: Default::default(),
            in_queue: Gauge::default(),
            executing: Gauge::default(),
            executing_seats: Gauge::default(),
            wait_executed: Histogram::seconds(WAITS),
            wait_refused: Histogram::seconds(WAITS),
            execution: Histogram::seconds(WAITS),
            queue_length: Histogram::numbers(LENGTHS),
            seats: Histogram::numbers(SEATS),
        }
    }
}

impl FlowMetrics {
    /// Counts a refusal.
    pub fn refused(&self, reason: Refusal) {
        self.refusals[reason as usize].inc();
    }

    /// Refusals for a reason.
    pub fn refusals(&self, reason: Refusal) -> u64 {
        self.refusals[reason as usize].get()
    }
}
