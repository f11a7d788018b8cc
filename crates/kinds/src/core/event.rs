//! Event: what happened to an object. Two API groups serve the same stored objects in two shapes: the core group's
//! (which is stored) and `events.k8s.io`'s.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Map, Value};

use crate::cursor::{Cursor, same};
use crate::duration::age;
use crate::validate::{invalids, qualified_name, require_text};
use crate::{Conversion, NameRule, Strategy, metadata};

/// The strategy of core `v1` Events.
pub struct Event;

/// The strategy of `events.k8s.io/v1` Events, in that group's shape. Its rules are stricter.
pub struct EventsEvent;

/// Field names that differ: core's and `events.k8s.io`'s.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

const EVENTS_ORDER: [&str; 17] = [
    "kind",
    "apiVersion",
    "metadata",
    "eventTime",
    "series",
    "reportingController",
    "reportingInstance",
    "action",
    "reason",
    "regarding",
    "related",
    "note",
    "type",
    "deprecatedSource",
    "deprecatedFirstTimestamp",
    "deprecatedLastTimestamp",
    "deprecatedCount",
];
const CORE_ORDER: [&str; 17] = [
    "kind",
    "apiVersion",
    "metadata",
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "series",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

fn convert(
    event: &Value,
    rename: impl Fn(&str) -> Option<&'static str>,
    order: &[&str],
    version: &str,
) -> Value {
    let mut renamed: Map =
        event.entries().map(|(key, value)| (rename(key).unwrap_or(key).into(), value.clone())).collect();
    renamed.insert("apiVersion".into(), version.into());
    let mut out = Map::new();
    for key in order {
        if let Some(value) = renamed.remove(key) {
            out.insert((*key).into(), value);
        }
    }
    out.extend(renamed);
    Value::Object(out)
}

/// An `events.k8s.io/v1` Event in the core group's shape, which is the one that is stored.
fn to_core(event: &Value) -> Value {
    let rename = |key: &str| RENAMED.iter().find(|(_, new)| *new == key).map(|(core, _)| *core);
    convert(event, rename, &CORE_ORDER, "v1")
}

/// A core Event in the shape of `events.k8s.io/v1`.
fn to_events(event: &Value) -> Value {
    let rename = |key: &str| RENAMED.iter().find(|(core, _)| *core == key).map(|(_, new)| *new);
    convert(event, rename, &EVENTS_ORDER, "events.k8s.io/v1")
}

/// What both versions check, on the core shape. Old clients left most fields out; `eventTime` marks the newer ones.
fn validate_legacy(event: &Value, controller_field: &str) -> ErrorList {
    const MISMATCH: &str = "does not match event.namespace";
    let mut errs = ErrorList::new();
    let namespace = event["metadata"]["namespace"].text();
    let object_namespace = event["involvedObject"]["namespace"].text();
    let timed = event["eventTime"].is_set();
    let agree = match object_namespace {
        "" => {
            namespace == "default" || (if timed { namespace == "kube-system" } else { namespace.is_empty() })
        }
        other => timed || namespace == other,
    };
    if !agree {
        let at = Path::new("involvedObject").child("namespace");
        errs.push(field::invalid(&at, object_namespace, MISMATCH));
    }
    if timed {
        let controller = event["reportingComponent"].text();
        require_text(&mut errs, &Path::new(controller_field), controller);
        qualified_name(&mut errs, &Path::new(controller_field), controller);
        for key in ["reportingInstance", "action", "reason"] {
            require_text(&mut errs, &Path::new(key), event[key].text());
            limit(&mut errs, key, event[key].text(), 128);
        }
        limit(&mut errs, "message", event["message"].text(), 1024);
    }
    invalids(&mut errs, &Path::new("namespace"), namespace, names::is_dns1123_subdomain(namespace));
    errs
}

fn limit(errs: &mut ErrorList, name: &str, value: &str, most: usize) {
    if value.len() > most {
        errs.push(field::invalid(&Path::new(name), "", format!("can have at most {most} characters")));
    }
}

/// What `events.k8s.io/v1` checks besides, on the core shape: the old fields stay empty.
fn validate_strict(event: &Value) -> ErrorList {
    let mut errs = validate_legacy(event, "reportingController");
    errs.extend(metadata::validate_object_meta(event, true, NameRule::DnsSubdomain));
    validate_series(&mut errs, event);
    if !event["eventTime"].is_set() {
        errs.push(field::required(&Path::new("eventTime"), ""));
    }
    let kind = event["type"].text();
    if !matches!(kind, "Normal" | "Warning") {
        errs.push(field::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
    }
    let source = &event["source"];
    let sourced = !(source["component"].is_empty() && source["host"].is_empty());
    for (key, used) in [
        ("firstTimestamp", event["firstTimestamp"].is_set()),
        ("lastTimestamp", event["lastTimestamp"].is_set()),
        ("count", event["count"].int() != 0),
        ("source", sourced),
    ] {
        if used {
            errs.push(field::invalid(&Path::new(key), "", "needs to be unset"));
        }
    }
    errs
}

/// A series has happened more than once, the last time at some time.
fn validate_series(errs: &mut ErrorList, event: &Value) {
    let series = &event["series"];
    if !series.is_set() {
        return;
    }
    if series["count"].int() < 2 {
        errs.push(field::invalid(&Path::new("series.count"), "", "should be at least 2"));
    }
    if !series["lastObservedTime"].is_set() {
        errs.push(field::required(&Path::new("series.lastObservedTime"), ""));
    }
}

/// A client of the newer API may count repetitions, and change nothing else.
fn validate_strict_update(event: &Value, old: &Value) -> ErrorList {
    /// In upstream's order, which has one of them twice.
    const FIXED: [&str; 14] = [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "reason",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ];
    let mut errs = validate_legacy(event, "reportingController");
    errs.extend(metadata::validate_object_meta_update(event, old));
    if !same(&event["series"], &old["series"]) {
        validate_series(&mut errs, event);
    }
    for key in FIXED {
        let name = if key == "reportingComponent" { "reportingController" } else { key };
        errs.extend(metadata::validate_immutable(&event[key], &old[key], &Path::new(name)));
    }
    errs
}

/// Last Seen, Type, Reason, Object, Subobject, Source, Message, First Seen, Count, Name; from the core shape.
fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let or = |a: &Value, b: &Value| if a.is_set() { a.text().to_owned() } else { b.text().to_owned() };
    let first = age(&or(&event["firstTimestamp"], &event["eventTime"]), now);
    let mut last =
        if event["lastTimestamp"].is_set() { age(event["lastTimestamp"].text(), now) } else { first.clone() };
    let mut count = event["count"].int().max(1);
    let series = &event["series"];
    if series.is_set() {
        last = age(series["lastObservedTime"].text(), now);
        count = series["count"].int();
    }
    let object = &event["involvedObject"];
    let kind = object["kind"].text().to_lowercase();
    let target = match object["name"].text() {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let pick = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
    let component = pick(event["source"]["component"].text(), event["reportingComponent"].text());
    let host = pick(event["source"]["host"].text(), event["reportingInstance"].text());
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        last.into(),
        event["type"].text().into(),
        event["reason"].text().into(),
        target.into(),
        object["fieldPath"].text().into(),
        source.into(),
        event["message"].text().trim().into(),
        first.into(),
        count.into(),
        event["metadata"]["name"].text().into(),
    ]
}

/// The selectable field `label` with `object` as the name of the involved object, from the core shape.
fn selectable(event: &Value, label: &str, object: &str, component: &str) -> Option<String> {
    if let Some(key) = label.strip_prefix(object).and_then(|l| l.strip_prefix('.')) {
        const KEYS: [&str; 7] =
            ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
        return KEYS.contains(&key).then(|| event["involvedObject"][key].text().to_owned());
    }
    match label {
        "type" | "reason" => Some(event[label].text().to_owned()),
        _ if label == component => Some(event["reportingComponent"].text().to_owned()),
        "source" if object == "involvedObject" => {
            let source = event["source"]["component"].text();
            let source = if source.is_empty() { event["reportingComponent"].text() } else { source };
            Some(source.to_owned())
        }
        _ => crate::metadata_field(true, event, label),
    }
}

impl Strategy for Event {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate_legacy(obj, "reportingComponent")
    }

    fn validate_update(&self, obj: &Value, _old: &Value) -> ErrorList {
        validate_legacy(obj, "reportingComponent")
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        selectable(obj, label, "involvedObject", "reportingComponent")
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        cells(obj, now)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

impl Strategy for EventsEvent {
    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate_strict(&to_core(obj))
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validate_strict_update(&to_core(obj), &to_core(old))
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        selectable(&to_core(obj), label, "regarding", "reportingController")
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        cells(&to_core(obj), now)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// The conversion between `events.k8s.io/v1` and the stored core `v1`.
pub struct EventsV1;

/// Fields that core events always print.
const PRINTED: [&str; 7] = [
    "involvedObject",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "eventTime",
    "reportingComponent",
    "reportingInstance",
];

impl Conversion for EventsV1 {
    fn strategy(&self) -> &'static dyn Strategy {
        &EventsEvent
    }

    fn stored_kind(&self) -> (&'static str, &'static str) {
        ("", "Event")
    }

    fn to_stored(&self, served: Value) -> Value {
        let mut event = to_core(&served);
        let missing: Vec<&str> = PRINTED.into_iter().filter(|key| event.get(key).is_none()).collect();
        if missing.is_empty() {
            return event;
        }
        for key in missing {
            event[key] = match key {
                "involvedObject" | "source" => Value::Object(Map::new()),
                "reportingComponent" | "reportingInstance" => "".into(),
                _ => Value::Null,
            };
        }
        to_core(&event)
    }

    fn to_served(&self, stored: Value) -> Value {
        to_events(&stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::json;

    #[test]
    fn two_shapes_of_one_event() {
        let core = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "x"}, "involvedObject": {"kind": "Pod"},
            "reason": "R", "message": "n", "source": {}, "firstTimestamp": null, "lastTimestamp": null, "type": "Normal",
            "eventTime": "2020-01-01T00:00:00.000000Z", "action": "A", "reportingComponent": "c", "reportingInstance": "i"});
        let events = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "x"},
            "eventTime": "2020-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "A", "reason": "R",
            "regarding": {"kind": "Pod"}, "note": "n", "type": "Normal", "deprecatedSource": {}, "deprecatedFirstTimestamp": null,
            "deprecatedLastTimestamp": null});
        assert_eq!(to_events(&core).to_string(), events.to_string());
        assert_eq!(to_core(&events).to_string(), core.to_string());
        let bare = json!({"apiVersion": "events.k8s.io/v1", "note": "n"});
        assert_eq!(
            EventsV1.to_stored(bare),
            json!({"apiVersion": "v1", "message": "n", "involvedObject": {}, "source": {}, "firstTimestamp": null,
                "lastTimestamp": null, "eventTime": null, "reportingComponent": "", "reportingInstance": ""})
        );
    }

    #[test]
    fn namespaces_agree() {
        let with = |ns: &str| json!({"metadata": {"namespace": "team"}, "involvedObject": {"kind": "Pod", "namespace": ns}});
        check_create("", "Event", with("team"), &[]);
        let wrong = |ns: &str| {
            format!("involvedObject.namespace: Invalid value: {ns:?}: does not match event.namespace")
        };
        check_create("", "Event", with("other"), &[&wrong("other")]);
        check_create("", "Event", with(""), &[&wrong("")]);
    }

    /// An event of the newer API with these changes.
    fn event(changes: Value) -> Value {
        let mut event = json!({"regarding": {"kind": "Pod", "namespace": "default"}, "type": "Normal",
            "eventTime": "2020-01-01T00:00:00.000000Z", "action": "A", "reason": "R", "note": "n",
            "reportingController": "c.io/x", "reportingInstance": "i", "deprecatedSource": {},
            "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null});
        for (key, value) in changes.entries() {
            event[key.as_str()] = value.clone();
        }
        event
    }

    #[test]
    fn the_newer_api_is_strict() {
        let check = |changes: Value, expected: &[&str]| {
            check_create("events.k8s.io", "Event", event(changes), expected);
        };
        const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        let long = "x".repeat(129);
        check(json!({}), &[]);
        check(json!({"regarding": {"kind": "Pod", "namespace": "other"}}), &[]);
        check(json!({"eventTime": null}), &["eventTime: Required value"]);
        check(json!({"type": "Foo"}), &["type: Invalid value: \"\": has invalid value: Foo"]);
        check(json!({"type": ""}), &["type: Invalid value: \"\": has invalid value: "]);
        check(
            json!({"reportingController": "", "reportingInstance": "", "action": "", "reason": ""}),
            &[
                "reportingController: Required value",
                "reportingController: Invalid value: \"\": name part must be non-empty",
                &format!("reportingController: Invalid value: \"\": {NAME}"),
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Required value",
            ],
        );
        check(
            json!({"reportingController": "a b"}),
            &[&format!("reportingController: Invalid value: \"a b\": {NAME}")],
        );
        check(
            json!({"reportingInstance": long, "action": long, "reason": long, "note": "x".repeat(1025)}),
            &[
                "reportingInstance: Invalid value: \"\": can have at most 128 characters",
                "action: Invalid value: \"\": can have at most 128 characters",
                "reason: Invalid value: \"\": can have at most 128 characters",
                "message: Invalid value: \"\": can have at most 1024 characters",
            ],
        );
        check(
            json!({"series": {"count": 1, "lastObservedTime": null}}),
            &[
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
            ],
        );
        check(
            json!({"deprecatedFirstTimestamp": "2020-01-01T00:00:00Z", "deprecatedLastTimestamp": "2020-01-01T00:00:00Z",
                "deprecatedCount": 1, "deprecatedSource": {"host": "h"}}),
            &[
                "firstTimestamp: Invalid value: \"\": needs to be unset",
                "lastTimestamp: Invalid value: \"\": needs to be unset",
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
            ],
        );
    }

    #[test]
    fn updates() {
        let check = |changes: Value, expected: &[&str]| {
            check_update("events.k8s.io", "Event", event(changes), event(json!({})), expected);
        };
        let series = |count: i64| json!({"count": count, "lastObservedTime": "2020-01-01T00:00:01.000000Z"});
        check(json!({}), &[]);
        check(json!({"series": series(2)}), &[]);
        check(json!({"series": series(1)}), &["series.count: Invalid value: \"\": should be at least 2"]);
        check(json!({"note": "m"}), &["message: Invalid value: \"m\": field is immutable"]);
        check(json!({"related": {}}), &["related: Invalid value: {}: field is immutable"]);
        check(
            json!({"reason": "S", "reportingController": "d"}),
            &[
                "reason: Invalid value: \"S\": field is immutable",
                "reason: Invalid value: \"S\": field is immutable",
                "reportingController: Invalid value: \"d\": field is immutable",
            ],
        );
        check(
            json!({"action": ""}),
            &["action: Required value", "action: Invalid value: \"\": field is immutable"],
        );
        let core = |changes: Value| to_core(&event(changes));
        check_update("", "Event", core(json!({"reason": "S"})), core(json!({})), &[]);
        check_update(
            "",
            "Event",
            core(json!({"reportingController": ""})),
            core(json!({})),
            &[
                "reportingComponent: Required value",
                "reportingComponent: Invalid value: \"\": name part must be non-empty",
                "reportingComponent: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "",
            "Event",
            json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "R", "message": " m\n",
                "firstTimestamp": "2024-01-01T22:00:00Z", "lastTimestamp": "2024-01-01T23:59:00Z", "count": 4, "source": {"component": "kubelet", "host": "n"}}),
            json!(["60s", "Normal", "R", "pod/p", "", "kubelet, n", "m", "120m", 4, "e"]),
        );
    }
}
