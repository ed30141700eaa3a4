//! A gRPC client for load: HTTP/2 over plain sockets, as little of it as load needs and as fast as one core allows.
//!
//! A general client spends more on a call than the server does, and would be what is measured. This one has no
//! runtime, no task and no allocation per call; it sends header blocks of a few bytes made once for each method, and
//! looks at answers only as far as it must. From the bytes up: [`frame`] (frames), [`huffman`] and [`hpack`]
//! (answered headers), [`request`] (asked headers), [`connection`] (streams and windows; no I/O in it),
//! [`grpc`] (messages in DATA), [`socket`] (the non-blocking socket and epoll), [`unary`] (one call at a time, for
//! setting things up).

pub mod connection;
pub mod frame;
pub mod grpc;
pub mod hpack;
pub mod huffman;
pub mod request;
pub mod socket;
pub mod unary;

pub use connection::{Connection, Event, ProtocolError, StreamRef};
pub use grpc::{Deframer, GRPC_HEAD_BYTES};
pub use request::{MethodId, Methods};
pub use socket::{Peer, Poll, Readiness};
pub use unary::UnaryClient;
