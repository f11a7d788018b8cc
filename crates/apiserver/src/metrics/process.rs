//! Memory, CPU time and files of this process, from `/proc/self`.

use super::text::Exposition;

/// Clock ticks a second: fixed for user space on Linux.
const TICKS: f64 = 100.0;
const PAGE: f64 = 4096.0;

/// Seconds since the epoch at which the machine started.
fn boot_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0.0)
}

/// The limit of open files.
fn max_files() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Writes the families.
pub fn render(out: &mut Exposition) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some((_, rest)) = stat.rsplit_once(") ") {
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        out.single(
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (number(11) + number(12)) / TICKS,
        );
        out.single("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", number(20));
        out.single(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            number(21) * PAGE,
        );
        out.single(
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            boot_time() + number(19) / TICKS,
        );
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        out.single("process_open_fds", "gauge", "Number of open file descriptors.", files.count() as f64);
    }
    if let Some(limit) = max_files() {
        out.single("process_max_fds", "gauge", "Maximum number of open file descriptors.", limit);
    }
}
