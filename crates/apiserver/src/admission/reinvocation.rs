//! The second round of the mutating plugins: when a webhook or policy changed the object, everything that ran before it
//! and wants to know runs once more. Upstream's `ReinvocationContext`.

use std::collections::HashSet;
use std::sync::Arc;

use orlop_json::Value;

/// What is remembered between the rounds of one request.
#[derive(Default)]
pub struct Reinvocation {
    /// Whether this is the second round.
    pub second: bool,
    /// Whether a second round is wanted.
    pub wanted: bool,
    /// Of the mutating webhooks.
    pub webhooks: Invoked,
    /// Of the mutating policies.
    pub policies: Invoked,
}

/// Who of one plugin ran, who must run again, and what the plugin left behind.
#[derive(Default)]
pub struct Invoked {
    previously: HashSet<Arc<str>>,
    again: HashSet<Arc<str>>,
    output: Option<Value>,
}

impl Invoked {
    /// At the begin of a plugin's second round: if others changed the object since, everyone runs again.
    pub fn begin_second(&mut self, object: &Value) {
        if self.output.as_ref().is_some_and(|output| output != object) {
            self.require_previous();
        }
    }

    /// Everyone who ran and asked for it runs again.
    pub fn require_previous(&mut self) {
        self.again.extend(self.previously.drain());
    }

    /// Takes note that `who` ran and wants to run again after later changes.
    pub fn ran(&mut self, who: Arc<str>) {
        self.previously.insert(who);
    }

    /// Whether `who` must run in the second round.
    pub fn must_run_again(&self, who: &str) -> bool {
        self.again.contains(who)
    }

    /// Keeps what the plugin left behind.
    pub fn finish(&mut self, object: &Value) {
        self.output = Some(object.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn who_runs_again() {
        let mut invoked = Invoked::default();
        invoked.ran("a".into());
        invoked.require_previous();
        invoked.ran("b".into());
        invoked.finish(&json!({"x": 1}));
        assert!(invoked.must_run_again("a") && !invoked.must_run_again("b"));
        invoked.begin_second(&json!({"x": 1}));
        assert!(!invoked.must_run_again("b"));
        invoked.begin_second(&json!({"x": 2}));
        assert!(invoked.must_run_again("b"));
    }
}
