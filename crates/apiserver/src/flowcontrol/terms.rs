//! The terms of fair queuing: service, the width of a request, how a level queues, why it refuses.

use std::time::Duration;

/// The first guess of how long a request is served.
pub const GUESS: Duration = Duration::from_millis(3);

/// Service, in seats times microseconds.
pub type Work = u64;

/// The service of so many seats for so long.
pub fn work(seats: u32, time: Duration) -> Work {
    u64::from(seats) * u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 1024)
}

/// Service as upstream prints it.
pub fn work_text(work: Work) -> String {
    format!("{}.{:06}00ss", work / 1_000_000, work % 1_000_000)
}

/// How many seats a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Width {
    /// While it is served.
    pub initial: u32,
    /// While what it caused is delivered.
    pub last: u32,
    /// How long that takes.
    pub additional: Duration,
}

impl Width {
    /// One seat.
    pub const ONE: Width = Width { initial: 1, last: 0, additional: Duration::ZERO };

    /// Seats that are held from the start to the end.
    pub fn seats(&self) -> u32 {
        self.initial.max(self.last).max(1)
    }

    /// The service it is expected to take.
    pub fn total(&self) -> Work {
        work(self.initial, GUESS) + work(self.last, self.additional)
    }
}

/// How a priority level treats requests for which no seat is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queuing {
    /// There is always a seat.
    Exempt,
    /// They are refused.
    Reject,
    /// They wait.
    Queue {
        /// Number of queues.
        queues: usize,
        /// Queues a flow may use.
        hand_size: usize,
        /// Most requests of a queue.
        length_limit: usize,
    },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No seat is free, and this level has no queues.
    ConcurrencyLimit,
    /// Its queue is full.
    QueueFull,
    /// It waited too long.
    TimeOut,
    /// The client went away.
    Cancelled,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Refusal; 4] =
        [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut, Refusal::Cancelled];

    /// The label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::ConcurrencyLimit => "concurrency-limit",
            Refusal::QueueFull => "queue-full",
            Refusal::TimeOut => "time-out",
            Refusal::Cancelled => "cancelled",
        }
    }
}
