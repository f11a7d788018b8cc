//! Expressions in webhooks and policies: what they may refer to and must evaluate to. The API server compiles the same
//! declarations to evaluate them; here they are compiled to tell the author what is wrong.
//!
//! Upstream's `admission/plugin/cel`.

use std::sync::{Arc, LazyLock};

use orlop_api::field::{self, ErrorList, Path};
use orlop_cel::{DeclType, Environment, EnvironmentBuilder, ObjectType, Program, Type};

/// Which variables an expression may refer to, beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// `params`
    pub params: bool,
    /// `authorizer` and `authorizer.requestResource`
    pub authorizer: bool,
    /// The types that mutations are made of: `Object…`, `JSONPatch`.
    pub mutation: bool,
}

/// The declaration of a user: `request.userInfo`, and `user` in the rules of an `AuthenticationConfiguration`.
pub static USER: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::of(Type::String);
    DeclType::record(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", DeclType::list(text())),
            ("extra", DeclType::map(DeclType::list(text()))),
        ],
    )
});

/// The declaration of `request`.
pub static REQUEST: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::of(Type::String);
    let triple = |name: &str, last: &str| {
        DeclType::record(name, [("group", text()), ("version", text()), (last, text())])
    };
    let kind = || triple("kubernetes.GroupVersionKind", "kind");
    let resource = || triple("kubernetes.GroupVersionResource", "resource");
    DeclType::record(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", USER.clone()),
            ("dryRun", DeclType::of(Type::Bool)),
            ("options", DeclType::of(Type::Dyn)),
        ],
    )
});

/// The declaration of `namespaceObject`: not every field of a namespace, by upstream's design.
pub static NAMESPACE: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::of(Type::String);
    let time = || DeclType::of(Type::Timestamp);
    let metadata = DeclType::record(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", DeclType::map(text())),
            ("annotations", DeclType::map(text())),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", DeclType::of(Type::Int)),
            ("deletionTimestamp", time()),
            ("generation", DeclType::of(Type::Int)),
            ("resourceVersion", text()),
            ("finalizers", DeclType::list(text())),
        ],
    );
    let condition = DeclType::record(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    DeclType::record(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            ("spec", DeclType::record("kubernetes.NamespaceSpec", [("finalizers", DeclType::list(text()))])),
            (
                "status",
                DeclType::record(
                    "kubernetes.NamespaceStatus",
                    [("conditions", DeclType::list(condition)), ("phase", text())],
                ),
            ),
        ],
    )
});

static ENVIRONMENTS: LazyLock<Vec<Environment>> = LazyLock::new(|| {
    (0..8u8)
        .map(|bits| {
            make(Declarations { params: bits & 1 > 0, authorizer: bits & 2 > 0, mutation: bits & 4 > 0 })
        })
        .collect()
});

fn make(declarations: Declarations) -> Environment {
    let mut builder = EnvironmentBuilder::kubernetes()
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("namespaceObject", NAMESPACE.ty.clone())
        .variable("request", REQUEST.ty.clone());
    if declarations.params {
        builder = builder.variable("params", Type::Dyn);
    }
    if declarations.authorizer {
        builder = builder.authorizer(true);
    }
    if declarations.mutation {
        builder = builder.mutation();
    }
    builder.build()
}

/// What expressions of these declarations are compiled with.
fn environment(declarations: Declarations) -> Environment {
    let bits = usize::from(declarations.params)
        | usize::from(declarations.authorizer) << 1
        | usize::from(declarations.mutation) << 2;
    ENVIRONMENTS[bits].clone()
}

/// What an expression is for, which decides the types it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A condition or validation: `bool`.
    Condition,
    /// A message: `string`.
    Message,
    /// The value of an audit annotation: `string` or `null`.
    AuditAnnotation,
    /// A variable of the policy: anything.
    Variable,
    /// An apply configuration: `Object`.
    ApplyConfiguration,
    /// A JSON patch: `list(JSONPatch)`.
    JsonPatch,
}

impl Purpose {
    fn types(self) -> Vec<Type> {
        match self {
            Purpose::Condition => vec![Type::Bool],
            Purpose::Message => vec![Type::String],
            Purpose::AuditAnnotation => vec![Type::String, Type::Null],
            Purpose::Variable => Vec::new(),
            Purpose::ApplyConfiguration => vec![Type::object("Object")],
            Purpose::JsonPatch => vec![Type::list(Type::object("JSONPatch"))],
        }
    }
}

/// Compiles the expressions of one policy or webhook. Each variable that is compiled can be used by what follows.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    /// Names and types of the variables; `None` where the policy has none, which makes `variables` itself unknown.
    variables: Option<Vec<(String, Type)>>,
}

impl Compiler {
    /// For expressions that know no variables.
    pub fn stateless() -> Compiler {
        Compiler { variables: None }
    }

    /// For expressions of a policy, which may use `variables`.
    pub fn composited() -> Compiler {
        Compiler { variables: Some(Vec::new()) }
    }

    /// The compiled expression, or upstream's text about it.
    pub fn compile(
        &self,
        expression: &str,
        purpose: Purpose,
        declarations: Declarations,
    ) -> Result<Program, String> {
        let mut environment = environment(declarations);
        if let Some(variables) = &self.variables {
            let fields = variables.iter().map(|(name, ty)| (name.as_str(), ty.clone()));
            let ty = Type::Object(ObjectType::new("kubernetes.variables", fields));
            environment = EnvironmentBuilder::extend(&environment).variable("variables", ty).build();
        }
        let program = environment.compile(expression).map_err(|errors| errors.detail())?;
        let types = purpose.types();
        let got = program.output_type();
        if types.is_empty() || types.iter().any(|ty| ty.same(got)) {
            return Ok(program);
        }
        Err(match types.as_slice() {
            [only] => format!("must evaluate to {only} but got {got}"),
            many => {
                let names: Vec<String> = many.iter().map(ToString::to_string).collect();
                format!("must evaluate to one of [{}] but got {got}", names.join(" "))
            }
        })
    }

    /// Compiles a variable and makes it known to what follows, as `dyn` when it does not compile.
    pub fn variable(
        &mut self,
        name: &str,
        expression: &str,
        declarations: Declarations,
    ) -> Result<Program, String> {
        let compiled = self.compile(expression, Purpose::Variable, declarations);
        let ty = compiled.as_ref().map_or(Type::Dyn, |program| declared(program.output_type()));
        let variables = self.variables.get_or_insert_default();
        variables.retain(|(known, _)| known != name);
        variables.push((name.to_owned(), ty));
        compiled
    }
}

/// The type under which a variable is declared: what has no declaration of its own is `dyn`.
pub(super) fn declared(ty: &Type) -> Type {
    match ty {
        Type::List(element) => Type::list(declared(element)),
        Type::Map(key, value) => Type::map(declared(key), declared(value)),
        Type::Any
        | Type::Bool
        | Type::Bytes
        | Type::Double
        | Type::Duration
        | Type::Int
        | Type::Null
        | Type::String
        | Type::Timestamp
        | Type::Uint => ty.clone(),
        _ => Type::Dyn,
    }
}

/// Checks the expressions of one webhook configuration or policy as it is written.
pub(super) struct Expressions {
    params: bool,
    compiler: Compiler,
}

impl Expressions {
    /// For expressions that know no variables.
    pub(super) fn stateless(params: bool) -> Expressions {
        Expressions { params, compiler: Compiler::stateless() }
    }

    fn check(&self, errs: &mut ErrorList, expression: &str, shown: &str, purpose: Purpose, path: &Path) {
        let mutation = matches!(purpose, Purpose::ApplyConfiguration | Purpose::JsonPatch);
        let declarations =
            Declarations { params: self.params, authorizer: purpose != Purpose::Message, mutation };
        if let Err(detail) = self.compiler.compile(expression, purpose, declarations) {
            errs.push(field::invalid(path, shown, detail));
        }
    }

    pub(super) fn match_condition(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression, expression, Purpose::Condition, path);
    }

    pub(super) fn variable(&mut self, errs: &mut ErrorList, name: &str, expression: &str, path: &Path) {
        let declarations = Declarations { params: self.params, authorizer: true, mutation: false };
        if let Err(detail) = self.compiler.variable(name, expression, declarations) {
            errs.push(field::invalid(path, expression, detail));
        }
    }

    pub(super) fn validation(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression, expression, Purpose::Condition, path);
    }

    pub(super) fn message(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression, expression, Purpose::Message, path);
    }

    pub(super) fn audit_annotation(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression.trim(), expression, Purpose::AuditAnnotation, path);
    }

    pub(super) fn apply_configuration(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression, expression, Purpose::ApplyConfiguration, path);
    }

    pub(super) fn json_patch(&mut self, errs: &mut ErrorList, expression: &str, path: &Path) {
        self.check(errs, expression, expression, Purpose::JsonPatch, path);
    }
}
