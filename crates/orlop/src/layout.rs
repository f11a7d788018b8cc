//! Where one cluster keeps its things on a host, and the names under which the kernel knows them.

use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::LocationArguments;

const DEFAULT_DATA_DIR: &str = "/var/lib/orlop";

/// The paths and names of one cluster on one host.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Everything that outlives the server.
    pub data: PathBuf,
    /// Names the bridge, the nftables table and the cgroup.
    pub instance: String,
}

impl Layout {
    /// Fixes paths and names, and remembers the instance in the data directory: a cluster keeps its names when it is
    /// started again.
    pub fn open(location: &LocationArguments) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&location.data_dir).with_context(|| {
            format!("data directory {}: choose another one with --data-dir", location.data_dir.display())
        })?;
        let layout = Self::find(location)?;
        std::fs::write(layout.instance_file(), &layout.instance).context("data directory is not writable")?;
        Ok(layout)
    }

    /// The same for a data directory that must exist.
    pub fn find(location: &LocationArguments) -> anyhow::Result<Self> {
        let data = std::fs::canonicalize(&location.data_dir)
            .with_context(|| format!("data directory {}", location.data_dir.display()))?;
        let kept = std::fs::read_to_string(data.join("instance")).ok().map(|text| text.trim().to_owned());
        let instance = match (&location.instance, kept) {
            (Some(asked), Some(kept)) if *asked != kept => bail!(
                "{} belongs to the instance {kept:?}; start it without --instance, or choose another --data-dir",
                data.display()
            ),
            (Some(asked), _) => asked.clone(),
            (None, Some(kept)) => kept,
            (None, None) => default_instance(&data),
        };
        // The kernel takes 15 bytes for an interface name, and the bridge adds one.
        let plain = instance.starts_with(|c: char| c.is_ascii_lowercase())
            && instance.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !plain || instance.len() > 13 {
            bail!(
                "instance {instance:?}: use 1 to 13 lower-case letters, digits and '-', beginning with a letter"
            );
        }
        Ok(Self { data, instance })
    }

    fn instance_file(&self) -> PathBuf {
        self.data.join("instance")
    }

    /// The address ranges the server was started with, one flag a line: what `orlop uninstall` has to clean up.
    pub fn ranges_file(&self) -> PathBuf {
        self.data.join("ranges")
    }

    /// State of the API server.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    /// Images, snapshots, containers.
    pub fn runtime(&self) -> PathBuf {
        self.data.join("runtime")
    }

    /// What pods keep in volumes of the built-in class.
    pub fn storage(&self) -> PathBuf {
        self.data.join("storage")
    }

    /// Volumes and pods' files.
    pub fn kubelet(&self) -> PathBuf {
        self.data.join("kubelet")
    }

    /// Logs of containers.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// What a reboot may empty: sockets, address reservations.
    pub fn run(&self) -> PathBuf {
        Path::new("/run/orlop").join(&self.instance)
    }

    /// The socket that `orlop image` talks to.
    pub fn socket(&self) -> PathBuf {
        self.run().join("node.sock")
    }

    /// The pods' bridge.
    pub fn bridge(&self) -> String {
        format!("{}0", self.instance)
    }

    /// cgroup of all pods, below each hierarchy's root.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.instance)
    }
}

/// `orlop` for the usual data directory; for others a name made of their path, so that two clusters never meet.
fn default_instance(data: &Path) -> String {
    if data == Path::new(DEFAULT_DATA_DIR) {
        return "orlop".to_owned();
    }
    let mut hasher = std::hash::DefaultHasher::new();
    data.hash(&mut hasher);
    format!("orlop-{:06x}", hasher.finish() & 0xff_ffff)
}
