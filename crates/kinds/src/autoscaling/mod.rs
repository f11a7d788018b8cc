//! The group `autoscaling`.

pub mod horizontalpodautoscaler;
