//! `MutatingAdmissionWebhook` and `ValidatingAdmissionWebhook`: other people's servers take part in admission.
//!
//! Webhooks are compiled when their configuration changes; a request costs one look into an index when none is for it.
//! Mutating webhooks are called one after the other, in the order of their configurations' names; validating ones at
//! the same time.

mod call;
pub(crate) mod client;
pub(crate) mod credentials;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::Value;
use orlop_kinds::admissionregistration::expression::Compiler;

use self::call::{Failure, call};
use self::client::{CallError, Client};
use self::credentials::Credentials;
use super::cel::{Asking, Facts, MatchConditions, Subject};
use super::matching::{Criteria, Index, Matched, is_configuration};
use super::review::{self, ReviewVersion};
use super::settle::{convert, settle};
use super::{Admission, Request};
use crate::cache::{Cache, Snapshot};
use crate::metrics::webhooks::Outcome;
use crate::registry::Registry;

/// One webhook, ready to be called.
pub struct Webhook {
    /// What tells it apart from every other, over changes of its configuration.
    uid: Arc<str>,
    configuration: String,
    name: String,
    /// Its place among all webhooks, for audit annotations.
    place: usize,
    criteria: Criteria,
    conditions: Option<MatchConditions>,
    client: Result<Arc<Client>, CallError>,
    review: Option<ReviewVersion>,
    ignore_failures: bool,
    /// `None`, `NoneOnDryRun`, `Some` or `Unknown`.
    side_effects: String,
    timeout: Duration,
    reinvoke: bool,
}

/// All webhooks of one sort.
#[derive(Default)]
pub struct Webhooks {
    pub(super) index: Index<Webhook>,
    /// Clients by their configuration: their connections outlive changes of other fields.
    clients: HashMap<String, Arc<Client>>,
}

impl Webhooks {
    /// Compiles all configurations of one sort.
    pub fn compile(
        configurations: &Snapshot,
        former: &Webhooks,
        services: Option<&Arc<Cache>>,
        sort: &'static str,
        credentials: &Credentials,
    ) -> Webhooks {
        let stateless = Compiler::stateless();
        let mut made = Vec::new();
        let mut clients = HashMap::new();
        // The snapshot is in the order of names.
        for entry in configurations.values() {
            let configuration = entry.value();
            let mut seen: HashMap<String, usize> = HashMap::new();
            for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                let name = text(hook, "name");
                let nth = seen.entry(name.clone()).or_default();
                let uid = format!("{}/{name}/{nth}", entry.name());
                *nth += 1;
                let key = hook["clientConfig"].to_string();
                let client = match former.clients.get(&key).or_else(|| clients.get(&key)) {
                    Some(client) => Ok(client.clone()),
                    None => Client::new(&hook["clientConfig"], services.cloned(), credentials).map(Arc::new),
                };
                if let Ok(client) = &client {
                    clients.insert(key, client.clone());
                }
                let owner = ("webhook", name.clone(), sort);
                made.push(Webhook {
                    uid: uid.into(),
                    configuration: entry.name().to_string(),
                    name,
                    place: made.len(),
                    criteria: Criteria::of_webhook(hook),
                    conditions: MatchConditions::compile(&stateless, &hook["matchConditions"], false, owner),
                    client,
                    review: ReviewVersion::choose(&hook["admissionReviewVersions"]),
                    ignore_failures: hook["failurePolicy"].as_str() == Some("Ignore"),
                    side_effects: text(hook, "sideEffects"),
                    timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10)),
                    reinvoke: hook["reinvocationPolicy"].as_str() == Some("IfNeeded"),
                });
            }
        }
        Webhooks { index: Index::new(made, |hook| &hook.criteria), clients }
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or("").to_string()
}

impl Webhook {
    /// Whether the webhook is to be asked, and about which form of the object.
    fn wants(&self, registry: &Registry, request: &Request<'_>) -> Result<Option<Matched>, ApiError> {
        let Some(matched) = self.criteria.matches(registry, request)? else { return Ok(None) };
        let Some(conditions) = &self.conditions else { return Ok(Some(matched)) };
        let (object, old) = shown(request, &matched);
        let facts = Facts::of(request, &matched);
        let subject = Subject {
            facts: &facts,
            object: &object,
            old: &old,
            params: &Value::Null,
            namespace: &Value::Null,
            asking: &Asking { authorizer: &registry.authorizer, user: request.call.user },
            variables: &[],
        };
        let counted = &registry.metrics.extensions;
        match conditions.met(subject, self.ignore_failures, counted) {
            Ok(true) => Ok(Some(matched)),
            Ok(false) => {
                counted.excluded(conditions.labels(&facts));
                Ok(None)
            }
            Err(error) => {
                let resource = request.call.resource;
                Err(ApiError::forbidden(&resource.group, &resource.plural, request.attribute_name(), error))
            }
        }
    }

    /// What a failed call counts as.
    fn outcome(&self, failure: &Failure) -> Outcome {
        match failure {
            Failure::Refused(error) => Outcome::Refused(error.code()),
            Failure::Unfit(_) => Outcome::Internal,
            Failure::Call { code, .. } => Outcome::Failed { code: *code, passed_over: self.ignore_failures },
        }
    }

    /// Turns a failed call into what the client is told; `None` when the webhook may be passed over.
    fn failed(&self, request: &Request<'_>, failure: Failure, annotation: &str) -> Option<ApiError> {
        match failure {
            Failure::Refused(error) | Failure::Unfit(error) => Some(error),
            Failure::Call { reason, .. } => {
                let message =
                    format!("failed calling webhook {}: {reason}", orlop_api::field::go_quote(&self.name));
                if self.ignore_failures {
                    tracing::warn!(
                        webhook = self.name,
                        reason,
                        "a webhook could not be called; it is passed over"
                    );
                    request.call.annotate(annotation, self.name.as_str());
                    return None;
                }
                tracing::warn!(
                    webhook = self.name,
                    reason,
                    "a webhook could not be called; the request is refused"
                );
                Some(ApiError::internal(message))
            }
        }
    }
}

/// The objects in the form that matched.
pub(super) fn shown<'a>(
    request: &'a Request<'_>,
    matched: &Matched,
) -> (std::borrow::Cow<'a, Value>, std::borrow::Cow<'a, Value>) {
    use std::borrow::Cow;
    let old = request.old.unwrap_or(&Value::Null);
    match matched {
        Matched::Equivalent(to) if request.own_kind.is_none() => {
            let from = request.call.resource;
            (Cow::Owned(convert(from, to, request.object)), Cow::Owned(convert(from, to, old)))
        }
        _ => (Cow::Borrowed(&*request.object), Cow::Borrowed(old)),
    }
}

/// The plugin that calls mutating webhooks.
pub struct MutatingAdmissionWebhook;

#[async_trait]
impl Admission for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        !is_configuration(request)
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let hooks = registry.dynamic.mutating_webhooks.load();
        if hooks.index.is_empty() {
            return Ok(());
        }
        let hooks = arc_swap::Guard::into_inner(hooks);
        if request.reinvocation.second {
            request.reinvocation.webhooks.begin_second(request.object);
        }
        let mut ran = false;
        for hook in hooks.index.candidates(&request.call.resource.plural) {
            let Some(matched) = hook.wants(registry, request)? else { continue };
            if request.reinvocation.second && !request.reinvocation.webhooks.must_run_again(&hook.uid) {
                continue;
            }
            ran = true;
            self.call(registry, hook, request, &matched).await?;
        }
        if ran {
            request.reinvocation.webhooks.finish(request.object);
        }
        Ok(())
    }
}

impl MutatingAdmissionWebhook {
    async fn call(
        &self,
        registry: &Registry,
        hook: &Webhook,
        request: &mut Request<'_>,
        matched: &Matched,
    ) -> Result<(), ApiError> {
        let round = u8::from(request.reinvocation.second);
        let key = |prefix: &str| {
            format!("{prefix}mutation.webhook.admission.k8s.io/round_{round}_index_{}", hook.place)
        };
        let (begun, operation) = (Instant::now(), request.operation.as_str());
        let note = |outcome| {
            registry.metrics.extensions.called(&hook.name, "admit", operation, outcome, begun.elapsed());
        };
        let answer = call(hook, request, matched, true).await;
        request.call.waited(begun.elapsed());
        if let Err(failure) = &answer {
            note(hook.outcome(failure));
        }
        let changed = match answer {
            Ok(None) => {
                note(Outcome::Allowed);
                Ok(false)
            }
            Ok(Some(patch)) => {
                let changed = self.apply(hook, request, matched, &patch);
                note(if changed.is_ok() { Outcome::Allowed } else { Outcome::Internal });
                changed
            }
            Err(failure) => match hook.failed(request, failure, &key("failed-open.")) {
                Some(error) => Err(error),
                None => Ok(false),
            },
        };
        let mutated = matches!(changed, Ok(true));
        let note = orlop_json::json!({
            "configuration": hook.configuration, "webhook": hook.name, "mutated": mutated,
        });
        request.call.annotate(key(""), note.to_string());
        let changed = changed?;
        if changed {
            request.reinvocation.webhooks.require_previous();
            request.reinvocation.policies.require_previous();
            request.reinvocation.wanted = true;
        }
        if hook.reinvoke {
            request.reinvocation.webhooks.ran(hook.uid.clone());
        }
        Ok(())
    }

    /// Applies a webhook's patch; whether it changed anything.
    fn apply(
        &self,
        hook: &Webhook,
        request: &mut Request<'_>,
        matched: &Matched,
        patch: &Value,
    ) -> Result<bool, ApiError> {
        if request.object.is_null() {
            return Err(ApiError::internal(format!(
                "admission webhook {} attempted to modify the object, which is not supported for this operation",
                orlop_api::field::go_quote(&hook.name)
            )));
        }
        let (object, _) = shown(request, matched);
        let patched = orlop_api::patch::described::apply(&object, patch)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let patched = match matched {
            Matched::Equivalent(from) if request.own_kind.is_none() => {
                convert(from, request.call.resource, &patched)
            }
            _ => patched,
        };
        let settled = settle(request, patched)?;
        let changed = settled != *request.object;
        *request.object = settled;
        Ok(changed)
    }
}

/// The plugin that calls validating webhooks.
pub struct ValidatingAdmissionWebhook;

#[async_trait]
impl Admission for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        !is_configuration(request)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let hooks = registry.dynamic.validating_webhooks.load();
        if hooks.index.is_empty() {
            return Ok(());
        }
        let hooks = arc_swap::Guard::into_inner(hooks);
        let mut relevant = Vec::new();
        for hook in hooks.index.candidates(&request.call.resource.plural) {
            if let Some(matched) = hook.wants(registry, request)? {
                relevant.push((hook, matched));
            }
        }
        let calls = relevant.iter().enumerate().map(|(at, (hook, matched))| async move {
            let begun = Instant::now();
            let failure = call(hook, request, matched, false).await.err();
            let outcome = failure.as_ref().map_or(Outcome::Allowed, |failure| hook.outcome(failure));
            let operation = request.operation.as_str();
            let counted = &registry.metrics.extensions;
            counted.called(&hook.name, "validating", operation, outcome, begun.elapsed());
            let failure = failure?;
            let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{at}");
            hook.failed(request, failure, &key)
        });
        if relevant.is_empty() {
            return Ok(());
        }
        // All are heard, the first refusal in their order is told.
        let begun = Instant::now();
        let failures = futures::future::join_all(calls).await;
        request.call.waited(begun.elapsed());
        match failures.into_iter().flatten().next() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
