//! Expressions of webhooks and policies at work: compiled once, evaluated against a request with upstream's budgets.
//! Upstream's `admission/plugin/cel` and `webhook/matchconditions`.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use orlop_api::field::go_quote;
use orlop_api::status::aggregate;
use orlop_cel::{
    AccessDecision, AccessRequest, Bindings, Budget, EvalError, MATCH_CONDITIONS_BUDGET, Program, Res,
    ResourceAttributes, Val,
};
use orlop_json::Value;
use orlop_kinds::admissionregistration::expression::{Compiler, Declarations, NAMESPACE, Purpose, REQUEST};

use super::Request;
use super::matching::Matched;
use super::review::request_value;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision};
use crate::metrics::webhooks::{ConditionsOf, Extensions};

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression, or why it does not compile.
pub struct Expression {
    text: String,
    program: Result<Program, String>,
}

impl Expression {
    /// Compiles one.
    pub fn compile(
        compiler: &Compiler,
        text: &str,
        purpose: Purpose,
        declarations: Declarations,
    ) -> Expression {
        Expression { text: text.to_string(), program: compiler.compile(text, purpose, declarations) }
    }

    /// Why it does not compile.
    pub fn problem(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A variable of a policy: computed when the first expression asks for it.
pub struct Variable {
    name: String,
    program: Result<Program, String>,
}

impl Variable {
    /// Compiles a policy's variables, each of which the later ones may use.
    pub fn list(compiler: &mut Compiler, variables: &Value, declarations: Declarations) -> Vec<Variable> {
        let text =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        variables
            .as_array()
            .into_iter()
            .flatten()
            .map(|variable| {
                let name = text(variable, "name");
                let program = compiler.variable(&name, &text(variable, "expression"), declarations);
                Variable { name, program }
            })
            .collect()
    }
}

/// The authorizer as expressions ask it, on behalf of the request's user.
pub struct Asking<'a> {
    /// Who decides.
    pub authorizer: &'a Authorizer,
    /// For whom.
    pub user: &'a UserInfo,
}

impl orlop_cel::Authorizer for Asking<'_> {
    fn check(&self, request: &AccessRequest) -> AccessDecision {
        let account = request
            .service_account
            .as_ref()
            .map(|account| UserInfo::service_account(&account.namespace, &account.name));
        let nothing = ResourceAttributes::default();
        let resource = request.resource.as_ref().unwrap_or(&nothing);
        let user = account.as_ref().unwrap_or(self.user);
        let selector = |given: &'_ Option<Result<String, String>>| match given {
            Some(Ok(text)) => text.clone(),
            _ => String::new(),
        };
        let (fields, labels) = (selector(&resource.field_selector), selector(&resource.label_selector));
        let attributes = match &request.path {
            Some(path) => Attributes::path(user, &request.verb, path),
            None => Attributes {
                subresource: &resource.subresource,
                namespace: &resource.namespace,
                name: &resource.name,
                version: &resource.version,
                field_selector: &fields,
                label_selector: &labels,
                ..Attributes::resource(user, &request.verb, &resource.group, &resource.resource)
            },
        };
        match self.authorizer.decide(&attributes) {
            Decision::Failed(failure) => {
                AccessDecision { allowed: false, reason: failure.reason, error: Some(failure.error) }
            }
            decision => AccessDecision {
                allowed: matches!(decision, Decision::Allow(_)),
                reason: decision.reason().to_string(),
                error: None,
            },
        }
    }
}

/// What expressions see of a request, beside its objects.
pub struct Facts {
    request: Value,
    resource: ResourceAttributes,
}

impl Facts {
    /// Of a request, in the form that matched.
    pub fn of(request: &Request<'_>, matched: &Matched) -> Facts {
        let resource = request.call.resource;
        Facts {
            request: Value::Object(request_value(request, matched)),
            resource: ResourceAttributes {
                group: resource.group.clone(),
                version: resource.version.clone(),
                resource: resource.plural.clone(),
                subresource: request.call.subresource.to_string(),
                namespace: request.attribute_namespace().to_string(),
                name: request.attribute_name().to_string(),
                ..ResourceAttributes::default()
            },
        }
    }
}

/// What the expressions of one webhook or policy are evaluated with.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// `request` and `authorizer.requestResource`
    pub facts: &'a Facts,
    /// `object`
    pub object: &'a Value,
    /// `oldObject`
    pub old: &'a Value,
    /// `params`
    pub params: &'a Value,
    /// `namespaceObject`
    pub namespace: &'a Value,
    /// `authorizer`
    pub asking: &'a Asking<'a>,
    /// `variables`
    pub variables: &'a [Variable],
}

enum State<'a> {
    Unset,
    Busy,
    Done(Res<'a>),
}

/// The values of one round of evaluation: variables are computed at most once in it.
pub struct Activation<'a> {
    subject: Subject<'a>,
    variables: Vec<RefCell<State<'a>>>,
    /// Cost of the variables since it was last asked for.
    cost: Cell<u64>,
}

impl<'a> Activation<'a> {
    /// A new round.
    pub fn new(subject: Subject<'a>) -> Activation<'a> {
        let variables = subject.variables.iter().map(|_| RefCell::new(State::Unset)).collect();
        Activation { subject, variables, cost: Cell::new(0) }
    }

    /// Evaluates an expression within `remaining` cost. The outer error ends the round: the budget is spent.
    pub fn evaluate(
        &self,
        expression: &'a Expression,
        remaining: &mut u64,
    ) -> Result<Result<Val<'a>, String>, String> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(problem) => return Ok(Err(format!("compilation error: {problem}"))),
        };
        let mut budget = Budget::new(u64::MAX);
        let result = program.eval(self, &mut budget);
        for cost in [self.cost.take(), budget.last_cost()] {
            *remaining = remaining.checked_sub(cost).ok_or_else(|| OUT_OF_BUDGET.to_string())?;
        }
        Ok(result.map_err(|error| format!("expression '{}' resulted in error: {error}", expression.text)))
    }

    fn compute(&self, variable: &'a Variable) -> Res<'a> {
        let name = go_quote(&variable.name);
        match &variable.program {
            Err(problem) => {
                Err(EvalError::text(format!("composited variable {name} fails to compile: {problem}")))
            }
            Ok(program) => {
                let mut budget = Budget::new(u64::MAX);
                let result = program.eval(self, &mut budget);
                self.cost.set(self.cost.get().saturating_add(budget.last_cost()));
                result.map_err(|error| {
                    EvalError::text(format!("composited variable {name} fails to evaluate: {error}"))
                })
            }
        }
    }
}

impl<'a> Bindings<'a> for Activation<'a> {
    fn variable(&self, name: &str) -> Option<Res<'a>> {
        let subject = &self.subject;
        Some(match name {
            "object" => Ok(Val::from_json(subject.object)),
            "oldObject" => Ok(Val::from_json(subject.old)),
            "params" => Ok(Val::from_json(subject.params)),
            "request" => Val::from_declared(&subject.facts.request, &REQUEST),
            "namespaceObject" => Val::from_declared(subject.namespace, &NAMESPACE),
            "authorizer" => Ok(Val::authorizer(subject.asking)),
            "authorizer.requestResource" => {
                Ok(orlop_cel::request_resource(subject.asking, subject.facts.resource.clone()))
            }
            _ => return None,
        })
    }

    fn field(&self, variable: &str, field: &str) -> Option<Res<'a>> {
        if variable != "variables" {
            return None;
        }
        // Of several variables of one name the last one counts.
        let at = self.subject.variables.iter().rposition(|variable| variable.name == field)?;
        let state = std::mem::replace(&mut *self.variables[at].borrow_mut(), State::Busy);
        let value = match state {
            State::Done(value) => value,
            State::Busy => return Some(Err(EvalError::text(format!("variable {field} refers to itself")))),
            State::Unset => self.compute(&self.subject.variables[at]),
        };
        *self.variables[at].borrow_mut() = State::Done(value.clone());
        Some(value)
    }
}

/// Conditions under which a webhook or policy is asked.
pub struct MatchConditions {
    conditions: Vec<Arc<Expression>>,
    /// What metrics call their owner: `webhook` or `policy`, its name, and the sort of admission.
    owner: (&'static str, String, &'static str),
}

impl MatchConditions {
    /// `None` when there are none.
    pub fn compile(
        compiler: &Compiler,
        conditions: &Value,
        params: bool,
        owner: (&'static str, String, &'static str),
    ) -> Option<MatchConditions> {
        let declarations = Declarations { params, authorizer: true, mutation: false };
        let conditions: Vec<Arc<Expression>> = conditions
            .as_array()?
            .iter()
            .map(|condition| {
                let text = condition.get("expression").and_then(Value::as_str).unwrap_or("");
                Arc::new(Expression::compile(compiler, text, Purpose::Condition, declarations))
            })
            .collect();
        (!conditions.is_empty()).then_some(MatchConditions { conditions, owner })
    }

    /// Their labels in metrics.
    pub fn labels<'a>(&'a self, facts: &'a Facts) -> ConditionsOf<'a> {
        let (kind, name, of) = &self.owner;
        let operation = facts.request.get("operation").and_then(Value::as_str).unwrap_or("");
        [kind, name, operation, of]
    }

    /// Whether all are met. One that is false decides, whatever the others come to; else an error refuses the request,
    /// or with `ignore_failures` counts as not met.
    pub fn met(
        &self,
        subject: Subject<'_>,
        ignore_failures: bool,
        metrics: &Extensions,
    ) -> Result<bool, String> {
        let begun = Instant::now();
        let labels = self.labels(subject.facts);
        let (met, errors) = self.evaluate(subject, ignore_failures);
        metrics.conditions(labels, errors, begun.elapsed());
        met
    }

    /// What they come to, and how many of them failed on the way.
    fn evaluate(&self, subject: Subject<'_>, ignore_failures: bool) -> (Result<bool, String>, u64) {
        let activation = Activation::new(subject);
        let mut remaining = MATCH_CONDITIONS_BUDGET;
        let mut results = Vec::with_capacity(self.conditions.len());
        for condition in &self.conditions {
            match activation.evaluate(condition, &mut remaining) {
                Ok(result) => results.push(result),
                Err(_) if ignore_failures => return (Ok(false), 0),
                Err(error) => return (Err(error), 0),
            }
        }
        let mut errors = Vec::new();
        for result in results {
            match result {
                Ok(Val::Bool(false)) => return (Ok(false), errors.len() as u64),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        let failed = errors.len() as u64;
        match (errors.is_empty(), ignore_failures) {
            (true, _) => (Ok(true), 0),
            (false, true) => (Ok(false), failed),
            (false, false) => (Err(aggregate(errors)), failed),
        }
    }
}
