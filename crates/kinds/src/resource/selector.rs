//! CEL selectors of devices: what they may refer to, and what they may cost. Upstream's
//! `dynamic-resource-allocation/cel`.

use std::sync::{Arc, LazyLock};

use orlop_api::field::{self, ErrorList, Path};
use orlop_cel::{DeclType, Environment, EnvironmentBuilder, Program, Type};

use super::MAX_ID;

/// The longest selector, in bytes.
const MAX_LENGTH: usize = 10 * 1024;
/// The largest estimated cost of a selector.
const MAX_COST: u64 = 1_000_000;
/// The longest driver name and the longest domain of an attribute's name.
const MAX_DOMAIN: u64 = 63;
/// The longest value of an attribute.
const MAX_VALUE: u64 = 64;
/// The most attributes and capacities of a device together.
const MAX_ATTRIBUTES: u64 = 32;

/// The declaration of `device`: attributes and capacities are maps by domain of maps by name.
static DEVICE: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let by_name = |value| {
        let names = DeclType::sized_map(MAX_ID as u64, value, MAX_ATTRIBUTES);
        DeclType::sized_map(MAX_DOMAIN, names, MAX_ATTRIBUTES)
    };
    DeclType::record(
        "kubernetes.DRADevice",
        [
            ("driver", DeclType::sized(Type::String, MAX_DOMAIN)),
            ("allowMultipleAllocations", DeclType::sized(Type::Bool, 1)),
            ("attributes", by_name(DeclType::sized(Type::Any, MAX_VALUE))),
            ("capacity", by_name(DeclType::of(Type::object("kubernetes.Quantity")))),
        ],
    )
});

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    EnvironmentBuilder::kubernetes().variable("device", DEVICE.ty.clone()).bindings().build()
});

/// The most a selector can cost.
fn cost(program: &Program) -> u64 {
    program.estimate_cost(|variable| (variable == "device").then(|| &**DEVICE)).max
}

/// Checks the expression of a selector.
pub(super) fn validate(errs: &mut ErrorList, path: &Path, expression: &str) {
    if expression.len() > MAX_LENGTH {
        errs.push(field::too_long(path, MAX_LENGTH));
        return;
    }
    match ENVIRONMENT.compile(expression) {
        Err(errors) if errors.instantiation.is_some() => errs.push(field::internal(path, errors.detail())),
        Err(errors) => errs.push(field::invalid(path, expression, errors.detail())),
        Ok(program) if !matches!(program.output_type(), Type::Bool | Type::Any) => {
            let got = program.output_type();
            let detail = format!("must evaluate to bool or the unknown type, not {got}");
            errs.push(field::invalid(path, expression, detail));
        }
        Ok(program) if cost(&program) > MAX_COST => {
            errs.push(field::forbidden(path, "too complex, exceeds cost limit"));
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn costs() {
        let check = |expression: &str, expected: u64| {
            assert_eq!(cost(&ENVIRONMENT.compile(expression).unwrap()), expected, "{expression}");
        };
        check("true", 0);
        check(r#"device.attributes["no-such-domain"].noSuchAttr.isGreaterThan(quantity("0"))"#, 6);
        check(r#"device.attributes["no-such-domain"]["noSuchAttr"].isGreaterThan(quantity("0"))"#, 6);
        check(r#""no-such-domain" in device.attributes"#, 3);
        check(r#"device.driver == """#, 2);
        check(r#"device.driver == "dra.example.com""#, 4);
        check(r#"device.attributes["dra.example.com"].name"#, 4);
        check(r#"cel.bind(dra, device.attributes["dra.example.com"], dra.name)"#, 15);
        check(r#"device.attributes["dra.example.com"].name > 0"#, 5);
        check(r#"device.attributes["dra.example.com"].name == "fish""#, 5);
        check(
            r#"device.attributes["dra.example.com"].name.isGreaterThan(semver("v0.0.1", true)) && isSemver("v1.0.0", true)"#,
            7,
        );
        check(r#"device.capacity["dra.example.com"].name.isGreaterThan(quantity("1Ki"))"#, 6);
        check(
            r#""name" in device.capacity["dra.example.com"] && device.capacity["dra.example.com"].name.isGreaterThan(quantity("1Ki"))"#,
            10,
        );
        check(r#"device.attributes.exists_one(x, x == "dra.example.com")"#, 164);
        check(r#"device.attributes["dra.example.com"].exists_one(x, x == "services")"#, 133);
        check(r#"device.attributes["dra.example.com"].services.split("example").size() >= 2"#, 19);
        check(r#"device.attributes["dra.example.com"].services.matches("[^a]?sym")"#, 18);
        check(r#"device.capacity.exists_one(x, x == "dra.example.com")"#, 164);
        check(r#"device.capacity["dra.example.com"].exists_one(x, x == "memory")"#, 133);
        check("device.allowMultipleAllocations == true", 3);
    }

    #[test]
    fn refused() {
        let check = |expression: &str, expected: &[&str]| {
            let mut errs = ErrorList::new();
            validate(&mut errs, &Path::new("expression"), expression);
            let errs: Vec<String> = errs.iter().map(ToString::to_string).collect();
            assert_eq!(errs, expected, "{expression}");
        };
        check(r#"device.attributes["a"].b"#, &[]);
        check("1", &["expression: Invalid value: \"1\": must evaluate to bool or the unknown type, not int"]);
        check(
            "noSuchVar",
            &[
                "expression: Invalid value: \"noSuchVar\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'noSuchVar' (in container '')\n | noSuchVar\n | ^",
            ],
        );
        let deep = (0..7).fold("int('1'.find('[0-9]*')) < 100".to_string(), |inner, n| {
            format!("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(x{n}, {inner})")
        });
        check(&deep, &["expression: Forbidden: too complex, exceeds cost limit"]);
        check(
            &format!("'{}' == ''", "x".repeat(MAX_LENGTH)),
            &["expression: Too long: may not be more than 10240 bytes"],
        );
    }
}
