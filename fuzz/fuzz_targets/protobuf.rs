//! Protobuf bodies; what decodes must encode again to something that decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_api::protobuf;

fuzz_target!(|data: &[u8]| {
    let mut body = b"k8s\0".to_vec();
    body.extend_from_slice(data);
    for body in [&body[..], data] {
        if let Ok(value) = protobuf::decode(body)
            && let Some(again) = protobuf::encode(&value)
        {
            let second = protobuf::decode(&again).expect("what was encoded here can be decoded");
            assert_eq!(protobuf::encode(&second), Some(again));
        }
    }
    let ty = orlop_api::schema::kind("", "v1", "Pod").expect("Pods are known");
    let _ = protobuf::decode_message(data, ty);
});
