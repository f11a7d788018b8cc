//! The `RuntimeDefault` seccomp profile, and `Localhost` profiles from files.
//!
//! The default refuses (EPERM) what upstream runtimes' default profiles refuse: calls that reach other processes, the
//! kernel itself, mounts, namespaces or the clock. Each row names the capability that lifts it. Everything else is
//! allowed, which keeps the filter small and quick to load.
//! Source: <https://docs.docker.com/engine/security/seccomp/> (list of significant blocked calls).

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context, Result, RuntimeError};

/// (capability that allows them, `""` for none; system calls).
const REFUSED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "add_key",
            "keyctl",
            "request_key",
            "userfaultfd",
            "uselib",
            "ustat",
            "sysfs",
            "_sysctl",
            "nfsservctl",
            "vm86",
            "vm86old",
            "get_kernel_syms",
            "query_module",
            "create_module",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "kexec_file_load",
            "kexec_load",
            "move_pages",
        ],
    ),
    (
        "CAP_SYS_ADMIN",
        &[
            "mount",
            "umount",
            "umount2",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "pivot_root",
            "setns",
            "unshare",
            "quotactl",
            "quotactl_fd",
            "swapon",
            "swapoff",
            "fanotify_init",
            "lookup_dcookie",
        ],
    ),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_MODULE", &["delete_module", "init_module", "finit_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    ("CAP_SYS_RAWIO", &["iopl", "ioperm"]),
    (
        "CAP_SYS_TIME",
        &["settimeofday", "stime", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64"],
    ),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYSLOG", &["syslog"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
];

/// Namespace bits of `clone`'s flags (all but time, which is none of them).
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// ABIs of this machine.
fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &[]
    }
}

/// The default profile for a container with these capabilities, as OCI `linux.seccomp`.
pub(crate) fn runtime_default(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    // CAP_SYS_ADMIN covers what was split off it.
    let lifted = |name: &str| {
        !name.is_empty()
            && (has(name)
                || (has("CAP_SYS_ADMIN") && matches!(name, "CAP_BPF" | "CAP_PERFMON" | "CAP_SYSLOG")))
    };
    let names: Vec<&str> = REFUSED
        .iter()
        .filter(|(capability, _)| !lifted(capability))
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM})];
    if !has("CAP_SYS_ADMIN") {
        // clone3 hides its flags behind a pointer: ENOSYS makes the C library use clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
        for bit in (0..64).map(|shift| 1_u64 << shift).filter(|bit| CLONE_NAMESPACES & bit != 0) {
            rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM,
                "args": [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]}));
        }
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules})
}

/// A profile file on the node.
pub(crate) fn localhost(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).context("read seccomp profile", path)?;
    serde_json::from_slice(&text).map_err(|error| {
        RuntimeError::Invalid(format!("seccomp profile {} is not valid: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn capabilities_lift_rows() {
        let refused = |capabilities: &[&str], call: &str| {
            let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
            let profile = runtime_default(&capabilities);
            profile["syscalls"].as_array().unwrap().iter().any(|rule| {
                rule.get("args").is_none()
                    && rule["names"].as_array().unwrap().iter().any(|name| name == call)
            })
        };
        for (capabilities, call, expected) in [
            (&[][..], "mount", true),
            (&["CAP_SYS_ADMIN"], "mount", false),
            (&["CAP_SYS_ADMIN"], "bpf", false),
            (&["CAP_SYS_ADMIN"], "keyctl", true),
            (&["CAP_SYS_TIME"], "clock_settime", false),
            (&[], "clone3", true),
            (&["CAP_SYS_ADMIN"], "clone3", false),
            (&[], "read", false),
        ] {
            assert_eq!(refused(capabilities, call), expected, "{capabilities:?} {call}");
        }
    }

    #[test]
    fn profiles_are_valid_oci() {
        let parsed = serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(runtime_default(&[]));
        assert!(parsed.is_ok(), "{parsed:?}");
    }
}
