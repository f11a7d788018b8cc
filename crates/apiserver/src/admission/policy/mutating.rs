//! Mutating policies: apply configurations and JSON patches computed by expressions, one after the other.

use std::sync::Arc;

use async_trait::async_trait;
use orlop_api::field::go_quote;
use orlop_api::managed::{ObjectType, merge_configuration};
use orlop_api::patch::described::{self, DescribedError};
use orlop_api::status::{ApiError, StatusCause};
use orlop_cel::{RUNTIME_BUDGET, Val};
use orlop_json::{Value, json};
use orlop_kinds::admissionregistration::expression::{Declarations, Purpose};

use super::super::cel::{Activation, Asking, Expression, Facts, Subject};
use super::super::matching::{Matched, is_configuration, is_review};
use super::super::settle::{convert, settle};
use super::super::{Admission, Request};
use super::{Binding, Definition, MutatingPolicies, Policy, namespace_object, params, shown};
use crate::registry::Registry;

/// A compiled policy.
pub struct Mutating {
    definition: Definition,
    mutations: Vec<Mutation>,
    reinvoke: bool,
}

enum Mutation {
    Apply(Expression),
    JsonPatch(Expression),
}

impl Policy for Mutating {
    fn compile(policy: &Value) -> Mutating {
        // Upstream's metrics call the match conditions of these so too.
        let (definition, compiler) = Definition::compile(policy, "validate");
        let spec = &policy["spec"];
        let declarations =
            Declarations { params: definition.params.is_some(), authorizer: true, mutation: true };
        let compile = |value: &Value, purpose: Purpose| {
            let text = value.get("expression").and_then(Value::as_str).unwrap_or("");
            Expression::compile(&compiler, text, purpose, declarations)
        };
        let mutations = spec["mutations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mutation| match mutation["patchType"].as_str() {
                Some("JSONPatch") => Mutation::JsonPatch(compile(&mutation["jsonPatch"], Purpose::JsonPatch)),
                _ => Mutation::Apply(compile(&mutation["applyConfiguration"], Purpose::ApplyConfiguration)),
            })
            .collect();
        let reinvoke = spec["reinvocationPolicy"].as_str() == Some("IfNeeded");
        Mutating { definition, mutations, reinvoke }
    }

    fn definition(&self) -> &Definition {
        &self.definition
    }
}

/// The plugin.
pub struct MutatingAdmissionPolicy;

#[async_trait]
impl Admission for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        !is_configuration(request) && !is_review(request)
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let policies = registry.dynamic.mutating_policies.load();
        if policies.0.is_empty() {
            return Ok(());
        }
        let policies = arc_swap::Guard::into_inner(policies);
        dispatch(registry, request, &policies)
    }
}

/// One policy, binding and parameter that are for a request.
struct Invocation<'a> {
    policy: &'a Mutating,
    binding: &'a Binding,
    matched: Matched,
    params: Value,
}

impl Invocation<'_> {
    /// What tells it apart from every other.
    fn key(&self) -> Arc<str> {
        let meta = |field: &str| {
            self.params.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
        };
        format!(
            "{}/{}/{}/{}",
            self.policy.definition.name,
            self.binding.name,
            meta("namespace"),
            meta("name")
        )
        .into()
    }
}

/// Why a policy refuses.
struct Refusal {
    message: String,
    reason: Option<&'static str>,
}

fn refusal(
    definition: &Definition,
    binding: Option<&Binding>,
    why: &str,
    reason: Option<&'static str>,
) -> Refusal {
    let message = match binding {
        Some(binding) => {
            format!("policy '{}' with binding '{}' denied request: {why}", definition.name, binding.name)
        }
        None => format!("policy {} denied request: {why}", go_quote(&definition.name)),
    };
    Refusal { message, reason }
}

fn dispatch(
    registry: &Registry,
    request: &mut Request<'_>,
    policies: &MutatingPolicies,
) -> Result<(), ApiError> {
    let mut refusals = Vec::new();
    let invocations = invocations(registry, request, policies, &mut refusals);
    if !invocations.is_empty() {
        if request.reinvocation.second {
            request.reinvocation.policies.begin_second(request.object);
        }
        let namespace = namespace_object(registry, request)?;
        for invocation in &invocations {
            invoke(registry, request, invocation, &namespace, &mut refusals)?;
        }
        request.reinvocation.policies.finish(request.object);
    }
    let Some(first) = refusals.first() else { return Ok(()) };
    let mut error = request.forbidden("admission request denied by policy");
    error.0.message = first.message.clone();
    if let Some(reason) = first.reason {
        error.0.reason = reason.to_string();
    }
    for refusal in &refusals {
        error = error.with_cause(StatusCause { message: refusal.message.clone(), ..StatusCause::default() });
    }
    Err(error)
}

fn invocations<'a>(
    registry: &Registry,
    request: &Request<'_>,
    policies: &'a MutatingPolicies,
    refusals: &mut Vec<Refusal>,
) -> Vec<Invocation<'a>> {
    let mut out = Vec::new();
    for bound in policies.0.candidates(&request.call.resource.plural) {
        let definition = &bound.policy.definition;
        let mut misconfigured = |why: String, binding: Option<&Binding>| {
            if !definition.ignore_failures {
                let what = if binding.is_some() { "binding" } else { "policy" };
                refusals.push(refusal(
                    definition,
                    binding,
                    &format!("failed to configure {what}: {why}"),
                    None,
                ));
            }
        };
        let matched = match definition.criteria.matches(registry, request) {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(error) => {
                misconfigured(error.to_string(), None);
                continue;
            }
        };
        let param_resource = match definition.params.as_ref().map(|kind| kind.resource(registry)).transpose()
        {
            Ok(resource) => resource,
            Err(error) => {
                misconfigured(error, None);
                continue;
            }
        };
        for binding in &bound.bindings {
            match binding.matches(registry, request) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    misconfigured(error.to_string(), Some(binding));
                    continue;
                }
            }
            let kind = definition.params.as_ref().zip(param_resource.as_deref());
            match params::collect(kind, &binding.params, request.attribute_namespace()) {
                Ok(found) => out.extend(found.into_iter().map(|params| Invocation {
                    policy: &bound.policy,
                    binding,
                    matched: matched.clone(),
                    params,
                })),
                Err(error) => misconfigured(error, Some(binding)),
            }
        }
    }
    out
}

fn invoke(
    registry: &Registry,
    request: &mut Request<'_>,
    invocation: &Invocation<'_>,
    namespace: &Value,
    refusals: &mut Vec<Refusal>,
) -> Result<(), ApiError> {
    let policy = invocation.policy;
    let definition = &policy.definition;
    let mut refuse = |why: &str| {
        if !definition.ignore_failures {
            refusals.push(refusal(definition, Some(invocation.binding), why, Some("Invalid")));
        }
    };
    let facts = Facts::of(request, &invocation.matched);
    let asking = Asking { authorizer: &registry.authorizer, user: request.call.user };
    let key = invocation.key();
    let mut changed = false;
    for at in 0..=policy.mutations.len() {
        let (object, old) = shown(request, &invocation.matched);
        let subject = Subject {
            facts: &facts,
            object: &object,
            old: &old,
            params: &invocation.params,
            namespace,
            asking: &asking,
            variables: &definition.variables,
        };
        // The first step is not a mutation but the question whether there shall be any.
        let Some(at) = at.checked_sub(1) else {
            if let Some(conditions) = &definition.conditions {
                match conditions.met(subject, definition.ignore_failures, &registry.metrics.extensions) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(error) => {
                        refuse(&error);
                        return Ok(());
                    }
                }
            }
            if request.reinvocation.second && !request.reinvocation.policies.must_run_again(&key) {
                return Ok(());
            }
            continue;
        };
        if request.object.is_null() {
            continue;
        }
        let ty = object_type(request, &invocation.matched);
        let patched = match patch(&policy.mutations[at], subject, ty) {
            Ok(Some(patched)) => patched,
            Ok(None) => continue,
            Err(error) => {
                refuse(&error);
                continue;
            }
        };
        let patched = match &invocation.matched {
            Matched::Equivalent(from) if request.own_kind.is_none() => {
                convert(from, request.call.resource, &patched)
            }
            _ => patched,
        };
        let settled = settle(request, patched)?;
        changed |= settled != *request.object;
        *request.object = settled;
    }
    if changed {
        request.reinvocation.policies.require_previous();
        request.reinvocation.webhooks.require_previous();
        request.reinvocation.wanted = true;
    }
    if policy.reinvoke {
        request.reinvocation.policies.ran(key);
    }
    Ok(())
}

/// What merging knows of the objects, in the form that matched.
fn object_type<'a>(request: &'a Request<'_>, matched: &'a Matched) -> ObjectType<'a> {
    match (request.own_kind, matched) {
        (Some(kind), _) => orlop_api::schema::kind(kind.group, kind.version, kind.kind).into(),
        (None, Matched::Equivalent(resource)) => resource.object_type(),
        (None, Matched::Own) => request.call.resource.object_type(),
    }
}

/// The object after a mutation; `None` when a test in its patch says that it is not for this object.
fn patch(mutation: &Mutation, subject: Subject<'_>, ty: ObjectType<'_>) -> Result<Option<Value>, String> {
    let (Mutation::Apply(expression) | Mutation::JsonPatch(expression)) = mutation;
    if let Some(problem) = expression.problem() {
        return Err(problem.to_string());
    }
    let activation = Activation::new(subject);
    let mut remaining = RUNTIME_BUDGET;
    let value = activation.evaluate(expression, &mut remaining)??;
    if matches!(mutation, Mutation::Apply(_)) {
        check_types(&value, "Object").map_err(|error| format!("type mismatch: {error}"))?;
        let mut configuration = value.to_json().ok_or("invalid return type: not an object")?;
        for key in ["apiVersion", "kind"] {
            configuration[key] = subject.object[key].clone();
        }
        return merge_configuration(subject.object, &configuration, ty)
            .map(Some)
            .map_err(|error| format!("error applying patch: {error}"));
    }
    match described::apply(subject.object, &operations(&value)?) {
        Ok(patched) => Ok(Some(patched)),
        Err(DescribedError::TestFailed(_)) => Ok(None),
        Err(DescribedError::Failed(error)) => Err(format!("JSON Patch: {error}")),
    }
}

/// The JSON patch that a list of `JSONPatch` objects says.
fn operations(value: &Val<'_>) -> Result<Value, String> {
    let Val::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    let mut out = Vec::new();
    for item in list.iter() {
        let item = item.map_err(|error| error.to_string())?;
        let Val::Struct(fields) = &item else {
            return Err(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".into()
            );
        };
        let mut operation = json!({"op": "", "path": ""});
        for (name, value) in &fields.fields {
            if **name == *"value" {
                if let Val::Struct(object) = value {
                    // A value may be any part of an object: its own type is where its path begins.
                    check_types(value, &object.ty.name).map_err(|error| format!("type mismatch: {error}"))?;
                }
                operation["value"] = value
                    .to_json()
                    .ok_or("JSONPath valueExpression evaluated to a type that could not marshal to JSON")?;
            } else if let Some(text) = value.as_str() {
                operation[name.as_ref()] = json!(text);
            }
        }
        out.push(operation);
    }
    Ok(Value::Array(out))
}

/// Objects inside an object must be of the type that their path says (`Object.spec` at `spec`).
fn check_types(value: &Val<'_>, path: &str) -> Result<(), String> {
    match value {
        Val::Struct(object) => {
            if *object.ty.name != *path {
                return Err(format!(
                    "unexpected type name {}, expected {}, which matches field name path from root Object type",
                    go_quote(&object.ty.name),
                    go_quote(path)
                ));
            }
            object.fields.iter().try_for_each(|(name, value)| check_types(value, &format!("{path}.{name}")))
        }
        Val::List(list) => list.iter().try_for_each(|item| match item {
            Ok(item) => check_types(&item, path),
            Err(error) => Err(error.to_string()),
        }),
        Val::Map(map) => map.keys().iter().try_for_each(|key| match map.get(key) {
            Some(Ok(value)) => check_types(&value, path),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(()),
        }),
        _ => Ok(()),
    }
}
