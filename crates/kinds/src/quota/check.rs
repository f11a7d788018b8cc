//! Whether a request fits into the quotas of its namespace. A function of the quotas as they are and the object as it
//! would be; who asks must see to it that nobody else asks at the same time.

use jiff::Timestamp;
use orlop_json::Value;

use super::{Change, Evaluator, ResourceList, add, growth, mask, print, requirements, resource_list};
use crate::cursor::Cursor;

/// What is consumed only where a quota covers it (`limitedResources` of the plugin's configuration).
#[derive(Clone, Debug, Default)]
pub struct Limited {
    /// API group of the resource.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Quota resources whose name contains one of these.
    pub match_contains: Vec<String>,
    /// Scope requirements that an object must not meet without a quota of that scope.
    pub match_scopes: Vec<Value>,
}

/// One request.
pub struct Request<'a> {
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub plural: &'a str,
    /// How the resource is measured.
    pub evaluator: &'a Evaluator,
    /// What happens.
    pub change: Change,
    /// The new object.
    pub object: &'a Value,
    /// The stored object of an update.
    pub old: Option<&'a Value>,
}

/// Why a request does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 403 with this message.
    Forbidden(String),
    /// 500 with this message: upstream does not say more of it.
    Failed(String),
}

/// What is used of each of `quotas` (by index) when the request is let in; only those that change.
///
/// # Errors
/// [`Refusal`] with upstream's messages.
pub fn check(
    quotas: &[Value],
    request: &Request<'_>,
    limited: &[Limited],
    now: Timestamp,
) -> Result<Vec<(usize, ResourceList)>, Refusal> {
    let (evaluator, object) = (request.evaluator, request.object);
    let forbid = |message: String| Err(Refusal::Forbidden(message));
    let limited_scopes: Vec<&Value> = limited
        .iter()
        .flat_map(|limit| &limit.match_scopes)
        .filter(|requirement| evaluator.matches_scope(requirement, object))
        .collect();

    let mut interesting: Vec<usize> = Vec::new();
    let mut covered: Vec<&str> = Vec::new();
    let mut covered_scopes: Vec<String> = Vec::new();
    for (index, quota) in quotas.iter().enumerate() {
        let name = quota["metadata"]["name"].text();
        for requirement in requirements(quota) {
            if evaluator.matches_scope(&requirement, object) {
                covered_scopes.push(requirement["scopeName"].text().to_string());
            }
        }
        if !evaluator.matches(quota, object) {
            continue;
        }
        let restricted: Vec<&str> = quota["status"]["hard"]
            .entries()
            .map(|(resource, _)| resource.as_str())
            .filter(|resource| evaluator.matches_resource(resource))
            .collect();
        if let Err(message) = evaluator.constraints(&restricted, object) {
            return forbid(format!("failed quota: {name}: {message}"));
        }
        if restricted.iter().any(|resource| !quota["status"]["used"].has(resource)) {
            let mut names = restricted;
            names.sort_unstable();
            return forbid(format!("status unknown for quota: {name}, resources: {}", names.join(",")));
        }
        interesting.push(index);
        covered.extend(restricted);
    }

    let usage = evaluator.usage(object, now);
    let negative: Vec<&str> =
        usage.iter().filter(|(_, value)| value.sign() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return forbid(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let delta = match (request.change, request.old) {
        (Change::Update, Some(old)) => growth(&usage, &evaluator.usage(old, now)),
        _ => usage.clone(),
    };
    if delta.values().all(orlop_api::Quantity::is_zero) {
        return Ok(Vec::new());
    }

    let own_limits = limited.iter().filter(|l| l.group == request.group && l.resource == request.plural);
    let mut uncovered: Vec<&str> = own_limits
        .flat_map(|limit| {
            usage
                .iter()
                .filter(|(_, value)| value.sign() > 0)
                .map(|(name, _)| name.as_str())
                .filter(|name| limit.match_contains.iter().any(|part| name.contains(part.as_str())))
        })
        .filter(|name| !covered.contains(name))
        .collect();
    uncovered.sort_unstable();
    uncovered.dedup();
    if !uncovered.is_empty() {
        return forbid(format!("insufficient quota to consume: {}", uncovered.join(",")));
    }
    let uncovered: Vec<String> = limited_scopes
        .into_iter()
        .filter(|requirement| !covered_scopes.iter().any(|scope| scope == requirement["scopeName"].text()))
        .map(|requirement| {
            let values = requirement["values"].texts().join(" ");
            format!("{{{} {} [{values}]}}", requirement["scopeName"].text(), requirement["operator"].text())
        })
        .collect();
    if !uncovered.is_empty() {
        return Err(Refusal::Failed(format!(
            "insufficient quota to match these scopes: [{}]",
            uncovered.join(" ")
        )));
    }
    let mut changes = Vec::new();
    for index in interesting {
        let used = fit(&quotas[index], &delta)?;
        if used != resource_list(&quotas[index]["status"]["used"]) {
            changes.push((index, used));
        }
    }
    Ok(changes)
}

/// What is used of one quota when `delta` is added.
fn fit(quota: &Value, delta: &ResourceList) -> Result<ResourceList, Refusal> {
    let hard = resource_list(&quota["status"]["hard"]);
    let mut used = resource_list(&quota["status"]["used"]);
    let names: Vec<&str> = hard.keys().map(String::as_str).collect();
    let requested = mask(delta, &names);
    let before = used.clone();
    add(&mut used, &requested);
    let exceeded: Vec<&str> =
        requested.keys().filter(|name| used.get(*name) > hard.get(*name)).map(String::as_str).collect();
    if exceeded.is_empty() {
        return Ok(used);
    }
    Err(Refusal::Forbidden(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota["metadata"]["name"].text(),
        print(&mask(&requested, &exceeded)),
        print(&mask(&before, &exceeded)),
        print(&mask(&hard, &exceeded))
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::to_value;
    use orlop_json::json;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn pod(cpu: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn ask(
        quotas: &[Value],
        evaluator: Evaluator,
        object: &Value,
        old: Option<&Value>,
        limited: &[Limited],
    ) -> Result<Vec<Value>, Refusal> {
        let change = if old.is_some() { Change::Update } else { Change::Create };
        let request = Request { group: "", plural: "pods", evaluator: &evaluator, change, object, old };
        check(quotas, &request, limited, Timestamp::UNIX_EPOCH)
            .map(|all| all.iter().map(|(_, used)| to_value(used)).collect())
    }

    #[test]
    fn pods_against_quotas() {
        let check = |quotas: &[Value], object: Value, expected: Result<Vec<Value>, &str>| {
            assert_eq!(
                ask(quotas, Evaluator::Pods, &object, None, &[]),
                expected.map_err(|message| Refusal::Forbidden(message.to_string()))
            );
        };
        check(&[], pod("1"), Ok(vec![]));
        let two =
            quota(json!({"pods": "2", "requests.cpu": "2"}), json!({"pods": "1", "requests.cpu": "1500m"}));
        check(std::slice::from_ref(&two), pod("500m"), Ok(vec![json!({"pods": "2", "requests.cpu": "2"})]));
        check(
            std::slice::from_ref(&two),
            pod("1"),
            Err(
                "exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=1500m, limited: requests.cpu=2",
            ),
        );
        check(&[quota(json!({"secrets": "1"}), json!({}))], pod("1"), Ok(vec![]));
        check(
            &[quota(json!({"pods": "1"}), json!({}))],
            pod("1"),
            Err("status unknown for quota: q, resources: pods"),
        );
        check(
            &[quota(json!({"limits.memory": "1"}), json!({"limits.memory": "0"}))],
            pod("1"),
            Err("failed quota: q: must specify limits.memory for: c"),
        );
        // A quota whose status is not known yet limits nothing.
        check(
            &[json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}, "status": {}})],
            pod("1"),
            Ok(vec![]),
        );
        let mut scoped = quota(json!({"pods": "0"}), json!({"pods": "0"}));
        scoped["spec"]["scopes"] = json!(["BestEffort"]);
        check(&[scoped], pod("1"), Ok(vec![]));
    }

    #[test]
    fn only_growth_is_charged() {
        let storage = quota(json!({"requests.storage": "3Gi"}), json!({"requests.storage": "2Gi"}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let check = |new: &str, old: &str, expected: Result<Vec<Value>, &str>| {
            let got = ask(
                std::slice::from_ref(&storage),
                Evaluator::VolumeClaims,
                &claim(new),
                Some(&claim(old)),
                &[],
            );
            assert_eq!(got, expected.map_err(|message| Refusal::Forbidden(message.to_string())));
        };
        check("2Gi", "1Gi", Ok(vec![json!({"requests.storage": "3Gi"})]));
        check("1Gi", "2Gi", Ok(vec![]));
        check(
            "3Gi",
            "1Gi",
            Err(
                "exceeded quota: q, requested: requests.storage=2Gi, used: requests.storage=2Gi, limited: requests.storage=3Gi",
            ),
        );
    }

    #[test]
    fn limited_resources_need_a_quota() {
        let limited = [Limited {
            resource: "pods".into(),
            match_contains: vec!["requests.cpu".into()],
            ..Limited::default()
        }];
        assert_eq!(
            ask(&[], Evaluator::Pods, &pod("1"), None, &limited),
            Err(Refusal::Forbidden("insufficient quota to consume: requests.cpu".into()))
        );
        let covering = quota(json!({"requests.cpu": "1"}), json!({"requests.cpu": "0"}));
        assert!(ask(&[covering], Evaluator::Pods, &pod("1"), None, &limited).is_ok());
        let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]});
        let limited = [Limited { match_scopes: vec![scope], ..Limited::default() }];
        let mut high = pod("1");
        high["spec"]["priorityClassName"] = json!("high");
        assert_eq!(
            ask(&[], Evaluator::Pods, &high, None, &limited),
            Err(Refusal::Failed(
                "insufficient quota to match these scopes: [{PriorityClass In [high]}]".into()
            ))
        );
    }
}
