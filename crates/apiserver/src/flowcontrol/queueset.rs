//! The seats of one priority level and the queues in front of them.
//!
//! Fair queuing as in upstream's `fairqueuing/queueset`: a virtual time advances with the service that each busy queue
//! should have had; each queue knows at which virtual time its next request may start, and the queue whose next request
//! would finish first is served. The service time of a request is guessed when it starts and put right when it ends.
//! While nobody waits a request costs one short critical section: a look at the queues of its hand, a few additions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::dealer::{Dealer, MAX_HAND};
use super::demand::{Integrator, Observation};
use super::metrics::FlowMetrics;
use super::terms::{GUESS, work};
pub use super::terms::{Queuing, Refusal, Width, Work, work_text};

/// `queues` index of requests that have no queue.
const NO_QUEUE: usize = usize::MAX;

/// What the dump tells of a request that waits.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The flow schema.
    pub schema: Arc<str>,
    /// What tells its flow from others of the schema.
    pub distinguisher: String,
    /// User name, verb, path, namespace, name, API version, resource, subresource.
    pub details: [String; 8],
}

struct Waiter {
    id: u64,
    width: Width,
    arrived_r: Work,
    arrived: Instant,
    description: Description,
    admit: oneshot::Sender<()>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    executing: u32,
    seats_in_use: u32,
    next_dispatch_r: Work,
    waiting_initial: u32,
    waiting_seats: u32,
    waiting_work: Work,
}

impl Queue {
    fn busy(&self) -> bool {
        // Seats are held a little longer than requests are served.
        self.seats_in_use > 0 || !self.waiting.is_empty()
    }
}

/// Counts since the level exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Requests that got a seat.
    pub dispatched: u64,
    /// Requests that were refused at once.
    pub rejected: u64,
    /// Requests that waited too long.
    pub timed_out: u64,
    /// Requests whose client went away while they waited.
    pub cancelled: u64,
}

struct Inner {
    queuing: Queuing,
    dealer: Dealer,
    limit: u32,
    queues: Vec<Queue>,
    /// Virtual time, and the real time at which it was right.
    current_r: Work,
    synced: Instant,
    busy_queues: u32,
    robin: usize,
    enqueues: usize,
    next_id: u64,
    waiting: u32,
    waiting_seats: u32,
    executing: u32,
    seats_in_use: u32,
    demand: Integrator,
    totals: Totals,
}

/// The queues of a priority level.
pub struct QueueSet {
    inner: Mutex<Inner>,
}

/// A request that has a seat. Dropping it gives the seat back.
pub struct Permit {
    set: Arc<QueueSet>,
    queue: usize,
    width: Width,
    started: Instant,
    metrics: Arc<FlowMetrics>,
}

/// A request on its way through the queues.
pub struct Ticket {
    set: Arc<QueueSet>,
    queue: usize,
    id: u64,
    width: Width,
    arrived: Instant,
    metrics: Arc<FlowMetrics>,
    admitted: Option<oneshot::Receiver<()>>,
    reason: Refusal,
}

/// What became of a request at its arrival.
pub enum Arrival {
    /// It has its seat.
    Seated(Permit),
    /// It waits.
    Queued(Ticket),
    /// It is refused.
    Refused(Refusal),
}

impl Inner {
    fn sync(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.synced);
        self.synced = self.synced.max(now);
        if self.busy_queues > 0 {
            let wanted = u64::from(self.waiting_seats + self.seats_in_use).min(u64::from(self.limit));
            let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(0);
            self.current_r = self.current_r.saturating_add(wanted * elapsed / u64::from(self.busy_queues));
        }
    }

    fn note_demand(&mut self, now: Instant) {
        let seats = f64::from(self.waiting_seats + self.seats_in_use);
        self.demand.set(now, seats);
    }

    fn fits(&self, seats: u32) -> bool {
        match self.queuing {
            Queuing::Exempt => true,
            // What is wider than the level is served alone.
            _ if seats > self.limit => self.executing == 0,
            _ => self.seats_in_use + seats <= self.limit,
        }
    }

    /// The queue of the hand with the least work in it.
    fn choose(&mut self, hash: u64) -> usize {
        let mut hand = [0; MAX_HAND];
        let size = self.dealer.deal(hash, &mut hand);
        let offset = self.enqueues % size;
        self.enqueues = self.enqueues.wrapping_add(1);
        let mut best = (NO_QUEUE, Work::MAX);
        for at in 0..size {
            let index = hand[(offset + at) % size];
            let work = self.queues.get(index).map_or(0, |queue| queue.waiting_work);
            if work < best.1 {
                best = (index, work);
            }
        }
        best.0
    }

    /// A queue that becomes busy starts at the present virtual time: it has no claim from the past.
    fn enter(&mut self, index: usize) {
        let current_r = self.current_r;
        let queue = &mut self.queues[index];
        if !queue.busy() {
            queue.next_dispatch_r = current_r;
            self.busy_queues += 1;
        }
    }

    fn leave(&mut self, index: usize) {
        if !self.queues[index].busy() {
            self.busy_queues -= 1;
        }
        // Queues that a smaller configuration does not use go when they are empty, from the end.
        let wanted = match self.queuing {
            Queuing::Queue { queues, .. } => queues,
            _ => 0,
        };
        while self.queues.len() > wanted && self.queues.last().is_some_and(|queue| !queue.busy()) {
            self.queues.pop();
        }
    }

    fn seat(&mut self, index: usize, width: Width) {
        self.executing += 1;
        self.seats_in_use += width.seats();
        self.totals.dispatched += 1;
        if index != NO_QUEUE {
            let queue = &mut self.queues[index];
            queue.executing += 1;
            queue.seats_in_use += width.seats();
            queue.next_dispatch_r = queue.next_dispatch_r.saturating_add(width.total());
            bound(queue);
        }
    }

    fn unqueue(&mut self, index: usize, at: usize) -> Option<Waiter> {
        let queue = &mut self.queues[index];
        let waiter = queue.waiting.remove(at)?;
        queue.waiting_initial -= waiter.width.initial;
        queue.waiting_seats -= waiter.width.seats();
        queue.waiting_work -= waiter.width.total();
        self.waiting -= 1;
        self.waiting_seats -= waiter.width.seats();
        Some(waiter)
    }

    /// Seats those who wait while there is room, the earliest virtual finish first.
    fn dispatch(&mut self) {
        while self.waiting > 0 && (self.seats_in_use < self.limit || self.queuing == Queuing::Exempt) {
            let count = self.queues.len();
            let mut best = (NO_QUEUE, Work::MAX);
            for step in 1..=count {
                let index = (self.robin + step) % count;
                let queue = &self.queues[index];
                let Some(oldest) = queue.waiting.front() else { continue };
                let finish = queue.next_dispatch_r.saturating_add(oldest.width.total());
                if finish < best.1 {
                    best = (index, finish);
                }
            }
            let Some(seats) =
                self.queues.get(best.0).and_then(|queue| queue.waiting.front()).map(|w| w.width.seats())
            else {
                return;
            };
            if !self.fits(seats) {
                return;
            }
            let Some(waiter) = self.unqueue(best.0, 0) else { return };
            self.robin = best.0;
            self.seat(best.0, waiter.width);
            // When the client has gone in this moment, its ticket finds itself seated and gives the seat back.
            let _ = waiter.admit.send(());
        }
    }
}

/// The next request of a queue does not start before it arrived.
fn bound(queue: &mut Queue) {
    if let Some(oldest) = queue.waiting.front() {
        queue.next_dispatch_r = queue.next_dispatch_r.max(oldest.arrived_r);
    }
}

impl QueueSet {
    /// An idle set.
    pub fn new(queuing: Queuing, limit: u32, now: Instant) -> QueueSet {
        let set = QueueSet {
            inner: Mutex::new(Inner {
                queuing: Queuing::Reject,
                dealer: Dealer::new(1, 1),
                limit,
                queues: Vec::new(),
                current_r: 0,
                synced: now,
                busy_queues: 0,
                robin: 0,
                enqueues: 0,
                next_id: 0,
                waiting: 0,
                waiting_seats: 0,
                executing: 0,
                seats_in_use: 0,
                demand: Integrator::new(now),
                totals: Totals::default(),
            }),
        };
        set.configure(queuing, limit, now);
        set
    }

    /// Takes another configuration; requests that wait go on waiting.
    pub fn configure(&self, queuing: Queuing, limit: u32, now: Instant) {
        let mut inner = self.inner.lock();
        inner.sync(now);
        inner.queuing = queuing;
        inner.limit = limit;
        if let Queuing::Queue { queues, hand_size, .. } = queuing {
            inner.dealer = Dealer::new(queues, hand_size);
            let queues = queues.max(1);
            if inner.queues.len() < queues {
                inner.queues.resize_with(queues, Queue::default);
            }
        }
        inner.dispatch();
        inner.note_demand(now);
    }

    /// Changes the number of seats.
    pub fn set_limit(&self, limit: u32, now: Instant) {
        let queuing = self.inner.lock().queuing;
        self.configure(queuing, limit, now);
    }

    /// A request arrives. `hash` is of its flow; `describe` is asked only when it has to wait.
    pub fn arrive(
        self: &Arc<Self>,
        hash: u64,
        width: Width,
        now: Instant,
        metrics: &Arc<FlowMetrics>,
        describe: impl FnOnce() -> Description,
    ) -> Arrival {
        let seats = width.seats();
        let mut inner = self.inner.lock();
        inner.sync(now);
        let length_limit = match inner.queuing {
            Queuing::Queue { length_limit, .. } => length_limit,
            _ => {
                if !inner.fits(seats) {
                    inner.totals.rejected += 1;
                    return Arrival::Refused(Refusal::ConcurrencyLimit);
                }
                inner.seat(NO_QUEUE, width);
                inner.note_demand(now);
                return Arrival::Seated(self.permit(NO_QUEUE, width, now, metrics));
            }
        };
        let index = inner.choose(hash);
        if inner.seats_in_use >= inner.limit && inner.queues[index].waiting.len() >= length_limit {
            inner.totals.rejected += 1;
            return Arrival::Refused(Refusal::QueueFull);
        }
        inner.enter(index);
        if inner.waiting == 0 && inner.seats_in_use < inner.limit && inner.fits(seats) {
            inner.robin = index;
            inner.seat(index, width);
            inner.note_demand(now);
            return Arrival::Seated(self.permit(index, width, now, metrics));
        }
        let id = inner.next_id;
        inner.next_id += 1;
        let (admit, admitted) = oneshot::channel();
        let arrived_r = inner.current_r;
        let queue = &mut inner.queues[index];
        queue.waiting_initial += width.initial;
        queue.waiting_seats += seats;
        queue.waiting_work += width.total();
        queue.waiting.push_back(Waiter {
            id,
            width,
            arrived_r,
            arrived: now,
            description: describe(),
            admit,
        });
        metrics.queue_length.number(queue.waiting.len() as u64);
        inner.waiting += 1;
        inner.waiting_seats += seats;
        inner.dispatch();
        inner.note_demand(now);
        drop(inner);
        metrics.in_queue.add(1);
        Arrival::Queued(Ticket {
            set: self.clone(),
            queue: index,
            id,
            width,
            arrived: now,
            metrics: metrics.clone(),
            admitted: Some(admitted),
            reason: Refusal::Cancelled,
        })
    }

    fn permit(
        self: &Arc<Self>,
        queue: usize,
        width: Width,
        now: Instant,
        metrics: &Arc<FlowMetrics>,
    ) -> Permit {
        metrics.executing.add(1);
        metrics.executing_seats.add(i64::from(width.seats()));
        metrics.dispatched.inc();
        Permit { set: self.clone(), queue, width, started: now, metrics: metrics.clone() }
    }

    /// The service is over; its true length replaces the guess.
    fn served(&self, queue: usize, width: Width, started: Instant, now: Instant) {
        let mut inner = self.inner.lock();
        inner.sync(now);
        inner.executing -= 1;
        if queue != NO_QUEUE
            && let Some(queue) = inner.queues.get_mut(queue)
        {
            queue.executing -= 1;
            let actual = work(width.initial, now.saturating_duration_since(started));
            let guess = work(width.initial, GUESS);
            queue.next_dispatch_r = (queue.next_dispatch_r.saturating_add(actual)).saturating_sub(guess);
            bound(queue);
        }
        if width.additional.is_zero() {
            inner.release(queue, width, now);
        }
    }

    fn delivered(&self, queue: usize, width: Width, now: Instant) {
        let mut inner = self.inner.lock();
        inner.sync(now);
        inner.release(queue, width, now);
    }

    /// Whether nobody waits and nobody is served.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.waiting == 0 && inner.executing == 0
    }

    /// What was asked for since the last call.
    pub fn take_demand(&self, now: Instant) -> Observation {
        self.inner.lock().demand.take(now)
    }

    /// Seats in use and seats waited for.
    pub fn seats(&self) -> (u32, u32) {
        let inner = self.inner.lock();
        (inner.seats_in_use, inner.waiting_seats)
    }

    /// The state for the dump.
    pub fn dump(&self) -> Dump {
        let inner = self.inner.lock();
        Dump {
            waiting: inner.waiting,
            executing: inner.executing,
            totals: inner.totals,
            queues: inner
                .queues
                .iter()
                .map(|queue| QueueDump {
                    executing: queue.executing,
                    seats_in_use: queue.seats_in_use,
                    next_dispatch_r: queue.next_dispatch_r,
                    waiting_initial: queue.waiting_initial,
                    waiting_seats: queue.waiting_seats,
                    waiting_work: queue.waiting_work,
                    waiting: queue
                        .waiting
                        .iter()
                        .map(|w| (w.arrived, w.width, w.description.clone()))
                        .collect(),
                })
                .collect(),
        }
    }
}

impl Inner {
    /// The seats are free again.
    fn release(&mut self, queue: usize, width: Width, now: Instant) {
        self.seats_in_use -= width.seats();
        if queue != NO_QUEUE && queue < self.queues.len() {
            self.queues[queue].seats_in_use -= width.seats();
            self.leave(queue);
        }
        if self.waiting > 0 {
            self.dispatch();
        }
        self.note_demand(now);
    }
}

/// A priority level at one moment.
pub struct Dump {
    /// Requests that wait.
    pub waiting: u32,
    /// Requests that are served.
    pub executing: u32,
    /// Counts.
    pub totals: Totals,
    /// Its queues.
    pub queues: Vec<QueueDump>,
}

/// A queue at one moment; service in seat microseconds.
#[allow(missing_docs)]
pub struct QueueDump {
    pub executing: u32,
    pub seats_in_use: u32,
    pub next_dispatch_r: u64,
    pub waiting_initial: u32,
    pub waiting_seats: u32,
    pub waiting_work: u64,
    pub waiting: Vec<(Instant, Width, Description)>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        self.metrics.executing.add(-1);
        self.metrics.executing_seats.add(-i64::from(self.width.seats()));
        self.metrics.execution.time(now.saturating_duration_since(self.started));
        self.set.served(self.queue, self.width, self.started, now);
        if self.width.additional.is_zero() {
            return;
        }
        let (set, queue, width) = (self.set.clone(), self.queue, self.width);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    tokio::time::sleep(width.additional).await;
                    set.delivered(queue, width, Instant::now());
                });
            }
            Err(_) => set.delivered(queue, width, now),
        }
    }
}

impl Ticket {
    /// Waits for a seat, at most so long.
    pub async fn wait(mut self, limit: Duration) -> Result<Permit, Refusal> {
        let Some(admitted) = self.admitted.as_mut() else { return Err(Refusal::Cancelled) };
        if !matches!(tokio::time::timeout(limit, admitted).await, Ok(Ok(()))) && !self.seated() {
            self.reason = Refusal::TimeOut;
            return Err(Refusal::TimeOut);
        }
        self.admitted = None;
        let now = Instant::now();
        self.metrics.in_queue.add(-1);
        self.metrics.wait_executed.time(now.saturating_duration_since(self.arrived));
        Ok(self.set.permit(self.queue, self.width, now, &self.metrics))
    }

    /// Whether the seat was given in the last moment.
    fn seated(&mut self) -> bool {
        self.admitted.as_mut().is_some_and(|admitted| admitted.try_recv().is_ok())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.admitted.is_none() {
            return;
        }
        let now = Instant::now();
        self.metrics.in_queue.add(-1);
        self.metrics.wait_refused.time(now.saturating_duration_since(self.arrived));
        self.metrics.refused(self.reason);
        let mut inner = self.set.inner.lock();
        inner.sync(now);
        let at = inner.queues.get(self.queue).and_then(|q| q.waiting.iter().position(|w| w.id == self.id));
        match at {
            Some(at) => {
                inner.unqueue(self.queue, at);
                bound(&mut inner.queues[self.queue]);
                match self.reason {
                    Refusal::TimeOut => inner.totals.timed_out += 1,
                    _ => inner.totals.cancelled += 1,
                }
                inner.leave(self.queue);
                // What stood behind it may be narrower.
                inner.dispatch();
                inner.note_demand(now);
            }
            None => {
                drop(inner);
                let width = Width { additional: Duration::ZERO, ..self.width };
                self.set.served(self.queue, width, now, now);
            }
        }
    }
}

#[cfg(test)]
#[path = "queueset_tests.rs"]
mod tests;
