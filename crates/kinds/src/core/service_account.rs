//! ServiceAccount: an identity for pods.

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_json::Value;

use crate::cursor::Cursor;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ServiceAccounts.
pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn validate_create(&self, obj: &Value) -> ErrorList {
        metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(self.validate_create(obj));
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
        let has = |o: &Value| o["metadata"]["annotations"].has(KEY);
        if has(obj) && !old.is_some_and(has) {
            return vec![format!(
                "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            )];
        }
        Vec::new()
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), printer::age(obj, now)]
    }
}
