//! PodTemplate: a pod template as an object of its own.

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::Value;

use super::pod::defaults::set_pod_spec;
use super::pod::validation::validate_pod_template_spec;
use super::pod::warnings::pod_warnings;
use crate::cursor::{bump_generation, child, set_generation};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of PodTemplates.
pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn defaults(&self, obj: &mut Value) {
        set_pod_spec(child(child(obj, "template"), "spec"));
    }

    fn prepare_create(&self, obj: &mut Value) {
        super::pod_template::drop_disabled_fields(obj);
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        super::pod_template::drop_disabled_fields(obj);
        bump_generation(obj, old, &["template"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_pod_template_spec(&mut errs, &Path::new("template"), &obj["template"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        let (path, before) = (Path::new("template"), Some(&old["template"]));
        validate_pod_template_spec(&mut errs, &path, &obj["template"], before);
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_warnings(&Path::new("template"), &obj["template"])
    }

    fn cells(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        let template = &obj["template"];
        let (containers, images) = printer::containers_and_images(&template["spec"]);
        vec![
            printer::name(obj),
            containers.into(),
            images.into(),
            printer::format_labels(&template["metadata"]["labels"]).into(),
        ]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}
