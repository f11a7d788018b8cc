//! The crate's own error, and how its classes map to CRI's.

use std::path::{Path, PathBuf};

use orlop_cri::CriError;

/// What can go wrong inside the runtime. Texts name the object and, where there is one, the next step.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, e.g. `write`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A state file does not hold what it should.
    #[error("{path} is damaged: {message}; remove the object it describes and create it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The decoder's complaint.
        message: String,
    },
    /// An image archive or registry answer is not acceptable.
    #[error("{0}")]
    BadImage(String),
    /// A pull failed.
    #[error("{0}")]
    Pull(String),
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be carried out as it is.
    #[error("{0}")]
    Invalid(String),
    /// The object's state forbids the call.
    #[error("{0}")]
    Precondition(String),
    /// The shim refused, or could not be reached.
    #[error("{0}")]
    Shim(String),
}

/// Results inside the crate.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

impl From<RuntimeError> for CriError {
    fn from(error: RuntimeError) -> CriError {
        let text = error.to_string();
        match error {
            RuntimeError::NotFound(_) => CriError::NotFound(text),
            RuntimeError::Invalid(_) => CriError::InvalidArgument(text),
            RuntimeError::Precondition(_) => CriError::FailedPrecondition(text),
            RuntimeError::Pull(_) => CriError::ImagePull(text),
            _ => CriError::Internal(text),
        }
    }
}

/// Adds action and path to an I/O error.
pub(crate) trait Context<T> {
    /// `action` is a verb: `open`, `write`, `mount`.
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| RuntimeError::Io { action, path: path.to_owned(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(std::io::Error::from).context(action, path)
    }
}
