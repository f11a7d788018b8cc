#![allow(clippy::unwrap_used)]
use super::*;

/// Whatever `serde_json` reads and writes, this does too.
#[test]
fn as_serde_json() {
    let check = |text: &str| {
        let ours: Result<Value, _> = from_str(text);
        let theirs: Result<serde_json::Value, _> = serde_json::from_str(text);
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(ours.to_string(), theirs.to_string());
                assert_eq!(format!("{ours:#}"), format!("{theirs:#}"));
                assert_eq!(to_value(&theirs).unwrap(), ours);
                assert_eq!(Value::from(theirs.clone()), ours);
                assert_eq!(from_value::<serde_json::Value>(&ours).unwrap(), theirs);
            }
            (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), theirs.to_string(), "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    };
    let wide = |fields: usize| {
        let fields: Vec<String> = (0..fields).map(|n| format!("\"{n}\":{n}")).collect();
        format!("{{{},\"3\":\"again\"}}", fields.join(","))
    };
    for text in [
        "null",
        "true",
        "0",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "1.5",
        "1e400",
        "-0",
        "\"a\\u00e9\\n\\\"\"",
        "[]",
        "{}",
        "[1,[2,{}],null]",
        r#"{"b":1,"a":{"c":[]},"b":2}"#,
        r#"{"a name that is longer than what stands in place":1}"#,
        "{\"a\":",
        "{1:2}",
        "[1,]",
        "nul",
        "",
    ] {
        check(text);
    }
    for fields in [1, 4, map::SMALL - 1, map::SMALL, map::SMALL + 1, 3 * map::SMALL] {
        check(&wide(fields));
    }
    check(&"[".repeat(127));
    check(&("[".repeat(127) + &"]".repeat(127)));
    check(&("[".repeat(128) + &"]".repeat(128)));
    check(&("{\"a\":".repeat(128) + "1" + &"}".repeat(128)));
}

/// A map of any size does what a list of fields would.
#[test]
fn maps_keep_their_order() {
    for fields in [0, 1, 5, map::SMALL, map::SMALL + 1, 40] {
        let name = |n: usize| Key::from(format!("name-{n}"));
        let mut model: Vec<(Key, Value)> = (0..fields).map(|n| (name(n), json!(n))).collect();
        let mut map: Map = model.clone().into_iter().collect();
        let same = |map: &Map, model: &[(Key, Value)]| {
            assert_eq!(map.len(), model.len());
            assert!(map.iter().eq(model.iter().map(|(k, v)| (k, v))));
            assert!(map.iter().rev().eq(model.iter().rev().map(|(k, v)| (k, v))));
            assert!(model.iter().all(|(k, v)| map.get(k) == Some(v)));
        };
        same(&map, &model);
        // A field that is there keeps its place, a new one is last.
        for n in [0, fields / 2, fields, fields + 1] {
            let before = map.insert(name(n), json!("new"));
            match model.iter_mut().find(|(k, _)| *k == name(n)) {
                Some((_, value)) => assert_eq!(before, Some(std::mem::replace(value, json!("new")))),
                None => {
                    assert_eq!(before, None);
                    model.push((name(n), json!("new")));
                }
            }
            same(&map, &model);
        }
        for n in [1, fields, 99] {
            let at = model.iter().position(|(k, _)| *k == name(n));
            assert_eq!(map.remove(&name(n)), at.map(|at| model.remove(at).1));
            same(&map, &model);
        }
        map.shift_insert(0, "first".into(), json!(1));
        model.insert(0, ("first".into(), json!(1)));
        same(&map, &model);
        let last = model.pop().unwrap();
        let at = model.len().min(1);
        map.shift_insert(at, last.0.clone(), json!(2));
        model.insert(at, (last.0, json!(2)));
        same(&map, &model);
        *map.entry("entry").or_insert(json!(0)) = json!(1);
        map.entry("entry").or_insert_with(|| unreachable!());
        model.push(("entry".into(), json!(1)));
        same(&map, &model);
        let mut other = Map::from([("entry", 3), ("other", 4)]);
        map.append(&mut other);
        assert!(other.is_empty());
        model.last_mut().unwrap().1 = json!(3);
        model.push(("other".into(), json!(4)));
        same(&map, &model);
        map.retain(|name, _| !name.ends_with('1'));
        model.retain(|(name, _)| !name.ends_with('1'));
        same(&map, &model);
        let ordered = map.clone();
        if let Some((name, value)) = model.first().cloned() {
            model.remove(0);
            assert_eq!(map.swap_remove(&name).map(|(value, _)| value), Some(value));
            assert_eq!(map.swap_remove(&name), None);
            map.order_as(&ordered);
            same(&map, &model);
        }
        map.values_mut().for_each(|value| *value = Value::Null);
        model.iter_mut().for_each(|(_, value)| *value = Value::Null);
        same(&map, &model);
        map.sort_keys();
        model.sort_by(|(a, _), (b, _)| a.cmp(b));
        same(&map, &model);
        assert!(map.clone().into_iter().eq(model.clone()));
        map.clear();
        assert!(map.is_empty() && map.get("first").is_none());
    }
}

#[test]
fn equal_in_any_order() {
    let check = |a: Value, b: Value, expected: bool| assert_eq!((a == b, b == a), (expected, expected));
    check(json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), true);
    check(json!({"a": 1, "b": 2}), json!({"b": 1, "a": 2}), false);
    check(json!({"a": 1}), json!({"a": 1, "b": null}), false);
    check(json!({"a": 1, "b": 2}), json!({"a": 1, "c": 2}), false);
    check(json!([1, 2]), json!([2, 1]), false);
    check(json!(1), json!(1.0), false);
    // What was large once.
    let mut large: Map = (0..40).map(|n| (Key::from(n.to_string()), json!(n))).collect();
    large.retain(|name, _| name == "7");
    check(Value::Object(large), json!({"7": 7}), true);
}

#[test]
fn json_in_the_source() {
    let check = |value: Value, expected: &str| assert_eq!(value.to_string(), expected);
    let (name, list) = (String::from("n"), vec!["a", "b"]);
    check(json!(null), "null");
    check(json!([]), "[]");
    check(
        json!([null, [1], {"a": {}}, name, 1 + 1,]),
        r#"[null,[1],{},"n",2]"#.replace("{}", r#"{"a":{}}"#).as_str(),
    );
    check(
        json!({"a": null, "b": [], "c": {"d": true}, (name.clone()): list, "e": Some(-1), "f": None::<bool>, "g": list.concat(),}),
        r#"{"a":null,"b":[],"c":{"d":true},"n":["a","b"],"e":-1,"f":null,"g":"ab"}"#,
    );
    check(json!({"a": [1, 2].len(), "b": json!({"c": 1})["c"]}), r#"{"a":2,"b":1}"#);
    assert_eq!(name, "n");
}

#[test]
fn pointers_and_places() {
    let value = json!({"a/b": {"~": [1, {"c": 2}]}, "": 3});
    let check = |pointer: &str, expected: Option<i64>| {
        assert_eq!(value.pointer(pointer).and_then(Value::as_i64), expected, "{pointer}");
        assert_eq!(value.clone().pointer_mut(pointer).and_then(|v| v.as_i64()), expected, "{pointer}");
        let theirs: serde_json::Value = serde_json::from_str(&value.to_string()).unwrap();
        assert_eq!(theirs.pointer(pointer).and_then(serde_json::Value::as_i64), expected, "{pointer}");
    };
    check("/a~1b/~0/0", Some(1));
    check("/a~1b/~0/1/c", Some(2));
    check("/", Some(3));
    check("/a~1b/~0/00", None);
    check("/a~1b/~0/+1", None);
    check("/a~1b/~0/2", None);
    check("a~1b", None);
    check("/x/y", None);
    let mut value = json!({});
    value["a"]["b"] = json!([1]);
    value["a"]["b"][0] = json!(2);
    assert_eq!((value.to_string().as_str(), &value["x"]["y"][3]), (r#"{"a":{"b":[2]}}"#, &Value::Null));
}
