//! Which type can stand where which is wanted, and what type variables become on the way. The rules of cel-go's
//! `checker/types.go`; failed attempts are rolled back.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{Kind, Type};

/// The bindings of type variables.
#[derive(Default)]
pub struct Unifier {
    bound: HashMap<Arc<str>, Type>,
    /// What was overwritten, to be undone.
    trail: Vec<(Arc<str>, Option<Type>)>,
    next: usize,
}

impl Unifier {
    /// A new type variable.
    pub fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::Param(Arc::from(format!("_var{}", self.next - 1)))
    }

    /// Whether `a` can be used as `b`; binds variables if so.
    pub fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        self.assignable_all(std::slice::from_ref(a), std::slice::from_ref(b))
    }

    /// Whether each of `a` can be used as its counterpart in `b`.
    pub fn assignable_all(&mut self, a: &[Type], b: &[Type]) -> bool {
        let fits = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.try_assign(a, b));
        if fits {
            self.trail.clear();
        } else {
            while let Some((name, old)) = self.trail.pop() {
                match old {
                    Some(ty) => self.bound.insert(name, ty),
                    None => self.bound.remove(&name),
                };
            }
        }
        fits
    }

    fn bind(&mut self, name: &Arc<str>, ty: Type) {
        let old = self.bound.insert(name.clone(), ty);
        self.trail.push((name.clone(), old));
    }

    fn try_assign(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(name) = b {
            let (valid, has_binding) = self.valid_substitution(a, name);
            if valid {
                return true;
            }
            if has_binding {
                return false;
            }
        }
        if let Type::Param(name) = a {
            return self.valid_substitution(b, name).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        if a.kind() == Kind::Null {
            return nullable(b);
        }
        if b.kind() == Kind::Null {
            return nullable(a);
        }
        match (a, b) {
            (Type::TypeType(_), Type::TypeType(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.try_assign(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.try_assign(ak, bk) && self.try_assign(av, bv),
            (Type::Opaque(an, ap), Type::Opaque(bn, bp)) => {
                an == bn
                    && ap.len() == bp.len()
                    && ap.iter().zip(bp.iter()).all(|(a, b)| self.try_assign(a, b))
            }
            (a, b) => a.same(b),
        }
    }

    /// Whether `ty` can be what the variable stands for, and whether the variable was bound before.
    fn valid_substitution(&mut self, ty: &Type, name: &Arc<str>) -> (bool, bool) {
        if matches!(ty, Type::Param(other) if other == name) {
            return (true, true);
        }
        if let Some(bound) = self.bound.get(name).cloned() {
            if ty.same(&bound) {
                return (true, true);
            }
            if self.try_assign(ty, &bound) {
                let general = self.most_general(ty.clone(), bound);
                if self.not_referenced(name, &general) {
                    self.bind(name, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.not_referenced(name, ty) {
            self.bind(name, ty.clone());
            return (true, false);
        }
        (false, false)
    }

    fn not_referenced(&self, name: &Arc<str>, within: &Type) -> bool {
        match within {
            Type::Param(other) if other == name => false,
            Type::Param(other) => self.bound.get(other).is_none_or(|ty| self.not_referenced(name, ty)),
            other => other.parameters().into_iter().all(|parameter| self.not_referenced(name, parameter)),
        }
    }

    /// The less specific of two compatible types.
    pub fn most_general(&self, a: Type, b: Type) -> Type {
        if less_specific(&a, &b) { a } else { b }
    }

    /// The type with all bound variables replaced; `to_dyn` replaces free ones, too.
    pub fn substitute(&self, ty: &Type, to_dyn: bool) -> Type {
        match ty {
            Type::Param(name) => match self.bound.get(name) {
                Some(bound) => self.substitute(bound, to_dyn),
                None if to_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(element) => Type::List(Arc::new(self.substitute(element, to_dyn))),
            Type::Optional(value) => Type::Optional(Arc::new(self.substitute(value, to_dyn))),
            Type::Map(key, value) => Type::map(self.substitute(key, to_dyn), self.substitute(value, to_dyn)),
            Type::TypeType(Some(inner)) => Type::TypeType(Some(Arc::new(self.substitute(inner, to_dyn)))),
            other => other.clone(),
        }
    }
}

/// A declaration's type with its parameters replaced.
pub fn instantiate(ty: &Type, params: &[(Arc<str>, Type)]) -> Type {
    match ty {
        Type::Param(name) => {
            params.iter().find(|(param, _)| param == name).map_or_else(|| ty.clone(), |(_, ty)| ty.clone())
        }
        Type::List(element) => Type::list(instantiate(element, params)),
        Type::Optional(value) => Type::optional(instantiate(value, params)),
        Type::Map(key, value) => Type::map(instantiate(key, params), instantiate(value, params)),
        Type::TypeType(Some(inner)) => Type::TypeType(Some(Arc::new(instantiate(inner, params)))),
        other => other.clone(),
    }
}

/// The number of parts of a type, counted up to a limit.
pub fn size(ty: &Type, limit: usize) -> usize {
    let mut total = 1;
    for parameter in ty.parameters() {
        if total >= limit {
            break;
        }
        total += size(parameter, limit - total);
    }
    total
}

fn nullable(ty: &Type) -> bool {
    matches!(
        ty.kind(),
        Kind::Null | Kind::Any | Kind::Struct | Kind::Duration | Kind::Timestamp | Kind::Opaque
    )
}

fn less_specific(a: &Type, b: &Type) -> bool {
    if matches!(a, Type::Dyn | Type::Param(_)) {
        return true;
    }
    if matches!(b, Type::Dyn | Type::Param(_)) || a.kind() != b.kind() {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => less_specific(ak, bk) && less_specific(av, bv),
        (Type::TypeType(_), Type::TypeType(_)) => true,
        (a, b) => a.same(b),
    }
}
