//! The CEL expressions of an `AuthenticationConfiguration`.

use serde_json::{Map, Value};

use super::UserInfo;
use super::config::JwtConfig;

/// Which expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `claimMappings.username.expression`
    Username,
    /// `claimMappings.groups.expression`
    Groups,
    /// `claimMappings.uid.expression`
    Uid,
    /// `claimMappings.extra[n].valueExpression`
    Extra(usize),
}

/// The compiled expressions of one issuer.
pub struct Expressions {}

/// Expressions over the claims of one token.
pub struct Evaluation<'a> {
    _claims: &'a Map<String, Value>,
}

const UNBUILT: &str = "CEL expressions are not built yet: use claim";

impl Expressions {
    /// Compiles what the configuration holds.
    pub fn compile(config: &JwtConfig) -> Result<Expressions, String> {
        let mappings = &config.claim_mappings;
        let any = [&mappings.username, &mappings.groups, &mappings.uid]
            .iter()
            .any(|mapping| !mapping.expression.is_empty())
            || !mappings.extra.is_empty()
            || !config.user_validation_rules.is_empty()
            || config.claim_validation_rules.iter().any(|rule| !rule.expression.is_empty());
        if any { Err(UNBUILT.to_string()) } else { Ok(Expressions {}) }
    }

    /// For one token.
    pub fn over_claims<'a>(&'a self, claims: &'a Map<String, Value>) -> Evaluation<'a> {
        Evaluation { _claims: claims }
    }

    /// `userValidationRules`
    pub fn check_user(&self, _user: &UserInfo) -> Result<(), String> {
        Ok(())
    }
}

impl Evaluation<'_> {
    /// A text.
    pub fn text(&mut self, _rule: Rule) -> Result<String, String> {
        Err(UNBUILT.to_string())
    }

    /// A text or texts.
    pub fn list(&mut self, _rule: Rule) -> Result<Vec<String>, String> {
        Err(UNBUILT.to_string())
    }

    /// `claimValidationRules` with expressions.
    pub fn validations(&mut self) -> Result<(), String> {
        Ok(())
    }
}
