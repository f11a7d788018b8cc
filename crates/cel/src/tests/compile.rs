use super::{environment, run};

fn check(cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (expression, want) in cases {
        let got = match environment().compile(expression) {
            Ok(program) => format!("type {}", program.output_type()),
            Err(error) => error.to_string(),
        };
        if got != *want {
            wrong.push(format!("{expression}\n   want {want}\n   got  {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn types() {
    check(&[
        ("1", "type int"),
        ("[1, 2]", "type list(int)"),
        ("[]", "type list(dyn)"),
        ("{'a': [1.0]}", "type map(string, list(double))"),
        ("o.a.b", "type dyn"),
        ("m.?a", "type optional_type(int)"),
        ("m[?'a'].orValue(1)", "type int"),
        ("l.map(x, string(x))", "type list(string)"),
        ("l.filter(x, x > 1)", "type list(int)"),
        ("true ? 1 : dyn('a')", "type dyn"),
        ("timestamp(0)", "type google.protobuf.Timestamp"),
        ("m.transformMap(k, v, [v])", "type map(string, list(int))"),
        ("type(1)", "type type(int)"),
        ("ip('1.1.1.1')", "type net.IP"),
        ("quantity('1')", "type kubernetes.Quantity"),
        ("dyn(1) + 1", "type int"),
        ("m.?a.optMap(v, string(v))", "type optional_type(string)"),
    ]);
}

#[test]
fn check_errors() {
    check(&[
        ("foo", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo\n | ^"),
        (
            "1 + foo.bar",
            "ERROR: <input>:1:5: undeclared reference to 'foo' (in container '')\n | 1 + foo.bar\n | ....^",
        ),
        ("foo(1)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(1)\n | ...^"),
        (
            "1 + 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        (
            "1 == 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_==_' applied to '(int, string)'\n | 1 == 'a'\n | ..^",
        ),
        (
            "s.size(1)",
            "ERROR: <input>:1:7: found no matching overload for 'size' applied to 'string.(int)'\n | s.size(1)\n | ......^",
        ),
        (
            "'a'.reverse()",
            "ERROR: <input>:1:12: found no matching overload for 'reverse' applied to 'string.()'\n | 'a'.reverse()\n | ...........^",
        ),
        ("!1", "ERROR: <input>:1:1: found no matching overload for '!_' applied to '(int)'\n | !1\n | ^"),
        ("i.x", "ERROR: <input>:1:2: type 'int' does not support field selection\n | i.x\n | .^"),
        (
            "i.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | i.all(x, true)\n | ^",
        ),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "{'a': 1, 2: 3}",
            "ERROR: <input>:1:10: expected type 'string' but found 'int'\n | {'a': 1, 2: 3}\n | .........^",
        ),
        (
            "b ? 1 : 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_?_:_' applied to '(bool, int, string)'\n | b ? 1 : 'a'\n | ..^",
        ),
        (
            "s == null",
            "ERROR: <input>:1:3: found no matching overload for '_==_' applied to '(string, null)'\n | s == null\n | ..^",
        ),
        ("duration('x')", "ERROR: <input>:1:10: invalid duration argument\n | duration('x')\n | .........^"),
        (
            "timestamp('x')",
            "ERROR: <input>:1:11: invalid timestamp argument\n | timestamp('x')\n | ..........^",
        ),
        (
            "s.matches('(')",
            "ERROR: <input>:1:11: invalid matches argument\n | s.matches('(')\n | ..........^",
        ),
        (
            "s.\nfoo()",
            "ERROR: <input>:2:4: undeclared reference to 'foo' (in container '')\n | foo()\n | ...^",
        ),
        (
            "'é' + x",
            "ERROR: <input>:1:7: undeclared reference to 'x' (in container '')\n | 'é' + x\n | .．....^",
        ),
        (
            "a + c",
            "ERROR: <input>:1:1: undeclared reference to 'a' (in container '')\n | a + c\n | ^\nERROR: <input>:1:5: undeclared reference to 'c' (in container '')\n | a + c\n | ....^",
        ),
        (
            "cel.bind(x, 1, x)",
            "ERROR: <input>:1:1: undeclared reference to 'cel' (in container '')\n | cel.bind(x, 1, x)\n | ^\nERROR: <input>:1:9: undeclared reference to 'bind' (in container '')\n | cel.bind(x, 1, x)\n | ........^\nERROR: <input>:1:10: undeclared reference to 'x' (in container '')\n | cel.bind(x, 1, x)\n | .........^\nERROR: <input>:1:16: undeclared reference to 'x' (in container '')\n | cel.bind(x, 1, x)\n | ...............^",
        ),
    ]);
}

#[test]
fn syntax_errors() {
    const OPERAND: &str =
        "'.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
    let missing = |at: usize, text: &str, caret: &str| {
        format!(
            "ERROR: <input>:1:{at}: Syntax error: mismatched input '<EOF>' expecting {{'[', '{{', '(', {OPERAND}\n | {text}\n | {caret}"
        )
    };
    let cases = [
        ("1 +", missing(4, "1 +", "...^")),
        ("", missing(1, "", "^")),
        ("a b", "ERROR: <input>:1:3: Syntax error: extraneous input 'b' expecting <EOF>\n | a b\n | ..^".to_owned()),
        ("self.", "ERROR: <input>:1:6: Syntax error: no viable alternative at input '.'\n | self.\n | .....^".to_owned()),
        ("(1", "ERROR: <input>:1:3: Syntax error: mismatched input '<EOF>' expecting ')'\n | (1\n | ..^".to_owned()),
        ("a = 1", "ERROR: <input>:1:3: Syntax error: token recognition error at: '= '\n | a = 1\n | ..^\nERROR: <input>:1:5: Syntax error: extraneous input '1' expecting <EOF>\n | a = 1\n | ....^".to_owned()),
        ("package", "ERROR: <input>:1:1: reserved identifier: package\n | package\n | ^".to_owned()),
        ("has(a)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(a)\n | ....^".to_owned()),
        ("l.all(1, true)", "ERROR: <input>:1:7: argument must be a simple name\n | l.all(1, true)\n | ......^".to_owned()),
        ("l.map(1, true)", "ERROR: <input>:1:7: argument is not an identifier\n | l.map(1, true)\n | ......^".to_owned()),
        ("99999999999999999999", "ERROR: <input>:1:1: invalid int literal\n | 99999999999999999999\n | ^".to_owned()),
    ];
    for (expression, want) in cases {
        assert_eq!(environment().compile(expression).unwrap_err().to_string(), want, "{expression}");
    }
}

#[test]
fn instantiation_errors() {
    assert_eq!(
        run("int('x') == 1").unwrap_err(),
        "program instantiation failed: type conversion error from 'string' to 'int'"
    );
    assert_eq!(
        run("foo").unwrap_err().lines().next(),
        Some("compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')")
    );
}

#[test]
fn references() {
    let program = environment().compile("l.all(x, x > i) && has(o.a)").unwrap();
    assert!(program.references("i") && program.references("o"));
    assert!(!program.references("s") && !program.references("x.y"));
}
