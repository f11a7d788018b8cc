//! Expressions in webhooks and policies, as they are checked when the object is written.

use orlop_api::field::{ErrorList, Path};
use std::marker::PhantomData;

/// Checks the expressions of one webhook configuration or policy.
pub(super) struct Expressions<'a> {
    _policy: PhantomData<&'a ()>,
}

impl Expressions<'_> {
    /// For expressions without variables of the policy's own.
    pub(super) fn stateless(_params: bool) -> Self {
        Expressions { _policy: PhantomData }
    }

    pub(super) fn match_condition(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
    pub(super) fn variable(&mut self, _errs: &mut ErrorList, _name: &str, _expression: &str, _path: &Path) {}
    pub(super) fn validation(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
    pub(super) fn message(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
    pub(super) fn audit_annotation(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
    pub(super) fn apply_configuration(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
    pub(super) fn json_patch(&mut self, _errs: &mut ErrorList, _expression: &str, _path: &Path) {}
}
