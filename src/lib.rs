//! FlowMesh: one server for cache, job queues and event streams.

pub mod boot;
pub mod config;
pub mod edge;
pub mod router;
