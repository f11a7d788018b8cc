//! Checks the types of ValidatingAdmissionPolicies' expressions against the schemas of the resources they are for, and
//! tells their authors in the status. Answers to upstream's `validatingadmissionpolicy-status-controller`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::api::{Api, Patch, PatchParams};
use orlop_cel::DeclType;
use orlop_client::{WorkQueue, run_workers};
use orlop_json::{Value, json};
use orlop_kinds::admissionregistration::type_check::{self, Kind};

use crate::error::Error;
use crate::shell::Shell;

const NAME: &str = "validatingadmissionpolicy-status-controller";
/// Discovery of everything in one document.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const WORKERS: usize = 5;

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let policies = shell.informers.informer::<ValidatingAdmissionPolicy>();
    policies.synced().await;
    let queue = WorkQueue::named("validatingadmissionpolicy-status");
    let changed = queue.clone();
    policies.subscribe(move |event| changed.add(event.object().metadata.name.clone().unwrap_or_default()));
    let (policies, client) = (&policies, &shell.client);
    run_workers(NAME, queue, WORKERS, shell.shutdown, |name: String| async move {
        match policies.get("", &name).filter(|policy| unobserved(policy)) {
            Some(policy) => reconcile(client, &policy).await.map(|()| None::<Duration>),
            None => Ok(None),
        }
    })
    .await;
    Ok(())
}

fn unobserved(policy: &ValidatingAdmissionPolicy) -> bool {
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    policy.metadata.generation.unwrap_or(0) > observed
}

async fn reconcile(client: &kube::Client, policy: &ValidatingAdmissionPolicy) -> Result<(), Error> {
    let name = policy.metadata.name.clone().unwrap_or_default();
    let object = json!({"spec": orlop_json::to_value(&policy.spec).unwrap_or_default()});
    let served = Served::discover(client).await?;
    let mut kinds = Vec::new();
    for kind in
        type_check::kinds_to_check(&object, |group, version, resource| served.kinds(group, version, resource))
    {
        // What has no schema is not checked.
        if let Some(declared) = declaration(client, &kind).await? {
            kinds.push((kind, declared));
        }
    }
    let params = match type_check::param_kind(&object) {
        Some(kind) => declaration(client, &kind).await?,
        None => None,
    };
    let warnings = type_check::warnings(&object, &kinds, params.as_deref());
    let mut checked = json!({});
    if !warnings.is_empty() {
        checked["expressionWarnings"] = Value::Array(warnings);
    }
    let applied = Patch::Apply(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "status": {"observedGeneration": policy.metadata.generation, "typeChecking": checked},
    }));
    let api = Api::<ValidatingAdmissionPolicy>::all(client.clone());
    api.patch_status(&name, &PatchParams::apply(NAME).force(), &applied).await?;
    Ok(())
}

async fn get(client: &kube::Client, path: &str, accept: &str) -> Result<Option<Value>, Error> {
    let request = http::Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new());
    let request = request.map_err(kube::Error::HttpError)?;
    match client.request::<Value>(request).await {
        Ok(document) => Ok(Some(document)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The declaration of a kind by what the server publishes about its group version.
async fn declaration(client: &kube::Client, kind: &Kind) -> Result<Option<Arc<DeclType>>, Error> {
    let path = match kind.group.as_str() {
        "" => format!("/openapi/v3/api/{}", kind.version),
        group => format!("/openapi/v3/apis/{group}/{}", kind.version),
    };
    let document = get(client, &path, "application/json").await?;
    Ok(document.and_then(|document| type_check::declaration(&document, kind)))
}

/// What the server serves: resources with their kinds.
struct Served(Vec<(String, Kind)>);

impl Served {
    async fn discover(client: &kube::Client) -> Result<Served, Error> {
        let mut served = Served(Vec::new());
        for path in ["/api", "/apis"] {
            served.add(&get(client, path, DISCOVERY).await?.unwrap_or_default());
        }
        Ok(served)
    }

    fn add(&mut self, discovery: &Value) {
        let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        for group in list(discovery, "items") {
            for version in list(&group, "versions") {
                for resource in list(&version, "resources") {
                    let kind = &resource["responseKind"];
                    let own = |given: &Value, else_: &Value| match text(given) {
                        given if given.is_empty() => text(else_),
                        given => given,
                    };
                    let kind = Kind {
                        group: own(&kind["group"], &group["metadata"]["name"]),
                        version: own(&kind["version"], &version["version"]),
                        kind: text(&kind["kind"]),
                    };
                    for name in [&resource["resource"], &resource["singularResource"]] {
                        self.0.push((text(name), kind.clone()));
                    }
                }
            }
        }
    }

    /// The kinds of a resource. Upstream's mapper takes an empty group for any.
    fn kinds(&self, group: &str, version: &str, resource: &str) -> Vec<Kind> {
        let fits = |kind: &Kind| (group.is_empty() || kind.group == group) && kind.version == version;
        let found = self.0.iter().filter(|(name, kind)| name == resource && fits(kind));
        found.map(|(_, kind)| kind.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_and_their_kinds() {
        let mut served = Served(Vec::new());
        served.add(&json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                {"resource": "events", "singularResource": "event", "responseKind": {"group": "", "version": "", "kind": "Event"}}]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                {"resource": "events", "responseKind": {"group": "events.k8s.io", "version": "v1", "kind": "Event"}}]}]},
        ]}));
        let check = |group: &str, version: &str, resource: &str, expected: &[&str]| {
            let found: Vec<String> =
                served.kinds(group, version, resource).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
        };
        check("", "v1", "events", &["/v1, Kind=Event", "events.k8s.io/v1, Kind=Event"]);
        check("events.k8s.io", "v1", "events", &["events.k8s.io/v1, Kind=Event"]);
        check("", "v1", "event", &["/v1, Kind=Event"]);
        check("", "v2", "events", &[]);
    }
}
