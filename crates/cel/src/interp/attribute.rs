//! Attributes: variables with selections and indexes. Answers to cel-go's `interpreter/attributes.go`.

use super::eval::Frame;
use super::plan::{Attribute, Base, Qualifier, QualifierKey};
use crate::error::EvalError;
use crate::library::format::plain;
use crate::val::{Res, Val};

/// What a selection found.
enum Found<'a> {
    Value(Val<'a>),
    Missing(EvalError),
}

impl<'a> Frame<'a, '_> {
    /// An attribute as an expression of its own: it costs one more than what is resolved on the way.
    pub(super) fn attribute(&mut self, attribute: &'a Attribute) -> Res<'a> {
        let value = self.resolve(attribute);
        if !matches!(attribute.base, Base::Conditional(..)) {
            self.charge(1)?;
        }
        value
    }

    /// `has(…)`.
    pub(super) fn has(&mut self, attribute: &'a Attribute) -> Res<'a> {
        match self.resolve(attribute)? {
            Val::Optional(value) => Ok(Val::Bool(matches!(value.as_deref(), Some(Val::Bool(true))))),
            other => Ok(other),
        }
    }

    fn resolve(&mut self, attribute: &'a Attribute) -> Res<'a> {
        let mut qualifiers = attribute.qualifiers.as_slice();
        let base = match &attribute.base {
            Base::Slot(slot) => self.slot(*slot)?,
            Base::Variable(name) => match self.vars.variable(name) {
                Some(value) => value?,
                None => match (qualifiers.first(), self.lazy_field(name, qualifiers)) {
                    (Some(first), Some(value)) => {
                        let value = value?;
                        self.charge(1)?;
                        qualifiers = &qualifiers[1..];
                        match (first.test, first.optional) {
                            (true, _) => Val::Bool(true),
                            (_, true) => Val::Optional(Some(std::sync::Arc::new(value))),
                            _ => value,
                        }
                    }
                    _ => return Err(EvalError::text(format!("no such attribute(s): {name}"))),
                },
            },
            Base::Conditional(parts) => match self.eval(&parts.0)? {
                Val::Bool(true) => self.resolve(&parts.1)?,
                Val::Bool(false) => self.resolve(&parts.2)?,
                _ => return Err(EvalError::no_such_overload()),
            },
            Base::Value(node) => self.eval(node)?,
        };
        if qualifiers.is_empty() { Ok(base) } else { self.qualify(base, qualifiers) }
    }

    fn lazy_field(&self, variable: &str, qualifiers: &[Qualifier]) -> Option<Res<'a>> {
        match qualifiers.first().map(|qualifier| &qualifier.key) {
            Some(QualifierKey::Field(field)) => self.vars.field(variable, field),
            _ => None,
        }
    }

    fn qualify(&mut self, base: Val<'a>, qualifiers: &'a [Qualifier]) -> Res<'a> {
        let mut value = base;
        let mut optional = false;
        for qualifier in qualifiers {
            if let Val::Optional(inner) = value {
                match inner {
                    Some(inner) => {
                        value = (*inner).clone();
                        optional = true;
                    }
                    None => return Ok(Val::Optional(None)),
                }
            }
            optional |= qualifier.optional;
            let found = match &qualifier.key {
                QualifierKey::Field(field) => select(&value, field),
                QualifierKey::Const(key) => index(&value, key),
                QualifierKey::Attribute(key) => {
                    let key_value = self.resolve(key)?;
                    let found = index(&value, &key_value);
                    if matches!(key.base, Base::Conditional(..)) {
                        // What a conditional key costs is counted in its parts.
                        self.charge_found(&found, optional, 0)?;
                    } else {
                        self.charge_found(&found, optional, 1)?;
                    }
                    value = match (found?, optional) {
                        (Found::Value(value), _) => value,
                        (Found::Missing(_), true) => return Ok(Val::Optional(None)),
                        (Found::Missing(error), false) => return Err(error),
                    };
                    continue;
                }
            };
            self.charge_found(&found, optional && !qualifier.test, 1)?;
            value = match (found?, qualifier.test, optional) {
                (Found::Value(Val::Optional(inner)), true, _) => Val::Bool(inner.is_some()),
                (Found::Value(_), true, _) => Val::Bool(true),
                (Found::Missing(_), true, _) => Val::Bool(false),
                (Found::Value(value), false, _) => value,
                (Found::Missing(_), false, true) => return Ok(Val::Optional(None)),
                (Found::Missing(error), false, false) => return Err(error),
            };
        }
        if optional { Ok(Val::Optional(Some(std::sync::Arc::new(value)))) } else { Ok(value) }
    }

    /// A selection costs one, but nothing where it was optional and found nothing.
    fn charge_found(
        &mut self,
        found: &Result<Found<'a>, EvalError>,
        optional: bool,
        cost: u64,
    ) -> Result<(), EvalError> {
        match found {
            Ok(Found::Missing(_)) if optional => Ok(()),
            _ => self.charge(cost),
        }
    }
}

/// `value.field` and `value['field']`.
fn select<'a>(value: &Val<'a>, field: &str) -> Result<Found<'a>, EvalError> {
    match value {
        Val::Map(map) => match map.get_str(field) {
            Some(value) => value.map(Found::Value),
            None => Ok(Found::Missing(no_such_key(field))),
        },
        Val::Struct(object) => match object.fields.iter().find(|(name, _)| **name == *field) {
            Some((_, value)) => Ok(Found::Value(value.clone())),
            None => Ok(Found::Missing(no_such_key(field))),
        },
        Val::List(_) => Err(EvalError::text("unsupported index type 'string' in list")),
        _ => Ok(Found::Missing(no_such_key(field))),
    }
}

/// `value[key]`.
fn index<'a>(value: &Val<'a>, key: &Val<'_>) -> Result<Found<'a>, EvalError> {
    if let Some(text) = key.as_str() {
        return select(value, text);
    }
    match value {
        Val::List(list) => {
            let index = list_index(key)?;
            match usize::try_from(index).ok().and_then(|index| list.get(index)) {
                Some(value) => value.map(Found::Value),
                None => Ok(Found::Missing(EvalError::text(format!("index out of bounds: {index}")))),
            }
        }
        Val::Map(map) => match map.get(key) {
            Some(value) => value.map(Found::Value),
            None => Ok(Found::Missing(no_such_key(&plain(key)))),
        },
        _ => Ok(Found::Missing(no_such_key(&plain(key)))),
    }
}

/// A number as a list index.
pub fn list_index(key: &Val<'_>) -> Result<i64, EvalError> {
    match key {
        Val::Int(i) => Ok(*i),
        Val::Uint(u) if i64::try_from(*u).is_ok() => Ok(*u as i64),
        Val::Double(f) if f.fract() == 0.0 && f.abs() < 9e15 => Ok(*f as i64),
        Val::Uint(_) | Val::Double(_) => {
            Err(EvalError::text(format!("unsupported index value {} in list", plain(key))))
        }
        other => Err(EvalError::text(format!("unsupported index type '{}' in list", other.type_name()))),
    }
}

fn no_such_key(key: &str) -> EvalError {
    EvalError::text(format!("no such key: {key}"))
}
