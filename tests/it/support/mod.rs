//! What every test stands on.

pub mod account;
pub mod api;
pub mod applying;
pub mod controlplane;
pub mod faults;
pub mod following;
pub mod hand;
pub mod history;
pub mod kubectl;
pub mod large_cluster;
pub mod line;
pub mod people;
pub mod postgres;
pub mod program;
pub mod raw;
pub mod rollbackd;
pub mod space;
pub mod sse;
pub mod store;
pub mod told;
pub mod twins;
pub mod wait;
