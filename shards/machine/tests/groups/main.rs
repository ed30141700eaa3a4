//! Consumer groups, with a simulated clock: whatever members do and whatever is lost on the way, a partition has one owner
//! that may commit, or none, and it has one again once those who live have heartbeated a few times.
//!
//! [`clients`] is what a member's process does, [`coordinator`] lets many of them live and die at random, [`single`] are
//! cases by name.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, dead_code)]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod coordinator;
mod single;
