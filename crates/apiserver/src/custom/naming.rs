//! Which names a definition gets, and the conditions that say so. Of several definitions of a group that want the same
//! name, the one that has it keeps it.
//!
//! Answers to upstream's naming, establishing and API approval controllers. Pure.

use orlop_json::{Value, json};
use orlop_structural::definition::api_approval;

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn texts<'a>(value: &'a Value, field: &str) -> Vec<&'a str> {
    value.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Sets a condition; its time changes only with its status.
pub fn set_condition(object: &mut Value, kind: &str, status: bool, reason: &str, message: &str, now: &str) {
    let status = if status { "True" } else { "False" };
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    let mut condition = json!({
        "type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message,
    });
    match conditions.iter_mut().find(|known| text(known, "type") == kind) {
        Some(known) => {
            if text(known, "status") == status {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// The names that others of the group have: of resources and of kinds.
#[derive(Default)]
struct Taken {
    resources: Vec<String>,
    kinds: Vec<String>,
}

impl Taken {
    fn by<'a>(accepted: impl Iterator<Item = &'a Value>) -> Taken {
        let mut taken = Taken::default();
        for names in accepted {
            taken.resources.extend([text(names, "plural"), text(names, "singular")].map(String::from));
            taken.resources.extend(texts(names, "shortNames").into_iter().map(String::from));
            taken.kinds.extend([text(names, "kind"), text(names, "listKind")].map(String::from));
        }
        taken
    }
}

fn fresh(wanted: &str, accepted: &str, taken: &[String]) -> Result<(), String> {
    if wanted == accepted || !taken.iter().any(|name| name == wanted) {
        return Ok(());
    }
    Err(format!("{wanted:?} is already in use"))
}

/// The definition with its names and conditions as they must be, next to the `acceptedNames` of its group.
pub fn settle<'a>(definition: &Value, group: impl Iterator<Item = &'a Value>, now: &str) -> Value {
    let taken = Taken::by(group);
    let wanted = definition.pointer("/spec/names").cloned().unwrap_or_default();
    let accepted = definition.pointer("/status/acceptedNames").cloned().unwrap_or_default();
    let mut names = accepted.clone();
    if !names.is_object() {
        names = json!({});
    }
    let mut conflict: Option<(&str, String)> = None;
    for (field, list, reason) in
        [("plural", &taken.resources, "PluralConflict"), ("singular", &taken.resources, "SingularConflict")]
    {
        match fresh(text(&wanted, field), text(&accepted, field), list) {
            Ok(()) => names[field] = text(&wanted, field).into(),
            Err(why) => conflict = Some((reason, why)),
        }
    }
    let own = texts(&accepted, "shortNames");
    let refused: Vec<String> = texts(&wanted, "shortNames")
        .into_iter()
        .filter(|name| !own.contains(name))
        .filter_map(|name| fresh(name, "", &taken.resources).err())
        .collect();
    match refused.as_slice() {
        [] => copy(&mut names, &wanted, "shortNames"),
        [only] => conflict = Some(("ShortNamesConflict", only.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        match fresh(text(&wanted, field), text(&accepted, field), &taken.kinds) {
            Ok(()) => names[field] = text(&wanted, field).into(),
            Err(why) => conflict = Some((reason, why)),
        }
    }
    copy(&mut names, &wanted, "categories");
    if names.get("kind").is_none() {
        names["kind"] = "".into();
    }

    let mut out = definition.clone();
    out["status"]["acceptedNames"] = names;
    let established = orlop_structural::definition::is_condition_true(definition, "Established");
    match conflict {
        Some((reason, why)) => {
            set_condition(&mut out, "NamesAccepted", false, reason, &why, now);
            let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
            if !conditions.into_iter().flatten().any(|known| text(known, "type") == "Established") {
                let message = "not all names are accepted";
                set_condition(&mut out, "Established", false, "NotAccepted", message, now);
            }
        }
        None => {
            set_condition(&mut out, "NamesAccepted", true, "NoConflicts", "no conflicts found", now);
            if !established {
                let message = "the initial names have been accepted";
                set_condition(&mut out, "Established", false, "Installing", message, now);
            }
        }
    }
    if let Some((reason, approved, message)) = api_approval(definition) {
        set_condition(&mut out, "KubernetesAPIApprovalPolicyConformant", approved, reason, &message, now);
    }
    out
}

fn copy(names: &mut Value, wanted: &Value, field: &str) {
    let Some(map) = names.as_object_mut() else { return };
    match wanted.get(field).filter(|value| !value.is_null()) {
        Some(value) => {
            map.insert(field.into(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

/// The definition with its establishment written down.
pub fn establish(definition: &Value, now: &str) -> Value {
    let mut out = definition.clone();
    let message = "the initial names have been accepted";
    set_condition(&mut out, "Established", true, "InitialNamesAccepted", message, now);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use pretty_assertions::assert_eq;

    fn definition(plural: &str, kind: &str, short: &[&str], accepted: Value) -> Value {
        json!({
            "spec": {"group": "g.io", "names": {"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind,
                "listKind": format!("{kind}List"), "shortNames": short}},
            "status": {"conditions": null, "acceptedNames": accepted},
        })
    }

    fn accepted(definition: &Value) -> &Value {
        &definition["status"]["acceptedNames"]
    }

    #[test]
    fn the_first_gets_its_names() {
        let none = json!({"plural": "", "kind": ""});
        let first = settle(&definition("widgets", "Widget", &["wd"], none.clone()), std::iter::empty(), "t");
        assert_eq!(
            first["status"]["acceptedNames"],
            json!({"plural": "widgets", "kind": "Widget", "singular": "widget", "shortNames": ["wd"], "listKind": "WidgetList"})
        );
        let first = establish(&first, "u");
        let conditions = |object: &Value| -> Vec<String> {
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.iter()
                .map(|c| {
                    format!(
                        "{} {} {} {}",
                        text(c, "type"),
                        text(c, "status"),
                        text(c, "reason"),
                        text(c, "lastTransitionTime")
                    )
                })
                .collect()
        };
        assert_eq!(
            conditions(&first),
            ["NamesAccepted True NoConflicts t", "Established True InitialNamesAccepted u"]
        );

        let second = definition("gadgets", "Widget", &["wd"], none);
        let second = settle(&second, [&first, &second].map(accepted).into_iter(), "t");
        assert_eq!(
            second["status"]["acceptedNames"],
            json!({"plural": "gadgets", "kind": "", "singular": "gadget"})
        );
        assert_eq!(
            conditions(&second),
            ["NamesAccepted False ListKindConflict t", "Established False NotAccepted t"]
        );
        assert_eq!(second["status"]["conditions"][0]["message"], "\"WidgetList\" is already in use");

        // What is settled stays as it is.
        assert_eq!(settle(&first, [&first, &second].map(accepted).into_iter(), "later"), first);
    }
}
