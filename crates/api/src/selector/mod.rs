//! Label selectors and field selectors.
//!
//! Answers to `k8s.io/apimachinery/pkg/labels` and `pkg/fields`: the grammar, what is accepted by accident included,
//! and the words of each refusal.

mod field;
mod label;

pub use field::{FieldRequirement, FieldSelector};
pub use label::{LabelSelector, Operator, Requirement};

/// Why a text is no selector; upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

fn fail<T>(text: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(text.into()))
}
