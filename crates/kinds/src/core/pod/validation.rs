//! Pod specs as a whole, in pods and in templates: upstream's `ValidatePodSpec`, `ValidatePodCreate` and
//! `ValidatePodTemplateSpec`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::resources::{validate_pod_level, validate_requirements};
use super::tolerated::Tolerated;
use super::{affinity, containers, security, volumes};
use crate::NameRule;
use crate::cursor::Cursor;
use crate::metadata::{self, validate_annotations, validate_labels};
use crate::validate::{
    dns_label, dns_subdomain, invalids, ip, local_descending_path, object_name, qualified_name,
    require_one_of,
};

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A pod spec and what its parts must know of each other.
pub(super) struct Pod<'a> {
    pub spec: &'a Value,
    /// Volumes without errors: those that may be mounted. Of two with one name the first counts.
    pub volumes: Vec<&'a Value>,
    /// Names of `spec.resourceClaims`.
    pub claims: Vec<&'a str>,
    /// What is not looked at again.
    pub tolerated: Tolerated,
}

impl<'a> Pod<'a> {
    pub(super) fn volume(&self, name: &str) -> Option<&'a Value> {
        self.volumes.iter().copied().find(|v| v["name"].text() == name)
    }

    /// Whether the containers share the host's user namespace (the default).
    pub(super) fn host_users(&self) -> bool {
        self.spec["hostUsers"].as_bool().unwrap_or(true)
    }
}

/// Init, regular and ephemeral containers with their paths.
pub(super) fn visit_containers(spec: &Value, path: &Path, visit: &mut dyn FnMut(&Value, &Path)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in spec[list].items().iter().enumerate() {
            visit(container, &path.child(list).index(i));
        }
    }
}

/// A pod spec. `pod_name` is the pod's name, or `None` in a template, where some rules are looser; `more` are volumes that
/// may be mounted besides those of the spec.
fn validate_pod_spec(
    errs: &mut ErrorList,
    path: &Path,
    spec: &Value,
    pod_name: Option<&str>,
    more: &[Value],
    tolerated: Tolerated,
) {
    let grace = &spec["terminationGracePeriodSeconds"];
    if !grace.is_set() {
        errs.push(field::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let at = path.child("volumes");
    let mut volumes = volumes::validate_volumes(errs, &at, &spec["volumes"], pod_name, tolerated);
    volumes.splice(0..0, more);
    let claims = spec["resourceClaims"]
        .items()
        .iter()
        .map(|c| c["name"].text())
        .filter(|name| !name.is_empty())
        .collect();
    let pod = Pod { spec, volumes, claims, tolerated };
    validate_resource_claims(errs, &path.child("resourceClaims"), &spec["resourceClaims"]);
    containers::validate_containers(errs, &path.child("containers"), &pod);
    containers::validate_init_containers(errs, &path.child("initContainers"), &pod);
    containers::validate_ephemeral_containers(errs, &path.child("ephemeralContainers"), &pod);
    validate_pod_level(errs, &path.child("resources"), &pod);
    validate_host_network_ports(errs, path, spec, pod_name.is_some());
    require_one_of(
        errs,
        &path.child("restartPolicy"),
        spec["restartPolicy"].text(),
        &["Always", "OnFailure", "Never"],
    );
    require_one_of(
        errs,
        &path.child("dnsPolicy"),
        spec["dnsPolicy"].text(),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    errs.extend(validate_labels(&spec["nodeSelector"], &path.child("nodeSelector")));
    security::validate_pod_security_context(errs, &path.child("securityContext"), &pod);
    affinity::validate_affinity(errs, &path.child("affinity"), &spec["affinity"], tolerated);
    validate_dns_config(errs, &path.child("dnsConfig"), spec);
    for (i, gate) in spec["readinessGates"].items().iter().enumerate() {
        let at = path.child("readinessGates").index(i).child("conditionType");
        qualified_name(errs, &at, gate["conditionType"].text());
    }
    validate_scheduling_gates(errs, &path.child("schedulingGates"), spec);
    affinity::validate_topology_spread(
        errs,
        &path.child("topologySpreadConstraints"),
        &spec["topologySpreadConstraints"],
        tolerated,
    );
    security::validate_host_process(errs, path, spec);
    security::validate_host_users(errs, path, &pod);
    let named = |errs: &mut ErrorList, key: &str| {
        let name = spec[key].text();
        if !name.is_empty() {
            object_name(errs, &path.child(key), name, NameRule::DnsSubdomain);
        }
    };
    named(errs, "serviceAccountName");
    named(errs, "nodeName");
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.is_set() && !(1..=i64::from(i32::MAX)).contains(&deadline.int()) {
        errs.push(field::invalid(
            &path.child("activeDeadlineSeconds"),
            deadline.int(),
            names::inclusive_range_error(1, i64::from(i32::MAX)),
        ));
    }
    for key in ["hostname", "subdomain"] {
        let name = spec[key].text();
        if !name.is_empty() {
            dns_label(errs, &path.child(key), name);
        }
    }
    validate_hostname_override(errs, path, spec);
    affinity::validate_tolerations(errs, &path.child("tolerations"), &spec["tolerations"]);
    for (i, alias) in spec["hostAliases"].items().iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        ip(errs, &path.child("ip"), alias["ip"].text());
        for (h, name) in alias["hostnames"].texts().into_iter().enumerate() {
            dns_subdomain(errs, &path.child("hostnames").index(h), name);
        }
    }
    named(errs, "priorityClassName");
    named(errs, "runtimeClassName");
    if spec["preemptionPolicy"].is_set() {
        require_one_of(
            errs,
            &path.child("preemptionPolicy"),
            spec["preemptionPolicy"].text(),
            &["PreemptLowerPriority", "Never"],
        );
    }
    if spec["overhead"].is_set() {
        let limits = orlop_json::json!({"limits": spec["overhead"]});
        validate_requirements(errs, &path.child("overhead"), &limits, &[], tolerated);
    }
    security::validate_os(errs, path, spec);
}

fn validate_resource_claims(errs: &mut ErrorList, path: &Path, claims: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, claim) in claims.items().iter().enumerate() {
        let path = path.index(i);
        let name = claim["name"].text();
        if name.is_empty() {
            errs.push(field::required(&path.child("name"), ""));
        } else if seen.contains(&name) {
            errs.push(field::duplicate(&path.child("name"), name));
        } else {
            dns_label(errs, &path.child("name"), name);
            seen.push(name);
        }
        let (direct, template) = (&claim["resourceClaimName"], &claim["resourceClaimTemplateName"]);
        if direct.is_set() && template.is_set() {
            errs.push(field::invalid(
                &path,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ));
        }
        if !direct.is_set() && !template.is_set() {
            errs.push(field::invalid(
                &path,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ));
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if claim[key].is_set() {
                object_name(errs, &path.child(key), claim[key].text(), NameRule::DnsSubdomain);
            }
        }
    }
}

/// On the host's network a container port is a host port. A template may leave it to the pod's defaults.
fn validate_host_network_ports(errs: &mut ErrorList, path: &Path, spec: &Value, is_pod: bool) {
    if !spec["hostNetwork"].flag() {
        return;
    }
    for (i, container) in spec["containers"].items().iter().enumerate() {
        for (p, port) in container["ports"].items().iter().enumerate() {
            let (host, own) = (port["hostPort"].int(), port["containerPort"].int());
            if (is_pod || host != 0) && host != own {
                errs.push(field::invalid(
                    &path.child("containers").index(i).child("ports").index(p).child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn validate_scheduling_gates(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in spec["schedulingGates"].items().iter().enumerate() {
        let path = path.index(i);
        let name = gate["name"].text();
        qualified_name(errs, &path, name);
        if seen.contains(&name) {
            errs.push(field::duplicate(&path, name));
        }
        seen.push(name);
    }
}

fn validate_dns_config(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let config = &spec["dnsConfig"];
    if spec["dnsPolicy"].text() == "None" {
        if !config.is_set() {
            errs.push(field::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if config["nameservers"].is_empty() {
            errs.push(field::required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
            return;
        }
    }
    let servers = config["nameservers"].texts();
    let at = path.child("nameservers");
    if servers.len() > 3 {
        errs.push(field::invalid(
            &at,
            config["nameservers"].clone(),
            "must not have more than 3 nameservers",
        ));
    }
    for (i, server) in servers.into_iter().enumerate() {
        ip(errs, &at.index(i), server);
    }
    let searches = config["searches"].texts();
    let at = path.child("searches");
    if searches.len() > 32 {
        errs.push(field::invalid(&at, config["searches"].clone(), "must not have more than 32 search paths"));
    }
    if searches.join(" ").len() > 2048 {
        errs.push(field::invalid(
            &at,
            config["searches"].clone(),
            "must not have more than 2048 characters (including spaces) in the search list",
        ));
    }
    for (i, search) in searches.into_iter().enumerate() {
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            invalids(errs, &at.index(i), search, names::is_dns1123_subdomain_with_underscore(search));
        }
    }
    for (i, option) in config["options"].items().iter().enumerate() {
        if option["name"].text().is_empty() {
            errs.push(field::required(&path.child("options").index(i), "must not be empty"));
        }
    }
}

/// A host name of any domain: as long as the kernel takes, and only where the pod has a name of its own.
fn validate_hostname_override(errs: &mut ErrorList, path: &Path, spec: &Value) {
    const KERNEL_MAX: usize = 64;
    let name = &spec["hostnameOverride"];
    if !name.is_set() {
        return;
    }
    let at = path.child("hostnameOverride");
    dns_subdomain(errs, &at, name.text());
    if name.text().len() > KERNEL_MAX {
        errs.push(field::too_long(&at, KERNEL_MAX));
    }
    if spec["setHostnameAsFQDN"].flag() {
        errs.push(field::forbidden(&at, "may not be specified when `setHostnameAsFQDN` is true"));
    }
    if spec["hostNetwork"].flag() {
        errs.push(field::forbidden(&at, "may not be specified when `hostNetwork` is true"));
    }
}

fn is_seccomp_profile(errs: &mut ErrorList, path: &Path, profile: &str) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(local) => local_descending_path(errs, path, local),
        None => errs.push(field::invalid(path, profile, "must be a valid seccomp profile")),
    }
}

/// Whether the annotations have no deletion cost or one that is a number as Go prints it.
pub(super) fn is_deletion_cost(annotations: &Value) -> bool {
    let cost = annotations[DELETION_COST].text();
    let padded = cost.starts_with('+') || (cost.len() > 1 && cost.starts_with('0'));
    !annotations.has(DELETION_COST) || (!padded && cost.parse::<i32>().is_ok())
}

/// Annotations that mean something for a pod.
pub(super) fn validate_pod_annotations(
    errs: &mut ErrorList,
    path: &Path,
    annotations: &Value,
    spec: &Value,
    tolerated: Tolerated,
) {
    if annotations.has(MIRROR) && spec["nodeName"].text().is_empty() {
        errs.push(field::invalid(
            &path.key(MIRROR),
            annotations[MIRROR].text(),
            "must set spec.nodeName if mirror pod annotation is set",
        ));
    }
    if !tolerated.deletion_cost && !is_deletion_cost(annotations) {
        let cost = annotations[DELETION_COST].text();
        errs.push(field::invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    for (key, value) in annotations.entries() {
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            is_seccomp_profile(errs, &path.child(key), value.text());
        }
    }
    for (key, value) in annotations.entries() {
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        let mut found = false;
        visit_containers(spec, path, &mut |c, _| found |= c["name"].text() == container);
        if !found {
            errs.push(field::invalid(&path.key(key), container, "container not found"));
        }
        let profile = value.text();
        let known =
            matches!(profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/");
        if !known {
            errs.push(field::invalid(
                &path.key(key),
                profile,
                format!("invalid AppArmor profile name: {profile:?}"),
            ));
        }
    }
}

/// Where a profile is given both by annotation and by field, the two agree.
fn validate_profiles_match(errs: &mut ErrorList, path: &Path, annotations: &Value, spec: &Value) {
    let mut agree = |annotation: &Value, profile: &Value, at: &Path, what: &str| {
        if !annotation.is_set() || !profile.is_set() {
            return;
        }
        let text = annotation.text();
        let local = text.strip_prefix("localhost/");
        let differs = match profile["type"].text() {
            "Unconfined" => text != "unconfined",
            "RuntimeDefault" => !matches!(text, "runtime/default" | "docker/default"),
            "Localhost" => local.is_none(),
            _ => false,
        };
        if differs {
            errs.push(field::forbidden(
                &at.child("type"),
                format!("{what} type in annotation and field must match"),
            ));
        } else if profile["type"].text() == "Localhost" && local != Some(profile["localhostProfile"].text()) {
            errs.push(field::forbidden(
                &at.child("localhostProfile"),
                format!("{what} profile in annotation and field must match"),
            ));
        }
    };
    let context = &spec["securityContext"];
    agree(
        &annotations[SECCOMP_POD],
        &context["seccompProfile"],
        &path.child("securityContext").child("seccompProfile"),
        "seccomp",
    );
    visit_containers(spec, path, &mut |c, at| {
        let key = format!("{SECCOMP_CONTAINER}{}", c["name"].text());
        let at = at.child("securityContext").child("seccompProfile");
        agree(&annotations[key.as_str()], &c["securityContext"]["seccompProfile"], &at, "seccomp");
    });
    if spec["os"]["name"].text() == "windows" {
        return;
    }
    visit_containers(spec, path, &mut |c, at| {
        let key = format!("{APP_ARMOR}{}", c["name"].text());
        let own = &c["securityContext"]["appArmorProfile"];
        let profile = if own.is_set() { own } else { &context["appArmorProfile"] };
        let at = at.child("securityContext").child("appArmorProfile");
        agree(&annotations[key.as_str()], profile, &at, "apparmor");
    });
}

/// What create and update of a pod have in common.
pub(super) fn validate_metadata_and_spec(pod: &Value, tolerated: Tolerated) -> ErrorList {
    let mut errs = metadata::validate_object_meta(pod, true, NameRule::DnsSubdomain);
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    let path = Path::new("spec");
    let at = Path::new("metadata").child("annotations");
    validate_pod_annotations(&mut errs, &at, &meta["annotations"], spec, tolerated);
    validate_pod_spec(&mut errs, &path, spec, Some(meta["name"].text()), &[], tolerated);
    if spec["serviceAccountName"].text().is_empty() {
        for (v, volume) in spec["volumes"].items().iter().enumerate() {
            for (s, source) in volume["projected"]["sources"].items().iter().enumerate() {
                if source["serviceAccountToken"].is_set() {
                    let at = path.child("volumes").index(v).child("projected");
                    errs.push(field::forbidden(
                        &at.child("sources").index(s).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    ));
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in spec[list].items().iter().enumerate() {
            containers::validate_image_is_trimmed(&mut errs, &path.child(list).index(i), container);
        }
    }
    errs
}

/// A new pod.
pub(super) fn validate_pod_create(pod: &Value) -> ErrorList {
    let mut errs = validate_metadata_and_spec(pod, Tolerated::default());
    let spec = &pod["spec"];
    let path = Path::new("spec");
    if !spec["ephemeralContainers"].is_empty() {
        errs.push(field::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !spec["nodeName"].text().is_empty() && !spec["schedulingGates"].is_empty() {
        errs.push(field::forbidden(
            &path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
    validate_profiles_match(&mut errs, &path, &pod["metadata"]["annotations"], spec);
    errs
}

/// A pod template, as in Deployments: labels, annotations and a spec; `old` is the one it replaces.
pub(crate) fn validate_pod_template_spec(
    errs: &mut ErrorList,
    path: &Path,
    template: &Value,
    old: Option<&Value>,
) {
    validate_pod_template_with_volumes(errs, path, template, old, &[]);
}

/// A pod template whose pods get more volumes than it names, as a StatefulSet's do.
pub(crate) fn validate_pod_template_with_volumes(
    errs: &mut ErrorList,
    path: &Path,
    template: &Value,
    old: Option<&Value>,
    more: &[Value],
) {
    let tolerated = Tolerated::replacing_template(old);
    let (meta, spec) = (&template["metadata"], &template["spec"]);
    errs.extend(validate_labels(&meta["labels"], &path.child("labels")));
    errs.extend(validate_annotations(&meta["annotations"], &path.child("annotations")));
    validate_pod_annotations(errs, &path.child("annotations"), &meta["annotations"], spec, tolerated);
    validate_pod_spec(errs, &path.child("spec"), spec, None, more, tolerated);
    validate_profiles_match(errs, &path.child("spec"), &meta["annotations"], spec);
    if !spec["ephemeralContainers"].is_empty() {
        errs.push(field::forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}
