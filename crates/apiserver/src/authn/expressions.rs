//! The expressions of an `AuthenticationConfiguration`: how a user is made of a token's claims, and what tokens and users
//! must be. Upstream's `authentication/cel`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_cel::{Program, Type, Val, Vars};
use orlop_json::{Map, Value, json};
use orlop_kinds::admissionregistration::expression::USER;

use super::UserInfo;
use super::config::JwtConfig;
use crate::expressions::{environment, evaluate, uncompiled};

/// A rule: an expression that must be true, and what is said when it is not.
struct Rule {
    program: Program,
    message: String,
}

/// The compiled expressions of one issuer.
#[derive(Default)]
pub struct Expressions {
    username: Option<Program>,
    groups: Option<Program>,
    uid: Option<Program>,
    extra: Vec<(String, Program)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
}

const NEITHER: &str = "expression must return a string or a list of strings";

impl Expressions {
    /// Compiles what the configuration at `path` holds, and says what does not compile.
    pub fn compile(config: &JwtConfig, path: &Path, errs: &mut ErrorList) -> Expressions {
        let claims = environment("claims", Type::map(Type::String, Type::Any));
        let users = environment("user", USER.ty.clone());
        let mut compile = |environment: &orlop_cel::Environment, text: &str, path: Path, rule: bool| {
            if text.is_empty() {
                return None;
            }
            match environment.compile(text) {
                Err(errors) => errs.push(uncompiled(&path, text, &errors)),
                Ok(program) if rule && !program.output_type().same(&Type::Bool) => {
                    errs.push(field::invalid(&path, text, "must evaluate to bool"));
                }
                Ok(program) => return Some(program),
            }
            None
        };
        let mut expressions = Expressions::default();
        for (at, rule) in config.claim_validation_rules.iter().enumerate() {
            let path = path.child("claimValidationRules").index(at).child("expression");
            if let Some(program) = compile(&claims, &rule.expression, path, true) {
                expressions.claim_rules.push(Rule { program, message: rule.message.clone() });
            }
        }
        let (mappings, at) = (&config.claim_mappings, path.child("claimMappings"));
        let mut mapping =
            |name: &str, text: &str| compile(&claims, text, at.child(name).child("expression"), false);
        expressions.username = mapping("username", &mappings.username.expression);
        expressions.groups = mapping("groups", &mappings.groups.expression);
        expressions.uid = mapping("uid", &mappings.uid.expression);
        for (i, extra) in mappings.extra.iter().enumerate() {
            let path = at.child("extra").index(i).child("valueExpression");
            if let Some(program) = compile(&claims, &extra.value_expression, path, false) {
                expressions.extra.push((extra.key.clone(), program));
            }
        }
        for (i, rule) in config.user_validation_rules.iter().enumerate() {
            let path = path.child("userValidationRules").index(i).child("expression");
            if let Some(program) = compile(&users, &rule.expression, path, true) {
                expressions.user_rules.push(Rule { program, message: rule.message.clone() });
            }
        }
        if !expressions.verifies_email() {
            errs.push(field::invalid(
                &at.child("username").child("expression"),
                mappings.username.expression.as_str(),
                "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ));
        }
        expressions
    }

    /// Whether an address that names the user is one that the issuer has verified, as far as expressions can tell.
    fn verifies_email(&self) -> bool {
        let named = |program: &Program| program.selects(Some("claims"), "email");
        let verified = |program: &Program| program.selects(Some("claims"), "email_verified");
        !self.username.as_ref().is_some_and(named)
            || self.username.as_ref().is_some_and(verified)
            || self.extra.iter().any(|(_, program)| verified(program))
            || self.claim_rules.iter().any(|rule| verified(&rule.program))
    }

    /// For one token.
    pub fn over_claims<'a>(&'a self, claims: &'a Map) -> Evaluation<'a> {
        Evaluation { expressions: self, claims: Vars(vec![("claims", Val::from_json_object(claims))]) }
    }

    /// `userValidationRules`
    pub fn check_user(&self, user: &UserInfo) -> Result<(), String> {
        if self.user_rules.is_empty() {
            return Ok(());
        }
        // Expressions may read every field, also the empty ones.
        let user =
            json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let value = Val::from_declared(&user, &USER).map_err(|error| error.to_string())?;
        check(&self.user_rules, &Vars(vec![("user", value)]))
            .map_err(|error| format!("oidc: error evaluating user info validation rule: {error}"))
    }
}

/// Expressions over the claims of one token.
pub struct Evaluation<'a> {
    expressions: &'a Expressions,
    claims: Vars<'a>,
}

impl Evaluation<'_> {
    /// `claimMappings.username.expression`, if there is one.
    pub fn username(&self) -> Option<Result<String, String>> {
        self.text("username", self.expressions.username.as_ref()?)
    }

    /// `claimMappings.uid.expression`, if there is one.
    pub fn uid(&self) -> Option<Result<String, String>> {
        self.text("uid", self.expressions.uid.as_ref()?)
    }

    fn text(&self, what: &str, program: &Program) -> Option<Result<String, String>> {
        let text = evaluate(program, &self.claims).and_then(|value| match value.as_str() {
            Some(text) => Ok(text.to_string()),
            None => Err(format!("{what} claim expression must return a string")),
        });
        Some(text.map_err(|error| format!("oidc: error evaluating {what} claim expression: {error}")))
    }

    /// `claimMappings.groups.expression`, if there is one.
    pub fn groups(&self) -> Option<Result<Vec<String>, String>> {
        let values =
            evaluate(self.expressions.groups.as_ref()?, &self.claims).and_then(|value| texts(&value));
        Some(values.map_err(|error| format!("oidc: error evaluating group claim expression: {error}")))
    }

    /// `claimMappings.extra`: the keys that have values.
    pub fn extra(&self) -> Result<Vec<(String, Vec<String>)>, String> {
        let mut extra = Vec::new();
        for (key, program) in &self.expressions.extra {
            let values = texts(&evaluate(program, &self.claims)?).map_err(|error| {
                format!("oidc: error evaluating extra claim expression: {}: {error}", program.text())
            })?;
            if !values.is_empty() {
                extra.push((key.clone(), values));
            }
        }
        Ok(extra)
    }

    /// `claimValidationRules` with expressions.
    pub fn validations(&self) -> Result<(), String> {
        check(&self.expressions.claim_rules, &self.claims)
            .map_err(|error| format!("oidc: error evaluating claim validation expression: {error}"))
    }
}

/// All rules are evaluated before the first one that is false counts.
fn check<'a>(rules: &'a [Rule], vars: &Vars<'a>) -> Result<(), String> {
    let values = rules.iter().map(|rule| evaluate(&rule.program, vars)).collect::<Result<Vec<_>, _>>()?;
    for (rule, value) in rules.iter().zip(values) {
        match value {
            Val::Bool(true) => {}
            Val::Bool(false) => {
                return Err(format!(
                    "validation expression '{}' failed: {}",
                    rule.program.text(),
                    rule.message
                ));
            }
            _ => return Err("validation expression must return a boolean".to_string()),
        }
    }
    Ok(())
}

/// A string or a list of strings; empty strings and `null` are none.
fn texts(value: &Val<'_>) -> Result<Vec<String>, String> {
    let list = match value.to_json() {
        Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) if value.as_str().is_some() => vec![Value::String(text)],
        Some(Value::Array(items)) => items,
        _ => return Err(NEITHER.to_string()),
    };
    let mut texts = Vec::with_capacity(list.len());
    for item in list {
        match item {
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => texts.push(text),
            _ => return Err(NEITHER.to_string()),
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn compile(config: Value) -> (Expressions, Vec<String>) {
        let mut config = config;
        config["issuer"] = json!({"url": "https://idp.example"});
        let config: JwtConfig = orlop_json::from_value(&config).unwrap();
        let mut errs = Vec::new();
        let expressions = Expressions::compile(&config, &Path::new("jwt").index(0), &mut errs);
        (expressions, errs.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn refused() {
        let check = |config: Value, expected: &str| assert_eq!(compile(config).1, [expected]);
        check(
            json!({"claimMappings": {"username": {"expression": "claim.sub"}}}),
            "jwt[0].claimMappings.username.expression: Invalid value: \"claim.sub\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'claim' (in container '')\n | claim.sub\n | ^",
        );
        check(
            json!({"claimValidationRules": [{"expression": "claims.sub"}]}),
            "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.sub\": must evaluate to bool",
        );
        check(
            json!({"userValidationRules": [{"expression": "user.name == ''"}]}),
            "jwt[0].userValidationRules[0].expression: Invalid value: \"user.name == ''\": compilation failed: ERROR: <input>:1:5: undefined field 'name'\n | user.name == ''\n | ....^",
        );
        let unverified = |text: &str| {
            format!(
                "jwt[0].claimMappings.username.expression: Invalid value: \"{text}\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression"
            )
        };
        for text in ["claims.email", "claims.?email.orValue('')", "has(claims.email) ? 'a' : 'b'"] {
            check(json!({"claimMappings": {"username": {"expression": text}}}), &unverified(text));
        }
        for rule in ["claims.?email_verified.orValue(true) == true", "claims.email_verified"] {
            let verified = json!({"claimMappings": {"username": {"expression": "claims.email"},
                "extra": [{"key": "a.b/c", "valueExpression": rule}]}});
            assert_eq!(compile(verified).1, Vec::<String>::new());
        }
    }

    #[test]
    fn users_of_claims() {
        let (expressions, errs) = compile(json!({
            "claimMappings": {
                "username": {"expression": "claims.sub + ':' + string(claims.n)"},
                "groups": {"expression": "claims.roles.split(',')"},
                "uid": {"expression": "claims.id"},
                "extra": [
                    {"key": "a.b/one", "valueExpression": "claims.sub"},
                    {"key": "a.b/none", "valueExpression": "claims.?nothing.orValue('')"},
                    {"key": "a.b/many", "valueExpression": "['x', '', 'y']"},
                ],
            },
            "claimValidationRules": [{"expression": "claims.n < 10", "message": "too many"}],
            "userValidationRules": [{"expression": "!user.username.startsWith('system:') && user.groups.size() > 0", "message": "reserved"}],
        }));
        assert_eq!(errs, Vec::<String>::new());
        let claims = |value: Value| value.as_object().unwrap().clone();
        let good = claims(json!({"sub": "jane", "n": 7, "roles": "a,b", "id": "1"}));
        let evaluation = expressions.over_claims(&good);
        assert_eq!(evaluation.username(), Some(Ok("jane:7".to_string())));
        assert_eq!(evaluation.groups(), Some(Ok(vec!["a".to_string(), "b".to_string()])));
        assert_eq!(evaluation.uid(), Some(Ok("1".to_string())));
        assert_eq!(evaluation.validations(), Ok(()));
        assert_eq!(
            evaluation.extra().unwrap(),
            [
                ("a.b/one".to_string(), vec!["jane".to_string()]),
                ("a.b/many".to_string(), vec!["x".to_string(), "y".to_string()])
            ]
        );
        let bad = claims(json!({"sub": 1, "n": 12, "roles": 3, "id": 4}));
        let evaluation = expressions.over_claims(&bad);
        assert_eq!(
            evaluation.username().unwrap().unwrap_err(),
            "oidc: error evaluating username claim expression: expression 'claims.sub + ':' + string(claims.n)' resulted in error: no such overload"
        );
        assert_eq!(
            evaluation.uid().unwrap().unwrap_err(),
            "oidc: error evaluating uid claim expression: uid claim expression must return a string"
        );
        assert_eq!(
            evaluation.validations().unwrap_err(),
            "oidc: error evaluating claim validation expression: validation expression 'claims.n < 10' failed: too many"
        );
        assert_eq!(
            evaluation.extra().unwrap_err(),
            "oidc: error evaluating extra claim expression: claims.sub: expression must return a string or a list of strings"
        );
        let user = |name: &str| UserInfo {
            name: name.to_string(),
            groups: vec!["g".to_string()],
            ..UserInfo::default()
        };
        assert_eq!(expressions.check_user(&user("jane")), Ok(()));
        assert_eq!(
            expressions.check_user(&user("system:jane")).unwrap_err(),
            "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('system:') && user.groups.size() > 0' failed: reserved"
        );
    }
}
