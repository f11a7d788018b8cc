//! The group `batch`.

mod cron;
pub mod cronjob;
pub mod job;
