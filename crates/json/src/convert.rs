//! From Rust's types to values and back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Key, Map, Number, Value};

/// A value of anything that can be written as JSON, by way of its text.
pub fn to_value<T: Serialize>(of: T) -> Result<Value, Error> {
    crate::from_slice(&crate::to_vec(&of)?)
}

/// What a value says, by way of its text.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    crate::from_slice(&crate::to_vec(value)?)
}

/// What [`json!`](crate::json!) takes for a value. It looks and copies, so that names stay usable.
pub trait ToJson {
    /// The value.
    fn to_json(&self) -> Value;
}

macro_rules! from {
    ($($type:ty, |$value:ident| $make:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Value {
                $make
            }
        }
    )*};
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl From<$type> for Value {
            fn from(number: $type) -> Value {
                Value::Number(number.into())
            }
        }

        impl ToJson for $type {
            fn to_json(&self) -> Value {
                (*self).into()
            }
        }

        impl PartialEq<$type> for Value {
            fn eq(&self, other: &$type) -> bool {
                matches!(self, Value::Number(number) if *number == Number::from(*other))
            }
        }

        impl PartialEq<$type> for &Value {
            fn eq(&self, other: &$type) -> bool {
                **self == *other
            }
        }
    )*};
}

numbers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

from! {
    (), |_nothing| Value::Null;
    bool, |value| Value::Bool(value);
    f64, |number| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Number, |number| Value::Number(number);
    &str, |text| Value::String(text.to_owned());
    String, |text| Value::String(text);
    Cow<'_, str>, |text| Value::String(text.into_owned());
    Key, |text| Value::String(text.into());
    Map, |map| Value::Object(map);
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(list: Vec<T>) -> Value {
        Value::Array(list.into_iter().map(Into::into).collect())
    }
}

impl<T: Clone + Into<Value>> From<&[T]> for Value {
    fn from(list: &[T]) -> Value {
        list.iter().cloned().collect()
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl<T: Into<Value>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Value {
        Value::Array(items.into_iter().map(Into::into).collect())
    }
}

impl<K: Into<Key>, V: Into<Value>> FromIterator<(K, V)> for Value {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(fields: I) -> Value {
        Value::Object(fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => Value::Number(number),
            serde_json::Value::String(text) => Value::String(text),
            serde_json::Value::Array(list) => list.into(),
            serde_json::Value::Object(map) => map.into_iter().collect(),
        }
    }
}

macro_rules! to_json {
    ($($type:ty),*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Value {
                self.clone().into()
            }
        }
    )*};
}
to_json!((), bool, f64, Number, String, Key, Map, Cow<'_, str>);

impl ToJson for str {
    fn to_json(&self) -> Value {
        self.into()
    }
}

impl ToJson for Value {
    fn to_json(&self) -> Value {
        self.clone()
    }
}

macro_rules! pointers {
    ($($type:ty),*) => {$(
        impl<T: ToJson + ?Sized> ToJson for $type {
            fn to_json(&self) -> Value {
                (**self).to_json()
            }
        }
    )*};
}
pointers!(&T, Box<T>, Arc<T>);

impl<T: ToJson> ToJson for Option<T> {
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, ToJson::to_json)
    }
}

impl<T: ToJson> ToJson for [T] {
    fn to_json(&self) -> Value {
        Value::Array(self.iter().map(ToJson::to_json).collect())
    }
}

impl<T: ToJson> ToJson for Vec<T> {
    fn to_json(&self) -> Value {
        self.as_slice().to_json()
    }
}

impl<T: ToJson, const N: usize> ToJson for [T; N] {
    fn to_json(&self) -> Value {
        self.as_slice().to_json()
    }
}

impl<K: AsRef<str>, V: ToJson> ToJson for BTreeMap<K, V> {
    fn to_json(&self) -> Value {
        self.iter().map(|(name, value)| (name.as_ref(), value.to_json())).collect()
    }
}

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(*other)
    }
}

impl PartialEq<String> for Value {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<bool> for Value {
    fn eq(&self, other: &bool) -> bool {
        self.as_bool() == Some(*other)
    }
}

impl PartialEq<f64> for Value {
    fn eq(&self, other: &f64) -> bool {
        self.as_f64() == Some(*other)
    }
}

impl PartialEq<Value> for str {
    fn eq(&self, other: &Value) -> bool {
        other == self
    }
}

impl PartialEq<Value> for &str {
    fn eq(&self, other: &Value) -> bool {
        other == self
    }
}

impl PartialEq<Value> for String {
    fn eq(&self, other: &Value) -> bool {
        other == self
    }
}
