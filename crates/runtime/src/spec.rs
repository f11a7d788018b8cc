//! The OCI runtime spec of a container: what containerd would write for the same CRI request.
//!
//! Pure but for looking at device nodes and mounts of the host. Source: the OCI runtime specification 1.2 and CRI v1.

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use orlop_cri::{
    ContainerConfig, LinuxContainerResources, Mount, MountPropagation, NamespaceMode, PodSandboxConfig,
    SecurityProfile,
};
use serde_json::{Map, Value, json};

use crate::error::{Context, Result, RuntimeError};
use crate::protocol::Ready;
use crate::seccomp;
use crate::users::Identity;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What containers may do unless told otherwise.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability by number, `<linux/capability.h>`.
const ALL_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything a spec is made from.
pub(crate) struct SpecInput<'a> {
    pub config: &'a ContainerConfig,
    pub sandbox: &'a PodSandboxConfig,
    pub shim: &'a Ready,
    pub image: &'a ImageConfiguration,
    pub identity: &'a Identity,
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    /// cgroup v2 only host.
    pub unified_cgroups: bool,
    /// Memory limits cover swap.
    pub counts_swap: bool,
    /// This kernel limits huge pages.
    pub has_hugetlb: bool,
    /// The sandbox's `resolv.conf`.
    pub resolv_conf: &'a Path,
    /// The sandbox's `hostname` file; `None` on the host's network.
    pub hostname_file: Option<&'a Path>,
    /// The sandbox's `/dev/shm`.
    pub shm: &'a Path,
    /// First process of the container whose process namespace is to be shared.
    pub target_pid: Option<i32>,
    /// What the calling process (its shim) has of capabilities; others cannot be given.
    pub bounding: &'a [String],
}

/// Builds the spec.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value> {
    let security = &input.config.security;
    let (devices, device_rules) = devices(input)?;
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input)?,
        "resources": resources(&input.config.resources, device_rules, input),
        "devices": devices,
        "rootfsPropagation": rootfs_propagation(&input.config.mounts),
    });
    if let Some(linux) = linux.as_object_mut() {
        if !security.privileged {
            linux.insert("maskedPaths".into(), paths(&security.masked_paths, MASKED_PATHS));
            linux.insert("readonlyPaths".into(), paths(&security.readonly_paths, READONLY_PATHS));
        }
        if let Some(profile) = seccomp_profile(input)? {
            linux.insert("seccomp".into(), profile);
        }
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(input)?,
        "root": {"path": input.rootfs, "readonly": security.readonly_rootfs},
        "mounts": mounts(input)?,
        "annotations": {},
        "linux": linux,
    }))
}

fn paths(given: &[String], defaults: &[&str]) -> Value {
    if given.is_empty() { json!(defaults) } else { json!(given) }
}

fn process(input: &SpecInput<'_>) -> Result<Value> {
    let config = input.config;
    let capabilities = capabilities(config, input.bounding)?;
    let mut process = json!({
        "terminal": config.tty,
        "args": arguments(config, input.image)?,
        "env": environment(input),
        "cwd": working_directory(config, input.image),
        "user": {"uid": input.identity.uid, "gid": input.identity.gid, "additionalGids": input.identity.groups},
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
    });
    // Said only when true: libcontainer loads the seccomp filter too late when it is there at all.
    if config.security.no_new_privs
        && let Some(process) = process.as_object_mut()
    {
        process.insert("noNewPrivileges".into(), Value::Bool(true));
    }
    Ok(process)
}

/// The process for an exec, from the container's own.
pub(crate) fn exec_process(spec: &Value, command: &[String], tty: bool) -> Value {
    let mut process = spec["process"].clone();
    if let Some(process) = process.as_object_mut() {
        process.insert("args".into(), json!(command));
        process.insert("terminal".into(), Value::Bool(tty));
        if tty
            && let Some(Value::Array(environment)) = process.get_mut("env")
            && !environment.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")))
        {
            environment.push(json!("TERM=xterm"));
        }
    }
    process
}

/// `command` replaces the entrypoint and drops the image's command; `args` replaces the command.
fn arguments(config: &ContainerConfig, image: &ImageConfiguration) -> Result<Vec<String>> {
    let image = image.config().as_ref();
    let entrypoint = image.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let command = image.and_then(|config| config.cmd().clone()).unwrap_or_default();
    let mut all = if config.command.is_empty() { entrypoint } else { config.command.clone() };
    if !config.args.is_empty() {
        all.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        all.extend(command);
    }
    if all.is_empty() {
        return Err(RuntimeError::Invalid(format!(
            "container {}: no command specified, neither by the pod nor by image {}",
            config.metadata.name, config.image
        )));
    }
    Ok(all)
}

pub(crate) fn working_directory(config: &ContainerConfig, image: &ImageConfiguration) -> PathBuf {
    let image = image.config().as_ref().and_then(|config| config.working_dir().clone()).unwrap_or_default();
    let chosen = if config.working_dir.is_empty() { image } else { config.working_dir.clone() };
    Path::new("/").join(chosen)
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut all: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    if !input.sandbox.hostname.is_empty() {
        set(&mut all, format!("HOSTNAME={}", input.sandbox.hostname));
    }
    if input.config.tty {
        set(&mut all, "TERM=xterm".to_owned());
    }
    let image = input.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    for entry in image {
        set(&mut all, entry);
    }
    for (name, value) in &input.config.envs {
        set(&mut all, format!("{name}={value}"));
    }
    all
}

/// Sets a variable, in its old place when it is there already.
fn set(all: &mut Vec<String>, entry: String) {
    let name_length = entry.find('=').map_or(entry.len(), |at| at + 1);
    match all.iter_mut().find(|old| old.get(..name_length) == Some(&entry[..name_length])) {
        Some(old) => *old = entry,
        None => all.push(entry),
    }
}

/// The capabilities of a container.
pub(crate) fn capabilities(config: &ContainerConfig, bounding: &[String]) -> Result<Vec<String>> {
    let security = &config.security;
    if security.privileged {
        return Ok(ALL_CAPABILITIES
            .iter()
            .map(|name| (*name).to_owned())
            .filter(|name| bounding.contains(name))
            .collect());
    }
    let normalise = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") }
    };
    let add: Vec<String> = security.add_capabilities.iter().map(normalise).collect();
    let drop: Vec<String> = security.drop_capabilities.iter().map(normalise).collect();
    for name in add.iter().chain(&drop) {
        if name != "ALL" && !ALL_CAPABILITIES.contains(&name.as_str()) {
            return Err(RuntimeError::Invalid(format!(
                "container {}: unknown capability {name:?}",
                config.metadata.name
            )));
        }
    }
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let chosen = ALL_CAPABILITIES.iter().filter(|name| {
        let named_add = add.iter().any(|add| add == *name);
        let named_drop = drop.iter().any(|drop| drop == *name);
        let base = DEFAULT_CAPABILITIES.contains(name) && !all(&drop);
        (base || named_add || all(&add)) && !named_drop
    });
    Ok(chosen.map(|name| (*name).to_owned()).filter(|name| bounding.contains(name)).collect())
}

/// The capabilities this process could hand on: the bounding set of `/proc/self/status`.
pub(crate) fn own_bounding_set() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    ALL_CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

fn namespaces(input: &SpecInput<'_>) -> Result<Vec<Value>> {
    let shim = input.shim.pid;
    let options = &input.config.security.namespaces;
    let mut all = vec![json!({"type": "mount"})];
    let sandbox = &input.sandbox.namespaces;
    if sandbox.network != NamespaceMode::Node {
        all.push(json!({"type": "network", "path": format!("/proc/{shim}/ns/net")}));
        all.push(json!({"type": "uts", "path": format!("/proc/{shim}/ns/uts")}));
    }
    if sandbox.ipc != NamespaceMode::Node {
        all.push(json!({"type": "ipc", "path": format!("/proc/{shim}/ns/ipc")}));
    }
    match &options.pid {
        NamespaceMode::Node => {}
        NamespaceMode::Container => all.push(json!({"type": "pid"})),
        NamespaceMode::Pod => match input.shim.pause_pid {
            Some(pid) => all.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
            None => all.push(json!({"type": "pid"})),
        },
        NamespaceMode::Target(id) => match input.target_pid {
            Some(pid) => all.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
            None => {
                return Err(RuntimeError::Precondition(format!("target container {id:?} is not running")));
            }
        },
    }
    if input.unified_cgroups && !input.config.security.privileged {
        all.push(json!({"type": "cgroup"}));
    }
    Ok(all)
}

fn resources(resources: &LinuxContainerResources, device_rules: Vec<Value>, input: &SpecInput<'_>) -> Value {
    let mut all = Map::new();
    all.insert("devices".into(), Value::Array(device_rules));
    let mut cpu = Map::new();
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
        cpu.insert("shares".into(), json!(shares));
    }
    if let Some(quota) = resources.cpu_quota.filter(|quota| *quota != 0) {
        cpu.insert("quota".into(), json!(quota));
    }
    if let Some(period) = resources.cpu_period.filter(|period| *period > 0) {
        cpu.insert("period".into(), json!(period));
    }
    if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
        cpu.insert("cpus".into(), json!(cpus));
    }
    if let Some(mems) = resources.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
        cpu.insert("mems".into(), json!(mems));
    }
    if !cpu.is_empty() {
        all.insert("cpu".into(), Value::Object(cpu));
    }
    if let Some(limit) = resources.memory_limit_in_bytes.filter(|limit| *limit > 0) {
        // The same for memory and swap together: no swap, as kubelets expect.
        let memory =
            if input.counts_swap { json!({"limit": limit, "swap": limit}) } else { json!({"limit": limit}) };
        all.insert("memory".into(), memory);
    } else {
        // Makes libcontainer put the container into a memory cgroup, for its usage.
        all.insert("memory".into(), json!({}));
    }
    if let Some(limit) = resources.pids_limit.filter(|limit| *limit > 0) {
        all.insert("pids".into(), json!({"limit": limit}));
    }
    if input.has_hugetlb && !resources.hugepage_limits.is_empty() {
        let limits: Vec<Value> = resources
            .hugepage_limits
            .iter()
            .map(|(size, limit)| json!({"pageSize": size, "limit": limit}))
            .collect();
        all.insert("hugepageLimits".into(), Value::Array(limits));
    }
    Value::Object(all)
}

/// Device nodes to make, and what the device cgroup allows.
fn devices(input: &SpecInput<'_>) -> Result<(Vec<Value>, Vec<Value>)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    if input.config.security.privileged {
        let rules = vec![json!({"allow": true, "access": "rwm"})];
        return Ok((host_devices(), rules));
    }
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for device in &input.config.devices {
        let metadata = std::fs::metadata(&device.host_path).context("look at device", &device.host_path)?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            _ => {
                return Err(RuntimeError::Invalid(format!(
                    "{} is not a device node",
                    device.host_path.display()
                )));
            }
        };
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        nodes.push(json!({"path": device.container_path, "type": kind, "major": major, "minor": minor,
            "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid()}));
        rules.push(json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": device.permissions}));
    }
    Ok((nodes, rules))
}

/// The nodes directly in the host's `/dev`, for privileged containers.
fn host_devices() -> Vec<Value> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let skip = ["console", "null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir("/dev").into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            _ => continue,
        };
        if skip.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        nodes.push(json!({"path": entry.path(), "type": kind, "major": libc::major(metadata.rdev()),
            "minor": libc::minor(metadata.rdev()), "fileMode": metadata.mode() & 0o777,
            "uid": metadata.uid(), "gid": metadata.gid()}));
    }
    nodes
}

fn seccomp_profile(input: &SpecInput<'_>) -> Result<Option<Value>> {
    if input.config.security.privileged {
        return Ok(None);
    }
    match &input.config.security.seccomp {
        SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => {
            Ok(Some(seccomp::runtime_default(&capabilities(input.config, input.bounding)?)))
        }
        SecurityProfile::Localhost(path) => seccomp::localhost(path).map(Some),
    }
}

fn rootfs_propagation(mounts: &[Mount]) -> &'static str {
    if mounts.iter().any(|mount| mount.propagation == MountPropagation::Bidirectional) {
        "shared"
    } else {
        "slave"
    }
}

fn mounts(input: &SpecInput<'_>) -> Result<Vec<Value>> {
    let privileged = input.config.security.privileged;
    let sys_mode = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys_mode]),
    ];
    let given = |path: &str| input.config.mounts.iter().any(|mount| mount.container_path == Path::new(path));
    let file_mode = if input.config.security.readonly_rootfs { "ro" } else { "rw" };
    let mut bind = |target: &str, source: &Path, mode: &str| {
        if !given(target) {
            all.push(json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode]}));
        }
    };
    bind("/dev/shm", input.shm, "rw");
    bind("/etc/resolv.conf", input.resolv_conf, file_mode);
    if let Some(hostname) = input.hostname_file {
        bind("/etc/hostname", hostname, file_mode);
    }
    let info = if input.config.mounts.iter().any(|mount| mount.propagation != MountPropagation::Private) {
        std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
    } else {
        String::new()
    };
    // Parents before children, whatever the pod's order: a mount must not hide one made before it.
    let mut ordered: Vec<&Mount> = input.config.mounts.iter().collect();
    ordered.sort_by_key(|mount| mount.container_path.components().count());
    for mount in ordered {
        all.push(bind_mount(mount, &info)?);
    }
    Ok(all)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn bind_mount(mount: &Mount, mountinfo: &str) -> Result<Value> {
    if !mount.container_path.is_absolute() {
        return Err(RuntimeError::Invalid(format!(
            "mount path {} is not absolute",
            mount.container_path.display()
        )));
    }
    let source = std::fs::canonicalize(&mount.host_path).context("resolve mount source", &mount.host_path)?;
    let propagation = match mount.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    if mount.propagation != MountPropagation::Private {
        let (point, shared, slave) = mount_of(&source, mountinfo);
        let enough = shared || (slave && mount.propagation == MountPropagation::HostToContainer);
        if !enough {
            let wanted = if mount.propagation == MountPropagation::Bidirectional {
                "a shared"
            } else {
                "a shared or slave"
            };
            return Err(RuntimeError::Invalid(format!(
                "path {:?} is mounted on {:?} but it is not {wanted} mount",
                source.display().to_string(),
                point.display().to_string()
            )));
        }
    }
    let mode = match (mount.readonly, mount.recursive_readonly) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    Ok(json!({"destination": mount.container_path, "type": "bind", "source": source,
        "options": ["rbind", propagation, mode]}))
}

/// The mount that holds `path`: (mount point, shared, slave).
fn mount_of(path: &Path, mountinfo: &str) -> (PathBuf, bool, bool) {
    let mut best = (PathBuf::from("/"), false, false);
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(point) = fields.get(4).map(PathBuf::from) else { continue };
        if path.starts_with(&point) && point.components().count() >= best.0.components().count() {
            let optional: Vec<&str> =
                fields.iter().skip(6).copied().take_while(|field| *field != "-").collect();
            let tagged = |tag: &str| optional.iter().any(|field| field.starts_with(tag));
            best = (point, tagged("shared:"), tagged("master:"));
        }
    }
    best
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
