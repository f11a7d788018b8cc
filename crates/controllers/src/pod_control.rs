//! Creating and deleting pods for a workload, with the events that go with it. Answers to upstream's `PodControl`.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType};

use crate::error::{Error, is_namespace_terminating, is_not_found, message};
use crate::objects::Meta;

/// A pod as the template says, controlled by `owner`; `parent` is the workload's name.
pub(crate) fn pod_from_template(template: &PodTemplateSpec, parent: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{parent}-")),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Writes pods under one controller's identity.
#[derive(Clone)]
pub(crate) struct PodControl {
    pub(crate) client: kube::Client,
    pub(crate) recorder: EventRecorder,
}

impl PodControl {
    /// Creates `pod` for `owner`. `Ok(false)`: the namespace is being deleted, so there is nothing to do.
    pub(crate) async fn create<O: kube::Resource<DynamicType = ()>>(
        &self,
        owner: &O,
        pod: &Pod,
    ) -> Result<bool, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), owner.namespace());
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let text = format!("Created pod: {}", created.name());
                self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", text);
                Ok(true)
            }
            Err(error) if is_namespace_terminating(&error) => Ok(false),
            Err(error) => {
                let text = format!("Error creating: {}", message(&error));
                self.recorder.event(owner, EventType::Warning, "FailedCreate", text);
                Err(error.into())
            }
        }
    }

    /// Deletes a pod of `owner`. `Ok(false)`: it was gone already.
    pub(crate) async fn delete<O: kube::Resource<DynamicType = ()>>(
        &self,
        owner: &O,
        pod: &str,
    ) -> Result<bool, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), owner.namespace());
        match api.delete(pod, &DeleteParams::default()).await {
            Ok(_) => {
                let text = format!("Deleted pod: {pod}");
                self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", text);
                Ok(true)
            }
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => {
                let text = format!("Error deleting: {}", message(&error));
                self.recorder.event(owner, EventType::Warning, "FailedDelete", text);
                Err(error.into())
            }
        }
    }
}

/// Does `count` equal things in batches of 1, 2, 4, …, each batch in parallel, and stops after a batch with a failure:
/// when a quota or an admission plugin refuses the first, the others are not even tried. Returns how many succeeded,
/// how many were not tried, and the failures.
pub(crate) async fn slow_start<F, Fut>(count: usize, one: F) -> (usize, usize, Vec<Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<bool, Error>>,
{
    let (mut done, mut tried, mut batch) = (0, 0, 1);
    while tried < count {
        let size = batch.min(count - tried);
        let results = futures::future::join_all((tried..tried + size).map(&one)).await;
        tried += size;
        let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        done += size - failures.len();
        if !failures.is_empty() {
            return (done, count - tried, failures);
        }
        batch *= 2;
    }
    (done, 0, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    async fn check(count: usize, fails_from: usize, expected: (usize, usize, usize), calls: usize) {
        let called = Cell::new(0);
        let (done, skipped, failures) = slow_start(count, |index| {
            called.set(called.get() + 1);
            async move { if index >= fails_from { Err(Error::Object("no".into())) } else { Ok(true) } }
        })
        .await;
        assert_eq!(
            ((done, skipped, failures.len()), called.get()),
            (expected, calls),
            "{count} from {fails_from}"
        );
    }

    #[tokio::test]
    async fn batches_double_and_stop_at_a_failure() {
        check(0, 0, (0, 0, 0), 0).await;
        check(10, 99, (10, 0, 0), 10).await;
        check(10, 0, (0, 9, 1), 1).await;
        check(10, 1, (1, 7, 2), 3).await;
        check(10, 5, (5, 3, 2), 7).await;
    }
}
