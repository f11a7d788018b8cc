//! `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy`: rules in CEL that the cluster's administrators bind to
//! requests, with parameters.
//!
//! Policies and bindings are compiled when one of them changes; a request costs one look into an index when none is for
//! it. Upstream's `admission/plugin/policy`.

mod mutating;
mod params;
mod validating;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use orlop_api::status::ApiError;
use orlop_json::Value;
use orlop_kinds::admissionregistration::expression::{Compiler, Declarations};

use self::params::ParamKind;
use super::cel::{MatchConditions, Variable};
use super::matching::{Criteria, Index, Matched, namespace};
use super::{Operation, Request};
use crate::cache::Snapshot;
use crate::registry::Registry;

pub use mutating::MutatingAdmissionPolicy;
pub use validating::ValidatingAdmissionPolicy;

/// What both sorts of policies have.
pub struct Definition {
    name: String,
    criteria: Criteria,
    params: Option<ParamKind>,
    ignore_failures: bool,
    conditions: Option<MatchConditions>,
    variables: Vec<Variable>,
}

impl Definition {
    /// Compiles the common part; the compiler then knows the policy's variables.
    fn compile(policy: &Value, sort: &'static str) -> (Definition, Compiler) {
        let spec = &policy["spec"];
        let params = ParamKind::of(&spec["paramKind"]);
        let declarations = Declarations { params: params.is_some(), authorizer: true, mutation: false };
        let mut compiler = Compiler::composited();
        let variables = Variable::list(&mut compiler, &spec["variables"], declarations);
        let definition = Definition {
            name: policy["metadata"]["name"].as_str().unwrap_or("").to_string(),
            criteria: Criteria::of_match_resources(&spec["matchConstraints"]),
            conditions: MatchConditions::compile(
                &compiler,
                &spec["matchConditions"],
                params.is_some(),
                ("policy", policy["metadata"]["name"].as_str().unwrap_or("").to_string(), sort),
            ),
            params,
            ignore_failures: spec["failurePolicy"].as_str() == Some("Ignore"),
            variables,
        };
        (definition, compiler)
    }
}

/// A binding of a policy.
struct Binding {
    name: String,
    criteria: Option<Criteria>,
    /// `ParamRef`, or null.
    params: Value,
    actions: Vec<String>,
}

impl Binding {
    fn compile(binding: &Value) -> Binding {
        let spec = &binding["spec"];
        let resources = &spec["matchResources"];
        Binding {
            name: binding["metadata"]["name"].as_str().unwrap_or("").to_string(),
            criteria: (!resources.is_null()).then(|| Criteria::of_match_resources(resources)),
            params: spec["paramRef"].clone(),
            actions: spec["validationActions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|action| action.as_str().map(String::from))
                .collect(),
        }
    }

    fn matches(&self, registry: &Registry, request: &Request<'_>) -> Result<bool, ApiError> {
        match &self.criteria {
            Some(criteria) => Ok(criteria.matches(registry, request)?.is_some()),
            None => Ok(true),
        }
    }
}

/// A policy of one sort with its bindings.
struct Bound<P> {
    revision: u64,
    policy: Arc<P>,
    bindings: Vec<Binding>,
}

/// All bound policies of one sort.
pub struct Policies<P>(Index<Bound<P>>);

impl<P> Policies<P> {
    /// Whether there is one that may be for objects of this plural.
    pub(super) fn concern(&self, plural: &str) -> bool {
        self.0.candidates(plural).next().is_some()
    }
}

impl<P> Default for Policies<P> {
    fn default() -> Self {
        Policies(Index::default())
    }
}

/// A compiled policy of one sort.
pub trait Policy: Sized {
    /// From its object.
    fn compile(policy: &Value) -> Self;
    /// What it has in common with the other sort.
    fn definition(&self) -> &Definition;
}

impl<P: Policy> Policies<P> {
    /// Compiles from snapshots of policies and bindings; policies that have not changed are taken over.
    fn compile_all(snapshots: &[Snapshot], former: &Policies<P>) -> Policies<P> {
        let [policies, bindings] = snapshots else { return Policies::default() };
        let mut by_policy: HashMap<String, Vec<Binding>> = HashMap::new();
        for entry in bindings.values() {
            let binding = entry.value();
            let policy = binding["spec"]["policyName"].as_str().unwrap_or("").to_string();
            by_policy.entry(policy).or_default().push(Binding::compile(&binding));
        }
        let known: HashMap<(&str, u64), &Arc<P>> = former
            .0
            .iter()
            .map(|bound| ((bound.policy.definition().name.as_str(), bound.revision), &bound.policy))
            .collect();
        let bound = policies
            .values()
            .filter_map(|entry| {
                let bindings = by_policy.remove(entry.name())?;
                let policy = match known.get(&(entry.name(), entry.revision)) {
                    Some(policy) => (*policy).clone(),
                    None => Arc::new(P::compile(&entry.value())),
                };
                Some(Bound { revision: entry.revision, policy, bindings })
            })
            .collect();
        Policies(Index::new(bound, |bound| &bound.policy.definition().criteria))
    }
}

/// Compiled validating policies.
pub type ValidatingPolicies = Policies<validating::Validating>;
/// Compiled mutating policies.
pub type MutatingPolicies = Policies<mutating::Mutating>;

impl ValidatingPolicies {
    /// From snapshots of policies and bindings.
    pub fn compile(snapshots: &[Snapshot], former: &ValidatingPolicies) -> ValidatingPolicies {
        Policies::compile_all(snapshots, former)
    }
}

impl MutatingPolicies {
    /// From snapshots of policies and bindings.
    pub fn compile(snapshots: &[Snapshot], former: &MutatingPolicies) -> MutatingPolicies {
        Policies::compile_all(snapshots, former)
    }
}

/// The namespace object that expressions see; null at cluster scope, and for namespaces themselves.
fn namespace_object(registry: &Registry, request: &Request<'_>) -> Result<Value, ApiError> {
    let kind = request.kind();
    let name = request.attribute_namespace();
    let is_namespace = (kind.group, kind.version, kind.kind) == ("", "v1", "Namespace");
    if name.is_empty() || is_namespace || (is_new_namespace(request)) {
        return Ok(Value::Null);
    }
    Ok(namespace(registry, name)?.value())
}

fn is_new_namespace(request: &Request<'_>) -> bool {
    let resource = request.call.resource;
    resource.group.is_empty() && resource.plural == "namespaces" && request.operation == Operation::Create
}

/// The objects in the form that matched.
fn shown<'a>(request: &'a Request<'_>, matched: &Matched) -> (Cow<'a, Value>, Cow<'a, Value>) {
    super::webhook::shown(request, matched)
}
