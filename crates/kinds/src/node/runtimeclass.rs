//! RuntimeClass: which container runtime handler runs a pod, and what it costs.

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::{Value, json};

use crate::core::pod::defaults::round_quantities;
use crate::core::pod::resources::validate_requirements;
use crate::core::pod::tolerated::Tolerated;
use crate::core::pod::validate_tolerations;
use crate::core::pod::warnings::deprecated_node_label;
use crate::cursor::Cursor;
use crate::metadata::validate_labels;
use crate::validate::dns_label;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of RuntimeClasses.
pub struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        if let Some(fixed) = obj.get_mut("overhead").and_then(|o| o.get_mut("podFixed")) {
            round_quantities(fixed);
        }
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsSubdomain);
        dns_label(&mut errs, &Path::new("handler"), obj["handler"].text());
        if obj["overhead"].is_set() {
            let limits = json!({"limits": obj["overhead"]["podFixed"]});
            validate_requirements(
                &mut errs,
                &Path::new("overhead").child("podFixed"),
                &limits,
                &[],
                Tolerated::default(),
            );
        }
        let scheduling = &obj["scheduling"];
        let path = Path::new("scheduling");
        errs.extend(validate_labels(&scheduling["nodeSelector"], &path.child("nodeSelector")));
        validate_tolerations(&mut errs, &path.child("tolerations"), &scheduling["tolerations"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_immutable(&obj["handler"], &old["handler"], &Path::new("handler")));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let labels =
            obj["scheduling"]["nodeSelector"].entries().filter_map(|(k, _)| deprecated_node_label(k));
        labels.map(|msg| format!("scheduling.nodeSelector: {msg}")).collect()
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["handler"].text().into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    #[test]
    fn handlers() {
        check_create(
            "node.k8s.io",
            "RuntimeClass",
            json!({"handler": "a.b"}),
            &["handler: Invalid value: \"a.b\": must not contain dots"],
        );
        check_update(
            "node.k8s.io",
            "RuntimeClass",
            json!({"handler": "b"}),
            json!({"handler": "a"}),
            &["handler: Invalid value: \"b\": field is immutable"],
        );
    }
}
