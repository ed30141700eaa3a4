//! The edge over an in-memory connection, with a client that speaks HTTP/2 by hand and a backend that is a small model.
//!
//! - `fake`: the backend. - `client`: the client.
//! - `calls`: unary calls and what bad ones get. - `streams`: streaming calls. - `lifetime`: timeouts and shutdown.
//! - `foreign`: another gRPC implementation as the client.

mod calls;
mod client;
mod fake;
mod foreign;
mod lifetime;
mod streams;
