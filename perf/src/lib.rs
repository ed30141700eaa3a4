//! The load generator and the measurement of a machine's bare limits.

pub mod http2;
pub mod load;
pub mod meter;
