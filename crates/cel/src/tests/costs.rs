use super::run;

/// Runtime costs, with constants computed beforehand as Kubernetes has it.
#[test]
fn runtime() {
    let cases = [
        ("'Hello World!'", 0),
        ("l", 1),
        ("m['a']", 2),
        ("l[0]", 2),
        ("o.spec", 2),
        ("m['a' + '']", 3),
        ("l[3 - 3]", 3),
        ("has(o.spec)", 1),
        ("has(o.spec.replicas)", 2),
        ("[1, 2, 3]", 0),
        ("[i, 2, 3]", 11),
        ("{'a': i}", 31),
        ("[].all(x, true)", 1),
        ("[1, 2, 3].all(x, true)", 10),
        ("s.matches('[0-9]')", 3),
        ("'123'.matches('[0-9]')", 2),
        ("false || false", 0),
        ("b || true", 1),
        ("1 < 2", 1),
        ("1 == 2", 1),
        ("2 in [1, 2, 3]", 0),
        ("2 in l", 4),
        ("1 + 1", 1),
        ("true ? 1 : 2", 0),
        ("b ? i : 2", 1),
        ("b ? i + 1 : 2", 3),
        ("size('123')", 1),
        ("'12345678901234567890' == '123456789012345678901234567890'", 2),
        ("s.contains(s)", 3),
        ("s.startsWith('h')", 2),
        ("s.size()", 2),
        ("(i > 2 ? l : l).all(y, true)", 2 + 3 * 3 + 1),
        ("m.all(k, m[k] > 0)", 1 + 2 * (2 + 1 + 2 + 1) + 1),
        ("(l + l).all(x, true)", 3 + 6 * 3 + 1),
        ("'abcdefg'.contains(s + s)", 1 + 1 + 1 + 1),
        ("(1 > 2 ? 5 : 3) > 1", 2),
        ("(1 > 2 || 2 > 1) == true", 3),
        ("l.map(x, x)", 1 + 3 * (1 + 1 + 10 + 1) + 1),
        ("l.filter(x, x > 1)", 1 + 3 * 2 + 2 * 13 - 2 + 2 + 1),
        ("duration('1h') < duration('2h')", 1),
        ("quantity('1Gi').isLessThan(quantity('2Gi'))", 3),
        ("isIP('1.2.3.4')", 1),
        ("sets.contains([1, 2], [2])", 3),
        ("[3, 1, 2].sort()", 29),
        ("l.isSorted()", 4),
        ("ls.join('-')", 2),
    ];
    let mut wrong = Vec::new();
    for (expression, want) in cases {
        let (_, cost) = run(expression).unwrap();
        if cost != want {
            wrong.push(format!("{expression}: want {want}, got {cost}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
