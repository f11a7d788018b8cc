//! The Common Expression Language as Kubernetes v1.36 speaks it: parsing, type checking, the static cost estimate and
//! evaluation with upstream's runtime cost, for `x-kubernetes-validations`, admission policies and match conditions.
//!
//! An [`Environment`] knows variables and types, [`Environment::compile`] makes a [`Program`], [`Program::eval`]
//! computes a [`Val`] from [`Bindings`]. Texts of errors are cel-go's. This crate does no I/O (but for the time-zone
//! database), knows no request and no object kind; what an expression may ask the outside goes through [`Authorizer`].
//!
//! Answers to cel-go and `k8s.io/apiserver/pkg/cel`. Why none of the existing crates: `docs/decisions/0004-cel.md`.

mod ast;
mod check;
mod cost;
pub mod decl;
mod env;
mod error;
pub mod escaping;
mod interp;
mod library;
mod parse;
mod source;
mod time;
mod types;
mod val;

#[cfg(test)]
mod tests;

pub use cost::{CostEstimate, SizeEstimate};
pub use decl::{DeclType, ListKind, Shape, declare};
pub use env::{Environment, EnvironmentBuilder};
pub use error::{CompileErrors, EvalError, Issue};
pub use interp::{Bindings, Budget, Program, Vars};
pub use library::authz::{
    AccessDecision, AccessRequest, Authorizer, ResourceAttributes, ServiceAccount, request_resource,
};
pub use library::opaque::Opaque;
pub use time::{Duration, Timestamp};
pub use types::{Kind, ObjectType, Type};
pub use val::{List, Map, MapShape, OwnedMap, Res, Str, Struct, Val};

/// The runtime cost one evaluation may have.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The runtime cost all evaluations of one request's rules or policies may have together.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// The runtime cost all match conditions of one webhook or policy may have together.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;
/// The estimated cost one validation rule of a CustomResourceDefinition may have.
pub const PER_EXPRESSION_ESTIMATE_LIMIT: u64 = 10_000_000;
/// The estimated cost all validation rules of a CustomResourceDefinition may have together.
pub const TOTAL_ESTIMATE_LIMIT: u64 = 100_000_000;
