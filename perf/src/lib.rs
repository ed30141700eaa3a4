//! The load generator and the measurement of a machine's bare limits.
//!
//! [`http2`] is the client that makes load, [`load`] what it sends and what came of it, [`baseline`] what the machine
//! can do at all, [`scenario`] the rows of the performance targets: each starts a server, puts load on it and compares
//! it with the machine. [`meter`] reads processor time and memory. [`cli`] has the arguments, [`report`] the tables.

// Lengths, counts and times here are far from the ends of their types.
#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap)]
// Reports are written once, at the end.
#![allow(clippy::format_push_string)]

pub mod baseline;
pub mod cli;
pub mod http2;
pub mod load;
pub mod meter;
pub mod report;
pub mod scenario;

mod run;

pub use run::run;
