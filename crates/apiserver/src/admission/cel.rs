//! Conditions in CEL under which a webhook is asked.

use serde_json::Value;

use super::Request;
use super::matching::Matched;
use crate::registry::Registry;

/// The match conditions of a webhook.
pub struct MatchConditions;

impl MatchConditions {
    /// `None` when there are none.
    pub fn compile(conditions: &Value, _params: bool) -> Option<MatchConditions> {
        conditions.as_array().filter(|list| !list.is_empty()).map(|_| MatchConditions)
    }

    /// Whether all are met.
    #[allow(clippy::too_many_arguments)]
    pub fn met(
        &self,
        _registry: &Registry,
        _request: &Request<'_>,
        _matched: &Matched,
        _object: &Value,
        _old: &Value,
        _params: Option<&Value>,
        _ignore_failures: bool,
    ) -> Result<bool, String> {
        Err("match conditions are not evaluated by this server yet".into())
    }
}
