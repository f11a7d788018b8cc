//! Who may write an admission policy with parameters: somebody who may read the parameters. A policy asks for all objects
//! of its `paramKind`, a binding for those its `paramRef` chooses.
//!
//! Answers to `authz.go` of `pkg/registry/admissionregistration/*`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{Attributes, Decision};
use crate::authn::{MASTERS, UserInfo};
use crate::registry::{Call, Registry};

const GROUP: &str = "admissionregistration.k8s.io";

/// What is wrong with a well-formed policy or binding, given who writes it.
pub async fn check(registry: &Registry, call: &Call<'_>, new: &Value, old: Option<&Value>) -> ErrorList {
    let guarded = call.resource.group == GROUP && call.subresource.is_empty();
    if !guarded || call.user.in_group(MASTERS) {
        return ErrorList::new();
    }
    let (field, policy, swapped) = match call.resource.kind.as_str() {
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => ("paramKind", None, false),
        "ValidatingAdmissionPolicyBinding" => ("paramRef", Some("ValidatingAdmissionPolicy"), false),
        // Upstream's text about this kind has verb and user in each other's place.
        "MutatingAdmissionPolicyBinding" => ("paramRef", Some("MutatingAdmissionPolicy"), true),
        _ => return ErrorList::new(),
    };
    let (spec, before) = (&new["spec"], old.map(|old| &old["spec"]));
    let same = |field: &str| before.is_some_and(|before| before[field] == spec[field]);
    let unchanged = same(field) && (policy.is_none() || same("policyName"));
    if spec[field].is_null() || unchanged {
        return ErrorList::new();
    }
    let refusal = match policy {
        None => param_kind(registry, call.user, &spec[field]).await,
        Some(kind) => param_ref(registry, call.user, kind, spec, swapped).await,
    };
    refusal.err().map(|text| field::forbidden(&Path::new("spec").child(field), text)).into_iter().collect()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or("")
}

/// The resources of a `paramKind`; `*` for what is not known.
struct Params {
    group: String,
    version: String,
    resource: String,
    /// Why not all is known, as the beginning of upstream's sentence.
    unknown: Option<String>,
}

impl Params {
    fn any(unknown: Option<String>) -> Params {
        Params { group: "*".into(), version: "*".into(), resource: "*".into(), unknown }
    }

    fn of(registry: &Registry, kind: &Value) -> Params {
        let (api_version, name) = (text(kind, "apiVersion"), text(kind, "kind"));
        let unknown = |verb: &str| Some(format!("unable to {verb} paramKind &{{{api_version} {name}}}"));
        if api_version.matches('/').count() > 1 {
            return Params::any(unknown("parse"));
        }
        let (group, version) = orlop_api::meta::split_api_version(api_version);
        let table = registry.resources.table();
        let found = table.list.iter().find(|r| r.group == group && r.version == version && r.kind == name);
        Params {
            group: group.to_string(),
            version: version.to_string(),
            resource: found.map_or("*", |resource| resource.plural.as_str()).to_string(),
            unknown: if found.is_some() { None } else { unknown("resolve") },
        }
    }

    fn attributes<'a>(&'a self, user: &'a UserInfo, verb: &'a str) -> Attributes<'a> {
        Attributes { version: &self.version, ..Attributes::resource(user, verb, &self.group, &self.resource) }
    }
}

async fn param_kind(registry: &Registry, user: &UserInfo, kind: &Value) -> Result<(), String> {
    let params = Params::of(registry, kind);
    let attributes = Attributes { name: "*", namespace: "*", ..params.attributes(user, "get") };
    match registry.authorizer.authorize(&attributes).await {
        Decision::Allow(_) => Ok(()),
        Decision::Failed(failure) => Err(failure.error),
        Decision::NoOpinion(_) | Decision::Deny(_) => Err(format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            printed(user),
            text(kind, "kind"),
            text(kind, "apiVersion")
        )),
    }
}

async fn param_ref(
    registry: &Registry,
    user: &UserInfo,
    policy_kind: &str,
    spec: &Value,
    swapped: bool,
) -> Result<(), String> {
    let (policy, reference) = (text(spec, "policyName"), &spec["paramRef"]);
    let found = registry.resources.cache(GROUP, policy_kind).and_then(|cache| cache.get(policy));
    let params = match &found {
        None => Params::any(Some(format!("unable to get policy {policy}"))),
        Some(entry) => match &entry.value()["spec"]["paramKind"] {
            Value::Null => Params::any(None),
            kind => Params::of(registry, kind),
        },
    };
    let (name, namespace) = (text(reference, "name"), text(reference, "namespace"));
    let verb = if name.is_empty() { "list" } else { "get" };
    let attributes = Attributes { name, namespace, ..params.attributes(user, verb) };
    let user = printed(user);
    match (registry.authorizer.authorize(&attributes).await, &params.unknown) {
        (Decision::Allow(_), _) => Ok(()),
        (Decision::Failed(failure), _) if swapped => Err(failure.error),
        (Decision::Failed(failure), _) => Err(format!("failed to authorize request: {}", failure.error)),
        (_, _) if swapped => Err(format!(
            "user {verb} does not have \"{user}\" permission on the object referenced by paramRef"
        )),
        (_, Some(unknown)) => Err(format!(
            "{unknown} to determine minimum required permissions and user {user} does not have \"{verb}\" permission for all groups, versions and resources"
        )),
        (_, None) => Err(format!(
            "user {user} does not have \"{verb}\" permission on the object referenced by paramRef"
        )),
    }
}

/// A user as Go prints it.
fn printed(user: &UserInfo) -> String {
    let extra: Vec<String> =
        user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}
