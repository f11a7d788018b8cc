//! Kubernetes' own functions that have no module of their own: URLs, quantities, versions, named formats; what is left
//! goes to the authorizer library.

use std::sync::Arc;

use orlop_api::Quantity;
use orlop_api::quantity::Format;

use super::opaque::Opaque;
use super::semver::Version;
use super::url::Url;
use super::{authz, mismatch, named_format};
use crate::error::EvalError;
use crate::val::{OwnedMap, Res, Val};

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match args {
        [Val::String(text)] => {
            if let Some(result) = of_string(function, text.as_str(), false) {
                return result;
            }
        }
        [Val::String(text), Val::Bool(normalise)] if matches!(function, "semver" | "isSemver") => {
            if let Some(result) = of_string(function, text.as_str(), *normalise) {
                return result;
            }
        }
        [Val::Opaque(Opaque::Url(url))] => {
            if let Some(result) = url_part(function, url) {
                return Ok(result);
            }
        }
        [Val::Opaque(Opaque::Quantity(a))] => {
            if let Some(result) = quantity(function, *a) {
                return result;
            }
        }
        [Val::Opaque(Opaque::Quantity(a)), Val::Opaque(Opaque::Quantity(b))] => {
            if let Some(result) = quantities(function, *a, *b) {
                return Ok(result);
            }
        }
        [Val::Opaque(Opaque::Quantity(a)), Val::Int(b)] if matches!(function, "add" | "sub") => {
            if let Some(result) = quantities(function, *a, Quantity::new(*b, Format::DecimalExponent)) {
                return Ok(result);
            }
        }
        [Val::Opaque(Opaque::Semver(version))] => {
            let part = match function {
                "major" => version.major,
                "minor" => version.minor,
                "patch" => version.patch,
                _ => return Err(mismatch(function, args)),
            };
            return Ok(Val::Int(part as i64));
        }
        [Val::Opaque(Opaque::Semver(a)), Val::Opaque(Opaque::Semver(b))] => {
            let order = a.compare(b);
            return Ok(match function {
                "isGreaterThan" => Val::Bool(order.is_gt()),
                "isLessThan" => Val::Bool(order.is_lt()),
                "compareTo" => Val::Int(order as i64),
                _ => return Err(mismatch(function, args)),
            });
        }
        [Val::Opaque(Opaque::Format(format)), Val::String(text)] if function == "validate" => {
            let problems = (format.validate)(text.as_str());
            if problems.is_empty() {
                return Ok(Val::Optional(None));
            }
            let problems = problems.into_iter().map(Val::string).collect();
            return Ok(Val::Optional(Some(Arc::new(Val::list(problems)))));
        }
        [] => {
            if let Some(format) = function.strip_prefix("format.").and_then(named_format::find) {
                return Ok(Val::Opaque(Opaque::Format(format)));
            }
        }
        _ => {}
    }
    authz::call(function, args).unwrap_or_else(|| Err(mismatch(function, args)))
}

fn of_string<'a>(function: &str, text: &str, normalise: bool) -> Option<Res<'a>> {
    Some(match function {
        "url" => match Url::parse(text) {
            Ok(url) => Ok(Val::Opaque(Opaque::Url(Arc::new(url)))),
            Err(error) => {
                Err(EvalError::text(format!("URL parse error during conversion from string: {error}")))
            }
        },
        "isURL" => Ok(Val::Bool(Url::parse(text).is_ok())),
        "quantity" => match Quantity::parse(text) {
            Ok(quantity) => Ok(Val::Opaque(Opaque::Quantity(quantity))),
            Err(error) => Err(EvalError::text(error.to_string())),
        },
        "isQuantity" => Ok(Val::Bool(Quantity::parse(text).is_ok())),
        "semver" => match Version::parse(text, normalise) {
            Ok(version) => Ok(Val::Opaque(Opaque::Semver(Arc::new(version)))),
            Err(error) => Err(EvalError::text(error)),
        },
        "isSemver" => Ok(Val::Bool(Version::parse(text, normalise).is_ok())),
        "format.named" => Ok(Val::Optional(
            named_format::find(text).map(|format| Arc::new(Val::Opaque(Opaque::Format(format)))),
        )),
        _ => return None,
    })
}

fn url_part<'a>(function: &str, url: &Url) -> Option<Val<'a>> {
    Some(match function {
        "getScheme" => Val::string(url.scheme.as_str()),
        "getHost" => Val::string(url.host.as_str()),
        "getHostname" => Val::string(url.hostname()),
        "getPort" => Val::string(url.port()),
        "getEscapedPath" => Val::string(url.escaped_path()),
        "getQuery" => {
            let mut map = OwnedMap::default();
            for (key, values) in url.query_values() {
                let values = Val::list(values.into_iter().map(Val::string).collect());
                map.insert(Val::string(key), values).ok()?;
            }
            Val::map(map)
        }
        _ => return None,
    })
}

fn quantity<'a>(function: &str, quantity: Quantity) -> Option<Res<'a>> {
    let integer = || {
        let value = quantity.value();
        (quantity.is_integer() && Quantity::new(value, Format::DecimalSI) == quantity).then_some(value)
    };
    Some(match function {
        "sign" => Ok(Val::Int(i64::from(quantity.sign()))),
        "isInteger" => Ok(Val::Bool(integer().is_some())),
        "asInteger" => integer().map(Val::Int).ok_or(EvalError::text("cannot convert value to integer")),
        "asApproximateFloat" => Ok(Val::Double(quantity.as_f64())),
        _ => return None,
    })
}

fn quantities<'a>(function: &str, a: Quantity, b: Quantity) -> Option<Val<'a>> {
    Some(match function {
        "isGreaterThan" => Val::Bool(a > b),
        "isLessThan" => Val::Bool(a < b),
        "compareTo" => Val::Int(a.cmp(&b) as i64),
        "add" => Val::Opaque(Opaque::Quantity(a + b)),
        "sub" => Val::Opaque(Opaque::Quantity(a - b)),
        _ => return None,
    })
}
