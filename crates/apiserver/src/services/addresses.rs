//! Which cluster addresses a service gets: one of each of its families, its own choice or any free one.

use std::net::IpAddr;

use orlop_api::field::{self, Path};
use orlop_json::{Value, json};
use orlop_kinds::core::service as kind;

use super::{Allocators, Refusal, Reservation, addresses_of, ip_cache, strings};
use crate::registry::Registry;

impl Allocators {
    /// A second address for a service that becomes dual stack; the second one of a service that ceases to be is free.
    pub(super) fn change_stack(
        &self,
        registry: &Registry,
        service: &mut Value,
        old: &Value,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        let (before, now) = (strings(&old["spec"], "ipFamilies"), strings(&service["spec"], "ipFamilies"));
        let mut addresses = strings(&service["spec"], "clusterIPs");
        match (before.len(), now.as_slice()) {
            (1, [_, second]) => {
                match addresses.get(1).filter(|address| !address.is_empty()) {
                    None => {
                        let chosen = self.any_address(registry, second == "IPv4", reservation)?;
                        addresses.truncate(1);
                        addresses.push(chosen.to_string());
                    }
                    // A text that is no address the validation refuses later.
                    Some(wanted) => {
                        if let Ok(address) = wanted.parse() {
                            let all = &service["spec"]["clusterIPs"];
                            self.this_address(registry, address, all, reservation)?;
                        }
                    }
                }
                service["spec"]["clusterIPs"] = json!(addresses);
            }
            (2, [_]) => reservation.obsolete.0.extend(addresses_of(old).into_iter().skip(1)),
            _ => {}
        }
        Ok(())
    }

    /// An address of each family the service is of, unless it is headless.
    pub(super) fn assign_addresses(
        &self,
        registry: &Registry,
        service: &mut Value,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        if !kind::needs_cluster_ip(service) || kind::is_headless(service) {
            return Ok(());
        }
        let spec = &mut service["spec"];
        let mut addresses = strings(spec, "clusterIPs");
        for (at, family) in strings(spec, "ipFamilies").iter().enumerate() {
            match addresses.get(at).map(String::as_str) {
                None | Some("") => {
                    let chosen = self.any_address(registry, family == "IPv4", reservation)?.to_string();
                    addresses.truncate(at);
                    addresses.push(chosen);
                }
                Some(wanted) => {
                    // A text that is no address the validation refuses later.
                    if let Ok(address) = wanted.parse() {
                        self.this_address(registry, address, &spec["clusterIPs"], reservation)?;
                    }
                }
            }
        }
        if let Some(first) = addresses.first() {
            spec["clusterIP"] = json!(first);
        }
        spec["clusterIPs"] = json!(addresses);
        Ok(())
    }

    fn this_address(
        &self,
        registry: &Registry,
        address: IpAddr,
        all: &Value,
        reservation: &mut Reservation<'_>,
    ) -> Result<(), Refusal> {
        let refuse = |why: &str| -> Result<(), Refusal> {
            let path = Path::new("spec").child("clusterIPs");
            Err(field::invalid(&path, all.clone(), format!("failed to allocate IP {address}: {why}")).into())
        };
        if !self.ranges.ready(registry, &self.configured).iter().any(|range| range.contains(address)) {
            return refuse("the provided network does not match the current range");
        }
        let known = ip_cache(registry).is_some_and(|cache| cache.get(&address.to_string()).is_some());
        if known || !self.taken.lock().addresses.insert(address) {
            return refuse("provided IP is already allocated");
        }
        reservation.addresses.push(address);
        Ok(())
    }

    fn any_address(
        &self,
        registry: &Registry,
        ipv4: bool,
        reservation: &mut Reservation<'_>,
    ) -> Result<IpAddr, Refusal> {
        let cache = ip_cache(registry);
        let used = cache.map(|cache| cache.snapshot().0);
        let mut taken = self.taken.lock();
        for range in self.ranges.ready(registry, &self.configured).iter().filter(|r| r.is_ipv4() == ipv4) {
            for address in range.candidates() {
                let free = used.as_ref().is_none_or(|used| !used.contains_key(address.to_string().as_str()));
                if free && taken.addresses.insert(address) {
                    reservation.addresses.push(address);
                    return Ok(address);
                }
            }
        }
        let path = Path::new("spec").child("clusterIPs");
        Err(field::internal(&path, "failed to allocate a serviceIP: range is full").into())
    }
}
