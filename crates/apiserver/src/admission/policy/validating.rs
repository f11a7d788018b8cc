//! Validating policies: each validation must be true, or the bindings' actions follow.

use std::time::Instant;

use async_trait::async_trait;
use orlop_api::status::{ApiError, StatusCause};
use orlop_cel::{RUNTIME_BUDGET, Val};
use orlop_json::{Value, json};
use orlop_kinds::admissionregistration::expression::{Declarations, Purpose};

use super::super::cel::{Activation, Asking, Expression, Facts, Subject};
use super::super::matching::{is_configuration, is_review};
use super::super::{Admission, Request};
use super::{Binding, Definition, Policy, ValidatingPolicies, namespace_object, params, shown};
use crate::metrics::webhooks::Extensions;
use crate::registry::Registry;

/// The longest message an expression may give, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;
/// The longest value of an audit annotation, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;

/// A compiled policy.
pub struct Validating {
    definition: Definition,
    validations: Vec<Validation>,
    messages: Vec<Option<Expression>>,
    annotations: Vec<(String, Expression)>,
}

struct Validation {
    expression: Expression,
    message: String,
    reason: String,
}

impl Policy for Validating {
    fn compile(policy: &Value) -> Validating {
        let (definition, compiler) = Definition::compile(policy, "validate");
        let spec = &policy["spec"];
        let params = definition.params.is_some();
        let full = Declarations { params, authorizer: true, mutation: false };
        let text =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        let list = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
        let (mut validations, mut messages) = (Vec::new(), Vec::new());
        for validation in list("validations") {
            let expression = text(&validation, "expression");
            validations.push(Validation {
                expression: Expression::compile(&compiler, &expression, Purpose::Condition, full),
                message: text(&validation, "message"),
                reason: text(&validation, "reason"),
            });
            let message = text(&validation, "messageExpression");
            messages.push((!message.is_empty()).then(|| {
                let declarations = Declarations { authorizer: false, ..full };
                Expression::compile(&compiler, &message, Purpose::Message, declarations)
            }));
        }
        let annotations = list("auditAnnotations")
            .iter()
            .map(|annotation| {
                let value = text(annotation, "valueExpression");
                let value = Expression::compile(&compiler, &value, Purpose::AuditAnnotation, full);
                (text(annotation, "key"), value)
            })
            .collect();
        Validating { definition, validations, messages, annotations }
    }

    fn definition(&self) -> &Definition {
        &self.definition
    }
}

/// What a policy says of a request that it does not let pass.
struct Denial {
    message: String,
    /// Reason of the Status; empty stands for `Invalid`.
    reason: String,
    /// What metrics call it: `no_error` when it is the validation's own word.
    error: &'static str,
}

const INVALID: &str = "invalid_error";

/// What came of one evaluation.
#[derive(Default)]
struct Findings {
    /// For each validation that failed, its place and the denial.
    denials: Vec<(usize, Denial)>,
    /// Annotations for the audit event.
    annotations: Vec<(String, String)>,
    /// Annotations that could not be computed: they deny, whatever the actions.
    broken_annotations: Vec<String>,
}

impl Findings {
    /// The same, as found because the budget was spent.
    fn out_of_budget(mut self) -> Findings {
        for (_, denial) in &mut self.denials {
            denial.error = "out_of_budget";
        }
        self
    }
}

impl Validating {
    /// A failure that is not the validation's own.
    fn failure(&self, at: usize, message: String) -> Findings {
        if self.definition.ignore_failures {
            return Findings::default();
        }
        Findings {
            denials: vec![(at, Denial { message, reason: String::new(), error: INVALID })],
            ..Findings::default()
        }
    }

    fn evaluate(&self, subject: Subject<'_>, metrics: &Extensions) -> Findings {
        if let Some(conditions) = &self.definition.conditions {
            match conditions.met(subject, self.definition.ignore_failures, metrics) {
                Ok(true) => {}
                Ok(false) => return Findings::default(),
                Err(error) => return self.failure(0, error),
            }
        }
        let mut remaining = RUNTIME_BUDGET;
        let activation = Activation::new(subject);
        let mut results = Vec::with_capacity(self.validations.len());
        for validation in &self.validations {
            match activation.evaluate(&validation.expression, &mut remaining) {
                Ok(result) => results.push(result),
                Err(error) => return self.failure(0, error).out_of_budget(),
            }
        }
        let messages = self.messages(subject, remaining);
        let mut findings = Findings::default();
        for (at, result) in results.into_iter().enumerate() {
            let validation = &self.validations[at];
            let denial = match (result, &messages) {
                (Err(error), _) => match self.failure(at, error).denials.pop() {
                    Some((_, denial)) if validation.expression.problem().is_some() => {
                        Denial { error: "compile_error", ..denial }
                    }
                    Some((_, denial)) => denial,
                    None => continue,
                },
                (Ok(_), Err(error)) => {
                    match self.failure(at, format!("failed messageExpression: {error}")).denials.pop() {
                        Some((_, denial)) => denial,
                        None => continue,
                    }
                }
                (Ok(Val::Bool(true)), _) => continue,
                (Ok(_), Ok(messages)) => Denial {
                    message: message(validation, messages[at].as_deref()),
                    reason: if validation.reason.is_empty() {
                        "Invalid".to_string()
                    } else {
                        validation.reason.clone()
                    },
                    error: "no_error",
                },
            };
            findings.denials.push((at, denial));
        }
        match self.annotations(subject, &mut findings) {
            Ok(()) => findings,
            Err(error) => self.failure(0, error),
        }
    }

    /// What the message expressions give; the error says that the budget is spent.
    fn messages(&self, subject: Subject<'_>, mut remaining: u64) -> Result<Vec<Option<String>>, String> {
        let activation = Activation::new(subject);
        let mut out = Vec::with_capacity(self.messages.len());
        for expression in &self.messages {
            out.push(match expression {
                None => None,
                Some(expression) => match activation.evaluate(expression, &mut remaining)? {
                    Ok(value) => value.as_str().map(|text| text.trim().to_string()),
                    Err(error) => {
                        tracing::debug!(policy = self.definition.name, error, "a messageExpression failed");
                        None
                    }
                },
            });
        }
        Ok(out)
    }

    fn annotations(&self, subject: Subject<'_>, findings: &mut Findings) -> Result<(), String> {
        let activation = Activation::new(subject);
        let mut remaining = RUNTIME_BUDGET;
        for (key, expression) in &self.annotations {
            match activation.evaluate(expression, &mut remaining)? {
                Ok(value) => match value.as_str().map(str::trim) {
                    None | Some("") => {}
                    Some(text) => {
                        let mut end = text.len().min(MAX_ANNOTATION);
                        while !text.is_char_boundary(end) {
                            end -= 1;
                        }
                        findings.annotations.push((key.clone(), text[..end].to_string()));
                    }
                },
                Err(_) if self.definition.ignore_failures => {}
                Err(error) => findings.broken_annotations.push(error),
            }
        }
        Ok(())
    }
}

/// The message of a validation that is not true: of its expression, else its own, else the expression itself.
fn message(validation: &Validation, computed: Option<&str>) -> String {
    let usable = |text: &&str| !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
    let own = validation.message.trim();
    match (computed.filter(usable), own) {
        (Some(text), _) => text.to_string(),
        (None, "") => format!("failed expression: {}", validation.expression.text().trim()),
        (None, own) => own.to_string(),
    }
}

/// The plugin.
pub struct ValidatingAdmissionPolicy;

#[async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        !is_configuration(request) && !is_review(request)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let policies = registry.dynamic.validating_policies.load();
        if policies.0.is_empty() {
            return Ok(());
        }
        let policies = arc_swap::Guard::into_inner(policies);
        dispatch(registry, request, &policies)
    }
}

/// A refusal with the names of those who refused.
struct Refusal {
    denial: Denial,
    policy: String,
    binding: Option<String>,
}

/// The refusal of a policy that cannot be asked; none, when its failures are ignored.
fn misconfigured(definition: &Definition, binding: Option<&Binding>, why: &str) -> Option<Refusal> {
    if definition.ignore_failures {
        return None;
    }
    let what = if binding.is_some() { "binding" } else { "policy" };
    Some(Refusal {
        denial: Denial {
            message: format!("failed to configure {what}: {why}"),
            reason: String::new(),
            error: INVALID,
        },
        policy: definition.name.clone(),
        binding: binding.map(|binding| binding.name.clone()),
    })
}

fn dispatch(
    registry: &Registry,
    request: &Request<'_>,
    policies: &ValidatingPolicies,
) -> Result<(), ApiError> {
    let mut refusals: Vec<Refusal> = Vec::new();
    for bound in policies.0.candidates(&request.call.resource.plural) {
        let definition = &bound.policy.definition;
        let matched = match definition.criteria.matches(registry, request) {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(error) => {
                refusals.extend(misconfigured(definition, None, &error.to_string()));
                continue;
            }
        };
        let param_resource = match definition.params.as_ref().map(|kind| kind.resource(registry)).transpose()
        {
            Ok(resource) => resource,
            Err(error) => {
                refusals.extend(misconfigured(definition, None, &error));
                continue;
            }
        };
        let mut annotations: Vec<(String, Vec<String>)> = Vec::new();
        for binding in &bound.bindings {
            match binding.matches(registry, request) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    refusals.extend(misconfigured(definition, Some(binding), &error.to_string()));
                    continue;
                }
            }
            let kind = definition.params.as_ref().zip(param_resource.as_deref());
            let params = match params::collect(kind, &binding.params, request.attribute_namespace()) {
                Ok(params) => params,
                Err(error) => {
                    refusals.extend(misconfigured(definition, Some(binding), &error));
                    continue;
                }
            };
            let namespace = namespace_object(registry, request)?;
            let facts = Facts::of(request, &matched);
            let (object, old) = shown(request, &matched);
            let asking = Asking { authorizer: &registry.authorizer, user: request.call.user };
            for params in &params {
                let begun = Instant::now();
                let subject = Subject {
                    facts: &facts,
                    object: &object,
                    old: &old,
                    params,
                    namespace: &namespace,
                    asking: &asking,
                    variables: &definition.variables,
                };
                let findings = bound.policy.evaluate(subject, &registry.metrics.extensions);
                let elapsed = begun.elapsed();
                for (at, denial) in findings.denials {
                    for action in &binding.actions {
                        let (action, counted) = (action.to_lowercase(), &registry.metrics.extensions);
                        counted.checked(&action, denial.error, &definition.name, &binding.name, elapsed);
                    }
                    act(request, definition, binding, at, denial, &mut refusals);
                }
                for message in findings.broken_annotations {
                    refusals.push(Refusal {
                        denial: Denial { message, reason: String::new(), error: INVALID },
                        policy: definition.name.clone(),
                        binding: Some(binding.name.clone()),
                    });
                }
                for (key, value) in findings.annotations {
                    match annotations.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, values)) if values.contains(&value) => {}
                        Some((_, values)) => values.push(value),
                        None => annotations.push((key, vec![value])),
                    }
                }
            }
        }
        for (key, values) in annotations {
            request.call.annotate(format!("{}/{key}", definition.name), values.join(", "));
        }
    }
    match refusals.into_iter().next() {
        Some(refusal) => Err(refusal.into_error(request)),
        None => Ok(()),
    }
}

/// Does what the binding wants done about a denial.
fn act(
    request: &Request<'_>,
    definition: &Definition,
    binding: &Binding,
    at: usize,
    denial: Denial,
    refusals: &mut Vec<Refusal>,
) {
    let does = |action: &str| binding.actions.iter().any(|known| known == action);
    if does("Audit") {
        let value = json!([{
            "message": denial.message, "policy": definition.name, "binding": binding.name,
            "expressionIndex": at, "validationActions": binding.actions,
        }]);
        request.call.annotate("validation.policy.admission.k8s.io/validation_failure", value.to_string());
    }
    if does("Warn") {
        request.call.warnings.add(format!(
            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
            definition.name, binding.name, denial.message
        ));
    }
    if does("Deny") {
        refusals.push(Refusal {
            denial,
            policy: definition.name.clone(),
            binding: Some(binding.name.clone()),
        });
    }
}

impl Refusal {
    /// The Status: a 403 in its words, with the code of the validation's reason.
    fn into_error(self, request: &Request<'_>) -> ApiError {
        let by = match &self.binding {
            Some(binding) => {
                format!("ValidatingAdmissionPolicy '{}' with binding '{binding}'", self.policy)
            }
            None => format!("ValidatingAdmissionPolicy '{}'", self.policy),
        };
        let message = format!("{by} denied request: {}", self.denial.message);
        let mut error = request.forbidden(&message);
        let reason = match self.denial.reason.as_str() {
            "" => "Invalid",
            reason => reason,
        };
        error.0.reason = reason.to_string();
        error.0.code = match reason {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        error.with_cause(StatusCause { message, ..StatusCause::default() })
    }
}
