//! What can go wrong between kubelet and runtime, by class: the class says whether a retry can help.

/// The result of a CRI call.
pub type Result<T, E = CriError> = std::result::Result<T, E>;

/// An error of a CRI call. The variants follow the gRPC codes that kubelets act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CriError {
    /// The sandbox, container or image does not exist (gRPC `NOT_FOUND`). Stop and remove calls treat it as done.
    #[error("{0}")]
    NotFound(String),
    /// The request itself is wrong (gRPC `INVALID_ARGUMENT`); repeating it cannot help.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is not in a state that allows the call (gRPC `FAILED_PRECONDITION`), e.g. exec in an exited container.
    #[error("{0}")]
    FailedPrecondition(String),
    /// A time limit ran out (gRPC `DEADLINE_EXCEEDED`).
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The image cannot be had: registry unreachable, name unknown, access denied. The kubelet shows `ErrImagePull`.
    #[error("{0}")]
    ImagePull(String),
    /// The runtime does not offer this (gRPC `UNIMPLEMENTED`).
    #[error("{0}")]
    Unimplemented(String),
    /// Anything else (gRPC `UNKNOWN`): the text says what happened to which object.
    #[error("{0}")]
    Internal(String),
}
