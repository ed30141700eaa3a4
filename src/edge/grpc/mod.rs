//! gRPC on HTTP/2, by hand on h2: one task per connection, no task per call.
//!
//! In the order a request takes:
//! - [`connection`]: drives h2, accepts calls, polls those that take their time; [`io`] and [`waker`] keep its system
//!   calls and wake-ups few, [`vigil`] its time limits.
//! - [`head`] and [`method`]: what is called; [`message`]: the messages of its body.
//! - [`services`]: messages to commands and replies to messages, one file a service; [`wire`] is protobuf by hand.
//! - [`respond`]: the answer of a unary call; [`streaming`] and [`outbound`]: of a streaming one.
//! - [`status`]: the answer of a call that failed.
//! - [`shared`], [`counters`], [`config`]: what all calls share.

pub mod config;
mod connection;
pub mod counters;
mod head;
mod io;
mod message;
mod method;
mod outbound;
mod respond;
mod services;
mod shared;
mod status;
mod streaming;
#[cfg(test)]
mod tests;
mod vigil;
mod waker;
mod wire;

use std::rc::Rc;

pub use config::GrpcConfig;
pub use connection::serve_connection;
pub use counters::CounterSnapshot;

use super::backend::{Backend, ServerFacts};
use shared::Common;

/// One core's gRPC edge; [`serve_connection`] serves connections with it.
pub struct Edge<B: Backend> {
    backend: B,
    common: Rc<Common>,
}

impl<B: Backend> Edge<B> {
    /// The edge of a core.
    pub fn new(backend: B, config: GrpcConfig, facts: ServerFacts) -> Rc<Self> {
        Rc::new(Self { backend, common: Rc::new(Common::new(config, facts)) })
    }

    /// A copy of this core's counters.
    pub fn counters(&self) -> CounterSnapshot {
        self.common.counters.snapshot()
    }
}
