//! What is kept on disk about sandboxes and containers, so that a new process finds everything again.
//!
//! `<root>/sandboxes/<id>/sandbox.json`, `<root>/containers/<id>/{container,started,exit}.json` and `config.json` (the OCI
//! spec). `started.json` and `exit.json` are written by the shim, the others by the runtime.

use std::net::IpAddr;
use std::path::PathBuf;

use orlop_cri::{ContainerConfig, PodSandboxConfig};
use serde::{Deserialize, Serialize};

use crate::protocol::Ready;

/// `sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    /// Id.
    pub id: String,
    /// As asked for.
    pub config: PodSandboxConfig,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The shim; `None` until it is up.
    pub shim: Option<Ready>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// All steps of its creation are done. A record without is a leftover of a crash.
    pub complete: bool,
    /// It was stopped: its shim is gone for good.
    pub stopped: bool,
}

/// `container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// Id.
    pub id: String,
    /// Sandbox.
    pub sandbox_id: String,
    /// As asked for.
    pub config: ContainerConfig,
    /// The image's id.
    pub image_id: String,
    /// What `imageID` shows.
    pub image_ref: String,
    /// Snapshots below the writable layer, lowest first.
    pub layers: Vec<String>,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Log file, absolute.
    pub log_path: PathBuf,
    /// cgroup, absolute below the cgroup root.
    pub cgroup: String,
    /// uid, gid, supplemental groups.
    pub user: (u32, u32, Vec<u32>),
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Shares a process namespace.
    pub kill_all: bool,
}

/// `started.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartedRecord {
    /// Process id on the host.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// Nanoseconds since the Unix epoch.
    pub started_at: i64,
}

/// `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Exit code, 128 + signal number when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer struck in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
    /// Nanoseconds since the Unix epoch.
    pub finished_at: i64,
    /// Overrides the reason that follows from the code (`StartError`, `Unknown`).
    #[serde(default)]
    pub reason: Option<String>,
    /// For people.
    #[serde(default)]
    pub message: String,
}

impl ExitRecord {
    /// The reason as kubelets show it.
    pub(crate) fn reason(&self) -> String {
        match &self.reason {
            Some(reason) => reason.clone(),
            None if self.oom_killed && self.exit_code != 0 => "OOMKilled".to_owned(),
            None if self.exit_code == 0 => "Completed".to_owned(),
            None => "Error".to_owned(),
        }
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_nanos() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A fresh id: 64 hexadecimal digits.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Start time of a process in clock ticks since boot; `None` when there is no such process or it is a zombie.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_ticks(&stat)
}

/// The command name may hold blanks and parentheses, so fields count from the last `)`.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_of_a_process() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200";
        assert_eq!(parse_start_ticks(line), Some(4711));
        assert_eq!(
            parse_start_ticks("7 (x) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200"),
            None
        );
        assert!(start_ticks(std::process::id() as i32).is_some());
    }

    #[test]
    fn reasons() {
        let exit = |exit_code, oom_killed, reason: Option<&str>| ExitRecord {
            exit_code,
            signal: None,
            oom_killed,
            finished_at: 0,
            reason: reason.map(str::to_owned),
            message: String::new(),
        };
        assert_eq!(exit(0, false, None).reason(), "Completed");
        assert_eq!(exit(1, false, None).reason(), "Error");
        assert_eq!(exit(137, true, None).reason(), "OOMKilled");
        assert_eq!(exit(0, true, None).reason(), "Completed");
        assert_eq!(exit(128, false, Some("StartError")).reason(), "StartError");
    }
}
