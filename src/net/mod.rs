//! The socket, where a request's way begins: listening, accepting, and how many connections there may be. No protocol
//! is known here: whoever listens says what serves a connection.
//!
//! - [`listener`]: the accept loop of one address on one core.
//! - [`connections`]: a core's open connections, counted against their limit.

pub mod connections;
pub mod listener;

pub use connections::Connections;
pub use listener::{Stopped, accept, stopped};
