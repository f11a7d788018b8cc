use orlop_json::json;

use super::{declared, show};
use crate::{Budget, EnvironmentBuilder, Val, Vars};

/// Evaluates over a declared `self`.
fn run(schema: orlop_json::Value, value: orlop_json::Value, expression: &str) -> Result<String, String> {
    let decl = declared(schema);
    let environment = EnvironmentBuilder::kubernetes().variable("self", decl.ty.clone()).build();
    let program = environment.compile(expression).map_err(|error| error.to_string())?;
    let this = Val::from_declared(&value, &decl).map_err(|error| error.to_string())?;
    let vars = Vars(vec![("self", this)]);
    program
        .eval(&vars, &mut Budget::new(1_000_000))
        .map(|value| show(&value))
        .map_err(|error| error.to_string())
}

#[test]
fn values_by_schema() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "integer"},
        "a-b": {"type": "string"},
        "namespace": {"type": "string"},
        "t": {"type": "string", "format": "date-time"},
        "day": {"type": "string", "format": "date"},
        "d": {"type": "string", "format": "duration"},
        "bytes": {"type": "string", "format": "byte"},
        "q": {"x-kubernetes-int-or-string": true},
        "f": {"type": "number"},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "m": {"type": "object", "additionalProperties": {"type": "string"}},
        "hidden": {"x-kubernetes-preserve-unknown-fields": true},
    }});
    let value = json!({
        "a": 0, "a-b": "x", "namespace": "n", "t": "2020-01-01T00:00:00Z", "day": "2020-01-02", "d": "2h",
        "bytes": "YWI=", "q": "3Gi", "f": 1, "set": ["b", "a"],
        "map": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "m": {"z": "y"}, "hidden": 1,
    });
    let cases = [
        ("self.a == 0", "true"),
        ("10 / self.a > 1", "error: division by zero"),
        ("self.a__dash__b + self.__namespace__", "\"xn\""),
        ("self.t < timestamp('2020-01-01T00:00:01Z')", "true"),
        ("self.day > self.t", "true"),
        ("self.d < duration('1h')", "false"),
        ("self.bytes == b'ab'", "true"),
        ("quantity(string(self.q)).isLessThan(quantity('2Gi'))", "false"),
        ("type(self.q) == string", "true"),
        ("self.f == 1.0", "true"),
        ("self.set == ['a', 'b']", "true"),
        ("self.set + ['a', 'c']", "[\"b\",\"a\",\"c\"]"),
        ("self.map == self.map.reverse()", "true"),
        ("(self.map + self.map.map(x, x)).size()", "2"),
        ("self.map.exists(x, x.k == 'y' && x.v == 2)", "true"),
        ("!has(self.m) || self.m['k'] == 'v'", "error: no such key: k"),
        ("has(self.m.z) && !has(self.m.k)", "true"),
    ];
    for (expression, want) in cases {
        let got =
            run(schema.clone(), value.clone(), expression).unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(got, want, "{expression}");
    }
    assert_eq!(
        run(schema.clone(), value.clone(), "self.hidden == 1").unwrap_err(),
        "ERROR: <input>:1:5: undefined field 'hidden'\n | self.hidden == 1\n | ....^"
    );
    assert_eq!(
        run(schema, value, "self.a + self.a__dash__b == 1").unwrap_err(),
        "ERROR: <input>:1:8: found no matching overload for '_+_' applied to '(int, string)'\n | self.a + self.a__dash__b == 1\n | .......^"
    );
}

#[test]
fn estimates() {
    let schema = json!({"type": "object", "properties": {
        "s": {"type": "string", "maxLength": 10},
        "t": {"type": "string"},
        "l": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 10}},
        "u": {"type": "array", "items": {"type": "integer"}},
        "a": {"type": "integer"},
    }});
    let decl = declared(schema);
    let environment = EnvironmentBuilder::kubernetes().variable("self", decl.ty.clone()).build();
    let cases = [
        ("self.a > 1", 3, 3),
        ("self.s == 'abc'", 3, 3),
        ("has(self.a)", 1, 1),
        ("self.l.all(x, x == 'a')", 3, 28),
        ("self.a > 1 && self.s == 'x'", 3, 6),
        ("self.s.contains('a')", 2, 6),
        ("self.l.exists(x, x.startsWith('a'))", 3, 33),
    ];
    for (expression, min, max) in cases {
        let program = environment.compile(expression).unwrap();
        let estimate = program.estimate_cost(|_| Some(&decl));
        assert_eq!((estimate.min, estimate.max), (min, max), "{expression}");
    }
}
