//! How much of a device's capacity a request takes, and of devices that several claims may share, what is left
//! (KEP-5075). Answers to `structured`'s `consumable_capacity.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequirements, Device, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use orlop_api::quantity::{Format, Quantity};

/// Amounts by name of the capacity, in thousandths.
pub type Amounts = BTreeMap<String, i64>;

fn milli(quantity: &ApiQuantity) -> i64 {
    Quantity::parse(&quantity.0).map_or(0, |quantity| quantity.milli_value())
}

/// Adds amounts, or takes them away.
pub fn add(to: &mut Amounts, more: &Amounts, sign: i64) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(sign.saturating_mul(*amount));
    }
}

/// The amounts of an allocation's `consumedCapacity`.
pub fn amounts(consumed: &BTreeMap<String, ApiQuantity>) -> Amounts {
    consumed.iter().map(|(name, amount)| (name.clone(), milli(amount))).collect()
}

/// The same as the API writes them, in the units of the device.
pub fn quantities(device: &Device, amounts: &Amounts) -> BTreeMap<String, ApiQuantity> {
    let written = |name: &String| Quantity::parse(&device.capacity.as_ref()?.get(name)?.value.0).ok();
    let format = |name: &String| written(name).map_or(Format::DecimalSI, |value| value.format());
    let text = |(name, amount): (&String, &i64)| Quantity::from_milli(*amount, format(name)).to_string();
    amounts.iter().map(|entry| (entry.0.clone(), ApiQuantity(text(entry)))).collect()
}

/// What a request takes of a device. `None` when the device has not what is wanted, or does not give so much.
pub fn consumption(device: &Device, wanted: Option<&CapacityRequirements>) -> Option<Amounts> {
    static NONE: BTreeMap<String, DeviceCapacity> = BTreeMap::new();
    let offered = device.capacity.as_ref().unwrap_or(&NONE);
    let wanted = wanted.and_then(|wanted| wanted.requests.as_ref());
    if wanted.into_iter().flatten().any(|(name, _)| !offered.contains_key(name)) {
        return None;
    }
    let amount = |(name, capacity): (&String, &DeviceCapacity)| {
        let amount = taken(capacity, wanted.and_then(|wanted| wanted.get(name)));
        let allowed = capacity.request_policy.as_ref().is_none_or(|policy| allows(policy, amount));
        (allowed && amount <= milli(&capacity.value)).then(|| (name.clone(), amount))
    };
    offered.iter().map(amount).collect()
}

/// What a request comes to: rounded up as the policy says; without one, all that there is.
fn taken(capacity: &DeviceCapacity, wanted: Option<&ApiQuantity>) -> i64 {
    let policy = capacity.request_policy.as_ref();
    let Some(wanted) = wanted.map(milli) else {
        let default = policy.and_then(|policy| policy.default.as_ref());
        return milli(default.unwrap_or(&capacity.value));
    };
    let Some(policy) = policy else { return wanted };
    if let Some(range) = &policy.valid_range {
        let (least, step) = (milli(&range.min), range.step.as_ref().map_or(0, milli));
        return match wanted.saturating_sub(least) {
            ..=0 => least,
            above if step > 0 && above % step != 0 => {
                least.saturating_add((above / step).saturating_add(1).saturating_mul(step))
            }
            _ => wanted,
        };
    }
    let values = policy.valid_values.iter().flatten().map(milli);
    values.into_iter().find(|value| wanted <= *value).unwrap_or(wanted)
}

fn allows(policy: &CapacityRequestPolicy, amount: i64) -> bool {
    if policy.default.as_ref().is_some_and(|default| milli(default) == amount) {
        return true;
    }
    if let Some(range) = &policy.valid_range {
        let step = range.step.as_ref().map_or(0, milli);
        return range.max.as_ref().is_none_or(|most| amount <= milli(most))
            && (step <= 0 || amount.saturating_sub(milli(&range.min)) % step == 0);
    }
    let values = policy.valid_values.as_deref().unwrap_or_default();
    values.is_empty() || values.iter().any(|value| milli(value) == amount)
}

/// Whether several claims may have the device at once.
pub fn is_shared(device: &Device) -> bool {
    device.allow_multiple_allocations == Some(true)
}

/// Whether a device has as much as is taken of it.
pub fn suffices(device: &Device, taken: &Amounts) -> bool {
    let capacity = |name: &String| device.capacity.as_ref().and_then(|capacity| capacity.get(name));
    taken
        .iter()
        .all(|(name, amount)| capacity(name).is_some_and(|capacity| *amount <= milli(&capacity.value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::parse;
    use serde_json::{Value, json};

    #[test]
    fn what_a_request_takes() {
        let check = |capacity: Value, wanted: Value, expected: Option<&str>| {
            let device = parse::<Device>(json!({"name": "d", "capacity": {"memory": capacity}}));
            let wanted = parse::<CapacityRequirements>(json!({"requests": wanted}));
            let taken = consumption(&device, Some(&wanted))
                .map(|amounts| quantities(&device, &amounts)["memory"].0.clone());
            assert_eq!(taken.as_deref(), expected, "{capacity} {:?}", wanted.requests);
        };
        let memory = |amount: &str| json!({"memory": amount});
        let plain = json!({"value": "10Gi"});
        check(plain.clone(), json!({}), Some("10Gi"));
        check(plain.clone(), memory("3Gi"), Some("3Gi"));
        check(plain.clone(), memory("11Gi"), None);
        check(plain, json!({"cores": "1"}), None);
        let range = |max: Option<&str>, step: Option<&str>| {
            json!({"value": "10Gi", "requestPolicy": {"default": "1Gi",
                "validRange": {"min": "1Gi", "max": max, "step": step}}})
        };
        check(range(None, None), json!({}), Some("1Gi"));
        check(range(None, None), memory("100Mi"), Some("1Gi"));
        check(range(None, None), memory("1500Mi"), Some("1500Mi"));
        check(range(None, Some("1Gi")), memory("1500Mi"), Some("2Gi"));
        check(range(None, Some("1Gi")), memory("2Gi"), Some("2Gi"));
        check(range(Some("4Gi"), Some("3Gi")), memory("2Gi"), Some("4Gi"));
        check(range(Some("4Gi"), Some("3Gi")), memory("5Gi"), None);
        check(range(None, Some("4Gi")), memory("9500Mi"), None);
        let values =
            json!({"value": "10Gi", "requestPolicy": {"default": "2Gi", "validValues": ["2Gi", "5Gi"]}});
        check(values.clone(), json!({}), Some("2Gi"));
        check(values.clone(), memory("3Gi"), Some("5Gi"));
        check(values, memory("6Gi"), None);
    }

    #[test]
    fn what_is_left() {
        let device = json!({"name": "d", "capacity": {"a": {"value": "2"}, "b": {"value": "1"}}});
        let device = parse::<Device>(device);
        let mut taken = Amounts::new();
        add(&mut taken, &Amounts::from([("a".to_owned(), 1500)]), 1);
        assert!(suffices(&device, &taken));
        add(&mut taken, &Amounts::from([("a".to_owned(), 600)]), 1);
        assert!(!suffices(&device, &taken));
        add(&mut taken, &Amounts::from([("a".to_owned(), 1500)]), -1);
        assert!(suffices(&device, &taken));
        assert!(!suffices(&device, &Amounts::from([("c".to_owned(), 1)])), "a capacity that is gone");
    }
}
