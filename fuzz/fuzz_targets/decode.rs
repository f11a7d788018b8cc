//! Request bodies as JSON and YAML, through decoding, defaults and validation of a kind that the first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_api::decode::{self, FieldValidation, Gvk, Media};

const KINDS: [(&str, &str, &str); 6] = [
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("apps", "v1", "Deployment"),
    ("batch", "v1", "Job"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
];

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let media = if choice & 1 == 0 { Media::Json } else { Media::Yaml };
    let validation = [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict];
    let validation = validation[usize::from(choice >> 1) % validation.len()];
    let (group, version, kind) = KINDS[usize::from(choice >> 3) % KINDS.len()];
    let Ok(decoded) = decode::decode(body, media, &Gvk { group, version, kind }, validation) else { return };
    let mut object = decoded.value;
    let Some(strategy) = orlop_kinds::strategy(group, kind) else { return };
    strategy.defaults(&mut object);
    strategy.prepare_create(&mut object);
    let _ = strategy.validate_create(&object);
    let _ = strategy.validate_update(&object, &object);
    let _ = strategy.warnings(&object, None);
});
