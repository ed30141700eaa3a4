//! A shard: the pump that joins the machine and the store.

pub mod sink;

pub use sink::{ReplySink, SinkFn};
