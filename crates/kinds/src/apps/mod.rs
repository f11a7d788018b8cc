//! The group `apps`.

pub mod controllerrevision;
