//! Simulated hardware with seeds: the same seed gives the same run, so that a failure can be had again.
//!
//! [`disk`] is a file system in memory that loses what was not synced, tears writes and fails on demand;
//! [`happened`] counts that; [`random`] is where all chance comes from.

// Only tests and simulations link this crate; everything it indexes it made itself, and a panic is a failed test.
#![allow(clippy::indexing_slicing, clippy::expect_used)]

pub mod disk;
mod file;
pub mod happened;
mod index;
mod names;
pub mod random;
mod survival;
#[cfg(feature = "world")]
pub mod world;

pub use disk::{Operation, SimBuf, SimDisk, SimFile};
pub use random::Random;
