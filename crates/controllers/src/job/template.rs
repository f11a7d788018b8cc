//! The pods of a Job.

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::decide::{FINALIZER, Look, is_indexed};
use super::failure::failure_annotations;
use super::indexes::INDEX;
use crate::objects::{Meta, controller_ref};
use crate::pod_control::pod_from_template;

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The API server appends five letters to a prefix of at most this length.
const LONGEST_PREFIX: usize = 58;

impl Look {
    /// The pod for `index`, or for none in a Job that is not Indexed.
    pub(crate) fn pod(&self, index: Option<u32>) -> Pod {
        let spec = self.spec();
        let mut pod = pod_from_template(&spec.template, self.job.name(), controller_ref(&self.job));
        let finalizers = pod.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        let pod_spec = pod.spec.get_or_insert_default();
        if is_indexed(&spec) {
            pod_spec.init_containers.iter_mut().flatten().for_each(tell_index);
            pod_spec.containers.iter_mut().for_each(tell_index);
        }
        let Some(index) = index else { return pod };
        pod_spec.hostname = Some(format!("{}-{index}", self.job.name()));
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(INDEX.to_owned(), index.to_string());
        if spec.backoff_limit_per_index.is_some() {
            let replaced = self.awaiting.get(&index).map(|pod| &**pod);
            annotations.extend(failure_annotations(spec.pod_failure_policy.as_ref(), replaced));
        }
        pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
        pod.metadata.generate_name = Some(prefix(self.job.name(), index));
        pod
    }
}

fn prefix(job: &str, index: u32) -> String {
    let end = format!("-{index}-");
    let name: String = job.chars().take(LONGEST_PREFIX - end.len()).collect();
    name + &end
}

/// The container learns its index from the environment, unless it has a variable of that name.
fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field_ref =
        ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let value_from = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(value_from),
        ..EnvVar::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_leave_room() {
        assert_eq!(prefix("work", 7), "work-7-");
        let long = prefix(&"a".repeat(63), 1234);
        assert_eq!((long.len(), long.ends_with("a-1234-")), (58, true));
    }
}
