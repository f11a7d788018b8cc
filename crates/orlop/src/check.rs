//! `orlop check`: what this host lacks, each with what to do about it.

use std::path::Path;

use anyhow::bail;

use crate::cli::CheckArguments;

struct Finding {
    what: &'static str,
    present: bool,
    otherwise: &'static str,
}

/// Prints a line per requirement; fails when something is missing.
pub fn run(_: &CheckArguments) -> anyhow::Result<()> {
    let findings = findings();
    let mut missing = 0;
    for finding in &findings {
        if finding.present {
            println!("ok       {}", finding.what);
        } else {
            missing += 1;
            println!("missing  {}: {}", finding.what, finding.otherwise);
        }
    }
    match missing {
        0 => Ok(()),
        count => bail!("{count} of {} requirements are not met", findings.len()),
    }
}

fn findings() -> Vec<Finding> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let finding = |what, present, otherwise| Finding { what, present, otherwise };
    vec![
        finding(
            "root",
            nix::unistd::geteuid().is_root(),
            "run as root: containers and network namespaces need it",
        ),
        finding("nft", program("nft"), "install nftables (apt-get install nftables): it routes Services"),
        finding(
            "overlayfs",
            filesystems.lines().any(|line| line.ends_with("overlay"))
                || Path::new("/sys/module/overlay").exists(),
            "load it (modprobe overlay): images are mounted with it",
        ),
        finding(
            "cgroups",
            Path::new("/sys/fs/cgroup/memory").exists() || controllers().contains("memory"),
            "enable the memory controller (kernel parameter cgroup_enable=memory): limits need it",
        ),
        finding(
            "network namespaces",
            Path::new("/proc/self/ns/net").exists(),
            "use a kernel with CONFIG_NET_NS: every pod has one",
        ),
    ]
}

fn controllers() -> String {
    std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default()
}

fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(usual).any(|directory| directory.join(name).exists())
}
