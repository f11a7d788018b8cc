#![allow(clippy::unwrap_used)]

use super::*;

fn queued(queues: usize, hand_size: usize, length_limit: usize) -> Queuing {
    Queuing::Queue { queues, hand_size, length_limit }
}

fn wide(seats: u32) -> Width {
    Width { initial: seats, last: 0, additional: Duration::ZERO }
}

fn set(queuing: Queuing, limit: u32) -> Arc<QueueSet> {
    Arc::new(QueueSet::new(queuing, limit, Instant::now()))
}

fn arrive(set: &Arc<QueueSet>, hash: u64, width: Width) -> Arrival {
    set.arrive(hash, width, Instant::now(), &Arc::default(), Description::default)
}

fn kind(arrival: &Arrival) -> String {
    match arrival {
        Arrival::Seated(_) => "seated".into(),
        Arrival::Queued(_) => "queued".into(),
        Arrival::Refused(reason) => reason.as_str().into(),
    }
}

#[test]
fn arrivals() {
    let check = |queuing: Queuing, limit: u32, widths: &[u32], expected: &[&str]| {
        let set = set(queuing, limit);
        let arrivals: Vec<Arrival> = widths.iter().map(|seats| arrive(&set, 7, wide(*seats))).collect();
        assert_eq!(arrivals.iter().map(kind).collect::<Vec<_>>(), expected, "{queuing:?}");
        drop(arrivals);
        assert!(set.is_idle());
        assert_eq!(set.seats(), (0, 0));
        assert_eq!(set.inner.lock().busy_queues, 0);
    };
    check(Queuing::Exempt, 0, &[1, 1, 9], &["seated", "seated", "seated"]);
    check(Queuing::Reject, 2, &[1, 1, 1], &["seated", "seated", "concurrency-limit"]);
    check(Queuing::Reject, 2, &[1, 2], &["seated", "concurrency-limit"]);
    // What is wider than the level is served alone.
    check(Queuing::Reject, 2, &[5, 1], &["seated", "concurrency-limit"]);
    check(queued(1, 1, 1), 1, &[1, 1, 1], &["seated", "queued", "queue-full"]);
    check(queued(1, 1, 5), 2, &[1, 2, 1], &["seated", "queued", "queued"]);
    check(queued(4, 2, 5), 0, &[1], &["seated"].map(|_| "queued"));
}

#[tokio::test]
async fn a_seat_goes_to_who_waits() {
    let set = set(queued(2, 1, 5), 1);
    let Arrival::Seated(first) = arrive(&set, 0, Width::ONE) else { panic!() };
    let Arrival::Queued(second) = arrive(&set, 0, Width::ONE) else { panic!() };
    let Arrival::Queued(third) = arrive(&set, 1, Width::ONE) else { panic!() };
    // A client that goes away leaves its place.
    drop(second);
    drop(first);
    let permit = third.wait(Duration::from_secs(5)).await.map_err(|e| e.as_str()).unwrap();
    assert_eq!(set.seats(), (1, 0));
    let Arrival::Queued(late) = arrive(&set, 0, Width::ONE) else { panic!() };
    assert_eq!(late.wait(Duration::from_millis(5)).await.err(), Some(Refusal::TimeOut));
    drop(permit);
    assert!(set.is_idle());
    let totals = set.dump().totals;
    assert_eq!((totals.dispatched, totals.timed_out, totals.cancelled), (2, 1, 1));
}

#[tokio::test]
async fn a_seat_given_to_a_client_that_left_comes_back() {
    let set = set(queued(1, 1, 5), 1);
    let Arrival::Seated(first) = arrive(&set, 0, Width::ONE) else { panic!() };
    let Arrival::Queued(second) = arrive(&set, 0, Width::ONE) else { panic!() };
    drop(first);
    assert_eq!(set.seats(), (1, 0), "the second is seated");
    drop(second);
    assert!(set.is_idle());
    assert_eq!(set.seats(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn seats_are_held_while_events_are_delivered() {
    let set = set(queued(1, 1, 5), 4);
    let width = Width { initial: 1, last: 4, additional: Duration::from_millis(50) };
    let Arrival::Seated(permit) = arrive(&set, 0, width) else { panic!() };
    assert_eq!(set.seats().0, 4);
    drop(permit);
    assert_eq!(set.seats().0, 4);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(set.seats().0, 0);
}

#[tokio::test]
async fn a_new_configuration_keeps_who_waits() {
    let set = set(queued(8, 1, 5), 1);
    let now = Instant::now();
    let Arrival::Seated(first) = arrive(&set, 7, Width::ONE) else { panic!() };
    let Arrival::Queued(second) = arrive(&set, 7, Width::ONE) else { panic!() };
    set.configure(queued(2, 1, 5), 1, now);
    assert_eq!(set.dump().queues.len(), 8, "the busy queue is the last");
    set.configure(Queuing::Reject, 2, now);
    let second = second.wait(Duration::from_secs(1)).await.map_err(|e| e.as_str()).unwrap();
    drop((first, second));
    assert!(set.is_idle());
    assert_eq!(set.dump().queues.len(), 0);
}

/// Plays flows that always want more against one seat and says how often each was served.
fn play(flows: &[(u64, u32)], limit: u32, rounds: usize, service: Duration) -> Vec<usize> {
    let set = set(queued(64, 1, 100), limit);
    let metrics: Arc<FlowMetrics> = Arc::default();
    let mut now = Instant::now();
    let mut waiting: Vec<(usize, Ticket)> = Vec::new();
    let mut served: Vec<(usize, Permit)> = Vec::new();
    let mut counts = vec![0; flows.len()];
    for _ in 0..rounds {
        for (at, (hash, width)) in flows.iter().enumerate() {
            while waiting.iter().filter(|(flow, _)| *flow == at).count() < 5 {
                match set.arrive(*hash, wide(*width), now, &metrics, Description::default) {
                    Arrival::Seated(permit) => {
                        counts[at] += 1;
                        served.push((at, permit));
                    }
                    Arrival::Queued(ticket) => waiting.push((at, ticket)),
                    Arrival::Refused(_) => break,
                }
            }
        }
        now += service;
        for (_, permit) in served.drain(..) {
            // What `Drop` does, at the played time.
            set.served(permit.queue, permit.width, permit.started, now);
            std::mem::forget(permit);
        }
        let mut at = 0;
        while at < waiting.len() {
            if waiting[at].1.seated() {
                let (flow, mut ticket) = waiting.remove(at);
                ticket.admitted = None;
                counts[flow] += 1;
                served.push((flow, set.permit(ticket.queue, ticket.width, now, &metrics)));
            } else {
                at += 1;
            }
        }
    }
    counts
}

#[test]
fn flows_share_seats_by_their_width() {
    // Hashes 0, 1, 2 are dealt the queues 0, 1, 2.
    let near = |count: usize, expected: usize| count.abs_diff(expected) * 10 <= expected;
    let counts = play(&[(0, 1), (1, 1), (2, 1)], 3, 400, Duration::from_millis(10));
    assert!(counts.iter().all(|count| near(*count, 400)), "{counts:?}");
    // A flow of requests of double width is served half as often.
    let counts = play(&[(0, 2), (1, 1)], 2, 600, Duration::from_millis(10));
    assert!(near(counts[0] * 2, counts[1]), "{counts:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn seats_are_never_lost_or_invented(
        steps in proptest::collection::vec((0u8..5, 0u64..20, 1u32..4), 1..120),
        limit in 1u32..6,
    ) {
        let set = set(queued(8, 3, 4), limit);
        let mut now = Instant::now();
        let metrics: Arc<FlowMetrics> = Arc::default();
        let (mut permits, mut tickets) = (Vec::new(), Vec::new());
        for (step, hash, seats) in steps {
            now += Duration::from_millis(1);
            match step {
                0..=2 => match set.arrive(hash * 7919, wide(seats), now, &metrics, Description::default) {
                    Arrival::Seated(permit) => permits.push(permit),
                    Arrival::Queued(ticket) => tickets.push(ticket),
                    Arrival::Refused(_) => {}
                },
                3 => if !permits.is_empty() { permits.remove(hash as usize % permits.len()); },
                _ => if !tickets.is_empty() { tickets.remove(hash as usize % tickets.len()); },
            }
            let mut at = 0;
            while at < tickets.len() {
                if tickets[at].seated() {
                    let mut ticket = tickets.remove(at);
                    ticket.admitted = None;
                    permits.push(set.permit(ticket.queue, ticket.width, now, &metrics));
                } else {
                    at += 1;
                }
            }
            let held: u32 = permits.iter().map(|p: &Permit| p.width.seats()).sum();
            let asked: u32 = tickets.iter().map(|t: &Ticket| t.width.seats()).sum();
            proptest::prop_assert_eq!(set.seats(), (held, asked));
            // Only what is wider than the level may exceed it, and only alone.
            proptest::prop_assert!(held <= limit || permits.len() == 1);
            // Somebody waits only when the next one does not fit.
            let inner = set.inner.lock();
            let busy = inner.queues.iter().filter(|q| q.busy()).count();
            proptest::prop_assert_eq!(busy, inner.busy_queues as usize);
            let waiting: usize = inner.queues.iter().map(|q| q.waiting.len()).sum();
            proptest::prop_assert_eq!(waiting, tickets.len());
            proptest::prop_assert!(waiting == 0 || !permits.is_empty());
        }
        drop(permits);
        drop(tickets);
        proptest::prop_assert!(set.is_idle());
        proptest::prop_assert_eq!(set.seats(), (0, 0));
    }
}
