//! Nobody may grant what he does not hold: the check behind writes of roles and bindings, and the message about
//! what is missing.

use super::rbac::{PolicyRule, resource_matches};

/// The parts of `wanted` that no rule of `held` covers, merged for display as upstream prints them.
pub fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let lacking: Vec<PolicyRule> = wanted
        .iter()
        .flat_map(breakdown)
        .filter(|part| !held.iter().any(|rule| covers(rule, part)))
        .collect();
    compact(lacking)
}

/// Splits a rule into rules with one verb, group, resource and name each.
fn breakdown(rule: &PolicyRule) -> Vec<PolicyRule> {
    let one = |s: &String| vec![s.clone()];
    let mut parts = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let base = PolicyRule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..PolicyRule::default()
                };
                if rule.resource_names.is_empty() {
                    parts.push(base);
                } else {
                    parts.extend(
                        rule.resource_names
                            .iter()
                            .map(|name| PolicyRule { resource_names: one(name), ..base.clone() }),
                    );
                }
            }
        }
    }
    for url in &rule.non_resource_urls {
        for verb in &rule.verbs {
            parts.push(PolicyRule { verbs: one(verb), non_resource_urls: one(url), ..PolicyRule::default() });
        }
    }
    parts
}

fn contains(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn covers(held: &PolicyRule, part: &PolicyRule) -> bool {
    if !part.verbs.iter().all(|verb| contains(&held.verbs, verb)) {
        return false;
    }
    if !part.non_resource_urls.is_empty() {
        return part.non_resource_urls.iter().all(|url| {
            held.non_resource_urls.iter().any(|mine| {
                mine == "*"
                    || mine == url
                    || mine.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
            })
        });
    }
    part.api_groups.iter().all(|group| contains(&held.api_groups, group))
        && part.resources.iter().all(|resource| {
            let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
            held.resources.iter().any(|mine| mine == resource || resource_matches(mine, main, sub))
        })
        && (held.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part.resource_names.iter().all(|n| held.resource_names.contains(n))))
}

/// Merges one-verb rules about the same thing again.
fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut merged: Vec<PolicyRule> = Vec::new();
    for part in parts {
        let same = merged.iter_mut().find(|rule| {
            rule.api_groups == part.api_groups
                && rule.resources == part.resources
                && rule.resource_names == part.resource_names
                && rule.non_resource_urls == part.non_resource_urls
        });
        match same {
            Some(rule) => {
                for verb in part.verbs {
                    if !rule.verbs.contains(&verb) {
                        rule.verbs.push(verb);
                    }
                }
            }
            None => merged.push(part),
        }
    }
    merged.sort_by_key(print);
    merged
}

/// A rule as upstream prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
pub fn print(rule: &PolicyRule) -> String {
    let mut parts = Vec::new();
    for (name, list) in [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ] {
        if !list.is_empty() {
            let quoted: Vec<String> = list.iter().map(|item| format!("\"{item}\"")).collect();
            parts.push(format!("{name}:[{}]", quoted.join(" ")));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> PolicyRule {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        PolicyRule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            ..PolicyRule::default()
        }
    }

    #[test]
    fn what_is_missing() {
        let check = |held: &[PolicyRule], wanted: &[PolicyRule], expected: &[&str]| {
            let printed: Vec<String> = missing(held, wanted).iter().map(print).collect();
            assert_eq!(printed, expected);
        };
        let read = rule(&["get", "list"], &[""], &["pods"]);
        check(std::slice::from_ref(&read), std::slice::from_ref(&read), &[]);
        check(&[rule(&["*"], &["*"], &["*"])], &[rule(&["*"], &["*"], &["*"])], &[]);
        check(
            &[read],
            &[rule(&["get", "delete", "update"], &[""], &["pods"])],
            &["{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"update\"]}"],
        );
        check(
            &[],
            &[rule(&["*"], &["*"], &["*"])],
            &["{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}"],
        );
    }
}
