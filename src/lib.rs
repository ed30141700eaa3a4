//! FlowMesh: one server for cache, job queues and event streams.

pub mod config;
