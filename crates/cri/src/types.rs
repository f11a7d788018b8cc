//! The messages of CRI v1, as far as Linux nodes use them. Field names and meanings are CRI's; absent means `None`
//! or empty, never a magic value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Labels or annotations.
pub type StringMap = BTreeMap<String, String>;

/// Name and version of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// E.g. `orlop`, `containerd`.
    pub runtime_name: String,
    /// Its version.
    pub runtime_version: String,
}

/// The runtime's conditions.
#[derive(Debug, Clone)]
pub struct RuntimeStatus {
    /// `RuntimeReady`: containers can be made. `Err` holds reason and message.
    pub runtime_ready: Result<(), String>,
    /// `NetworkReady`: sandboxes get a network.
    pub network_ready: Result<(), String>,
}

/// Identity of a sandbox: which pod, and which try.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// 0 for the pod's first sandbox, one more for each that replaces it.
    pub attempt: u32,
}

/// Whose namespace a container or sandbox uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod's containers.
    #[default]
    Pod,
    /// Of its own.
    Container,
    /// The node's.
    Node,
    /// That of another container of the pod (its id), for ephemeral containers with a target.
    Target(String),
}

/// Namespace choices of a sandbox or container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// Network.
    pub network: NamespaceMode,
    /// Process ids; kubelets ask for `Container` unless the pod shares its process namespace.
    pub pid: NamespaceMode,
    /// System V IPC and POSIX message queues.
    pub ipc: NamespaceMode,
}

/// A container port that is also a port of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// 1–65535.
    pub container_port: u16,
    /// 1–65535.
    pub host_port: u16,
    /// The host address it binds; `None` means all.
    pub host_ip: Option<IpAddr>,
}

/// The content of the sandbox's `/etc/resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` list.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    /// Which pod.
    pub metadata: PodSandboxMetadata,
    /// Host name inside; empty for pods on the host's network, which keep the node's.
    pub hostname: String,
    /// Directory under which the pod's containers log (`<log_path>` is relative to it).
    pub log_directory: PathBuf,
    /// Resolver configuration; the runtime makes the file `/etc/resolv.conf` of every container from it.
    pub dns: DnsConfig,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Kept and listed as given.
    pub labels: StringMap,
    /// Kept and listed as given.
    pub annotations: StringMap,
    /// cgroup of the pod, absolute below the cgroup root, e.g. `/orlop/kubepods/burstable/pod<uid>`. The runtime makes it.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup as a whole.
    pub resources: LinuxContainerResources,
    /// Namespaces.
    pub namespaces: NamespaceOptions,
    /// Namespaced kernel parameters.
    pub sysctls: StringMap,
}

/// Whether a sandbox is usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// Its namespaces are there.
    Ready,
    /// It was stopped or its keeper died.
    NotReady,
}

/// A line of the sandbox list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandbox {
    /// The runtime's id.
    pub id: String,
    /// Which pod.
    pub metadata: PodSandboxMetadata,
    /// Usable or not.
    pub state: PodSandboxState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// As given.
    pub labels: StringMap,
    /// As given.
    pub annotations: StringMap,
}

/// A sandbox in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandboxStatus {
    /// The list's line.
    pub sandbox: PodSandbox,
    /// Addresses, primary first; empty on the host's network.
    pub ips: Vec<IpAddr>,
    /// Namespaces.
    pub namespaces: NamespaceOptions,
}

/// Which sandboxes a list returns; `None` and empty match all.
#[derive(Debug, Clone, Default)]
pub struct PodSandboxFilter {
    /// This one only.
    pub id: Option<String>,
    /// In this state only.
    pub state: Option<PodSandboxState>,
    /// With all of these labels.
    pub labels: StringMap,
}

/// Identity of a container within its sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Container name.
    pub name: String,
    /// How often it was restarted before (its restart count).
    pub attempt: u32,
}

/// How mounts travel between host and container (`mountPropagation`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// `None`.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

/// A bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container.
    pub container_path: PathBuf,
    /// Absolute path on the host; it exists.
    pub host_path: PathBuf,
    /// Read-only.
    pub readonly: bool,
    /// Read-only including mounts below it.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
}

/// A device node of the host given to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path inside.
    pub container_path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// cgroup permissions, e.g. `rwm`.
    pub permissions: String,
}

/// cgroup limits. `None` leaves a limit as it is (at creation: unlimited).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxContainerResources {
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota in microseconds per period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Relative weight, 2–262144 (cgroup v1 scale).
    pub cpu_shares: Option<u64>,
    /// Bytes; -1 is unlimited.
    pub memory_limit_in_bytes: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// CPU list, e.g. `0-2`.
    pub cpuset_cpus: Option<String>,
    /// Memory node list.
    pub cpuset_mems: Option<String>,
    /// Page size (e.g. `2MB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
}

/// A seccomp or AppArmor profile by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    /// None.
    #[default]
    Unconfined,
    /// The runtime's default.
    RuntimeDefault,
    /// A profile file on the node.
    Localhost(PathBuf),
}

/// Who the process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunAsUser {
    /// Numeric user id.
    Uid(i64),
    /// A name, resolved in the image's `/etc/passwd`.
    Name(String),
}

/// What the process may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxSecurityContext {
    /// All devices, all capabilities, nothing masked.
    pub privileged: bool,
    /// Capabilities to add, e.g. `NET_ADMIN`, `ALL`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// Namespaces.
    pub namespaces: NamespaceOptions,
    /// The user; `None` is the image's.
    pub run_as_user: Option<RunAsUser>,
    /// The primary group; `None` is the image's or the user's.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths read-only in the container.
    pub readonly_paths: Vec<String>,
    /// seccomp.
    pub seccomp: SecurityProfile,
}

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// An image present on the node: name, digest or id.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory when not empty.
    pub working_dir: String,
    /// Added to (and overriding) the image's environment, in this order.
    pub envs: Vec<(String, String)>,
    /// Bind mounts, in this order.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Kept and listed as given.
    pub labels: StringMap,
    /// Kept and listed as given.
    pub annotations: StringMap,
    /// Log file relative to the sandbox's log directory, in the CRI log format
    /// (`<RFC 3339 nanoseconds> <stdout|stderr> <P|F> <content>`).
    pub log_path: PathBuf,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach session ends.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// cgroup limits.
    pub resources: LinuxContainerResources,
    /// Rights.
    pub security: LinuxSecurityContext,
    /// The signal that asks it to stop, e.g. `SIGTERM`; `None` is the image's, else `SIGTERM`.
    pub stop_signal: Option<String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime lost track of it (its shim is gone and left no exit record).
    Unknown,
}

/// A line of the container list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its sandbox.
    pub pod_sandbox_id: String,
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// The image as asked for.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// As given.
    pub labels: StringMap,
    /// As given.
    pub annotations: StringMap,
}

/// A container in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// The list's line.
    pub container: Container,
    /// The image with its digest (`name@sha256:…`) when it has one, else the id: what `imageID` shows.
    pub image_ref: String,
    /// Nanoseconds since the Unix epoch; 0 before the start.
    pub started_at: i64,
    /// Nanoseconds since the Unix epoch; 0 before the end.
    pub finished_at: i64,
    /// Exit code, 128 + signal number when a signal ended it. Meaningful once `Exited`.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerCannotRun`; empty before the end.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The process id of its first process on the host while it runs.
    pub pid: Option<u32>,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Absolute path of its log file.
    pub log_path: PathBuf,
    /// The user it runs as, numeric: uid, gid, supplemental groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

/// Which containers a list returns; `None` and empty match all.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// This one only.
    pub id: Option<String>,
    /// In this sandbox only.
    pub pod_sandbox_id: Option<String>,
    /// In this state only.
    pub state: Option<ContainerState>,
    /// With all of these labels.
    pub labels: StringMap,
}

/// What [`exec_sync`](crate::Runtime::exec_sync) returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal number when a signal ended it.
    pub exit_code: i32,
}

/// How [`exec`](crate::Runtime::exec) runs a command.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// The command and its arguments; not empty.
    pub command: Vec<String>,
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr; ignored with a terminal.
    pub stderr: bool,
    /// Give it a terminal.
    pub tty: bool,
}

/// Which streams [`attach`](crate::Runtime::attach) connects.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttachOptions {
    /// Connect stdin; the container must have been made with `stdin`.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr.
    pub stderr: bool,
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerEventKind {
    /// Made.
    Created,
    /// Running.
    Started,
    /// Ended.
    Stopped,
    /// Removed.
    Deleted,
}

/// Something happened on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// To a container.
    Container {
        /// What.
        kind: ContainerEventKind,
        /// Its id.
        id: String,
        /// Its sandbox.
        pod_sandbox_id: String,
        /// The pod's uid.
        pod_uid: String,
    },
    /// To a sandbox.
    Sandbox {
        /// What.
        kind: ContainerEventKind,
        /// Its id.
        id: String,
        /// The pod's uid.
        pod_uid: String,
    },
    /// Events were lost; list again.
    Lagged,
}

/// One reading of a container's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStats {
    /// The container.
    pub id: String,
    /// Nanoseconds since the Unix epoch of the reading.
    pub timestamp: i64,
    /// CPU time used since its start, nanoseconds.
    pub cpu_usage_nanos: u64,
    /// Memory that cannot be reclaimed at once (usage less inactive file pages), bytes.
    pub memory_working_set_bytes: u64,
    /// Memory usage, bytes.
    pub memory_usage_bytes: u64,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: u64,
    /// Writable layer, bytes.
    pub writable_layer_bytes: u64,
    /// Writable layer, inodes.
    pub writable_layer_inodes: u64,
    /// Processes and threads.
    pub process_count: u64,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:` of its configuration.
    pub id: String,
    /// Names with tags, in full (`docker.io/library/busybox:latest`).
    pub repo_tags: Vec<String>,
    /// Names with digests.
    pub repo_digests: Vec<String>,
    /// Bytes of its layers, unpacked.
    pub size: u64,
    /// The user the image asks for, when numeric.
    pub uid: Option<i64>,
    /// The user the image asks for, when a name.
    pub username: String,
}

/// Registry credentials of an image pull secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthConfig {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// A bearer token instead of name and password.
    pub registry_token: String,
}

/// Use of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// Where.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}
