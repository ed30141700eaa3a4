//! Tests over an in-memory connection.
