//! `AlwaysPullImages`: on a node that several tenants share, an image is used only by those who may pull it.

use async_trait::async_trait;
use orlop_api::field::{self, Path};
use orlop_api::status::{ApiError, aggregate};
use orlop_json::{Value, json};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct AlwaysPullImages;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// An update that brings no new image asks nothing new of a registry.
fn brings_no_image(request: &Request<'_>) -> bool {
    let (Operation::Update, Some(old)) = (request.operation, request.old) else { return false };
    let images = |pod: &Value| -> Vec<String> {
        LISTS.iter().flat_map(|list| pod["spec"].items(list)).map(|c| c.text("image").to_string()).collect()
    };
    let known = images(old);
    images(request.object).iter().all(|image| known.contains(image))
}

#[async_trait]
impl Admission for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.writes_containers()
    }

    async fn mutate(&self, _registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if brings_no_image(request) {
            return Ok(());
        }
        for list in LISTS {
            let containers = request.object["spec"].get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                container["imagePullPolicy"] = json!("Always");
            }
        }
        // An image volume is an image too.
        let volumes = request.object["spec"].get_mut("volumes").and_then(Value::as_array_mut);
        for volume in volumes.into_iter().flatten() {
            if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
                image["pullPolicy"] = json!("Always");
            }
        }
        Ok(())
    }

    async fn validate(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        if brings_no_image(request) {
            return Ok(());
        }
        let spec = &request.object["spec"];
        let root = Path::new("spec");
        let mut errors = Vec::new();
        for list in LISTS {
            for (index, container) in spec.items(list).iter().enumerate() {
                if container.text("imagePullPolicy") != "Always" {
                    let path = root.child(list).index(index).child("imagePullPolicy");
                    let given = container.text("imagePullPolicy");
                    errors.push(field::not_supported(&path, given, &["Always"]).to_string());
                }
            }
        }
        for (index, volume) in spec.items("volumes").iter().enumerate() {
            if volume.has("image") && volume["image"].text("pullPolicy") != "Always" {
                let path = root.child("volumes").index(index).child("image").child("pullPolicy");
                let given = volume["image"].text("pullPolicy");
                errors.push(field::not_supported(&path, given, &["Always"]).to_string());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(request.forbidden(aggregate(errors))) }
    }
}
