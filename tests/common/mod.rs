//! What the end-to-end tests share: [`server`] (the real binary as a process, on a directory that outlives it),
//! [`client`] (tonic clients, and the shortest forms of common calls), [`kv`] (operations on keys as Redis users write them), [`consumer`] (members of consumer groups), [`flaky`] (a way to the server that breaks off),
//! [`linear`] (whether concurrent operations had an order) with [`key`] (what a key does), [`wire`] (raw HTTP/2 and raw sockets, for what a
//! proper client would never send), [`random`] (numbers by seed, printed), [`wait`] (conditions with a deadline).

pub mod client;
pub mod consumer;
pub mod flaky;
pub mod key;
pub mod kv;
pub mod linear;
pub mod random;
pub mod server;
pub mod wait;
pub mod wire;

pub use client::{Client, refused};
pub use random::Random;
pub use server::{Home, Server};
pub use wait::{eventually, now_ms, within};
