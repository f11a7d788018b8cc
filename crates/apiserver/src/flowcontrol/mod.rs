//! API Priority and Fairness: which requests are served when not all can be.
//!
//! A request is matched against the flow schemas in their order of precedence; its schema names the priority level whose
//! seats it competes for, and its flow within that level. Levels lend seats they do not need ([`demand`]). Schemas and
//! levels are read from the caches of their kinds; the mandatory ones exist even when their objects do not. The upstream
//! counterpart is `apiserver/pkg/util/flowcontrol`. It knows nothing of HTTP but the names of headers.

mod config;
mod dealer;
mod demand;
mod dropped;
pub mod dump;
mod exposition;
pub mod follow;
pub mod inflight;
mod metrics;
mod queueset;
mod terms;
mod width;

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;

use crate::authn::UserInfo;
use crate::cache::CacheStats;
use crate::request_info::{Query, RequestInfo};
use config::{CATCH_ALL, EXEMPT, FlowSchema, PriorityLevel};
use demand::{Demand, Share};
use dropped::Dropped;
use metrics::FlowMetrics;
use queueset::{Arrival, Description, QueueSet, Queuing};
pub use queueset::{Permit, Refusal};

/// How often seats are lent anew.
pub const ADJUSTMENT_PERIOD: Duration = Duration::from_secs(10);
/// The part of a level's seats that one request may take.
const MAX_SEATS_PART: f64 = 0.15;

/// The numbers of a level that change while it is served.
#[derive(Clone, Copy, Debug, Default)]
struct Adjusted {
    demand: Demand,
    target: f64,
    current: u32,
}

/// A priority level that is served.
pub struct Level {
    config: PriorityLevel,
    set: Arc<QueueSet>,
    dropped: Arc<Dropped>,
    uid: Option<HeaderValue>,
    nominal: u32,
    lower: u32,
    upper: u32,
    max_seats: u32,
    adjusted: Arc<Mutex<Adjusted>>,
}

impl Level {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn set(&self) -> &QueueSet {
        &self.set
    }
}

/// A flow schema with the level it leads to.
pub struct Schema {
    config: FlowSchema,
    level: Arc<Level>,
    metrics: Arc<FlowMetrics>,
    uid: Option<HeaderValue>,
}

impl Schema {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its level.
    pub fn level(&self) -> &Level {
        &self.level
    }

    /// `X-Kubernetes-PF-FlowSchema-UID` and `X-Kubernetes-PF-PriorityLevel-UID`.
    pub fn uids(&self) -> (Option<&HeaderValue>, Option<&HeaderValue>) {
        (self.uid.as_ref(), self.level.uid.as_ref())
    }
}

/// What requests are matched against.
struct Table {
    /// By precedence, then name.
    schemas: Vec<Arc<Schema>>,
    levels: Vec<Arc<Level>>,
    catch_all: Arc<Schema>,
}

/// A refused request.
pub struct Refused {
    /// The schema it belongs to.
    pub schema: Arc<Schema>,
    /// Why.
    pub reason: Refusal,
    /// Seconds after which the client may come again.
    pub retry_after: u64,
}

/// What was counted, by flow schema and priority level.
type Counted = BTreeMap<(Arc<str>, Arc<str>), Arc<FlowMetrics>>;

/// Priority and fairness of a server.
pub struct FlowControl {
    total: u32,
    table: ArcSwap<Table>,
    counted: Mutex<Counted>,
    fair_fraction: Mutex<f64>,
}

fn second() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn uid_header(uid: &str) -> Option<HeaderValue> {
    if uid.is_empty() { None } else { HeaderValue::from_str(uid).ok() }
}

fn percent(of: u32, percent: u32) -> u32 {
    (f64::from(of) * f64::from(percent) / 100.0).round() as u32
}

impl FlowControl {
    /// With `total` seats and the mandatory objects.
    pub fn new(total: u32) -> FlowControl {
        let counted = Mutex::default();
        let table = build(total, &counted, &[], Vec::new(), Vec::new());
        FlowControl { total, table: ArcSwap::from_pointee(table), counted, fair_fraction: Mutex::new(0.0) }
    }

    /// Takes a configuration; what is served and what waits goes on.
    pub fn configure(&self, schemas: Vec<FlowSchema>, levels: Vec<PriorityLevel>) {
        let before = self.table.load_full();
        self.table.store(Arc::new(build(self.total, &self.counted, &before.levels, schemas, levels)));
        self.adjust();
    }

    /// Every level.
    pub fn levels(&self) -> Vec<Arc<Level>> {
        self.table.load().levels.clone()
    }

    /// The schema a request belongs to.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Arc<Schema> {
        let table = self.table.load();
        table
            .schemas
            .iter()
            .find(|schema| schema.config.matches(user, info))
            .unwrap_or(&table.catch_all)
            .clone()
    }

    /// Gives a request its seat, at once or after a wait of at most `patience`.
    pub async fn admit(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        query: &Query,
        patience: Duration,
        stats: impl FnOnce() -> Option<CacheStats>,
        watchers: impl FnOnce() -> u64,
    ) -> Result<(Arc<Schema>, Permit), Refused> {
        let schema = self.classify(user, info);
        let level = &schema.level;
        let width = width::estimate(info, query, level.max_seats, stats, watchers);
        schema.metrics.seats.number(u64::from(width.seats()));
        let flow = schema.config.flow(user, info);
        let hash = match level.config.queuing {
            Queuing::Queue { .. } => hash(&schema.config.name, flow),
            _ => 0,
        };
        let describe = || Description {
            schema: schema.config.name.clone(),
            distinguisher: flow.to_string(),
            details: [
                user.name.clone(),
                info.verb.clone(),
                info.path.clone(),
                info.namespace.clone(),
                info.name.clone(),
                info.version.clone(),
                info.resource.clone(),
                info.subresource.clone(),
            ],
        };
        let refused = match level.set.arrive(hash, width, Instant::now(), &schema.metrics, describe) {
            Arrival::Seated(permit) => return Ok((schema, permit)),
            Arrival::Queued(ticket) => match ticket.wait(patience).await {
                Ok(permit) => return Ok((schema, permit)),
                Err(reason) => reason,
            },
            Arrival::Refused(reason) => {
                schema.metrics.refused(reason);
                reason
            }
        };
        level.dropped.record(second());
        let retry_after = level.dropped.retry_after();
        Err(Refused { schema: schema.clone(), reason: refused, retry_after })
    }

    /// Lends seats by what was asked for since the last call.
    pub fn adjust(&self) {
        let table = self.table.load_full();
        let now = Instant::now();
        let shares: Vec<Share> = table
            .levels
            .iter()
            .map(|level| {
                let mut adjusted = level.adjusted.lock();
                adjusted.demand.update(level.set.take_demand(now));
                let lower = f64::from(level.lower).max(f64::from(level.nominal).min(adjusted.demand.high));
                adjusted.target = lower.max(adjusted.demand.smoothed);
                Share { lower, upper: lower.max(f64::from(level.upper)), target: adjusted.target }
            })
            .collect();
        let total: u32 = table.levels.iter().map(|level| level.nominal).sum();
        let (seats, fraction) = demand::allocate(f64::from(total), &shares)
            .unwrap_or_else(|| (table.levels.iter().map(|level| f64::from(level.nominal)).collect(), 0.0));
        *self.fair_fraction.lock() = fraction;
        for (level, seats) in table.levels.iter().zip(seats) {
            let seats = seats.round() as u32;
            let mut adjusted = level.adjusted.lock();
            if adjusted.current != seats {
                adjusted.current = seats;
                level.set.set_limit(seats, now);
            }
        }
    }
}

/// The flow of a request. The number stays in the process, so it need not be upstream's.
fn hash(schema: &str, flow: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (schema, flow).hash(&mut hasher);
    hasher.finish()
}

fn build(
    total: u32,
    counted: &Mutex<Counted>,
    before: &[Arc<Level>],
    mut schemas: Vec<FlowSchema>,
    mut levels: Vec<PriorityLevel>,
) -> Table {
    for mandatory in [PriorityLevel::exempt(), PriorityLevel::catch_all()] {
        if !levels.iter().any(|level| level.name == mandatory.name) {
            levels.push(mandatory);
        }
    }
    for mandatory in [FlowSchema::exempt(), FlowSchema::catch_all()] {
        if !schemas.iter().any(|schema| schema.name == mandatory.name) {
            schemas.push(mandatory);
        }
    }
    levels.sort_by(|a, b| a.name.cmp(&b.name));
    schemas.sort_by(|a, b| a.precedence.cmp(&b.precedence).then_with(|| a.name.cmp(&b.name)));
    let sum: f64 = levels.iter().map(|level| f64::from(level.shares)).sum();
    let now = Instant::now();
    let levels: Vec<Arc<Level>> = levels
        .into_iter()
        .map(|config| {
            let part = if sum > 0.0 { f64::from(config.shares) / sum } else { 0.0 };
            let nominal = (f64::from(total) * part).ceil() as u32;
            let lendable = percent(nominal, config.lendable_percent);
            let lower = nominal - lendable;
            let upper =
                nominal.saturating_add(config.borrowing_percent.map_or(total, |p| percent(nominal, p)));
            let max_seats = match config.queuing {
                Queuing::Exempt => width::MAX_SEATS,
                Queuing::Reject => width::MAX_SEATS,
                Queuing::Queue { hand_size, .. } => {
                    let part = (f64::from(nominal) * MAX_SEATS_PART).ceil() as u32;
                    part.min(nominal / u32::try_from(hand_size).unwrap_or(1).max(1)).max(1)
                }
            };
            let uid = uid_header(&config.uid);
            match before.iter().find(|level| level.config.name == config.name) {
                Some(known) => {
                    if known.config.queuing != config.queuing {
                        let current = known.adjusted.lock().current;
                        known.set.configure(config.queuing, current, now);
                    }
                    Arc::new(Level {
                        set: known.set.clone(),
                        dropped: known.dropped.clone(),
                        adjusted: known.adjusted.clone(),
                        config,
                        uid,
                        nominal,
                        lower,
                        upper,
                        max_seats,
                    })
                }
                None => {
                    let current = nominal - lendable / 2;
                    Arc::new(Level {
                        set: Arc::new(QueueSet::new(config.queuing, current, now)),
                        dropped: Arc::new(Dropped::new(second())),
                        adjusted: Arc::new(Mutex::new(Adjusted { current, ..Adjusted::default() })),
                        config,
                        uid,
                        nominal,
                        lower,
                        upper,
                        max_seats,
                    })
                }
            }
        })
        .collect();
    let mut counted = counted.lock();
    let schemas: Vec<Arc<Schema>> = schemas
        .into_iter()
        .filter_map(|config| {
            // A schema whose level does not exist matches nothing.
            let level = levels.iter().find(|level| level.name() == config.level)?.clone();
            let key = (config.name.clone(), level.config.name.clone());
            let metrics = counted.entry(key).or_default().clone();
            Some(Arc::new(Schema { uid: uid_header(&config.uid), config, level, metrics }))
        })
        .collect();
    // Names that come and go must not fill the memory.
    counted.retain(|_, metrics| Arc::strong_count(metrics) > 1 || metrics.dispatched.get() > 0);
    let exempt = schemas.iter().find(|schema| schema.name() == EXEMPT);
    let catch_all = schemas
        .iter()
        .find(|schema| schema.name() == CATCH_ALL)
        .or(exempt)
        .cloned()
        .unwrap_or_else(|| fallback(&levels));
    Table { schemas, levels, catch_all }
}

/// When even the mandatory schemas lead nowhere: validation refuses that, and so this is a level of its own.
fn fallback(levels: &[Arc<Level>]) -> Arc<Schema> {
    let level = levels.iter().find(|level| level.name() == CATCH_ALL).cloned().unwrap_or_else(|| {
        Arc::new(Level {
            config: PriorityLevel::catch_all(),
            set: Arc::new(QueueSet::new(Queuing::Reject, 1, Instant::now())),
            dropped: Arc::new(Dropped::new(second())),
            uid: None,
            nominal: 1,
            lower: 1,
            upper: 1,
            max_seats: 1,
            adjusted: Arc::default(),
        })
    });
    Arc::new(Schema { config: FlowSchema::catch_all(), level, metrics: Arc::default(), uid: None })
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
