//! SPDY/3.1 over one connection: streams with headers, in both directions. As client-go and the kubelet use it: no flow
//! control windows (neither side of upstream keeps them), so a stream whose reader is slow holds up its connection.

mod compression;
mod connection;
mod frame;

pub use compression::HeaderError;
pub use connection::{Connection, Incoming, Reader, Role, Stream, Writer};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// Reading or writing failed, or the other side is gone.
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    /// The other side's header blocks cannot be read.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// The other side broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The stream was reset by the other side, or the connection ended.
    #[error("the stream is closed")]
    Closed,
}
