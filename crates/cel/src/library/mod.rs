//! Functions: their declarations ([`decls`]) and what they do. A declaration is a line of a table; an implementation
//! serves all overloads of one name and looks at the values it gets.

pub mod authz;
pub mod decls;
pub mod format;
mod kube;
mod lists;
pub mod named_format;
mod net;
pub mod opaque;
mod ops;
mod optional;
mod regexes;
pub mod semver;
mod sets;
mod strings;
mod timestamps;
pub mod url;

pub use lists::append;
pub use regexes::{check_pattern, compile_pattern, match_pattern};

use crate::error::EvalError;
use crate::val::{Res, Val};

/// What a function does.
pub type Implementation = for<'a> fn(&str, &[Val<'a>]) -> Res<'a>;

/// The implementation of a function.
pub fn implementation(function: &str) -> Implementation {
    match function {
        "_+_"
        | "_-_"
        | "_*_"
        | "_/_"
        | "_%_"
        | "-_"
        | "!_"
        | "_<_"
        | "_<=_"
        | "_>_"
        | "_>=_"
        | "_==_"
        | "_!=_"
        | "@in"
        | "@not_strictly_false"
        | "size"
        | "int"
        | "uint"
        | "double"
        | "string"
        | "bytes"
        | "bool"
        | "type"
        | "dyn"
        | "timestamp"
        | "duration"
        | "cel.@mapInsert" => ops::call,
        "getFullYear" | "getMonth" | "getDayOfYear" | "getDayOfMonth" | "getDate" | "getDayOfWeek"
        | "getHours" | "getMinutes" | "getSeconds" | "getMilliseconds" => timestamps::call,
        "optional.of"
        | "optional.ofNonZeroValue"
        | "optional.none"
        | "hasValue"
        | "value"
        | "or"
        | "orValue"
        | "first"
        | "last"
        | "optional.unwrap"
        | "unwrapOpt" => optional::call,
        "matches" | "find" | "findAll" => regexes::call,
        "sets.contains" | "sets.intersects" | "sets.equivalent" => sets::call,
        "slice"
        | "flatten"
        | "sort"
        | "@sortByAssociatedKeys"
        | "lists.range"
        | "reverse"
        | "distinct"
        | "isSorted"
        | "sum"
        | "min"
        | "max" => lists::call,
        "indexOf" | "lastIndexOf" => lists::index_of,
        "ip"
        | "isIP"
        | "ip.isCanonical"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "cidr"
        | "isCIDR"
        | "containsIP"
        | "containsCIDR"
        | "masked"
        | "prefixLength" => net::call,
        "contains"
        | "startsWith"
        | "endsWith"
        | "charAt"
        | "join"
        | "lowerAscii"
        | "upperAscii"
        | "replace"
        | "split"
        | "substring"
        | "trim"
        | "strings.quote"
        | "jsonpatch.escapeKey" => strings::call,
        "format" => format::call,
        _ => kube::call,
    }
}

/// The error of a function none of whose overloads takes these values.
pub fn mismatch(function: &str, args: &[Val<'_>]) -> EvalError {
    let names: Vec<String> = args.iter().map(Val::type_name).collect();
    EvalError::text(format!("no such overload: {function}({})", names.join(", ")))
}
