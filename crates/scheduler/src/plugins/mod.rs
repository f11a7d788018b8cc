//! The plugins that every profile may use, each in a module of its upstream name.

mod default_binder;
mod default_preemption;
mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::config::PluginArgs;
use crate::framework::Plugin;
use crate::framework::registry::{Factory, Registry};

/// Makes a plugin that takes arguments; the configuration has read them, so they are its own.
macro_rules! with_args {
    ($module:ident :: $plugin:ident) => {
        |args| match args {
            PluginArgs::$plugin(args) => Arc::new($module::$plugin::new(args)) as Arc<dyn Plugin>,
            _ => Arc::new($module::$plugin::new(Default::default())),
        }
    };
}

/// All plugins there are.
pub fn registry() -> Registry {
    let factories: [(&'static str, Factory); 19] = [
        ("SchedulingGates", |_| Arc::new(scheduling_gates::SchedulingGates)),
        ("PrioritySort", |_| Arc::new(priority_sort::PrioritySort)),
        ("NodeUnschedulable", |_| Arc::new(node_unschedulable::NodeUnschedulable)),
        ("NodeName", |_| Arc::new(node_name::NodeName)),
        ("TaintToleration", |_| Arc::new(taint_toleration::TaintToleration)),
        ("NodeAffinity", with_args!(node_affinity::NodeAffinity)),
        ("NodePorts", |_| Arc::new(node_ports::NodePorts)),
        ("NodeResourcesFit", with_args!(node_resources_fit::NodeResourcesFit)),
        ("VolumeRestrictions", |_| Arc::new(volume_restrictions::VolumeRestrictions)),
        ("NodeVolumeLimits", |_| Arc::new(node_volume_limits::NodeVolumeLimits)),
        ("VolumeBinding", with_args!(volume_binding::VolumeBinding)),
        ("VolumeZone", |_| Arc::new(volume_zone::VolumeZone)),
        ("PodTopologySpread", with_args!(pod_topology_spread::PodTopologySpread)),
        ("InterPodAffinity", with_args!(inter_pod_affinity::InterPodAffinity)),
        ("DynamicResources", with_args!(dynamic_resources::DynamicResources)),
        ("DefaultPreemption", with_args!(default_preemption::DefaultPreemption)),
        (
            "NodeResourcesBalancedAllocation",
            with_args!(node_resources_balanced_allocation::NodeResourcesBalancedAllocation),
        ),
        ("ImageLocality", |_| Arc::new(image_locality::ImageLocality)),
        ("DefaultBinder", |_| Arc::new(default_binder::DefaultBinder)),
    ];
    Registry::new(factories)
}
