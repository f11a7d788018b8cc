//! `intstr.IntOrString`: a number, or text that is a percentage or a name.

use orlop_json::Value;

/// A number, or a percentage of `total`, rounded up or down.
///
/// # Errors
/// Upstream's texts for text that is no percentage and for values that are neither number nor text.
pub fn scaled_value(value: &Value, total: i64, round_up: bool) -> Result<i64, String> {
    match value {
        Value::Number(number) => number.as_i64().ok_or_else(|| "invalid value for IntOrString".to_owned()),
        Value::String(text) => {
            let percent = percent(text).map_err(|error| format!("invalid value for IntOrString: {error}"))?;
            let product = percent * total;
            let (whole, rest) = (product.div_euclid(100), product.rem_euclid(100));
            Ok(if round_up && rest > 0 { whole + 1 } else { whole })
        }
        _ => Err("invalid value for IntOrString: invalid type: neither int nor percentage".into()),
    }
}

/// The number of a percentage: `25%` is 25.
///
/// # Errors
/// Upstream's text.
pub fn percent(text: &str) -> Result<i64, String> {
    let digits = text.strip_suffix('%').ok_or("invalid type: string is not a percentage")?;
    digits.parse().map_err(|_| format!("invalid value {}: invalid syntax", crate::field::go_quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn values_scale() {
        let cases = [
            (json!(5), 10, true, Ok(5)),
            (json!("25%"), 10, true, Ok(3)),
            (json!("25%"), 10, false, Ok(2)),
            (json!("0%"), 10, true, Ok(0)),
            (
                json!("x"),
                10,
                true,
                Err("invalid value for IntOrString: invalid type: string is not a percentage".to_owned()),
            ),
        ];
        for (value, total, up, want) in cases {
            assert_eq!(scaled_value(&value, total, up), want, "{value}");
        }
    }
}
