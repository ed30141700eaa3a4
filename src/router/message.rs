//! What travels between cores.

use std::sync::Arc;

use flowmesh_engine::metrics::ShardStats;
use flowmesh_model::{Catalog, CatalogVersion, Command, Offset, PartitionRef, Reject, Reply};

use crate::edge::grpc::CounterSnapshot;

/// One message from core to core. Every request is answered exactly once, so the channels stay bounded by the
/// requests in flight.
pub enum Message {
    /// A command for a shard of the receiving core.
    Request {
        /// The sender's number for it.
        id: u32,
        /// The catalog it was checked against.
        catalog: CatalogVersion,
        /// What to do.
        command: Command,
    },
    /// The answer to a request.
    Response {
        /// The number in the request.
        id: u32,
        /// The answer.
        outcome: Result<Reply, Reject>,
    },
    /// Nobody wants the answer to that request any more. Best effort: the answer may be on its way.
    Cancel {
        /// The number in the request.
        id: u32,
    },
    /// A newer catalog, from shard 0.
    Catalog(Arc<Catalog>),
    /// Send me your counters.
    StatsRequest {
        /// The sender's number for it.
        id: u32,
        /// Which of them.
        detail: Detail,
    },
    /// The counters asked for.
    StatsResponse {
        /// The number in the request.
        id: u32,
        /// The counters.
        stats: Box<CoreStats>,
    },
}

/// How much is wanted of a core's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Those of the core as a whole.
    Core,
    /// Those of single partitions, queues and groups too, which costs a look at each.
    Resources,
    /// Those of the core as a whole, and where these partitions end.
    Ends(Arc<[PartitionRef]>),
}

/// What a core counts: its shard, and its side of the channels.
#[derive(Clone, Debug, Default)]
pub struct CoreStats {
    /// The shard's counters.
    pub shard: ShardStats,
    /// Requests this core sent to others.
    pub hops_out: u64,
    /// Requests of other cores it carried out.
    pub hops_in: u64,
    /// Requests of this core that others have not answered yet.
    pub hops_pending: u64,
    /// Where partitions end that were asked for, as far as the shard holds records of them.
    pub ends: Vec<(PartitionRef, Offset)>,
    /// Counters of the edges.
    pub edge: CounterSnapshot,
}
