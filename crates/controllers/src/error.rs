//! The one error of the crate. Every error makes its key come back with a back-off; the text is for the log.

use std::fmt;

/// Why a reconcile did not finish. A retry can always help: caches move on, conflicts pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("{}", message(.0))]
    Api(#[from] kube::Error),
    /// An object cannot be worked with as it is.
    #[error("{0}")]
    Object(String),
    /// Several writes of one reconcile failed.
    #[error("{}", Lines(.0))]
    Several(Vec<Error>),
}

struct Lines<'a>(&'a [Error]);

impl fmt::Display for Lines<'_> {
    /// As upstream prints an aggregate: one error plain, several in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0 {
            return write!(f, "{one}");
        }
        f.write_str("[")?;
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl Error {
    /// `Ok` for no errors, the error for one, all of them for more.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// What the API server said, without the client library's wrapping: the text that goes into events and conditions.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}

pub(crate) fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_invalid())
}

/// Nothing can be created in a namespace that is being deleted; retrying would only make noise.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Turns "it is gone already" into success.
pub(crate) fn unless_gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}
