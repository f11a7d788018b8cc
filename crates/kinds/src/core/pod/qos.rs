//! The quality of service class of a pod, computed from its requests and limits of cpu and memory.

use orlop_api::Quantity;
use orlop_json::Value;

use super::resources::quantity;
use crate::cursor::Cursor;

type Sums<'a> = Vec<(&'a str, Quantity)>;

fn add<'a>(sums: &mut Sums<'a>, list: &'a Value) -> usize {
    let mut found = 0;
    for (name, value) in list.entries() {
        let value = quantity(value);
        if !matches!(name.as_str(), "cpu" | "memory") || value.sign() <= 0 {
            continue;
        }
        found += 1;
        match sums.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum = *sum + value,
            None => sums.push((name, value)),
        }
    }
    found
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(spec: &Value) -> &'static str {
    let pod_level = &spec["resources"];
    let holders: Vec<&Value> = if !pod_level["requests"].is_empty() || !pod_level["limits"].is_empty() {
        vec![pod_level]
    } else {
        ["containers", "initContainers"]
            .iter()
            .flat_map(|list| spec[*list].items())
            .map(|c| &c["resources"])
            .collect()
    };
    let (mut requests, mut limits) = (Sums::new(), Sums::new());
    let mut guaranteed = true;
    for resources in holders {
        add(&mut requests, &resources["requests"]);
        // Each container must limit both cpu and memory.
        guaranteed &= add(&mut limits, &resources["limits"]) == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len()
        && requests
            .iter()
            .all(|(name, request)| limits.iter().any(|(n, limit)| n == name && limit == request));
    if guaranteed && equal { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::class;
    use orlop_json::json;

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, expected) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"ephemeral-storage": "1Gi"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": both, "requests": both}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "500m", "memory": "1Gi"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable"),
        ] {
            assert_eq!(class(&json!({"containers": [{"resources": resources}]})), expected, "{resources}");
        }
        let two = json!({"containers": [{"resources": {"limits": both, "requests": both}}, {}]});
        assert_eq!(class(&two), "Burstable");
        assert_eq!(
            class(&json!({"containers": [{}], "resources": {"limits": both, "requests": both}})),
            "Guaranteed"
        );
    }
}
