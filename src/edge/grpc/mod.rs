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

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
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
    random: RandomState,
    drawn: Cell<u64>,
}

impl<B: Backend> Edge<B> {
    /// The edge of a core.
    pub fn new(backend: B, config: GrpcConfig, facts: ServerFacts) -> Rc<Self> {
        let common = Rc::new(Common::new(config, facts));
        Rc::new(Self { backend, common, random: RandomState::new(), drawn: Cell::new(0) })
    }

    /// A number by chance, for what a shard decides by chance: shards have no randomness of their own. A count, hashed with
    /// a key that is random for each core and start.
    fn chance(&self) -> u64 {
        self.drawn.set(self.drawn.get().wrapping_add(1));
        self.random.hash_one(self.drawn.get())
    }

    /// A copy of this core's counters.
    pub fn counters(&self) -> CounterSnapshot {
        self.common.counters.snapshot()
    }
}
