//! Binds pods through the API server.

use std::sync::Arc;

use crate::framework::{BoxFuture, ExtensionPoint, Plugin, Status};
use crate::pod_info::PodInfo;
use crate::shell::Shell;

pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::Bind]
    }

    fn bind(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        shell: &Arc<Shell>,
    ) -> Option<BoxFuture<Result<(), Status>>> {
        let (pod, node, shell) = (pod.clone(), node.to_owned(), shell.clone());
        Some(Box::pin(async move {
            let bound = shell.bind(&pod, &node).await;
            bound.map_err(|error| Status::error(error.to_string()).by("DefaultBinder"))
        }))
    }
}
