//! CPU time and memory of the server's processes, from `/proc`.

use std::time::Duration;

use anyhow::Context;

/// The processes under measurement.
pub struct Processes {
    pids: Vec<u32>,
}

/// One reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// All server processes together; `None` when none were named.
    pub server: Option<Usage>,
    /// CPU time of this process.
    pub client: Duration,
}

/// What processes have used.
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
        processes.read()?;
        Ok(processes)
    }

    /// Reads all of them.
    pub fn read(&self) -> anyhow::Result<Reading> {
        let mut server = Usage { cpu: Duration::ZERO, rss: 0 };
        for pid in &self.pids {
            let one = usage(*pid).with_context(|| format!("process {pid} (--pid)"))?;
            server.cpu += one.cpu;
            server.rss += one.rss;
        }
        let client = usage(std::process::id())?.cpu;
        Ok(Reading { server: (!self.pids.is_empty()).then_some(server), client })
    }
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse(stat: &str) -> anyhow::Result<Usage> {
    // The clock tick and the page size of every Linux that Orlop runs on.
    const TICK: Duration = Duration::from_millis(10);
    const PAGE: u64 = 4096;
    // The program's name may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')').context("unexpected content of stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> anyhow::Result<u64> {
        // proc(5) counts from 1, and `fields` begins with the third.
        Ok(fields.get(number - 3).context("stat is too short")?.parse()?)
    };
    let ticks = u32::try_from(field(14)? + field(15)?)?;
    Ok(Usage { cpu: TICK * ticks, rss: field(24)? * PAGE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_by_its_field_numbers() {
        let check = |name: &str| {
            let stat = format!(
                "4242 ({name}) S 1 2 3 0 -1 4194304 5 6 7 8 150 50 9 10 20 0 12 0 99 1000000 250 18446744073709551615 1"
            );
            let usage = parse(&stat).unwrap();
            assert_eq!((usage.cpu, usage.rss), (Duration::from_secs(2), 250 * 4096), "{name}");
        };
        check("orlop");
        check("a (strange) name");
        assert!(parse("4242 (orlop) S 1 2").is_err());
    }
}
