//! Where a reply goes. The engine knows no protocol: an edge, or the hop to another core, implements this.

use flowmesh_model::{Reject, Reply};

/// The receiver of one reply.
pub trait ReplySink: 'static {
    /// Takes the reply. Called exactly once, from the core that owns the sink, and never before what the reply
    /// shows is as durable as its resource asks. Must not call back into the shard.
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>);

    /// Whether nobody wants the reply any more. A command that still waits (a long poll) is then dropped without
    /// being carried out; one that was carried out stays so.
    fn is_closed(&self) -> bool {
        false
    }
}

/// A sink made of a closure.
pub struct SinkFn<F>(pub F);

impl<F: FnOnce(Result<Reply, Reject>) + 'static> ReplySink for SinkFn<F> {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        (self.0)(outcome);
    }
}
