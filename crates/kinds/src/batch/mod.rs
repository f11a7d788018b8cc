//! The group `batch`. CronJob is not built.

pub mod job;
