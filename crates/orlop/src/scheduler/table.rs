//! kube-scheduler's flags.

use crate::component::table as shared;
use crate::flags::table::Kind::{Duration, Int, Text};
use crate::flags::table::{Flag, LOGS, Table, idle, used};

/// The flags.
#[derive(Debug, Default)]
pub struct Scheduler;

impl Table for Scheduler {
    const GROUPS: &'static [(&'static str, &'static [Flag])] = &[
        ("Misc flags", MISC),
        ("Client flags", shared::CLIENT),
        ("Secure serving flags", shared::SECURE_SERVING),
        ("Authentication flags", shared::AUTHENTICATION),
        ("Authorization flags", shared::AUTHORIZATION),
        ("Leader election flags", shared::LEADER_ELECTION),
        ("Feature gate flags", shared::FEATURES),
        ("Metrics flags", shared::METRICS),
        ("Logs flags", LOGS),
    ];
}

const MISC: &[Flag] = &[
    used("config", Text, "", "File with a KubeSchedulerConfiguration"),
    used("secure-port", Int, "10259", "Port of health and metrics; 0 serves none"),
    idle(
        "pod-max-in-unschedulable-pods-duration",
        Duration,
        "5m0s",
        "deprecated upstream; events move pods",
        "How long a pod may wait without an event",
    ),
    used("write-config-to", Text, "", "Write the configuration with its defaults to this file and end"),
];
