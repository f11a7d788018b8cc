//! Resource requests and limits: names, quantities and how they relate.

use orlop_api::Quantity;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Key, Value};

use super::tolerated::Tolerated;
use super::validation::Pod;
use crate::cursor::Cursor;
use crate::validate::{NEGATIVE, qualified_name, require_text};

/// A quantity of a normalised object; one that cannot be read counts as nothing.
pub(crate) fn quantity(value: &Value) -> Quantity {
    Quantity::parse(value.text()).unwrap_or(Quantity::ZERO)
}

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A resource of Kubernetes itself: without a domain, or of `kubernetes.io/`.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A resource of somebody else, counted in whole units.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be lower than limits.
pub(crate) fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    const STANDARD: [&str; 20] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "storage",
        "requests.storage",
        "services.nodeports",
        "services.loadbalancers",
    ];
    STANDARD.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

fn is_standard_container(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name)
}

/// Resources counted in whole units.
pub(crate) fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

/// A resource name anywhere.
pub(crate) fn validate_resource_name(errs: &mut ErrorList, path: &Path, name: &str) {
    let before = errs.len();
    qualified_name(errs, path, name);
    if errs.len() == before && !name.contains('/') && !is_standard(name) {
        errs.push(field::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
}

/// A resource name in a container.
pub(crate) fn validate_container_resource_name(errs: &mut ErrorList, path: &Path, name: &str) {
    validate_resource_name(errs, path, name);
    if !name.contains('/') {
        if !is_standard_container(name) {
            errs.push(field::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.push(field::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// A quantity of the resource `name`: not negative, and whole where it is counted.
pub(crate) fn validate_resource_quantity(errs: &mut ErrorList, path: &Path, name: &str, value: &Value) {
    let q = quantity(value);
    if q.sign() < 0 {
        errs.push(field::invalid(path, value.text(), NEGATIVE));
    }
    if is_integer(name) && !q.is_integer() {
        errs.push(field::invalid(path, value.text(), "must be an integer"));
    }
}

/// Whether an amount of huge pages is one of whole pages; true for other resources.
pub(super) fn is_whole_pages(name: &str, amount: &Value) -> bool {
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    size.is_none_or(|page| page.value() > 0 && quantity(amount).value() % page.value() == 0)
}

fn validate_huge_page_quantity(errs: &mut ErrorList, path: &Path, name: &str, value: &Value) {
    if !is_whole_pages(name, value) {
        errs.push(field::invalid(
            path,
            value.text(),
            format!("{} is not positive integer multiple of {name}", value.text()),
        ));
    }
}

/// `resources` of a container, or `overhead` as limits: upstream's `ValidateContainerResourceRequirements`.
pub(crate) fn validate_requirements(
    errs: &mut ErrorList,
    path: &Path,
    resources: &Value,
    claims: &[&str],
    tolerated: Tolerated,
) {
    let mut compute = false;
    let mut huge_pages = false;
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (name, value) in resources["limits"].entries() {
        let path = limits_path.key(name);
        validate_container_resource_name(errs, &path, name);
        validate_resource_quantity(errs, &path, name, value);
        if is_huge_page(name) {
            huge_pages = true;
            if !tolerated.split_huge_pages {
                validate_huge_page_quantity(errs, &path, name, value);
            }
        }
        compute |= matches!(name.as_str(), "cpu" | "memory");
    }
    for (name, value) in resources["requests"].entries() {
        let path = requests_path.key(name);
        validate_container_resource_name(errs, &path, name);
        validate_resource_quantity(errs, &path, name, value);
        let limit = &resources["limits"][name.as_str()];
        let (have, most) = (quantity(value), quantity(limit));
        if limit.is_set() {
            if have != most && !is_overcommit_allowed(name) {
                errs.push(field::invalid(
                    &requests_path,
                    value.text(),
                    format!("must be equal to {name} limit of {}", limit.text()),
                ));
            } else if have > most {
                errs.push(field::invalid(
                    &requests_path,
                    value.text(),
                    format!("must be less than or equal to {name} limit of {}", limit.text()),
                ));
            }
        } else if !is_overcommit_allowed(name) {
            errs.push(field::required(&limits_path, "Limit must be set for non overcommitable resources"));
        }
        if is_huge_page(name) {
            huge_pages = true;
            if !tolerated.split_huge_pages {
                validate_huge_page_quantity(errs, &path, name, value);
            }
        }
        compute |= matches!(name.as_str(), "cpu" | "memory");
    }
    if huge_pages && !compute {
        errs.push(field::forbidden(path, "HugePages require cpu or memory"));
    }
    validate_claim_names(errs, &path.child("claims"), &resources["claims"], claims);
}

fn validate_claim_names(errs: &mut ErrorList, path: &Path, claims: &Value, known: &[&str]) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, claim) in claims.items().iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (claim["name"].text(), claim["request"].text());
        require_text(errs, &path.child("name"), name);
        if name.is_empty() {
            continue;
        }
        if seen.contains(&(name, request)) {
            errs.push(field::duplicate(&path.child("name"), name));
        } else if !known.contains(&name) {
            errs.push(field::not_found(&path.child("name"), name));
        }
        seen.push((name, request));
    }
}

/// `spec.resources` of a pod: cpu, memory and huge pages for all containers together.
pub(super) fn validate_pod_level(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    let spec = pod.spec;
    let resources = &spec["resources"];
    if !resources.is_set() {
        return;
    }
    if !resources["claims"].is_empty() {
        errs.push(field::forbidden(&path.child("claims"), "claims cannot be set for Resources at pod-level"));
    }
    for list in ["limits", "requests"] {
        for (name, _) in resources[list].entries() {
            if !(matches!(name.as_str(), "cpu" | "memory") || is_huge_page(name)) {
                errs.push(field::not_supported(
                    &path.child(list).key(name),
                    name.as_str(),
                    &["cpu", "hugepages-", "memory"],
                ));
                return;
            }
        }
    }
    validate_requirements(errs, path, resources, &pod.claims, pod.tolerated);
    let mut total: Vec<(&Key, Quantity)> = Vec::new();
    for container in spec["containers"].items() {
        for (name, value) in container["resources"]["requests"].entries() {
            match total.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum = *sum + quantity(value),
                None => total.push((name, quantity(value))),
            }
        }
    }
    for (name, sum) in total {
        let pod = quantity(&resources["requests"][name.as_str()]);
        if sum > pod {
            errs.push(field::invalid(
                &path.child("requests").key(name),
                pod.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            ));
        }
    }
    for (i, container) in spec["containers"].items().iter().enumerate() {
        for (name, limit) in container["resources"]["limits"].entries() {
            let pod = &resources["limits"][name.as_str()];
            if pod.is_set() && quantity(limit) > quantity(pod) {
                errs.push(field::invalid(
                    &path.child("containers").index(i).key(name).child("limits"),
                    limit.text(),
                    format!("must be less than or equal to pod limits of {}", pod.text()),
                ));
            }
        }
    }
}
