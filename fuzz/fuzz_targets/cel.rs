//! Expressions of any sort: compiled, estimated and evaluated within a budget.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orlop_cel::{Budget, Environment, EnvironmentBuilder, Type, Val, Vars};
use orlop_json::{Value, json};

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    EnvironmentBuilder::kubernetes()
        .variable("s", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("m", Type::map(Type::String, Type::Int))
        .variable("o", Type::Dyn)
        .build()
});
static DATA: LazyLock<Value> = LazyLock::new(|| {
    json!({"s": "hello", "l": [1, 2, 3], "m": {"a": 1}, "o": {"spec": {"replicas": 3, "names": ["x"]}}})
});

fuzz_target!(|expression: &str| {
    let Ok(program) = ENVIRONMENT.compile(expression) else { return };
    let vars = Vars(["s", "l", "m", "o"].into_iter().map(|n| (n, Val::from_json(&DATA[n]))).collect());
    let _ = program.eval(&vars, &mut Budget::new(100_000));
});
