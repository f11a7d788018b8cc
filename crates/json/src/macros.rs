//! Values written as JSON in the source.

/// A [`Value`](crate::Value) written as JSON: `json!({"name": name, "ports": [80, 443], (key): null})`. A name is a literal, a
/// variable, or an expression in parentheses; a value is anything that [`ToJson`](crate::ToJson) knows.
#[macro_export]
macro_rules! json {
    (null) => { $crate::Value::Null };
    ([ $($items:tt)* ]) => { $crate::Value::Array($crate::json_items!([] $($items)*)) };
    ({ $($fields:tt)* }) => {{
        #[allow(unused_mut)]
        let mut map = $crate::Map::new();
        $crate::json_fields!(map $($fields)*);
        $crate::Value::Object(map)
    }};
    ($value:expr) => { $crate::ToJson::to_json(&$value) };
}

/// The items of a list, for [`json!`].
#[doc(hidden)]
#[macro_export]
macro_rules! json_items {
    ([$($done:expr,)*]) => { vec![$($done),*] };
    ([$($done:expr,)*] null $(, $($rest:tt)*)?) => { $crate::json_items!([$($done,)* $crate::Value::Null,] $($($rest)*)?) };
    ([$($done:expr,)*] [ $($items:tt)* ] $(, $($rest:tt)*)?) => {
        $crate::json_items!([$($done,)* $crate::json!([ $($items)* ]),] $($($rest)*)?)
    };
    ([$($done:expr,)*] { $($fields:tt)* } $(, $($rest:tt)*)?) => {
        $crate::json_items!([$($done,)* $crate::json!({ $($fields)* }),] $($($rest)*)?)
    };
    ([$($done:expr,)*] $value:expr $(, $($rest:tt)*)?) => {
        $crate::json_items!([$($done,)* $crate::ToJson::to_json(&$value),] $($($rest)*)?)
    };
}

/// The fields of a map, for [`json!`].
#[doc(hidden)]
#[macro_export]
macro_rules! json_fields {
    ($map:ident) => {};
    ($map:ident $name:tt : null $(, $($rest:tt)*)?) => {
        $map.insert(::core::convert::Into::into($name), $crate::Value::Null);
        $crate::json_fields!($map $($($rest)*)?);
    };
    ($map:ident $name:tt : [ $($items:tt)* ] $(, $($rest:tt)*)?) => {
        $map.insert(::core::convert::Into::into($name), $crate::json!([ $($items)* ]));
        $crate::json_fields!($map $($($rest)*)?);
    };
    ($map:ident $name:tt : { $($fields:tt)* } $(, $($rest:tt)*)?) => {
        $map.insert(::core::convert::Into::into($name), $crate::json!({ $($fields)* }));
        $crate::json_fields!($map $($($rest)*)?);
    };
    ($map:ident $name:tt : $value:expr $(, $($rest:tt)*)?) => {
        $map.insert(::core::convert::Into::into($name), $crate::ToJson::to_json(&$value));
        $crate::json_fields!($map $($($rest)*)?);
    };
}
