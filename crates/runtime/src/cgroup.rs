//! cgroups of pods and containers: made, limited, read, emptied and removed, on v1, hybrid and v2 hosts.
//!
//! Paths are absolute below the cgroup root (`/orlop/kubepods/pod<uid>`), the same on every layout. A container's own
//! limits at creation are set by libcontainer; everything else is here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_cri::LinuxContainerResources;

use crate::error::{Context, Result};

/// v1 controllers in which pods get a directory of their own.
const POD_CONTROLLERS: &[&str] = &["cpu", "cpuacct", "memory", "pids"];
/// v2 controllers that pods delegate to their containers.
const DELEGATED: &str = "+cpu +cpuset +memory +pids +io";

/// Where the host has its cgroups.
#[derive(Debug, Clone)]
pub(crate) enum Cgroups {
    /// v2 only; the root directory.
    Unified(PathBuf),
    /// v1, or hybrid with an unused v2 beside it.
    Legacy {
        /// Controller (or `name=systemd`) to mount point.
        controllers: BTreeMap<String, PathBuf>,
        /// The v2 mount of a hybrid host.
        unified: Option<PathBuf>,
    },
}

/// One reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Memory less inactive file pages, bytes.
    pub working_set: u64,
    /// Anonymous memory, bytes.
    pub rss: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub(crate) fn detect() -> Result<Cgroups> {
        let path = Path::new("/proc/self/mountinfo");
        Ok(Self::from_mountinfo(&fs::read_to_string(path).context("read", path)?))
    }

    fn from_mountinfo(text: &str) -> Cgroups {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(mount_point), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => unified = unified.or(Some(PathBuf::from(mount_point))),
                (Some("cgroup"), Some(options)) => {
                    for option in
                        options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr"))
                    {
                        controllers.entry(option.to_owned()).or_insert_with(|| PathBuf::from(mount_point));
                    }
                }
                _ => {}
            }
        }
        match unified {
            Some(root) if controllers.is_empty() => Cgroups::Unified(root),
            unified => Cgroups::Legacy { controllers, unified },
        }
    }

    /// v2 only.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self, Cgroups::Unified(_))
    }

    /// Whether limits of `controller` can be set at all.
    pub(crate) fn has(&self, controller: &str) -> bool {
        match self {
            Cgroups::Unified(root) => fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_ascii_whitespace().any(|name| name == controller)),
            Cgroups::Legacy { controllers, .. } => controllers.contains_key(controller),
        }
    }

    /// Whether a memory limit can include swap.
    pub(crate) fn counts_swap(&self) -> bool {
        match self {
            Cgroups::Unified(_) => true,
            Cgroups::Legacy { controllers, .. } => controllers
                .get("memory")
                .is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists()),
        }
    }

    /// Every directory that stands for `cgroup`, existing or not.
    fn directories(&self, cgroup: &str) -> Vec<PathBuf> {
        match self {
            Cgroups::Unified(root) => vec![below(root, cgroup)],
            Cgroups::Legacy { controllers, unified } => {
                let mut all: Vec<_> =
                    controllers.values().chain(unified).map(|root| below(root, cgroup)).collect();
                all.sort();
                all.dedup();
                all
            }
        }
    }

    fn directory(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        match self {
            Cgroups::Unified(root) => Some(below(root, cgroup)),
            Cgroups::Legacy { controllers, .. } => {
                controllers.get(controller).map(|root| below(root, cgroup))
            }
        }
    }

    /// Makes a pod's cgroup, so that containers can be put below it.
    pub(crate) fn create(&self, cgroup: &str) -> Result<()> {
        match self {
            Cgroups::Unified(root) => {
                let mut path = root.clone();
                for part in parts(cgroup) {
                    enable_controllers(&path);
                    path.push(part);
                    if !path.is_dir() {
                        fs::create_dir(&path).context("create cgroup", &path)?;
                    }
                }
                enable_controllers(&path);
            }
            Cgroups::Legacy { .. } => {
                for path in POD_CONTROLLERS.iter().filter_map(|name| self.directory(name, cgroup)) {
                    fs::create_dir_all(&path).context("create cgroup", &path)?;
                }
            }
        }
        Ok(())
    }

    /// Sets the limits that are given, leaves the others.
    pub(crate) fn set(&self, cgroup: &str, resources: &LinuxContainerResources) -> Result<()> {
        for (controller, file, value) in self.settings(resources) {
            let Some(directory) = self.directory(controller, cgroup) else { continue };
            let path = directory.join(file);
            match fs::write(&path, &value) {
                // Swap accounting may be off, and a quota may be refused while its period is still to come: the
                // order of `settings` makes the second a real error.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.contains("sw") => {}
                result => result.context("set limit", &path)?,
            }
        }
        Ok(())
    }

    /// (controller, file, value) for every limit given.
    fn settings(&self, resources: &LinuxContainerResources) -> Vec<(&'static str, &'static str, String)> {
        let mut all: Vec<(&'static str, &'static str, String)> = Vec::new();
        let unified = self.is_unified();
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
            all.push(if unified {
                ("cpu", "cpu.weight", weight_of_shares(shares).to_string())
            } else {
                ("cpu", "cpu.shares", shares.to_string())
            });
        }
        if unified {
            if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
                let period = resources.cpu_period.filter(|period| *period > 0).unwrap_or(100_000);
                let quota = match resources.cpu_quota {
                    Some(quota) if quota > 0 => quota.to_string(),
                    _ => "max".to_owned(),
                };
                all.push(("cpu", "cpu.max", format!("{quota} {period}")));
            }
        } else {
            if let Some(period) = resources.cpu_period.filter(|period| *period > 0) {
                all.push(("cpu", "cpu.cfs_period_us", period.to_string()));
            }
            if let Some(quota) = resources.cpu_quota.filter(|quota| *quota != 0) {
                all.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
            }
        }
        if let Some(limit) = resources.memory_limit_in_bytes.filter(|limit| *limit != 0) {
            if unified {
                let limit = if limit < 0 { "max".to_owned() } else { limit.to_string() };
                all.push(("memory", "memory.max", limit));
            } else {
                // Memory must stay at or below memory+swap at every moment. One of the two orders works; writing the
                // sum first covers raising, and lowering below is finished by the third write.
                if self.counts_swap() && limit < 0 {
                    all.push(("memory", "memory.memsw.limit_in_bytes", limit.to_string()));
                }
                all.push(("memory", "memory.limit_in_bytes", limit.to_string()));
            }
        }
        if let Some(limit) = resources.pids_limit.filter(|limit| *limit != 0) {
            let limit = if limit < 0 { "max".to_owned() } else { limit.to_string() };
            all.push(("pids", "pids.max", limit));
        }
        if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            all.push(("cpuset", "cpuset.cpus", cpus.clone()));
        }
        if let Some(mems) = resources.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
            all.push(("cpuset", "cpuset.mems", mems.clone()));
        }
        all
    }

    /// Sets a container's limits anew; unlike [`set`](Self::set) it takes the swap sum along on v1.
    pub(crate) fn update(&self, cgroup: &str, resources: &LinuxContainerResources) -> Result<()> {
        let limit = resources.memory_limit_in_bytes.filter(|limit| *limit > 0);
        if let (Cgroups::Legacy { .. }, Some(limit), true) = (self, limit, self.counts_swap())
            && let Some(directory) = self.directory("memory", cgroup)
        {
            // Raising needs the sum raised first, lowering needs it lowered last: try both orders.
            let sum = directory.join("memory.memsw.limit_in_bytes");
            if fs::write(&sum, limit.to_string()).is_err() {
                self.set(cgroup, resources)?;
                return fs::write(&sum, limit.to_string()).context("set limit", &sum);
            }
        }
        self.set(cgroup, resources)
    }

    /// Usage now; what a missing controller would say is 0.
    pub(crate) fn usage(&self, cgroup: &str) -> Usage {
        match self {
            Cgroups::Unified(root) => usage_v2(&below(root, cgroup)),
            Cgroups::Legacy { .. } => usage_v1(|controller| self.directory(controller, cgroup)),
        }
    }

    /// How often the out-of-memory killer struck inside.
    pub(crate) fn oom_kills(&self, cgroup: &str) -> u64 {
        let file = if self.is_unified() { "memory.events" } else { "memory.oom_control" };
        self.directory("memory", cgroup).map_or(0, |directory| keyed(&directory.join(file), "oom_kill"))
    }

    /// Processes in it and below.
    pub(crate) fn processes(&self, cgroup: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        // On v1 a process may have been put into some hierarchies only (a start that was cut short), so ask all.
        for directory in self.directories(cgroup) {
            collect_processes(&directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills everything in it; returns when it is empty or after two seconds.
    pub(crate) fn kill(&self, cgroup: &str) {
        for _ in 0..200 {
            let pids = self.processes(cgroup);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                // SAFETY: plain system call. The pid was in our cgroup a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes it with all below; busy directories are left (and reported by `false`).
    pub(crate) fn remove(&self, cgroup: &str) -> bool {
        // Every hierarchy, also after one that was busy.
        self.directories(cgroup).iter().filter(|directory| !remove_directory(directory)).count() == 0
    }

    /// Moves the calling process out of every hierarchy in which it is not at the root into `cgroup`: what limits or
    /// kills its parent's cgroup then does not touch it.
    pub(crate) fn escape(&self, cgroup: &str) -> Result<()> {
        let path = Path::new("/proc/self/cgroup");
        let text = fs::read_to_string(path).context("read", path)?;
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(current)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if current == "/" || current == cgroup {
                continue;
            }
            let directory = match self {
                Cgroups::Unified(root) => Some(below(root, cgroup)),
                Cgroups::Legacy { unified, .. } if names.is_empty() => {
                    unified.as_ref().map(|root| below(root, cgroup))
                }
                Cgroups::Legacy { controllers, .. } => {
                    names.split(',').find_map(|name| controllers.get(name)).map(|root| below(root, cgroup))
                }
            };
            let Some(directory) = directory else { continue };
            fs::create_dir_all(&directory).context("create cgroup", &directory)?;
            let procs = directory.join("cgroup.procs");
            fs::write(&procs, "0").context("join cgroup", &procs)?;
        }
        Ok(())
    }
}

/// The parts of a cgroup path; `..` and the like are dropped.
fn parts(cgroup: &str) -> impl Iterator<Item = &str> {
    cgroup.split('/').filter(|part| !matches!(*part, "" | "." | ".."))
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    parts(cgroup).fold(root.to_owned(), |path, part| path.join(part))
}

/// Hands all controllers the kernel offers to the children. One by one, because one that is missing refuses all.
fn enable_controllers(directory: &Path) {
    for controller in DELEGATED.split(' ') {
        // What cannot be delegated shows when a limit is set on it, with a better message.
        let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
    }
}

/// The cgroup v2 weight (1–10000) for v1 shares (2–262144).
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(path: &Path, key: &str) -> u64 {
    let Ok(text) = fs::read_to_string(path) else { return 0 };
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

fn usage_v1(directory: impl Fn(&str) -> Option<PathBuf>) -> Usage {
    let at =
        |controller: &str, file: &str| directory(controller).map(|path| path.join(file)).unwrap_or_default();
    let memory = number(&at("memory", "memory.usage_in_bytes"));
    let stat = at("memory", "memory.stat");
    Usage {
        cpu_nanos: number(&at("cpuacct", "cpuacct.usage")),
        memory,
        working_set: memory.saturating_sub(keyed(&stat, "total_inactive_file")),
        rss: keyed(&stat, "total_rss"),
        pids: number(&at("pids", "pids.current")),
    }
}

fn usage_v2(directory: &Path) -> Usage {
    let memory = number(&directory.join("memory.current"));
    let stat = directory.join("memory.stat");
    Usage {
        cpu_nanos: keyed(&directory.join("cpu.stat"), "usage_usec").saturating_mul(1000),
        memory,
        working_set: memory.saturating_sub(keyed(&stat, "inactive_file")),
        rss: keyed(&stat, "anon"),
        pids: number(&directory.join("pids.current")),
    }
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids);
        }
    }
}

fn remove_directory(directory: &Path) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directory(&entry.path());
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn layouts() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let Cgroups::Legacy { controllers, unified } = Cgroups::from_mountinfo(hybrid) else {
            panic!("not legacy")
        };
        assert_eq!(controllers["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(controllers["name=systemd"], Path::new("/sys/fs/cgroup/systemd"));
        assert!(!controllers.contains_key("rw"));
        assert_eq!(unified.unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let v2 = "25 24 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(Cgroups::from_mountinfo(v2).is_unified());
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn usage_on_v2() {
        let dir = tree(&[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
            ("memory.current", "1000000\n"),
            ("memory.stat", "anon 400000\nfile 500000\ninactive_anon 1\ninactive_file 300000\n"),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ("pids.current", "5\n"),
        ]);
        let expected =
            Usage { cpu_nanos: 1_500_000, memory: 1_000_000, working_set: 700_000, rss: 400_000, pids: 5 };
        assert_eq!(usage_v2(dir.path()), expected);
        assert_eq!(Cgroups::Unified(dir.path().to_owned()).oom_kills("/"), 2);
    }

    #[test]
    fn usage_on_v1() {
        let dir = tree(&[
            ("cpuacct/cpuacct.usage", "123456\n"),
            ("memory/memory.usage_in_bytes", "2000\n"),
            ("memory/memory.stat", "cache 5\nrss 7\ntotal_rss 900\ntotal_inactive_file 500\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("pids/pids.current", "3\n"),
        ]);
        let expected = Usage { cpu_nanos: 123_456, memory: 2_000, working_set: 1_500, rss: 900, pids: 3 };
        assert_eq!(usage_v1(|name| Some(dir.path().join(name))), expected);
        assert_eq!(usage_v1(|_| None), Usage::default());
    }

    #[test]
    fn limits_by_layout() {
        let resources = LinuxContainerResources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit_in_bytes: Some(1 << 20),
            pids_limit: Some(-1),
            ..LinuxContainerResources::default()
        };
        let names = |cgroups: &Cgroups| {
            cgroups
                .settings(&resources)
                .into_iter()
                .map(|(_, file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&Cgroups::Unified(PathBuf::new())),
            ["cpu.weight=39", "cpu.max=50000 100000", "memory.max=1048576", "pids.max=max"]
        );
        assert_eq!(
            names(&Cgroups::Legacy { controllers: BTreeMap::new(), unified: None }),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=1048576",
                "pids.max=max"
            ]
        );
        let bare = Cgroups::Unified(PathBuf::from("/r"));
        assert_eq!(bare.directories("/a/../b"), [PathBuf::from("/r/a/b")]);
    }
}
