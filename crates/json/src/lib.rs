//! JSON values as the API server keeps objects: `serde_json`'s shape, with maps made for objects of few fields.
//!
//! An object of the API is a tree of many small maps. `serde_json` keeps the order of fields with a hash table for each
//! map; here a map is a list of its fields, searched from the front, and only one with more than [`map::SMALL`] fields gets
//! a table (so that a hostile object of many fields costs no more than its size). Names of up to 23 bytes stand in
//! the list itself. Text is read and written by `serde_json`. See `docs/decisions/0009-json-maps.md`.

#![forbid(unsafe_code)]

mod convert;
mod index;
mod macros;
pub mod map;
mod serde_impl;
mod value;

pub use convert::{ToJson, from_value, to_value};
pub use index::Index;
pub use map::Map;
pub use serde_json::{
    Error, Number, from_slice, from_str, to_string, to_string_pretty, to_vec, to_vec_pretty, to_writer,
};
pub use smol_str::SmolStr as Key;
pub use value::Value;

#[cfg(test)]
mod tests;
