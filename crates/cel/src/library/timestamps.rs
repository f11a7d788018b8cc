//! Accessors of timestamps and durations.

use super::mismatch;
use crate::error::EvalError;
use crate::val::{Res, Val};

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Res<'a> {
    match args {
        [Val::Duration(duration)] => {
            let nanos = duration.0;
            Ok(Val::Int(match function {
                "getHours" => nanos / 3_600_000_000_000,
                "getMinutes" => nanos / 60_000_000_000,
                "getSeconds" => nanos / 1_000_000_000,
                "getMilliseconds" => nanos / 1_000_000,
                _ => return Err(mismatch(function, args)),
            }))
        }
        [Val::Timestamp(time)] => local(function, time.in_zone(None)),
        [Val::Timestamp(time), Val::String(zone)] => local(function, time.in_zone(Some(zone.as_str()))),
        _ => Err(mismatch(function, args)),
    }
}

fn local<'a>(function: &str, time: Result<jiff::civil::DateTime, String>) -> Res<'a> {
    let time = time.map_err(EvalError::text)?;
    Ok(Val::Int(match function {
        "getFullYear" => i64::from(time.year()),
        "getMonth" => i64::from(time.month()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDate" => i64::from(time.day()),
        "getDayOfWeek" => i64::from(time.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(time.hour()),
        "getMinutes" => i64::from(time.minute()),
        "getSeconds" => i64::from(time.second()),
        _ => i64::from(time.subsec_nanosecond()) / 1_000_000,
    }))
}
