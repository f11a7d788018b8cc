//! `PodSecurity`: the Pod Security Standards, chosen by labels of the namespace (KEP-2579). Pods that break the enforced
//! level are refused, those that break the other two are noted in the audit log or earn a warning; so do workloads by
//! their pod templates, and a namespace whose new level its pods do not keep.

mod checks;
mod config;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orlop_api::field::{ErrorList, go_quote};
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::cache::Entry;
use crate::registry::Registry;
use checks::{Complaint, Pod, evaluate};
use config::Configuration;
use policy::{Level, LevelVersion, Policy};

/// How many of a namespace's pods are held against a new level, and how long that may take.
const MAX_PODS: usize = 3000;
const POD_CHECK_TIME: Duration = Duration::from_secs(1);

pub(super) struct PodSecurity {
    configuration: Configuration,
}

impl PodSecurity {
    /// With the plugin's configuration, if it has one.
    pub(super) fn new(configuration: Option<&Value>) -> Result<PodSecurity, String> {
        Ok(PodSecurity { configuration: Configuration::parse(configuration)? })
    }
}

/// Subresources of pods that cannot change a pod's containers.
const HARMLESS: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Prefix of the annotations in the audit log.
const AUDIT: &str = "pod-security.kubernetes.io";

/// What a request is to this plugin.
enum Subject {
    Namespace,
    Pod,
    /// A workload, with the way to its pod template.
    Controller(&'static str),
}

fn subject(request: &Request<'_>) -> Option<Subject> {
    let resource = request.call.resource;
    let subresource = request.call.subresource;
    let template = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") if subresource.is_empty() => return Some(Subject::Namespace),
        ("", "pods") if !HARMLESS.contains(&subresource) => return Some(Subject::Pod),
        ("", "podtemplates") => "/template",
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "/spec/template",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template",
        _ => return None,
    };
    subresource.is_empty().then_some(Subject::Controller(template))
}

/// The complaints in one text, with or without what exactly is wrong.
fn told(complaints: &[Complaint], details: bool) -> String {
    let texts: Vec<String> = complaints
        .iter()
        .map(|complaint| {
            if details && !complaint.detail.is_empty() {
                format!("{} ({})", complaint.reason, complaint.detail)
            } else {
                complaint.reason.clone()
            }
        })
        .collect();
    texts.join(", ")
}

fn is_same(a: &Value, b: &Value, annotation: &str) -> bool {
    a.annotation(annotation) == b.annotation(annotation)
}

/// Whether an update changes anything that a check looks at: images, and the annotations seccomp once had.
fn is_significant(new: &Value, old: &Value) -> bool {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let (spec, old_spec) = (&new["spec"], &old["spec"]);
    let differs = |a: &Value, b: &Value| {
        a.text("image") != b.text("image") || !is_same(new, old, &format!("{CONTAINER}{}", a.text("name")))
    };
    if !is_same(new, old, POD) {
        return true;
    }
    for list in ["containers", "initContainers"] {
        let (now, before) = (spec.items(list), old_spec.items(list));
        if now.len() != before.len() || now.iter().zip(before).any(|(a, b)| differs(a, b)) {
            return true;
        }
    }
    spec.items("ephemeralContainers").iter().any(|container| {
        old_spec
            .items("ephemeralContainers")
            .iter()
            .find(|before| before.text("name") == container.text("name"))
            .is_none_or(|before| differs(container, before))
    })
}

impl PodSecurity {
    fn policy_of_labels(&self, entry: &Entry) -> (Policy, ErrorList) {
        Policy::of(&self.configuration.defaults, |key| entry.label(key))
    }

    fn policy_of_object(&self, namespace: &Value) -> (Policy, ErrorList) {
        Policy::of(&self.configuration.defaults, |key| namespace.label(key))
    }

    fn check_namespace(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let (policy, errors) = self.policy_of_object(request.object);
        let name = request.name();
        let (before, old_errors) = match request.old {
            Some(old) => self.policy_of_object(old),
            None => (self.configuration.defaults, ErrorList::new()),
        };
        // What was wrong before stays the namespace's own affair.
        let text = |errors: &ErrorList| errors.first().map(ToString::to_string);
        if !errors.is_empty() && text(&errors) != text(&old_errors) {
            return Err(ApiError::invalid("", "Namespace", name, errors));
        }
        if self.configuration.exempts_namespace(name) {
            let silent = policy.is_equivalent(&Policy::PRIVILEGED)
                || policy.is_equivalent(&self.configuration.defaults);
            if !silent {
                request.call.warnings.add(format!(
                    "namespace {} is exempt from Pod Security, and the policy ({policy}) will be ignored",
                    go_quote(name)
                ));
            }
            return Ok(());
        }
        let (new, was) = (policy.enforce, before.enforce);
        let relaxed = new.version == was.version && new.level <= was.level;
        if request.old.is_none() || new.is_equivalent(was) || new.level == Level::Privileged || relaxed {
            return Ok(());
        }
        for warning in self.check_pods(registry, name, new) {
            request.call.warnings.add(warning);
        }
        Ok(())
    }

    /// What is to be said about the pods of a namespace that do not keep its new level.
    fn check_pods(&self, registry: &Registry, namespace: &str, enforce: LevelVersion) -> Vec<String> {
        let Some(pods) = registry.resources.cache("", "Pod") else { return Vec::new() };
        let (snapshot, _) = pods.snapshot();
        let all = snapshot
            .range::<_, str>(crate::cache::from(&format!("{namespace}/")))
            .take_while(|(_, entry)| entry.namespace() == namespace);
        let total = all.clone().count();
        let deadline = Instant::now() + POD_CHECK_TIME;
        let mut checked = 0;
        // By complaint: the first pod by name, and how many there are.
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for (_, entry) in all.take(MAX_PODS) {
            checked += 1;
            let pod = entry.value();
            if !self.configuration.exempts_runtime_class(pod["spec"].text("runtimeClassName")) {
                let complaints = evaluate(enforce, Pod { metadata: &pod["metadata"], spec: &pod["spec"] });
                if !complaints.is_empty() {
                    let first = || (entry.name().to_string(), 0);
                    found.entry(told(&complaints, false)).or_insert_with(first).1 += 1;
                }
            }
            if Instant::now() > deadline {
                break;
            }
        }
        let mut warnings = Vec::new();
        if checked < total {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {} violate the new PodSecurity enforce level \"{enforce}\"",
                go_quote(namespace)
            ));
        }
        let mut of_pods: Vec<String> = found
            .into_iter()
            .map(|(complaint, (pod, count))| match count {
                1 => format!("{pod}: {complaint}"),
                2 => format!("{pod} (and 1 other pod): {complaint}"),
                count => format!("{pod} (and {} other pods): {complaint}", count - 1),
            })
            .collect();
        of_pods.sort();
        warnings.extend(of_pods);
        warnings
    }

    /// Holds a pod or template against its namespace's levels.
    fn check_pod(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        template: Option<&'static str>,
    ) -> Result<(), ApiError> {
        let call = request.call;
        if self.configuration.exempts_namespace(call.namespace) {
            call.annotate(format!("{AUDIT}/exempt"), "namespace");
            return Ok(());
        }
        if self.configuration.exempts_user(&call.user.name) {
            call.annotate(format!("{AUDIT}/exempt"), "user");
            return Ok(());
        }
        let Some(namespaces) = registry.resources.cache("", "Namespace") else { return Ok(()) };
        let namespace = namespaces.get(call.namespace).ok_or_else(|| {
            ApiError::internal(format!("failed to lookup namespace {}", go_quote(call.namespace)))
        })?;
        let (policy, errors) = self.policy_of_labels(&namespace);
        let enforces = template.is_none();
        if errors.is_empty()
            && policy.warn.level == Level::Privileged
            && policy.audit.level == Level::Privileged
            && !(enforces && policy.enforce.level != Level::Privileged)
        {
            if enforces {
                call.annotate(format!("{AUDIT}/enforce-policy"), policy.enforce.to_string());
            }
            return Ok(());
        }
        let holder = match template {
            Some(way) => match request.object.pointer(way).filter(|template| template.is_object()) {
                Some(template) => template,
                None => return Ok(()),
            },
            None => {
                if let (Operation::Update, Some(old)) = (request.operation, request.old)
                    && !is_significant(request.object, old)
                {
                    return Ok(());
                }
                &*request.object
            }
        };
        let pod = Pod { metadata: &holder["metadata"], spec: &holder["spec"] };
        if self.configuration.exempts_runtime_class(pod.spec.text("runtimeClassName")) {
            call.annotate(format!("{AUDIT}/exempt"), "runtimeClass");
            return Ok(());
        }
        if !errors.is_empty() {
            let text = orlop_api::status::aggregate(errors.iter().map(ToString::to_string));
            call.annotate(format!("{AUDIT}/error"), format!("Failed to parse policy: {text}"));
        }
        let complaints = evaluate(policy.audit, pod);
        if !complaints.is_empty() {
            let text = told(&complaints, true);
            call.annotate(
                format!("{AUDIT}/audit-violations"),
                format!("would violate PodSecurity \"{}\": {text}", policy.audit),
            );
        }
        if enforces {
            call.annotate(format!("{AUDIT}/enforce-policy"), policy.enforce.to_string());
            let complaints = evaluate(policy.enforce, pod);
            if !complaints.is_empty() {
                return Err(request.forbidden(format!(
                    "violates PodSecurity \"{}\": {}",
                    policy.enforce,
                    told(&complaints, true)
                )));
            }
        }
        if enforces && policy.warn == policy.enforce {
            return Ok(());
        }
        let complaints = evaluate(policy.warn, pod);
        if !complaints.is_empty() {
            call.warnings.add(format!(
                "would violate PodSecurity \"{}\": {}",
                policy.warn,
                told(&complaints, true)
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && subject(request).is_some()
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        match subject(request) {
            Some(Subject::Namespace) => self.check_namespace(registry, request),
            Some(Subject::Pod) => self.check_pod(registry, request, None),
            Some(Subject::Controller(template)) => self.check_pod(registry, request, Some(template)),
            None => Ok(()),
        }
    }
}
