//! The edge over an in-memory connection, with a client that speaks HTTP/2 by hand and a backend that is a small model.
//!
//! - `fake`: the backend. - `client`: the client.
//! - `calls`: unary calls and what bad ones get. - `streams`: streaming calls. - `lifetime`: timeouts and shutdown.
//! - `filters`: filters of reads and subscriptions. - `slow`: consumers that stop reading.
//! - `foreign`: another gRPC implementation as the client.

mod calls;
mod client;
mod fake;
mod filters;
mod foreign;
mod lifetime;
mod slow;
mod streams;
