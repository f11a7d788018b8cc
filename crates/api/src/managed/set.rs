//! Sets of field paths, as `fieldsV1` writes them: `{"f:spec":{"f:replicas":{}}}`.
//!
//! A step of a path is kept in its written form: `f:NAME`, `k:{"key":"value"}`, `v:"value"`, `i:0`.

use litemap::LiteMap;
use orlop_json::{Key, Map, Value};

/// A set of paths: whether the path up to here is a member, and the paths that go on from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Whether the path itself is in the set.
    pub member: bool,
    /// Longer paths by their next step: a sorted list, for most sets are small and are made, written and forgotten. Many
    /// are added together, because each one added alone may move all behind it.
    pub children: LiteMap<Key, Set>,
}

impl Set {
    /// A set of one path: the one it stands for.
    pub fn leaf() -> Set {
        Set { member: true, children: LiteMap::new() }
    }

    /// A set of dotted paths of plain fields.
    pub fn of_fields(paths: &[&str]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let mut at = &mut set;
            for name in path.split('.') {
                at = at.children.entry(field_step(name)).or_default();
            }
            at.member = true;
        }
        set
    }

    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Puts longer paths' sets under their steps; empty ones are dropped, the last of a step stays.
    pub fn extend(&mut self, sets: impl IntoIterator<Item = (Key, Set)>) {
        self.children.extend(sets.into_iter().filter(|(_, set)| !set.is_empty()));
    }

    /// Reads `fieldsV1`.
    pub fn from_fields_v1(value: &Value) -> Set {
        let Value::Object(map) = value else { return Set::default() };
        let children = map
            .iter()
            .filter(|(step, _)| *step != ".")
            .map(|(step, value)| {
                let mut set = Set::from_fields_v1(value);
                set.member = value.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."));
                (step.clone(), set)
            })
            .collect();
        Set { member: false, children }
    }

    /// Writes `fieldsV1`.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.fields(false))
    }

    /// The children by step; first the set itself when it is a member and has any.
    fn fields(&self, itself: bool) -> Map {
        let itself = itself && !self.children.is_empty();
        let mut map = Map::with_capacity(self.children.len() + usize::from(itself));
        if itself {
            map.insert(Key::new_static("."), Value::Object(Map::new()));
        }
        for (step, set) in self.children.iter() {
            map.insert(step.clone(), Value::Object(set.fields(set.member)));
        }
        map
    }

    /// The paths of either.
    #[must_use]
    pub fn union(mut self, other: &Set) -> Set {
        self.member |= other.member;
        let mut new = Vec::new();
        for (step, set) in other.children.iter() {
            match self.children.get_mut(step) {
                Some(known) => *known = std::mem::take(known).union(set),
                None => new.push((step.clone(), set.clone())),
            }
        }
        self.children.extend(new);
        self
    }

    /// The paths of this that are not in the other.
    #[must_use]
    pub fn difference(mut self, other: &Set) -> Set {
        self.member &= !other.member;
        self.walk(other, Set::difference)
    }

    /// The paths of this that neither are in the other nor go on from one that is.
    #[must_use]
    pub fn recursive_difference(mut self, other: &Set) -> Set {
        if other.member {
            return Set::default();
        }
        self.member &= !other.member;
        self.walk(other, Set::recursive_difference)
    }

    fn walk(mut self, other: &Set, rule: fn(Set, &Set) -> Set) -> Set {
        for (step, set) in other.children.iter() {
            if let Some(known) = self.children.get_mut(step) {
                *known = rule(std::mem::take(known), set);
            }
        }
        self.children.retain(|_, set| !set.is_empty());
        self
    }

    /// The paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set { member: self.member && other.member, children: LiteMap::new() };
        let both = self
            .children
            .iter()
            .filter_map(|(step, set)| Some((step.clone(), set.intersection(other.children.get(step)?))));
        out.extend(both);
        out
    }

    /// The members, printed as upstream prints paths: `.spec.containers[name="c"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (step, set) in self.children.iter() {
            let length = path.len();
            path.push_str(&print_step(step));
            set.collect(path, out);
            path.truncate(length);
        }
    }
}

/// The step to a field.
pub fn field_step(name: &str) -> Key {
    ["f:", name].into_iter().collect()
}

/// A step as upstream prints it: `.name`, `[key="value"]`, `[="value"]`, `[0]`.
pub fn print_step(step: &str) -> String {
    match step.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", keys)) => match orlop_json::from_str::<Map>(keys) {
            Ok(keys) => {
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{keys}]"),
        },
        Some(("v:", value)) => format!("[={value}]"),
        Some(("i:", index)) => format!("[{index}]"),
        _ => format!(".{step}"),
    }
}

/// Takes the paths of a set out of `fieldsV1` as it is stored, without reading all of it. True = something changed.
pub fn subtract_stored(stored: &mut Map, set: &Set) -> bool {
    let mut changed = false;
    let mut gone: Vec<&Key> = Vec::new();
    for (step, set) in set.children.iter() {
        let Some(Value::Object(node)) = stored.get_mut(step) else { continue };
        let was_member = node.is_empty() || node.contains_key(".");
        let mut touched = subtract_stored(node, set);
        let member = was_member && !set.member;
        if was_member && set.member {
            node.remove(".");
            touched = true;
        }
        if !touched {
            continue;
        }
        changed = true;
        let children = node.keys().any(|key| key != ".");
        if !children {
            if member {
                node.clear();
            } else {
                gone.push(step);
            }
        }
    }
    // All at once: each one alone would move all that stand behind it. They are sorted as the set's steps are.
    if !gone.is_empty() {
        stored.retain(|step, _| gone.binary_search(&step).is_err());
    }
    changed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    fn set(value: Value) -> Set {
        Set::from_fields_v1(&value)
    }

    #[test]
    fn algebra() {
        let a = json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}});
        let b = json!({"f:a": {"f:b": {}}, "f:e": {}});
        assert_eq!(set(a.clone()).to_fields_v1(), a);
        assert_eq!(
            set(a.clone()).union(&set(b.clone())).to_fields_v1(),
            json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}, "f:e": {}})
        );
        assert_eq!(
            set(a.clone()).difference(&set(b.clone())).to_fields_v1(),
            json!({"f:a": {".": {}, "f:c": {}}, "f:d": {}})
        );
        assert_eq!(
            set(a.clone()).difference(&set(json!({"f:a": {}}))).to_fields_v1(),
            json!({"f:a": {"f:b": {}, "f:c": {}}, "f:d": {}})
        );
        assert_eq!(
            set(a.clone()).recursive_difference(&set(json!({"f:a": {}}))).to_fields_v1(),
            json!({"f:d": {}})
        );
        assert_eq!(set(a.clone()).intersection(&set(b)).to_fields_v1(), json!({"f:a": {"f:b": {}}}));
    }

    #[test]
    fn stored_sets_lose_what_others_take() {
        let cases = [
            (json!({"f:a": {".": {}, "f:b": {}}}), json!({"f:a": {"f:b": {}}}), json!({"f:a": {}}), true),
            (json!({"f:a": {"f:b": {}}}), json!({"f:a": {"f:b": {}}}), json!({}), true),
            (json!({"f:a": {".": {}, "f:b": {}}}), json!({"f:a": {}}), json!({"f:a": {"f:b": {}}}), true),
            (json!({"f:a": {}}), json!({"f:b": {}}), json!({"f:a": {}}), false),
            (
                json!({"f:d": {}, "f:a": {}, "f:c": {"f:x": {}}, "f:b": {}}),
                json!({"f:a": {}, "f:c": {"f:x": {}}, "f:d": {}, "f:e": {}}),
                json!({"f:b": {}}),
                true,
            ),
            (json!({"f:a": {}}), json!({"f:a": {"f:x": {}}}), json!({"f:a": {}}), false),
        ];
        for (mut stored, taken, want, changed) in cases {
            let got = subtract_stored(stored.as_object_mut().unwrap(), &set(taken));
            assert_eq!((stored, got), (want, changed));
        }
    }

    #[test]
    fn paths_print() {
        let paths =
            set(json!({"f:spec": {"k:{\"name\":\"c\",\"port\":80}": {"f:x": {}}, "v:\"a\"": {}}})).paths();
        assert_eq!(paths, [".spec[name=\"c\",port=80].x", ".spec[=\"a\"]"]);
    }
}
