//! Tables of expressions: their values, the errors of compiling and evaluating them, their costs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod compile;
mod costs;
mod declared;
mod hostile;
mod policies;
mod values;

use orlop_json::{Value, json};

use crate::{Budget, DeclType, Environment, EnvironmentBuilder, RUNTIME_BUDGET, Type, Val, Vars};

/// Variables of the tables.
fn data() -> Value {
    json!({
        "i": 7, "s": "hello", "b": true, "d": 2.5, "n": null,
        "l": [1, 2, 3], "ls": ["a", "b", "c"], "m": {"a": 1, "b": 2},
        "o": {"spec": {"replicas": 3, "paused": false, "names": ["x", "y"], "tags": {"k": "v"}}, "x.y": 1},
    })
}

fn environment() -> Environment {
    EnvironmentBuilder::kubernetes()
        .variable("i", Type::Int)
        .variable("s", Type::String)
        .variable("b", Type::Bool)
        .variable("d", Type::Double)
        .variable("n", Type::Dyn)
        .variable("l", Type::list(Type::Int))
        .variable("ls", Type::list(Type::String))
        .variable("m", Type::map(Type::String, Type::Int))
        .variable("o", Type::Dyn)
        .build()
}

/// The value, printed, and its cost; or the error.
fn run(expression: &str) -> Result<(String, u64), String> {
    let program = environment().compile(expression).map_err(|error| error.detail())?;
    let data = data();
    let vars = Vars(
        ["i", "s", "b", "d", "n", "l", "ls", "m", "o"]
            .into_iter()
            .map(|name| (name, Val::from_json(&data[name])))
            .collect(),
    );
    let mut budget = Budget::new(RUNTIME_BUDGET);
    let value = program.eval(&vars, &mut budget).map_err(|error| error.to_string())?;
    Ok((show(&value), budget.last_cost()))
}

fn show(value: &Val<'_>) -> String {
    match value {
        Val::Optional(None) => "none".to_owned(),
        Val::Optional(Some(value)) => format!("some({})", show(value)),
        Val::Type(ty) => format!("type {}", ty.name()),
        Val::Opaque(opaque) => format!("{opaque:?}"),
        Val::Uint(u) => format!("{u}u"),
        value => value.to_json().map_or_else(|| value.type_name(), |json| json.to_string()),
    }
}

/// Expressions and the values they have.
fn check(cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (expression, want) in cases {
        let got = match run(expression) {
            Ok((value, _)) => value,
            Err(error) => format!("error: {error}"),
        };
        if got != *want {
            wrong.push(format!("{expression}\n   want {want}\n   got  {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A declaration of an object for `self`.
fn declared(schema: Value) -> std::sync::Arc<DeclType> {
    crate::declare(&schema, "self", false).unwrap()
}
