//! CPU time and memory of the server's processes, from `/proc`.

use std::time::Duration;

use anyhow::Context;

/// The processes under measurement.
pub struct Processes {
    pids: Vec<u32>,
}

/// One reading of all of them together.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system time since their start.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub rss: u64,
}

impl Processes {
    /// These processes; fails when one of them does not exist.
    pub fn new(pids: Vec<u32>) -> anyhow::Result<Self> {
        let processes = Self { pids };
        processes.usage()?;
        Ok(processes)
    }

    /// Reads all of them; `None` when none were named.
    pub fn usage(&self) -> anyhow::Result<Option<Usage>> {
        if self.pids.is_empty() {
            return Ok(None);
        }
        let mut total = Usage { cpu: Duration::ZERO, rss: 0 };
        for pid in &self.pids {
            let one = read(*pid).with_context(|| format!("process {pid} (--pid)"))?;
            total.cpu += one.cpu;
            total.rss += one.rss;
        }
        Ok(Some(total))
    }
}

fn read(pid: u32) -> anyhow::Result<Usage> {
    // The clock tick and the page size of every Linux that Orlop runs on.
    const TICKS_PER_SECOND: u64 = 100;
    const PAGE: u64 = 4096;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("unexpected content of stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> anyhow::Result<u64> {
        // proc(5) counts from 1, and `fields` begins with the third.
        Ok(fields.get(number - 3).context("stat is too short")?.parse()?)
    };
    let ticks = field(14)? + field(15)?;
    Ok(Usage { cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND), rss: field(24)? * PAGE })
}
