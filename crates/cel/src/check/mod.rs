//! The type checker: every node gets a type, every call its possible overloads, and the tree is rewritten where a
//! selection turns out to be a qualified name. Answers to cel-go's `checker`.

mod assign;
mod validate;

use std::sync::Arc;

use crate::ast::{Comprehension, Entry, Expr, ExprKind, FieldInit, Literal, op};
use crate::env::Environment;
use crate::error::{CompileErrors, Issue};
use crate::library::decls::{Function, Overload};
use crate::parse::Parsed;
use crate::types::{Kind, Type};
use assign::Unifier;

/// A checked expression.
#[derive(Debug)]
pub struct Checked {
    pub expr: Expr,
    /// The type of each node by id.
    pub types: Vec<Type>,
    /// The overloads of each call by id.
    pub overloads: Vec<Vec<&'static str>>,
    pub source: crate::source::Source,
}

/// Type-checks an expression.
pub fn check(env: &Environment, parsed: Parsed) -> Result<Checked, CompileErrors> {
    let Parsed { mut expr, positions, source } = parsed;
    let count = positions.len();
    let parsed = Parsed { expr: Expr { id: 0, kind: ExprKind::Literal(Literal::Null) }, positions, source };
    let mut checker = Checker {
        env,
        parsed: &parsed,
        types: vec![Type::Dyn; count],
        overloads: vec![Vec::new(); count],
        unifier: Unifier::default(),
        scope: Vec::new(),
        issues: Vec::new(),
    };
    checker.expr(&mut expr);
    let Checker { types, overloads, unifier, mut issues, .. } = checker;
    let types: Vec<Type> = types.iter().map(|ty| unifier.substitute(ty, true)).collect();
    if issues.is_empty() {
        validate::validate(&expr, &parsed, &types, &mut issues);
    }
    let source = parsed.source;
    if !issues.is_empty() {
        return Err(CompileErrors::new(issues, source));
    }
    Ok(Checked { expr, types, overloads, source })
}

struct Checker<'e> {
    env: &'e Environment,
    parsed: &'e Parsed,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static str>>,
    unifier: Unifier,
    /// Variables of comprehensions, innermost last.
    scope: Vec<(Arc<str>, Type)>,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn error(&mut self, id: u32, message: String) {
        if self.issues.len() < 1000 {
            let issue = self.parsed.issue(id, message);
            self.issues.push(issue);
        }
    }

    fn set(&mut self, id: u32, ty: Type) {
        self.types[id as usize] = ty;
    }

    fn get(&self, expr: &Expr) -> Type {
        self.types[expr.id as usize].clone()
    }

    fn resolved(&self, expr: &Expr) -> Type {
        self.unifier.substitute(&self.types[expr.id as usize], false)
    }

    /// A variable, or a type by its name.
    fn lookup(&self, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, ty)) = self.scope.iter().rev().find(|(known, _)| **known == *name) {
            return Some(ty.clone());
        }
        self.env
            .variable(name)
            .or_else(|| self.env.type_named(name).map(|ty| Type::TypeType(Some(Arc::new(ty)))))
    }

    fn undeclared(&mut self, id: u32, name: &str) {
        self.error(id, format!("undeclared reference to '{name}' (in container '')"));
        self.set(id, Type::Error);
    }

    fn mismatch(&mut self, id: u32, expected: &Type, found: &Type) {
        let expected = self.unifier.substitute(expected, false).checked_name();
        let found = self.unifier.substitute(found, false).checked_name();
        self.error(id, format!("expected type '{expected}' but found '{found}'"));
    }

    fn expr(&mut self, expr: &mut Expr) {
        let id = expr.id;
        match &mut expr.kind {
            ExprKind::Literal(literal) => {
                let ty = match literal {
                    Literal::Null => Type::Null,
                    Literal::Bool(_) => Type::Bool,
                    Literal::Int(_) => Type::Int,
                    Literal::Uint(_) => Type::Uint,
                    Literal::Double(_) => Type::Double,
                    Literal::String(_) => Type::String,
                    Literal::Bytes(_) => Type::Bytes,
                };
                self.set(id, ty);
            }
            ExprKind::Ident(name) => match self.lookup(name) {
                Some(ty) => {
                    if let Some(plain) = name.strip_prefix('.') {
                        *name = Arc::from(plain);
                    }
                    self.set(id, ty);
                }
                None => {
                    let name = name.clone();
                    self.undeclared(id, &name);
                }
            },
            ExprKind::Select { .. } => self.select(expr),
            ExprKind::Call { .. } => self.call(expr),
            ExprKind::List { elements, optional } => self.list(id, elements, optional),
            ExprKind::Map(entries) => self.map(id, entries),
            ExprKind::Struct { name, fields } => {
                let name = name.clone();
                self.structure(id, &name, fields);
            }
            ExprKind::Comprehension(fold) => self.comprehension(id, fold),
        }
    }

    fn select(&mut self, expr: &mut Expr) {
        let id = expr.id;
        if let Some(name) = expr.qualified_name()
            && !self.is_local(&name)
            && let Some(ty) = self.lookup(&name)
        {
            let name = name.strip_prefix('.').unwrap_or(&name);
            expr.kind = ExprKind::Ident(Arc::from(name));
            self.set(id, ty);
            return;
        }
        let ExprKind::Select { operand, field, test } = &mut expr.kind else { return };
        let (field, test) = (field.clone(), *test);
        let ty = self.field(id, operand, &field, false);
        let ty = if test { Type::Bool } else { self.unifier.substitute(&ty, false) };
        self.set(id, ty);
    }

    /// Whether the first part of a dotted name is a variable of a comprehension.
    fn is_local(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or(name);
        self.scope.iter().any(|(known, _)| **known == *first)
    }

    fn field(&mut self, id: u32, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.expr(operand);
        let operand_type = self.resolved(operand);
        let (target, wrapped) = match operand_type {
            Type::Optional(inner) => ((*inner).clone(), true),
            other => (other, false),
        };
        let result = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.field(field) {
                Some(ty) => ty,
                None => {
                    self.error(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                self.unifier.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    let name = other.checked_name();
                    self.error(id, format!("type '{name}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if wrapped || optional { Type::optional(result) } else { result }
    }

    fn call(&mut self, expr: &mut Expr) {
        let id = expr.id;
        let ExprKind::Call { function, target, args } = &mut expr.kind else { return };
        if &**function == op::OPT_SELECT {
            return self.optional_select(id, args);
        }
        for arg in args.iter_mut() {
            self.expr(arg);
        }
        let Some(receiver) = target else {
            let name = function.strip_prefix('.').unwrap_or(function).to_owned();
            match self.env.function(&name) {
                Some(declared) => {
                    *function = Arc::from(name);
                    self.resolve(id, declared, None, args);
                }
                None => self.undeclared(id, &name),
            }
            return;
        };
        if let Some(prefix) = receiver.qualified_name() {
            let prefix = prefix.strip_prefix('.').unwrap_or(&prefix);
            let name = format!("{prefix}.{function}");
            if let Some(declared) = self.env.function(&name) {
                *function = Arc::from(name);
                *target = None;
                self.resolve(id, declared, None, args);
                return;
            }
        }
        self.expr(receiver);
        match self.env.function(function) {
            Some(declared) => self.resolve(id, declared, Some(receiver), args),
            None => {
                let name = function.clone();
                self.undeclared(id, &name);
            }
        }
    }

    fn optional_select(&mut self, id: u32, args: &mut [Expr]) {
        let [operand, name] = args else { return };
        let ExprKind::Literal(Literal::String(field)) = &name.kind else {
            self.error(name.id, "unsupported optional field selection".to_owned());
            return;
        };
        let field = field.clone();
        self.set(name.id, Type::String);
        let ty = self.field(id, operand, &field, true);
        let ty = self.unifier.substitute(&ty, false);
        self.set(id, ty);
        self.overloads[id as usize] = vec!["select_optional_field"];
    }

    fn resolve(&mut self, id: u32, function: &'static Function, target: Option<&Expr>, args: &[Expr]) {
        let given: Vec<Type> = target.into_iter().chain(args).map(|arg| self.get(arg)).collect();
        let mut result: Option<Type> = None;
        let mut found = Vec::new();
        for overload in &function.overloads {
            if overload.member != target.is_some() || overload.args.len() != given.len() {
                continue;
            }
            if let Some(ty) = self.matches(overload, &given) {
                found.push(overload.id);
                result = Some(match result {
                    None => ty,
                    Some(first) if matches!(first, Type::Dyn) || first.same(&ty) => first,
                    Some(_) => Type::Dyn,
                });
            }
        }
        match result {
            Some(ty) => {
                let ty = self.bounded(ty);
                self.set(id, ty);
                self.overloads[id as usize] = found;
            }
            None => {
                let names: Vec<String> =
                    given.iter().map(|ty| self.unifier.substitute(ty, true).checked_name()).collect();
                let signature = match (target, names.split_first()) {
                    (Some(_), Some((receiver, rest))) => format!("{receiver}.({})", rest.join(", ")),
                    _ => format!("({})", names.join(", ")),
                };
                let name = function.name;
                self.error(id, format!("found no matching overload for '{name}' applied to '{signature}'"));
                self.set(id, Type::Error);
            }
        }
    }

    /// The result type of an overload for these arguments, if it takes them.
    fn matches(&mut self, overload: &Overload, given: &[Type]) -> Option<Type> {
        if overload.params.is_empty() {
            let fits = self.unifier.assignable_all(given, &overload.args);
            return fits.then(|| overload.result.clone());
        }
        let fresh: Vec<(Arc<str>, Type)> =
            overload.params.iter().map(|param| (param.clone(), self.unifier.fresh())).collect();
        let args: Vec<Type> = overload.args.iter().map(|arg| assign::instantiate(arg, &fresh)).collect();
        if !self.unifier.assignable_all(given, &args) {
            return None;
        }
        let result = assign::instantiate(&overload.result, &fresh);
        Some(self.unifier.substitute(&result, false))
    }

    /// A type, or `dyn` where it has grown beyond all measure.
    fn bounded(&self, ty: Type) -> Type {
        if assign::size(&ty, 1000) >= 1000 { Type::Dyn } else { ty }
    }

    /// The common type of elements; what must not be mixed is found when the literals are validated.
    fn join(&mut self, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.unifier.assignable(&previous, &current) {
            return self.unifier.most_general(previous, current);
        }
        Type::Dyn
    }

    /// The type inside an optional element or entry; an error where it is none.
    fn unwrapped(&mut self, id: u32, ty: Type) -> Type {
        match self.unifier.substitute(&ty, false) {
            Type::Optional(inner) => (*inner).clone(),
            other => {
                if !other.is_dyn_or_error() {
                    self.mismatch(id, &Type::optional(other.clone()), &other);
                }
                other
            }
        }
    }

    fn list(&mut self, id: u32, elements: &mut [Expr], optional: &[bool]) {
        let mut element_type = None;
        for (element, optional) in elements.iter_mut().zip(optional) {
            self.expr(element);
            let mut ty = self.get(element);
            if *optional {
                ty = self.unwrapped(element.id, ty);
            }
            element_type = Some(self.join(element_type, ty));
        }
        let element_type = element_type.unwrap_or_else(|| self.unifier.fresh());
        let ty = self.bounded(Type::list(element_type));
        self.set(id, ty);
    }

    fn map(&mut self, id: u32, entries: &mut [Entry]) {
        let (mut key_type, mut value_type) = (None, None);
        for entry in entries {
            self.expr(&mut entry.key);
            let key = self.get(&entry.key);
            key_type = Some(self.join(key_type, key));
            self.expr(&mut entry.value);
            let mut value = self.get(&entry.value);
            if entry.optional {
                value = self.unwrapped(entry.value.id, value);
            }
            value_type = Some(self.join(value_type, value));
        }
        let ty = match (key_type, value_type) {
            (Some(key), Some(value)) => Type::map(key, value),
            _ => Type::map(self.unifier.fresh(), self.unifier.fresh()),
        };
        let ty = self.bounded(ty);
        self.set(id, ty);
    }

    fn structure(&mut self, id: u32, name: &str, fields: &mut [FieldInit]) {
        let Some(ty) = self.lookup(name) else {
            self.undeclared(id, name);
            return;
        };
        let mut result = Type::Error;
        match &ty {
            Type::Error => {}
            Type::TypeType(Some(inner)) if inner.kind() == Kind::Struct => result = (**inner).clone(),
            Type::TypeType(_) => self.error(id, format!("'{name}' is not a message type")),
            other => {
                let name = other.to_string();
                self.error(id, format!("'{name}' is not a type"));
            }
        }
        self.set(id, result.clone());
        for field in fields {
            self.expr(&mut field.value);
            let mut field_type = Type::Error;
            if let Type::Object(object) = &result {
                match object.field(&field.name) {
                    Some(ty) => field_type = ty,
                    None => self.error(field.id, format!("undefined field '{}'", field.name)),
                }
            }
            let mut value = self.get(&field.value);
            if field.optional {
                value = self.unwrapped(field.value.id, value);
            }
            if !self.unifier.assignable(&field_type, &value) {
                let expected = self.unifier.substitute(&field_type, false).checked_name();
                let given = self.unifier.substitute(&value, false).checked_name();
                let name = &field.name;
                let message =
                    format!("expected type of field '{name}' is '{expected}' but provided type is '{given}'");
                self.error(field.id, message);
            }
        }
    }

    fn comprehension(&mut self, id: u32, fold: &mut Comprehension) {
        self.expr(&mut fold.range);
        self.expr(&mut fold.init);
        let range = self.resolved(&fold.range);
        let accu = self.get(&fold.init);
        let (first, second) = match &range {
            Type::List(element) if fold.var2.is_some() => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Any | Type::Error | Type::Param(_) => {
                self.unifier.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let name = other.checked_name();
                self.error(
                    fold.range.id,
                    format!(
                        "expression of type '{name}' cannot be range of a comprehension \
                         (must be list, map, or dynamic)"
                    ),
                );
                (Type::Error, Type::Error)
            }
        };
        let outer = self.scope.len();
        self.scope.push((fold.accu.clone(), accu.clone()));
        let inner = self.scope.len();
        self.scope.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scope.push((var2.clone(), second));
        }
        self.expr(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.expr(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.scope.truncate(inner);
        self.expr(&mut fold.result);
        self.scope.truncate(outer);
        let ty = self.resolved(&fold.result);
        self.set(id, ty);
    }

    fn assert(&mut self, expr: &Expr, expected: &Type) {
        let found = self.get(expr);
        if !self.unifier.assignable(expected, &found) {
            self.mismatch(expr.id, expected, &found);
        }
    }
}
