//! PriorityLevelConfiguration: how much of the server a level gets, and what happens to requests beyond that.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{mandatory_spec, validate_status};
use crate::cursor::{Cursor, default_empty_to, default_to, remove, same};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of PriorityLevelConfigurations.
pub struct PriorityLevelConfiguration;

const MAX_QUEUES: i64 = 10_000_000;
/// The bits of the hash from which a hand is dealt.
const HASH_BITS: i64 = 60;
const NON_NEGATIVE: &str = "must be a non-negative integer";

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let name = obj["metadata"]["name"].text();
    validate_spec(&mut errs, &path, spec, name);
    if let Some(fixed) = mandatory_spec("priorityLevelConfigurations", name) {
        let (mut wanted, mut found, mut except) = (fixed.clone(), spec.clone(), "");
        if name == "exempt" {
            remove(&mut wanted, "exempt");
            remove(&mut found, "exempt");
            except = " except the 'spec.exempt' field";
        }
        if !same(&wanted, &found) {
            errs.push(field::invalid(
                &path,
                spec.clone(),
                format!("spec of '{name}'{except} must equal the fixed value"),
            ));
        }
    }
    validate_status(&mut errs, obj);
    errs
}

fn percent(errs: &mut ErrorList, path: &Path, value: &Value) {
    if value.is_set() && !(0..=100).contains(&value.int()) {
        errs.push(field::invalid(path, value.int(), "must be between 0 and 100, inclusive"));
    }
}

fn shares(errs: &mut ErrorList, path: &Path, value: &Value) {
    if value.int() < 0 {
        errs.push(field::invalid(path, value.int(), NON_NEGATIVE));
    }
}

fn validate_spec(errs: &mut ErrorList, path: &Path, spec: &Value, name: &str) {
    let kind = spec["type"].text();
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    if (name == "exempt") != (kind == "Exempt") {
        errs.push(field::invalid(
            &path.child("type"),
            kind,
            "type must be 'Exempt' if and only if name is 'exempt'",
        ));
    }
    match kind {
        "Exempt" => {
            if limited.is_set() {
                errs.push(field::forbidden(&path.child("limited"), "must be nil if the type is not Limited"));
            }
            if exempt.is_set() {
                let path = path.child("exempt");
                shares(errs, &path.child("nominalConcurrencyShares"), &exempt["nominalConcurrencyShares"]);
                percent(errs, &path.child("lendablePercent"), &exempt["lendablePercent"]);
            }
        }
        "Limited" => {
            if exempt.is_set() {
                errs.push(field::forbidden(&path.child("exempt"), "must be nil if the type is Limited"));
            }
            if limited.is_set() {
                validate_limited(errs, &path.child("limited"), limited);
            } else {
                errs.push(field::required(&path.child("limited"), "must not be empty when type is Limited"));
            }
        }
        other => errs.push(field::not_supported(&path.child("type"), other, &["Exempt", "Limited"])),
    }
}

fn validate_limited(errs: &mut ErrorList, path: &Path, limited: &Value) {
    shares(errs, &path.child("nominalConcurrencyShares"), &limited["nominalConcurrencyShares"]);
    let (response, at) = (&limited["limitResponse"], path.child("limitResponse"));
    let queuing = &response["queuing"];
    match response["type"].text() {
        "Reject" => {
            if queuing.is_set() {
                errs.push(field::forbidden(
                    &at.child("queuing"),
                    "must be nil if limited.limitResponse.type is not Limited",
                ));
            }
        }
        "Queue" => {
            if queuing.is_set() {
                validate_queuing(errs, &at.child("queuing"), queuing);
            } else {
                errs.push(field::required(
                    &at.child("queuing"),
                    "must not be empty if limited.limitResponse.type is Limited",
                ));
            }
        }
        other => errs.push(field::not_supported(&at.child("type"), other, &["Queue", "Reject"])),
    }
    percent(errs, &path.child("lendablePercent"), &limited["lendablePercent"]);
    let borrowing = limited["borrowingLimitPercent"].int();
    if borrowing < 0 {
        errs.push(field::invalid(
            &path.child("borrowingLimitPercent"),
            borrowing,
            "if specified, must be a non-negative integer",
        ));
    }
}

/// How many bits it takes to deal `hand` cards from a deck of `deck`.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    // Both are below 2^31, and the result is compared with 60.
    ((deck as f64).log2() * hand as f64).ceil() as i64
}

fn validate_queuing(errs: &mut ErrorList, path: &Path, queuing: &Value) {
    const POSITIVE: &str = "must be positive";
    let limit = queuing["queueLengthLimit"].int();
    if limit <= 0 {
        errs.push(field::invalid(&path.child("queueLengthLimit"), limit, POSITIVE));
    }
    let (queues, at) = (queuing["queues"].int(), path.child("queues"));
    if queues <= 0 {
        errs.push(field::invalid(&at, queues, POSITIVE));
    } else if queues > MAX_QUEUES {
        errs.push(field::invalid(&at, queues, format!("must not be greater than {MAX_QUEUES}")));
    }
    let (hand, at) = (queuing["handSize"].int(), path.child("handSize"));
    if hand <= 0 {
        errs.push(field::invalid(&at, hand, POSITIVE));
    } else if hand > queues {
        errs.push(field::invalid(&at, hand, format!("should not be greater than queues ({queues})")));
    } else if entropy_bits(queues, hand) > HASH_BITS {
        errs.push(field::invalid(
            &at,
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
            ),
        ));
    }
}

impl Strategy for PriorityLevelConfiguration {
    common_rules!();

    fn defaults(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec") else { return };
        for (key, share) in [("limited", 30), ("exempt", 0)] {
            if let Some(settings) = spec.get_mut(key).filter(|s| s.is_set()) {
                default_to(settings, "nominalConcurrencyShares", share);
                default_to(settings, "lendablePercent", 0);
            }
        }
        if let Some(queuing) = spec.pointer_mut("/limited/limitResponse/queuing").filter(|q| q.is_set()) {
            default_empty_to(queuing, "handSize", 8);
            default_empty_to(queuing, "queues", 64);
            default_empty_to(queuing, "queueLengthLimit", 50);
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let (limited, queuing) = (&spec["limited"], &spec["limited"]["limitResponse"]["queuing"]);
        let number = |holder: &Value, key: &str| -> Value {
            if holder.is_set() { holder[key].int().into() } else { "<none>".into() }
        };
        vec![
            printer::name(obj),
            spec["type"].text().into(),
            number(limited, "nominalConcurrencyShares"),
            number(queuing, "queues"),
            number(queuing, "handSize"),
            number(queuing, "queueLengthLimit"),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_create, check_defaults};
    use orlop_json::json;

    const GROUP: &str = "flowcontrol.apiserver.k8s.io";
    const KIND: &str = "PriorityLevelConfiguration";

    #[test]
    fn validation() {
        let check = |name: &str, spec: Value, expected: &[&str]| {
            check_create(GROUP, KIND, json!({"metadata": {"name": name}, "spec": spec}), expected);
        };
        let queue = |queuing: Value| json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": queuing}}});
        check("x", queue(json!({})), &[]);
        check(
            "x",
            queue(json!({"queues": 512, "handSize": 8})),
            &[
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60",
            ],
        );
        check(
            "x",
            json!({"type": "Limited", "exempt": {}}),
            &[
                "spec.exempt: Forbidden: must be nil if the type is Limited",
                "spec.limited: Required value: must not be empty when type is Limited",
            ],
        );
        check(
            "x",
            json!({"type": "Exempt"}),
            &["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"],
        );
        check("exempt", json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 10}}), &[]);
        check(
            "x",
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": -1, "lendablePercent": 101, "borrowingLimitPercent": -1,
                "limitResponse": {"type": "Reject", "queuing": {}}}}),
            &[
                "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
                "spec.limited.limitResponse.queuing: Forbidden: must be nil if limited.limitResponse.type is not Limited",
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
                "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer",
            ],
        );
        for row in super::super::bootstrap()["priorityLevelConfigurations"].items() {
            check(row["name"].text(), row["spec"].clone(), &[]);
        }
    }

    #[test]
    fn defaults() {
        check_defaults(
            GROUP,
            KIND,
            json!({"spec": {"limited": {"limitResponse": {"queuing": {}}}}}),
            json!({"spec": {"limited": {"limitResponse": {"queuing": {"handSize": 8, "queues": 64, "queueLengthLimit": 50}},
                "nominalConcurrencyShares": 30, "lendablePercent": 0}}}),
        );
    }
}
