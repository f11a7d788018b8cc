//! `/debug/api_priority_and_fairness/*`: tables of levels, queues and waiting requests.

use std::time::{Duration, Instant, SystemTime};

use super::FlowControl;
use super::queueset::work_text;

/// Aligns rows in columns as upstream's writer does: cells end with a comma, columns are as wide as their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let widest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count() + 2).max();
        widest.unwrap_or(0).max(8)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at + 1 == row.len() {
                out.push_str(cell);
            } else {
                out.push_str(&format!("{:<width$}", format!("{cell},"), width = widths[at]));
            }
        }
        out.push('\n');
    }
    out
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The table of this name; `None` when there is none. `details` adds what is known of each request.
pub fn dump(flows: &FlowControl, name: &str, details: bool) -> Option<String> {
    let levels = flows.levels();
    let mut rows = Vec::new();
    match name {
        "dump_priority_levels" => {
            rows.push(header(&[
                "PriorityLevelName",
                "ActiveQueues",
                "IsIdle",
                "IsQuiescing",
                "WaitingRequests",
                "ExecutingRequests",
                "DispatchedRequests",
                "RejectedRequests",
                "TimedoutRequests",
                "CancelledRequests",
            ]));
            for level in levels {
                let dump = level.set().dump();
                let active = dump.queues.iter().filter(|queue| !queue.waiting.is_empty()).count();
                rows.push(vec![
                    level.name().to_string(),
                    active.to_string(),
                    (dump.waiting == 0 && dump.executing == 0).to_string(),
                    false.to_string(),
                    dump.waiting.to_string(),
                    dump.executing.to_string(),
                    dump.totals.dispatched.to_string(),
                    dump.totals.rejected.to_string(),
                    dump.totals.timed_out.to_string(),
                    dump.totals.cancelled.to_string(),
                ]);
            }
        }
        "dump_queues" => {
            rows.push(header(&[
                "PriorityLevelName",
                "Index",
                "PendingRequests",
                "ExecutingRequests",
                "SeatsInUse",
                "NextDispatchR",
                "InitialSeatsSum",
                "MaxSeatsSum",
                "TotalWorkSum",
            ]));
            for level in levels {
                for (index, queue) in level.set().dump().queues.iter().enumerate() {
                    rows.push(vec![
                        level.name().to_string(),
                        index.to_string(),
                        queue.waiting.len().to_string(),
                        queue.executing.to_string(),
                        queue.seats_in_use.to_string(),
                        work_text(queue.next_dispatch_r),
                        queue.waiting_initial.to_string(),
                        queue.waiting_seats.to_string(),
                        work_text(queue.waiting_work),
                    ]);
                }
            }
        }
        "dump_requests" => {
            let mut head = header(&[
                "PriorityLevelName",
                "FlowSchemaName",
                "QueueIndex",
                "RequestIndexInQueue",
                "FlowDistingsher",
                "ArriveTime",
                "InitialSeats",
                "FinalSeats",
                "AdditionalLatency",
                "StartTime",
            ]);
            if details {
                head.extend(header(&[
                    "UserName",
                    "Verb",
                    "APIPath",
                    "Namespace",
                    "Name",
                    "APIVersion",
                    "Resource",
                    "SubResource",
                ]));
            }
            rows.push(head);
            for level in levels {
                for (index, queue) in level.set().dump().queues.iter().enumerate() {
                    for (position, (arrived, width, request)) in queue.waiting.iter().enumerate() {
                        let mut row = vec![
                            level.name().to_string(),
                            request.schema.to_string(),
                            index.to_string(),
                            position.to_string(),
                            request.distinguisher.clone(),
                            time_of(*arrived),
                            width.initial.to_string(),
                            width.last.to_string(),
                            format!("{:?}", width.additional),
                            // None of them has started.
                            "0001-01-01T00:00:00Z".to_string(),
                        ];
                        if details {
                            row.extend(request.details.iter().cloned());
                        }
                        rows.push(row);
                    }
                }
            }
        }
        _ => return None,
    }
    Some(table(&rows))
}

fn time_of(moment: Instant) -> String {
    let ago: Duration = moment.elapsed();
    let time = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
    jiff::Timestamp::try_from(time).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned() {
        let rows = vec![header(&["PriorityLevelName", "Index"]), header(&["system", "0"])];
        assert_eq!(table(&rows), "PriorityLevelName, Index\nsystem,            0\n");
    }
}
