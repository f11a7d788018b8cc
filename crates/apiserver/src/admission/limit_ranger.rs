//! `LimitRanger`: the LimitRanges of a namespace give containers default requests and limits, and bound what
//! containers, pods and volume claims may ask for.

use async_trait::async_trait;
use orlop_api::Quantity;
use orlop_api::status::{ApiError, aggregate};
use orlop_json::{Key, Map, Value, json};
use orlop_kinds::quota::{self, ResourceList};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

/// Says on a pod what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Quantities above are compared in whole units: in thousandths they would not fit.
const MAX_MILLI_VALUE: i64 = i64::MAX / 1000;

pub(super) struct LimitRanger;

/// The LimitRanges of the request's namespace, by name.
fn ranges(registry: &Registry, request: &Request<'_>) -> Vec<Value> {
    let namespace = request.call.namespace;
    let Some(cache) = registry.resources.cache("", "LimitRange") else { return Vec::new() };
    let (snapshot, _) = cache.snapshot();
    snapshot
        .range::<_, str>(crate::cache::from(&format!("{namespace}/")))
        .take_while(|(_, entry)| entry.namespace() == namespace)
        .map(|(_, entry)| entry.value())
        .collect()
}

fn of_type<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"].items("limits").iter().filter(move |limit| limit.text("type") == kind)
}

/// Adds what a container does not say; the names that were added.
fn fill(resources: &mut Value, list: &str, defaults: &ResourceTexts) -> Vec<Key> {
    let mut added = Vec::new();
    for (name, value) in defaults {
        if resources[list].has(name) {
            continue;
        }
        if !resources.is_object() {
            *resources = json!({});
        }
        if !resources[list].is_object() {
            resources[list] = json!({});
        }
        resources[list][name] = value.clone();
        added.push(name.clone());
    }
    if let Some(map) = resources.get_mut(list).and_then(Value::as_object_mut) {
        map.sort_keys();
    }
    added.sort();
    added
}

/// Quantities as they are written, by resource.
type ResourceTexts = Map;

/// Applies a range's defaults to all containers and notes them in the annotation.
fn apply_defaults(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (ResourceTexts::new(), ResourceTexts::new());
    for limit in of_type(range, "Container") {
        requests.extend(limit.map("defaultRequest").cloned().unwrap_or_default());
        limits.extend(limit.map("default").cloned().unwrap_or_default());
    }
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (list, title) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.text("name").to_string();
            if container.get("resources").is_none() {
                container["resources"] = json!({});
            }
            let resources = &mut container["resources"];
            for (what, names) in [
                ("request", fill(resources, "requests", &requests)),
                ("limit", fill(resources, "limits", &limits)),
            ] {
                if !names.is_empty() {
                    notes.push(format!("{} {what} for {title} {name}", names.join(", ")));
                }
            }
            // The order in which upstream encodes them.
            if let Some(map) = resources.as_object_mut()
                && let Some(requests) = map.remove("requests")
            {
                map.insert("requests".into(), requests);
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    let metadata = object::metadata_mut(pod);
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    annotations[ANNOTATION] = json!(format!("LimitRanger plugin set: {}", notes.join("; ")));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.sort_keys();
    }
}

/// What is held against a constraint: requests and limits of a container, a pod or a claim.
struct Asked {
    kind: &'static str,
    requests: ResourceList,
    limits: ResourceList,
}

/// Values at a common precision.
fn comparable(values: [Option<Quantity>; 3]) -> [i64; 3] {
    let whole = values.map(|value| value.map_or(0, |value| value.value()));
    if whole.iter().all(|value| *value <= MAX_MILLI_VALUE) {
        values.map(|value| value.map_or(0, |value| value.milli_value()))
    } else {
        whole
    }
}

impl Asked {
    fn of(&self, name: &str, enforced: Quantity) -> (Option<Quantity>, Option<Quantity>, [i64; 3]) {
        let (request, limit) = (self.requests.get(name).copied(), self.limits.get(name).copied());
        (request, limit, comparable([request, limit, Some(enforced)]))
    }

    fn minimum(&self, name: &str, enforced: Quantity) -> Option<String> {
        let (request, limit, [have, most, least]) = self.of(name, enforced);
        let start = format!("minimum {name} usage per {} is {enforced}", self.kind);
        match (request, limit) {
            (None, _) => Some(format!("{start}.  No request is specified")),
            (Some(request), _) if have < least => Some(format!("{start}, but request is {request}")),
            (_, Some(limit)) if most < least => Some(format!("{start}, but limit is {limit}")),
            _ => None,
        }
    }

    fn maximum(&self, name: &str, enforced: Quantity) -> Option<String> {
        let (request, limit, [have, most, greatest]) = self.of(name, enforced);
        let start = format!("maximum {name} usage per {} is {enforced}", self.kind);
        match (request, limit) {
            (_, None) => Some(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if most > greatest => Some(format!("{start}, but limit is {limit}")),
            (Some(request), _) if have > greatest => Some(format!("{start}, but request is {request}")),
            _ => None,
        }
    }

    /// The maximum of what has no limits (claims).
    fn maximum_request(&self, name: &str, enforced: Quantity) -> Option<String> {
        let (request, _, [have, _, greatest]) = self.of(name, enforced);
        let start = format!("maximum {name} usage per {} is {enforced}", self.kind);
        match request {
            None => Some(format!("{start}.  No request is specified")),
            Some(request) if have > greatest => Some(format!("{start}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn ratio(&self, name: &str, enforced: Quantity) -> Option<String> {
        let (request, limit, [have, most, _]) = self.of(name, enforced);
        let start = format!("{name} max limit to request ratio per {} is {enforced}", self.kind);
        if request.is_none() || have == 0 {
            return Some(format!("{start}, but no request is specified or request is 0"));
        }
        if limit.is_none() || most == 0 {
            return Some(format!("{start}, but no limit is specified or limit is 0"));
        }
        let shown = most as f64 / have as f64;
        let exceeds = if enforced.value() <= MAX_MILLI_VALUE {
            shown * 1000.0 > enforced.milli_value() as f64
        } else {
            shown > enforced.value() as f64
        };
        exceeds.then(|| format!("{start}, but provided ratio is {shown:.6}"))
    }
}

type Constraint = fn(&Asked, &str, Quantity) -> Option<String>;

fn check(limit: &Value, asked: &Asked, constraints: &[(&str, Constraint)], errors: &mut Vec<String>) {
    for (list, constraint) in constraints {
        let enforced = quota::resource_list(&limit[*list]);
        errors.extend(enforced.iter().filter_map(|(name, value)| constraint(asked, name, *value)));
    }
}

const BOUNDS: [(&str, Constraint); 3] =
    [("min", Asked::minimum), ("max", Asked::maximum), ("maxLimitRequestRatio", Asked::ratio)];

/// All that a pod asks for against a range.
fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &pod["spec"];
    for limit in range["spec"].items("limits") {
        match limit.text("type") {
            "Container" => {
                for container in ["containers", "initContainers"].iter().flat_map(|list| spec.items(list)) {
                    let resources = &container["resources"];
                    let asked = Asked {
                        kind: "Container",
                        requests: quota::resource_list(&resources["requests"]),
                        limits: quota::resource_list(&resources["limits"]),
                    };
                    check(limit, &asked, &BOUNDS, &mut errors);
                }
            }
            "Pod" => {
                let asked = Asked {
                    kind: "Pod",
                    requests: quota::pod_spec_resources(spec, "requests"),
                    limits: quota::pod_spec_resources(spec, "limits"),
                };
                check(limit, &asked, &BOUNDS, &mut errors);
            }
            _ => {}
        }
    }
    errors
}

/// What a claim asks for against a range.
fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    let kind = "PersistentVolumeClaim";
    let requests = quota::resource_list(&claim["spec"]["resources"]["requests"]);
    let asked = Asked { kind, requests, limits: ResourceList::new() };
    let mut errors = Vec::new();
    for limit in of_type(range, kind) {
        check(limit, &asked, &[("min", Asked::minimum), ("max", Asked::maximum_request)], &mut errors);
    }
    errors
}

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let resource = request.call.resource;
        if !resource.group.is_empty() {
            return false;
        }
        let supported = match (resource.plural.as_str(), request.call.subresource) {
            // A pod's containers change by a resize only.
            ("pods", "") => request.operation == Operation::Create,
            ("pods", "resize") => request.operation == Operation::Update,
            ("persistentvolumeclaims", "") => {
                matches!(request.operation, Operation::Create | Operation::Update)
            }
            _ => false,
        };
        supported && !request.old.is_some_and(object::is_deleting)
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if request.call.resource.plural == "pods" {
            for range in ranges(registry, request) {
                apply_defaults(&range, request.object);
            }
        }
        Ok(())
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        for range in ranges(registry, request) {
            let errors = match request.call.resource.plural.as_str() {
                "pods" => check_pod(&range, request.object),
                _ => check_claim(&range, request.object),
            };
            if !errors.is_empty() {
                return Err(request.forbidden(aggregate(errors)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limit: Value) -> Value {
        json!({"spec": {"limits": [limit]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn bounds_of_containers_and_pods() {
        let check = |limit: Value, resources: Value, expected: &[&str]| {
            assert_eq!(check_pod(&range(limit), &pod(resources)), expected);
        };
        let container = |bounds: Value| {
            let mut limit = bounds;
            limit["type"] = json!("Container");
            limit
        };
        let one = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}});
        check(container(json!({"min": {"cpu": "100m"}})), one.clone(), &[]);
        check(
            container(json!({"min": {"cpu": "2"}})),
            one.clone(),
            &["minimum cpu usage per Container is 2, but request is 1"],
        );
        check(
            container(json!({"min": {"cpu": "2"}})),
            json!({}),
            &["minimum cpu usage per Container is 2.  No request is specified"],
        );
        check(
            container(json!({"max": {"cpu": "500m"}})),
            json!({"requests": {"cpu": "1"}}),
            &["maximum cpu usage per Container is 500m.  No limit is specified"],
        );
        check(
            container(json!({"max": {"cpu": "500m", "memory": "1Gi"}})),
            one.clone(),
            &[
                "maximum cpu usage per Container is 500m, but limit is 1",
                "maximum memory usage per Container is 1Gi.  No limit is specified",
            ],
        );
        let ratio = container(json!({"maxLimitRequestRatio": {"cpu": "2"}}));
        check(ratio.clone(), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), &[]);
        check(
            ratio.clone(),
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}),
            &["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"],
        );
        check(
            ratio.clone(),
            json!({"limits": {"cpu": "3"}}),
            &[
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ],
        );
        check(
            ratio,
            json!({"requests": {"cpu": "3"}}),
            &["cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"],
        );
        let two = json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "700m"}}}, {"name": "b", "resources": {"limits": {"cpu": "700m"}}}]}});
        assert_eq!(
            check_pod(&range(json!({"type": "Pod", "max": {"cpu": "1"}})), &two),
            ["maximum cpu usage per Pod is 1, but limit is 1400m"]
        );
    }

    #[test]
    fn bounds_of_claims() {
        let limit =
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "3Gi"}});
        let check = |size: &str, expected: &[&str]| {
            let claim = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            assert_eq!(check_claim(&range(limit.clone()), &claim), expected);
        };
        check("2Gi", &[]);
        check("500Mi", &["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"]);
        check("5Gi", &["maximum storage usage per PersistentVolumeClaim is 3Gi, but request is 5Gi"]);
    }

    #[test]
    fn defaults_are_annotated() {
        let limits = range(
            json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}}),
        );
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}, {"name": "d"}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Mi"}}}]}});
        apply_defaults(&limits, &mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; memory limit for container c; cpu request for container d; cpu, memory limit for container d"
        );
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
        );
    }
}
