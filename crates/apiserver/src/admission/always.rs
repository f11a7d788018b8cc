//! `AlwaysAdmit` and `AlwaysDeny`: what their names say, for tests of a cluster's set-up.

use async_trait::async_trait;
use orlop_api::status::ApiError;

use super::{Admission, Request};
use crate::registry::Registry;

pub(super) struct AlwaysAdmit;

#[async_trait]
impl Admission for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn handles(&self, _request: &Request<'_>) -> bool {
        false
    }
}

pub(super) struct AlwaysDeny;

const DENIED: &str = "admission control is denying all modifications";

#[async_trait]
impl Admission for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        Err(request.forbidden(DENIED))
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        Err(request.forbidden(DENIED))
    }
}
