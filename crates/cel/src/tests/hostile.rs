use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{environment, run};

/// Each of these ends, soon, in some way.
#[test]
fn bounded() {
    let cases = [
        "(".repeat(5000),
        format!("{}1{}", "(".repeat(240), ")".repeat(240)),
        "!".repeat(90_000) + "true",
        "-".repeat(90_000) + "i",
        vec!["i"; 40_000].join("+"),
        vec!["b"; 20_000].join("&&"),
        format!("o{}", ".a".repeat(40_000)),
        "[".repeat(50_000),
        format!("{}1{}", "[".repeat(200), "]".repeat(200)),
        format!("{}1{}", "{1:".repeat(200), "}".repeat(200)),
        format!("'{}'", "a".repeat(99_000)),
        "'".to_owned(),
        "x".repeat(200_000),
        format!("m.?a{}", ".optMap(x, x)".repeat(60)),
        format!("[1]{}", ".map(x, {x: x})".repeat(100)),
        format!("[1]{}", ".map(x, [x, x])".repeat(100)),
        format!("l{}", ".map(x, x)".repeat(200)),
        "l.all(a, l.all(b, l.all(c, l.all(d, l.all(e, l.all(f, l.all(g, l.all(h, l.all(i, l.all(j, l.all(k, true)))))))))))".to_owned(),
        "lists.range(9000000).size()".to_owned(),
        "lists.range(900000).map(x, lists.range(900000)).size()".to_owned(),
        format!("lists.range(100){}.size()", ".map(x, [x, x]).flatten()".repeat(30)),
        format!("[l]{}", ".map(x, x + x)".repeat(60)),
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaa'.matches('(a*)*b')".to_owned(),
        format!("s.matches('{}')", "(a{1000}){1000}".repeat(3)),
        format!("s{}", ".replace('', s + s)".repeat(30)),
        "0x".to_owned(),
        "1e999".to_owned(),
        "a.b.c{d: 1}".to_owned(),
    ];
    for expression in cases {
        eprintln!("{}", &expression[..expression.len().min(60)]);
        let start = Instant::now();
        let _ = run(&expression);
        assert!(start.elapsed() < Duration::from_secs(20), "{}", &expression[..expression.len().min(60)]);
    }
}

#[test]
fn limits_say_so() {
    assert_eq!(
        run(&"(".repeat(5000)).unwrap_err(),
        "compilation failed: ERROR: <input>:-1:0: expression recursion limit exceeded: 250"
    );
    assert_eq!(
        run(&"x".repeat(200_000)).unwrap_err(),
        "compilation failed: ERROR: <input>:-1:0: expression code point size exceeds limit: size: 200000, limit 100000"
    );
    assert_eq!(
        run("lists.range(900000).all(x, x >= 0)").unwrap_err(),
        "operation cancelled: actual cost limit exceeded"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any text compiles or does not; what compiles evaluates or does not.
    #[test]
    fn never_panics(text in "[a-z0-9'\"(){}\\[\\].,?:!&|+*/%<>=\\\\ \n-]{0,60}") {
        let _ = run(&text);
    }

    /// Texts made of what expressions are made of.
    #[test]
    fn never_panics_on_words(words in proptest::collection::vec(prop::sample::select(vec![
        "i", "s", "l", "m", "o", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "+", "-", "*", "/", "%", "!",
        "==", "<", "&&", "||", " in ", "has(", ".all(x,", ".map(x,", "1", "2u", "1.5", "'a'", "null", "true",
        ".size()", "dyn(", "string(", ".spec", "[?", ".?", "optional.of(", ".orValue(", ".optMap(v,", "x", "v",
        "duration('1s')", ".matches(", ".format([", ".replace('a','b')", "ip('1.1.1.1')", "quantity('1')",
    ]), 0..16)) {
        let _ = run(&words.concat());
    }

    #[test]
    fn compile_is_total(text in any::<String>()) {
        let _ = environment().compile(&text);
    }
}
