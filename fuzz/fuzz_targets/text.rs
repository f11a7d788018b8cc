//! Selectors, quantities, names, times: everything that is parsed from short text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_api::names;
use orlop_api::quantity::Quantity;
use orlop_api::selector::{FieldSelector, LabelSelector};

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        // What is printed means the same.
        let printed = selector.to_string();
        let again = LabelSelector::parse(&printed).expect("a printed selector can be parsed");
        assert_eq!(again.to_string(), printed);
        let _ = selector.matches(None);
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.matches(|_| Some(text.to_owned()));
    }
    if let Ok(quantity) = Quantity::parse(text) {
        let printed = quantity.to_string();
        let again = Quantity::parse(&printed).expect("a printed quantity can be parsed");
        assert_eq!(again.to_string(), printed);
        let _ = (quantity.value(), quantity.milli_value(), quantity.as_f64());
    }
    let _ = orlop_api::time::parse(text);
    let checks: [fn(&str) -> Vec<String>; 15] = [
        names::is_dns1123_label,
        names::is_dns1123_subdomain,
        names::is_dns1035_label,
        names::is_wildcard_dns1123_subdomain,
        names::is_qualified_name,
        names::is_valid_label_value,
        names::is_valid_port_name,
        names::is_env_var_name,
        names::is_relaxed_env_var_name,
        names::is_config_map_key,
        names::is_http_header_name,
        names::is_valid_percent,
        names::path_segment,
        names::is_valid_ip,
        names::is_valid_cidr,
    ];
    for check in checks {
        let _ = check(text);
    }
});
