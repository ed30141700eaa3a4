//! Streams, queues and stores against models that are too simple to be wrong: a list, a list, a map.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod kv;
mod queue;
mod stream;
