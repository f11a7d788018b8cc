//! `DenyServiceExternalIPs`: a Service may keep the external addresses it has, but not get new ones; whoever may write
//! Services could otherwise draw the traffic of any address to itself.

use async_trait::async_trait;
use orlop_api::status::ApiError;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct DenyServiceExternalIPs;

#[async_trait]
impl Admission for DenyServiceExternalIPs {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("services") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let old = request.old.map_or(&[][..], |old| old["spec"].items("externalIPs"));
        if request.object["spec"].items("externalIPs").iter().all(|address| old.contains(address)) {
            Ok(())
        } else {
            Err(request.forbidden("Use of external IPs is denied by admission control."))
        }
    }
}
