//! The three kinds of patches; server-side apply is in [`crate::managed`].

pub mod described;
pub mod json;
pub mod merge;
pub mod strategic;

use crate::status::{ApiError, StatusDetails};

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not what its media type says.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: a missing parent, a failed test.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch names too many operations.
    #[error("{0}")]
    TooLarge(String),
    /// The directives of a strategic merge make no sense.
    #[error("{0}")]
    Directive(String),
}

impl PatchError {
    /// What upstream answers the client.
    pub fn into_api_error(self) -> ApiError {
        match self {
            PatchError::Malformed(text) => ApiError::bad_request(text),
            PatchError::Unprocessable(_) => ApiError::generic(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            )
            .with_details(StatusDetails::default()),
            PatchError::TooLarge(text) => ApiError::request_entity_too_large(text),
            // Upstream lets these errors through as they are, without a reason.
            PatchError::Directive(text) => ApiError::generic(500, "", text),
        }
    }
}
