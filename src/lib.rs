//! FlowMesh: one server for cache, job queues and event streams.

pub mod admin;
pub mod boot;
pub mod config;
pub mod edge;
pub mod net;
pub mod redis_syntax;
pub mod router;
pub mod telemetry;
