//! Streams, queues, stores and the catalog against models that are too simple to be wrong: a list, a list, a map; the
//! catalog built anew.

// A test fails by panicking.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::manual_let_else,
    clippy::single_match_else,
    clippy::indexing_slicing
)]

#[path = "../common/mod.rs"]
mod common;

mod catalog;
mod compaction;
mod kv;
mod producers;
mod queue;
mod retention;
mod schedule;
mod stream;
mod worker;
