//! Pods with `spec.schedulingGates` wait until these are gone.

use crate::cache::Cache;
use crate::framework::{ActionType, EventResource, ExtensionPoint, Plugin, Registration, Status};
use crate::pod_info::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreEnqueue]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_GATES_ELIMINATED)]
    }

    fn pre_enqueue(&self, pod: &PodInfo, _: &Cache) -> Result<(), Status> {
        let gates = pod.spec().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
        if gates.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = gates.iter().map(|gate| gate.name.as_str()).collect();
        Err(Status::unresolvable(format!("waiting for scheduling gates: [{}]", names.join(" "))))
    }
}
