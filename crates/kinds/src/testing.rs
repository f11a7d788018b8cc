//! `check` helpers for data-driven tests: metadata is filled in, errors are compared as the texts upstream prints.
#![allow(clippy::expect_used)]

use orlop_api::field::ErrorList;
use orlop_json::{Value, json};
use pretty_assertions::assert_eq;

use crate::cursor::{Cursor, child};
use crate::{Strategy, strategy};

fn lookup(group: &str, kind: &str) -> &'static dyn Strategy {
    strategy(group, kind).expect("a kind that is built")
}

fn filled(strategy: &dyn Strategy, mut obj: Value) -> Value {
    let meta = child(&mut obj, "metadata");
    if !meta.has("name") {
        meta["name"] = "x".into();
    }
    if strategy.namespaced() && !meta.has("namespace") {
        meta["namespace"] = "default".into();
    }
    obj
}

pub(crate) fn texts(errs: &ErrorList) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

/// Defaults and validates a new object.
pub(crate) fn check_create(group: &str, kind: &str, obj: Value, expected: &[&str]) {
    let s = lookup(group, kind);
    let mut obj = filled(s, obj);
    s.defaults(&mut obj);
    s.prepare_create(&mut obj);
    assert_eq!(texts(&s.validate_create(&obj)), expected, "{obj}");
}

/// Defaults both and validates the update.
pub(crate) fn check_update(group: &str, kind: &str, obj: Value, old: Value, expected: &[&str]) {
    let s = lookup(group, kind);
    let mut old = filled(s, old);
    s.defaults(&mut old);
    s.prepare_create(&mut old);
    old["metadata"]["resourceVersion"] = "1".into();
    let mut obj = filled(s, obj);
    s.defaults(&mut obj);
    obj["metadata"]["resourceVersion"] = "1".into();
    if old["metadata"].has("generation") {
        obj["metadata"]["generation"] = old["metadata"]["generation"].clone();
    }
    s.prepare_update(&mut obj, &old);
    assert_eq!(texts(&s.validate_update(&obj, &old)), expected, "{obj}");
}

/// The warnings about a new object, or about replacing `old`, after defaulting.
pub(crate) fn check_warnings(group: &str, kind: &str, obj: Value, old: Option<Value>, expected: &[&str]) {
    let s = lookup(group, kind);
    let mut obj = filled(s, obj);
    s.defaults(&mut obj);
    let old = old.map(|old| {
        let mut old = filled(s, old);
        s.defaults(&mut old);
        s.prepare_create(&mut old);
        s.prepare_update(&mut obj, &old);
        old
    });
    assert_eq!(s.warnings(&obj, old.as_ref()), expected, "{obj}");
}

/// Validates a write of `/status`.
pub(crate) fn check_status(group: &str, kind: &str, status: Value, old: Value, expected: &[&str]) {
    let s = lookup(group, kind);
    let mut old = filled(s, old);
    s.defaults(&mut old);
    old["metadata"]["resourceVersion"] = "1".into();
    let mut obj = old.clone();
    obj["status"] = status;
    s.prepare_status_update(&mut obj, &old);
    assert_eq!(texts(&s.validate_status_update(&obj, &old)), expected, "{obj}");
}

/// The object after defaulting.
pub(crate) fn check_defaults(group: &str, kind: &str, mut obj: Value, expected: Value) {
    lookup(group, kind).defaults(&mut obj);
    assert_eq!(obj, expected);
}

/// The printed cells one day after 2024-01-01.
pub(crate) fn check_cells(group: &str, kind: &str, obj: Value, expected: Value) {
    let now = "2024-01-02T00:00:00Z".parse().expect("a time");
    let cells = lookup(group, kind).cells(&obj, now);
    assert_eq!(json!(cells), expected, "{obj}");
}
