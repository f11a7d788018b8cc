//! What can go wrong, in words that say what the host lacks.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The options themselves are unusable; retrying cannot help.
    #[error("network options: {0}")]
    Options(String),
    /// The `nft` program is not on this host.
    #[error(
        "the nft program is not installed: install the package nftables (looked in PATH, /usr/sbin and /sbin)"
    )]
    NoNft,
    /// `nft` refused a transaction; nothing of it was applied.
    #[error("nft refused the rules of table {table}: {message}")]
    Nft {
        /// The nftables table.
        table: String,
        /// What nft said, with a hint where the cause is known.
        message: String,
    },
    /// The kernel refused a netlink request.
    #[error("{what}: {message}")]
    Netlink {
        /// What was tried, on which object.
        what: String,
        /// The kernel's answer, with a hint where the cause is known.
        message: String,
        /// The kernel's error number, positive; 0 when there was none.
        errno: i32,
    },
    /// A file or process could not be worked with.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The node has no `spec.podCIDR` yet; retrying later helps.
    #[error("node {0} has no pod CIDR yet: its Node object's spec.podCIDR is not set")]
    NoPodCidr(String),
    /// Every address of the pod CIDR is taken.
    #[error("no free pod address in {0}: all are reserved")]
    NoAddress(ipnet::Ipv4Net),
    /// Two sandboxes want the same host port.
    #[error("host port {protocol} {port} is already taken by sandbox {holder}")]
    HostPortTaken {
        /// `TCP`, `UDP` or `SCTP`.
        protocol: String,
        /// 1–65535.
        port: u16,
        /// The sandbox that has it.
        holder: String,
    },
    /// Anything else that has no class of its own.
    #[error("{0}")]
    Other(String),
}

/// The result of the crate's operations.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

impl NetworkError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn file(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = PathBuf::from(path);
        let verb = verb.to_owned();
        move |source| Self::Io { what: format!("{verb} {}", path.display()), source }
    }

    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| {
            let errno = errno(&error);
            let hint = match errno {
                libc::EPERM | libc::EACCES => " (needs root with CAP_NET_ADMIN)",
                libc::EOPNOTSUPP => " (the kernel lacks this kind of link; load or build in bridge and veth)",
                _ => "",
            };
            let text =
                if errno == 0 { error.to_string() } else { io::Error::from_raw_os_error(errno).to_string() };
            Self::Netlink { what, message: format!("{text}{hint}"), errno }
        }
    }

    /// The kernel's error number, when there is one.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Netlink { errno, .. } => *errno,
            _ => 0,
        }
    }
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map_or(0, |code| code.get().abs()),
        _ => 0,
    }
}
