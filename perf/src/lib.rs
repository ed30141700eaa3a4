//! The load generator and the measurement of a machine's bare limits.
