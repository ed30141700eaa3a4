//! Load: what is sent, when, and what came of it.
//!
//! A run has **groups** of virtual **clients**; each client has at most one call under way. In a closed loop a client
//! asks again as soon as it was answered; in an open loop requests are due at a fixed rate and are given to the next
//! idle client, and a latency counts from when the request was due.
//!
//! From the request to the result: [`random`] and [`keys`] (which keys, what they hold), [`wire`], [`ops`]
//! and [`run_ops`] (requests and checks of answers), [`workload`] (the seam) with [`calls`] (unary), [`jobs`] and [`workers`] (queues), [`producer`]
//! and [`consumer`] (streams); [`schedule`] (when), [`worker`] (one thread), [`spec`] (a run), [`stats`] and
//! [`result`] (what came of it).

pub mod calls;
pub mod consumer;
pub mod jobs;
pub mod keys;
pub mod ops;
pub mod producer;
pub mod random;
pub mod result;
pub mod run_ops;
pub mod schedule;
pub mod spec;
pub mod stats;
pub mod wire;
pub mod worker;
pub mod workers;
pub mod workload;

pub use consumer::Follow;
pub use keys::KeySpace;
pub use ops::{OpKind, OpSpec};
pub use result::{LoadResult, OpResult};
pub use spec::{GroupSpec, LoadSpec, Work};
