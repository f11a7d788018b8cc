//! What an expression can refer to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::check::check;
use crate::error::CompileErrors;
use crate::interp::Program;
use crate::library::decls::{self, Function};
use crate::parse::parse;
use crate::types::{ObjectType, Type};

/// Variables, types and functions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Environment {
    inner: Arc<Inner>,
}

#[derive(Debug, Default, Clone)]
struct Inner {
    variables: HashMap<Arc<str>, Type>,
    types: HashMap<Arc<str>, Arc<ObjectType>>,
    mutation: bool,
    bindings: bool,
}

/// Makes an [`Environment`].
#[derive(Debug, Default)]
pub struct EnvironmentBuilder {
    inner: Inner,
}

/// Texts of up to this many bytes are compiled on the caller's stack.
const SHORT: usize = 160;
/// The stack for longer ones, in bytes.
const DEEP_STACK: usize = 32 << 20;

type MakeType = fn() -> Type;

/// Type names that are expressions of their own: `type(x) == string`.
const TYPE_NAMES: &[(&str, MakeType)] = &[
    ("bool", || Type::Bool),
    ("bytes", || Type::Bytes),
    ("double", || Type::Double),
    ("dyn", || Type::Dyn),
    ("int", || Type::Int),
    ("list", || Type::list(Type::Dyn)),
    ("map", || Type::map(Type::Dyn, Type::Dyn)),
    ("null_type", || Type::Null),
    ("string", || Type::String),
    ("type", || Type::TypeType(None)),
    ("uint", || Type::Uint),
    ("optional_type", || Type::optional(Type::Dyn)),
    ("google.protobuf.Duration", || Type::Duration),
    ("google.protobuf.Timestamp", || Type::Timestamp),
    ("net.IP", || Type::opaque("net.IP")),
    ("net.CIDR", || Type::opaque("net.CIDR")),
];

impl EnvironmentBuilder {
    /// The libraries and options of Kubernetes v1.36.
    pub fn kubernetes() -> EnvironmentBuilder {
        EnvironmentBuilder::default()
    }

    /// The environment of an existing one, to be extended.
    pub fn extend(environment: &Environment) -> EnvironmentBuilder {
        EnvironmentBuilder { inner: (*environment.inner).clone() }
    }

    /// Declares a variable. The name may be dotted (`authorizer.requestResource`).
    pub fn variable(mut self, name: &str, ty: Type) -> EnvironmentBuilder {
        self.inner.variables.insert(Arc::from(name), ty);
        self
    }

    /// Declares the variables `authorizer` and, where `request_resource`, `authorizer.requestResource`.
    pub fn authorizer(self, request_resource: bool) -> EnvironmentBuilder {
        let builder = self.variable("authorizer", Type::object("kubernetes.authorization.Authorizer"));
        if !request_resource {
            return builder;
        }
        builder.variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"))
    }

    /// Declares a type that expressions can construct (`Name{field: value}`).
    pub fn object(mut self, ty: Arc<ObjectType>) -> EnvironmentBuilder {
        self.inner.types.insert(ty.name.clone(), ty);
        self
    }

    /// What mutating admission policies construct: `Object`, `Object.…` with any field, `JSONPatch`; and
    /// `jsonpatch.escapeKey`.
    pub fn mutation(mut self) -> EnvironmentBuilder {
        self.inner.mutation = true;
        let patch = ObjectType::new(
            "JSONPatch",
            [("op", Type::String), ("path", Type::String), ("from", Type::String), ("value", Type::Dyn)],
        );
        self.object(patch)
    }

    /// `cel.bind(name, value, expression)`, which only the selectors of devices have.
    pub fn bindings(mut self) -> EnvironmentBuilder {
        self.inner.bindings = true;
        self
    }

    /// The environment.
    pub fn build(self) -> Environment {
        Environment { inner: Arc::new(self.inner) }
    }
}

impl Environment {
    /// Parses, checks and plans an expression.
    pub fn compile(&self, expression: &str) -> Result<Program, CompileErrors> {
        if expression.len() > SHORT {
            // Long texts can be nested deeply; a thread with room for that costs little in comparison.
            let outcome = std::thread::scope(|scope| {
                let builder = std::thread::Builder::new().name("cel".to_owned()).stack_size(DEEP_STACK);
                builder.spawn_scoped(scope, || self.compile_here(expression)).ok()?.join().ok()
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
        self.compile_here(expression)
    }

    fn compile_here(&self, expression: &str) -> Result<Program, CompileErrors> {
        let checked = check(self, parse(expression, self.inner.bindings)?)?;
        Program::plan(checked)
    }

    pub(crate) fn variable(&self, name: &str) -> Option<Type> {
        self.inner.variables.get(name).cloned()
    }

    /// The type a name denotes.
    pub(crate) fn type_named(&self, name: &str) -> Option<Type> {
        if let Some(object) = self.inner.types.get(name) {
            return Some(Type::Object(object.clone()));
        }
        if self.inner.mutation && (name == "Object" || name.starts_with("Object.")) {
            return Some(Type::Object(ObjectType::open(name)));
        }
        TYPE_NAMES.iter().find(|(known, _)| *known == name).map(|(_, ty)| ty())
    }

    pub(crate) fn function(&self, name: &str) -> Option<&'static Function> {
        decls::KUBERNETES
            .get(name)
            .or_else(|| self.inner.mutation.then(|| decls::MUTATION.get(name)).flatten())
    }
}
