//! All an edge needs from the server behind it. The router implements it; tests have one of their own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flowmesh_engine::ReplySink;
use flowmesh_model::placement::SlotMap;
use flowmesh_model::{
    Catalog, Command, Durability, Kind, Millis, Reject, Reply, ResourceInfo, ResourcePath, ShardId,
    WorkerPath,
};
use futures::future::LocalBoxFuture;

/// One core's way to all shards, and its clock. Cheap to clone; stays on its core.
pub trait Backend: Clone + 'static {
    /// This core's snapshot of the catalog.
    fn catalog(&self) -> Arc<Catalog>;

    /// The resource of that kind that a client names, if the catalog has it.
    fn find(&self, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>>;

    /// As [`Backend::find`]; creates the resource with default settings if `create` and the server allow it.
    ///
    /// # Errors
    /// An illegal name, a path of another kind, or `RESOURCE_NOT_FOUND`.
    fn resolve(
        &self,
        kind: Kind,
        name: &str,
        create: bool,
    ) -> impl Future<Output = Result<Arc<ResourceInfo>, Reject>>;

    /// The shard that holds a stream's or queue's partition.
    fn shard_of_partition(&self, info: &ResourceInfo, partition: u32) -> ShardId;

    /// The shard that holds a key.
    fn shard_of_key(&self, info: &ResourceInfo, key: &[u8]) -> ShardId;

    /// The shard that holds a worker.
    fn shard_of_worker(&self, path: &WorkerPath) -> ShardId;

    /// How many shards there are, numbered from 0.
    fn shards(&self) -> u16;

    /// The shard of this core.
    fn local_shard(&self) -> ShardId;

    /// Hands a command over; `sink` gets the reply later, or at once.
    fn dispatch(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>);

    /// Hands a command over and waits for the reply. Dropping the future closes the sink.
    fn call(&self, to: ShardId, command: Command) -> impl Future<Output = Result<Reply, Reject>> + 'static;

    /// The time now, for deadlines and waits.
    fn now(&self) -> Millis;

    /// Returns after `span`.
    fn sleep(&self, span: Duration) -> LocalBoxFuture<'static, ()>;

    /// Lets others on this core run if the caller has had it for long: for loops that may find all they ask for at once.
    fn yield_if_needed(&self) -> impl Future<Output = ()>;

    /// Whether this server can take requests: recovered and not fenced.
    fn is_serving(&self) -> bool;
}

/// Why there is no such resource: an illegal name, a path of another kind, or simply none.
pub fn missing(kind: Kind, name: &str) -> Reject {
    match ResourcePath::parse(kind, name) {
        Ok(path) => Reject::ResourceNotFound { path: path.to_string() },
        Err(reject) => reject,
    }
}

/// What a server tells about itself; fixed at start.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// Its version.
    pub version: &'static str,
    /// Since when it runs.
    pub started_at: Millis,
    /// Its durability.
    pub durability: Durability,
    /// Whether a first write creates the resource it names.
    pub auto_create: bool,
    /// Where every core listens for gRPC, `host:port`; the host is empty for every address.
    pub shared_address: String,
    /// The same of each core's own port, by shard; empty where it has none.
    pub shard_addresses: Vec<String>,
    /// Which shard holds which slot.
    pub slots: Arc<SlotMap>,
    /// Changes with the slot map.
    pub slot_map_version: u64,
}
