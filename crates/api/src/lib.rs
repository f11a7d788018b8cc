//! Kinds' schemas, quantities, selectors, patches and Status errors of the Kubernetes API. This crate knows what API
//! objects look like and how they are read, compared, merged and refused; it must never know where they are kept, who
//! asks for them or when: no I/O, no async, no clock (callers pass the time), no policy of a single kind (that is
//! `kinds`).

pub mod cron;
pub mod decode;
pub mod equality;
pub mod field;
pub mod intstr;
pub mod managed;
pub mod meta;
pub mod names;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;

pub use field::{ErrorList, ErrorType, FieldError, Path};
pub use quantity::Quantity;
pub use status::{ApiError, Status, StatusCause, StatusDetails};
