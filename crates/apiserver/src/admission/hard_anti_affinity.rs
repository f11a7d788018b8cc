//! `LimitPodHardAntiAffinityTopology`: required anti-affinity may only keep pods apart by node; over a whole zone it
//! would let one pod lock others out.

use async_trait::async_trait;
use orlop_api::status::ApiError;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

const HOSTNAME: &str = "kubernetes.io/hostname";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

pub(super) struct LimitPodHardAntiAffinityTopology;

#[async_trait]
impl Admission for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let anti_affinity = &request.object["spec"]["affinity"]["podAntiAffinity"];
        let other = anti_affinity.items(REQUIRED).iter().find(|term| term.text("topologyKey") != HOSTNAME);
        match other {
            Some(term) => Err(request.forbidden(format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {} but only key {HOSTNAME} is allowed",
                term.text("topologyKey")
            ))),
            None => Ok(()),
        }
    }
}
