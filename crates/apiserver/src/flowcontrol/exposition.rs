//! `apiserver_flowcontrol_*`.

use std::sync::Arc;

use super::metrics::FlowMetrics;
use super::queueset::Refusal;
use super::{FlowControl, Level};
use crate::metrics::Exposition;

type Pair = ((Arc<str>, Arc<str>), Arc<FlowMetrics>);

impl FlowControl {
    /// Writes the families.
    pub fn render(&self, out: &mut Exposition) {
        let pairs: Vec<Pair> = self.counted.lock().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut counted = |name: &str, kind: &str, help: &str, of: &dyn Fn(&FlowMetrics) -> f64| {
            out.family(name, kind, help);
            for ((schema, level), metrics) in &pairs {
                out.sample(name, &[("flow_schema", schema), ("priority_level", level)], of(metrics));
            }
        };
        counted(
            "apiserver_flowcontrol_dispatched_requests_total",
            "counter",
            "[BETA] Number of requests executed by API Priority and Fairness subsystem",
            &|m| m.dispatched.get() as f64,
        );
        counted(
            "apiserver_flowcontrol_current_inqueue_requests",
            "gauge",
            "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem",
            &|m| m.in_queue.get() as f64,
        );
        counted(
            "apiserver_flowcontrol_current_executing_requests",
            "gauge",
            "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
            &|m| m.executing.get() as f64,
        );
        counted(
            "apiserver_flowcontrol_current_executing_seats",
            "gauge",
            "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
            &|m| m.executing_seats.get() as f64,
        );
        out.family(
            "apiserver_flowcontrol_rejected_requests_total",
            "counter",
            "[BETA] Number of requests rejected by API Priority and Fairness subsystem",
        );
        for ((schema, level), metrics) in &pairs {
            for reason in Refusal::ALL {
                let count = metrics.refusals(reason);
                if count > 0 {
                    let labels =
                        [("flow_schema", &**schema), ("priority_level", level), ("reason", reason.as_str())];
                    out.sample("apiserver_flowcontrol_rejected_requests_total", &labels, count as f64);
                }
            }
        }
        out.family(
            "apiserver_flowcontrol_request_wait_duration_seconds",
            "histogram",
            "[BETA] Length of time a request spent waiting in its queue",
        );
        for ((schema, level), metrics) in &pairs {
            for (executed, histogram) in [("true", &metrics.wait_executed), ("false", &metrics.wait_refused)]
            {
                if histogram.count() > 0 {
                    let labels =
                        [("execute", executed), ("flow_schema", &**schema), ("priority_level", level)];
                    out.histogram("apiserver_flowcontrol_request_wait_duration_seconds", &labels, histogram);
                }
            }
        }
        let mut histograms =
            |name: &str, help: &str, of: &dyn Fn(&FlowMetrics) -> &crate::metrics::Histogram| {
                out.family(name, "histogram", help);
                for ((schema, level), metrics) in pairs.iter().filter(|(_, m)| of(m).count() > 0) {
                    out.histogram(name, &[("flow_schema", schema), ("priority_level", level)], of(metrics));
                }
            };
        histograms(
            "apiserver_flowcontrol_request_execution_seconds",
            "[ALPHA] Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
            &|m| &m.execution,
        );
        histograms(
            "apiserver_flowcontrol_request_queue_length_after_enqueue",
            "[ALPHA] Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued",
            &|m| &m.queue_length,
        );
        histograms(
            "apiserver_flowcontrol_work_estimated_seats",
            "[ALPHA] Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness",
            &|m| &m.seats,
        );
        let levels = self.levels();
        let mut of_level = |name: &str, help: &str, of: &dyn Fn(&Level) -> f64| {
            out.family(name, "gauge", help);
            for level in &levels {
                out.sample(name, &[("priority_level", level.name())], of(level));
            }
        };
        of_level(
            "apiserver_flowcontrol_nominal_limit_seats",
            "[BETA] Nominal number of execution seats configured for each priority level",
            &|l| f64::from(l.nominal),
        );
        of_level(
            "apiserver_flowcontrol_lower_limit_seats",
            "[ALPHA] Configured lower bound on number of execution seats available to each priority level",
            &|l| f64::from(l.lower),
        );
        of_level(
            "apiserver_flowcontrol_upper_limit_seats",
            "[ALPHA] Configured upper bound on number of execution seats available to each priority level",
            &|l| f64::from(l.upper),
        );
        of_level(
            "apiserver_flowcontrol_current_limit_seats",
            "[ALPHA] current derived number of execution seats available to each priority level",
            &|l| f64::from(l.adjusted.lock().current),
        );
        of_level(
            "apiserver_flowcontrol_request_concurrency_limit",
            "[ALPHA] Nominal number of execution seats configured for each priority level",
            &|l| f64::from(l.nominal),
        );
        of_level(
            "apiserver_flowcontrol_request_concurrency_in_use",
            "[ALPHA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
            &|l| f64::from(l.set().seats().0),
        );
        of_level(
            "apiserver_flowcontrol_demand_seats_high_watermark",
            "[ALPHA] High watermark, over last adjustment period, of demand_seats",
            &|l| l.adjusted.lock().demand.high,
        );
        of_level(
            "apiserver_flowcontrol_demand_seats_average",
            "[ALPHA] Time-weighted average, over last adjustment period, of demand_seats",
            &|l| l.adjusted.lock().demand.average,
        );
        of_level(
            "apiserver_flowcontrol_demand_seats_stdev",
            "[ALPHA] Time-weighted standard deviation, over last adjustment period, of demand_seats",
            &|l| l.adjusted.lock().demand.deviation,
        );
        of_level("apiserver_flowcontrol_demand_seats_smoothed", "[ALPHA] Smoothed seat demands", &|l| {
            l.adjusted.lock().demand.smoothed
        });
        of_level("apiserver_flowcontrol_target_seats", "[ALPHA] Seat allocation targets", &|l| {
            l.adjusted.lock().target
        });
        out.single("apiserver_flowcontrol_seat_fair_frac", "gauge", "[ALPHA] Fair fraction of server's concurrency to allocate to each priority level that can use it", *self.fair_fraction.lock());
    }
}
