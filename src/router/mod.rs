//! To the owner: a command goes to the shard that holds its slot, by a function call if that shard lives on this core,
//! else over the channel between the two cores.

use std::sync::Arc;

use flowmesh_engine::ReplySink;
use flowmesh_model::{Catalog, Command, Kind, Millis, Reject, Reply, ResourceInfo, ShardId};

/// This core's way to every shard. Cheap to clone; stays on its core.
#[derive(Clone)]
pub struct Router {}

impl Router {
    /// This core's snapshot of the catalog.
    pub fn catalog(&self) -> Arc<Catalog> {
        unimplemented!()
    }

    /// The resource of that kind that a client names, if the catalog has it. One hash look-up.
    pub fn find(&self, _kind: Kind, _name: &str) -> Option<Arc<ResourceInfo>> {
        unimplemented!()
    }

    /// As [`Router::find`]; creates the resource with default settings if `create` and the server's auto-create allow it.
    pub async fn resolve(&self, _kind: Kind, _name: &str, _create: bool) -> Result<Arc<ResourceInfo>, Reject> {
        unimplemented!()
    }

    /// The shard that holds a stream's or queue's partition.
    pub fn shard_of_partition(&self, _info: &ResourceInfo, _partition: u32) -> ShardId {
        unimplemented!()
    }

    /// The shard that holds a key.
    pub fn shard_of_key(&self, _info: &ResourceInfo, _key: &[u8]) -> ShardId {
        unimplemented!()
    }

    /// How many shards there are, numbered from 0.
    pub fn shards(&self) -> u16 {
        unimplemented!()
    }

    /// The time now, for deadlines and waits.
    pub fn now(&self) -> Millis {
        unimplemented!()
    }

    /// Hands a command over; `sink` gets the reply later, or at once. The fast path of unary calls: no task, no waker.
    pub fn dispatch(&self, _to: ShardId, _command: Command, _sink: Box<dyn ReplySink>) {
        unimplemented!()
    }

    /// Hands a command over and waits for the reply.
    pub async fn call(&self, _to: ShardId, _command: Command) -> Result<Reply, Reject> {
        unimplemented!()
    }
}
