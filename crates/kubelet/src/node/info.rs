//! What the machine is and has, read once at start from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::options::{KUBELET_VERSION, Options};
use crate::resources::ResourceList;

/// The machine's size and identity.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub cpus: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the file system the kubelet's root is on.
    pub storage: u64,
    /// Bytes of huge pages by page size in KiB.
    pub hugepages: BTreeMap<u64, u64>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Machine {
    pub(crate) fn read(root: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let machine_id = Some(text("/etc/machine-id"))
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| text("/var/lib/dbus/machine-id"));
        let uuid = text("/sys/class/dmi/id/product_uuid").to_ascii_lowercase();
        Self {
            cpus: cpus as u64,
            memory: meminfo(&text("/proc/meminfo")),
            storage: filesystem(root).map_or(0, |(total, _)| total),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        }
    }

    pub(crate) fn memory_i64(&self) -> i64 {
        i64::try_from(self.memory).unwrap_or(i64::MAX)
    }

    /// `status.capacity`.
    pub(crate) fn capacity(&self, options: &Options) -> ResourceList {
        self.resources(options, 0, 0, |bytes| bytes)
    }

    /// `status.allocatable`: capacity without what is reserved, and without the last tenth of the disk, as upstream's
    /// default eviction threshold has it.
    pub(crate) fn allocatable(&self, options: &Options) -> ResourceList {
        self.resources(options, options.reserved_cpu_millis, options.reserved_memory, |bytes| bytes / 10 * 9)
    }

    fn resources(
        &self,
        options: &Options,
        cpu_millis: u64,
        memory: u64,
        storage: impl Fn(u64) -> u64,
    ) -> ResourceList {
        let mut list = BTreeMap::new();
        let cpu = (self.cpus * 1000).saturating_sub(cpu_millis);
        let cpu = if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") };
        let mut hugepages = 0;
        for (kib, bytes) in &self.hugepages {
            hugepages += bytes;
            let size = if kib.is_multiple_of(1 << 20) {
                format!("{}Gi", kib >> 20)
            } else if kib.is_multiple_of(1024) {
                format!("{}Mi", kib >> 10)
            } else {
                format!("{kib}Ki")
            };
            list.insert(format!("hugepages-{size}"), Quantity(bytes.to_string()));
        }
        let memory = self.memory.saturating_sub(memory).saturating_sub(hugepages);
        list.insert("cpu".to_owned(), Quantity(cpu));
        list.insert("memory".to_owned(), Quantity(format!("{}Ki", memory >> 10)));
        let disk = storage(self.storage);
        // Capacity is a round number of KiB; nine tenths of it are not.
        let disk = if disk == self.storage { format!("{}Ki", disk >> 10) } else { disk.to_string() };
        list.insert("ephemeral-storage".to_owned(), Quantity(disk));
        list.insert("pods".to_owned(), Quantity(options.max_pods.to_string()));
        list
    }

    /// `status.nodeInfo`.
    pub(crate) fn system_info(&self, runtime: &str) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: self.boot_id.clone(),
            container_runtime_version: runtime.to_owned(),
            kernel_version: self.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: self.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: self.os_image.clone(),
            swap: None,
            system_uuid: self.system_uuid.clone(),
        }
    }
}

/// The architecture by Go's name.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Bytes in total and free of the file system at `path`, or of its nearest existing parent.
pub(crate) fn filesystem(path: &Path) -> Option<(u64, u64)> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let unit = stat.fragment_size();
    Some((stat.blocks() * unit, stat.blocks_available() * unit))
}

fn meminfo(table: &str) -> u64 {
    let line = table.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn hugepages(dir: &Path) -> BTreeMap<u64, u64> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    let sizes = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((kib, pages * (kib << 10)))
    });
    sizes.collect()
}

fn os_image(release: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_files() {
        assert_eq!(meminfo("MemTotal:       1024 kB\nMemFree: 1 kB\n"), 1 << 20);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }
}
