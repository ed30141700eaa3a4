//! Stream segments.
