//! To the owner: a command goes to the shard that holds its slot, by a function call if that shard lives on this core,
//! else over the channel between the two cores.
//!
//! - [`Router`]: what the edges use.
//! - `hop`: requests and answers between cores.
//! - `catalog_gate`: on core 0, catalog changes one at a time; each is made known to all cores once it is durable.
//! - `transport`: jobs on their way to other queues and streams.
//! - `pending`, `oneshot`: who waits for an answer.

mod backend;
mod catalog_gate;
mod hop;
pub mod message;
mod oneshot;
mod pending;
mod transport;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use flowmesh_engine::{ReplySink, Shard};
use flowmesh_model::placement::{SlotMap, worker_slot};
use flowmesh_model::{
    Catalog, CatalogCommand, Command, Kind, Millis, RecentNames, Reject, Reply, ResourceInfo, ResourcePath,
    Settings, ShardId, WorkerPath,
};
use flowmesh_rt::disk::RtDisk;

use crate::boot::RtTimer;
use crate::edge::grpc::CounterSnapshot;
use catalog_gate::CatalogGate;
use message::{CoreStats, Message};
use oneshot::reply_channel;
use pending::Pending;

/// A shard on the real runtime.
pub type LocalShard = Shard<RtDisk, RtTimer>;

/// Requests one core may have in flight to all others. Bounds the channels and the memory behind them.
pub const HOPS_PENDING_MAX: usize = 16 * 1024;

/// Sends a message to another core; gives it back if the channel is full beyond its bound.
pub type SendMessage = Box<dyn Fn(ShardId, Message) -> Result<(), Message>>;

/// What all cores of a server agree on.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The shard of this core.
    pub shard: ShardId,
    /// How many shards there are.
    pub shards: u16,
    /// Which shard holds which slot.
    pub slots: Arc<SlotMap>,
    /// Whether a write may create the resource it names.
    pub auto_create: bool,
}

/// This core's way to every shard. Cheap to clone; stays on its core.
#[derive(Clone)]
pub struct Router {
    inner: Rc<Inner>,
}

/// Who asked, and the number they gave their request.
type RequestKey = (ShardId, u32);

struct Inner {
    config: RouterConfig,
    shard: LocalShard,
    send: SendMessage,
    catalog: RefCell<Arc<Catalog>>,
    names: RefCell<RecentNames>,
    gate: CatalogGate,
    pending: RefCell<Pending>,
    stats_pending: RefCell<HashMap<u32, futures::channel::oneshot::Sender<Box<CoreStats>>>>,
    next_stats_id: Cell<u32>,
    /// Requests that were checked against a catalog this core has not got yet.
    early: RefCell<Vec<(ShardId, Message)>>,
    /// Whether this core has got a catalog yet.
    has_catalog: Cell<bool>,
    /// Waiting requests of other cores, so that they can be cancelled.
    cancels: RefCell<HashMap<RequestKey, Rc<Cell<bool>>>>,
    hops_in: Cell<u64>,
    hops_out: Cell<u64>,
    edge_stats: RefCell<Box<dyn Fn() -> CounterSnapshot>>,
}

impl Router {
    /// The router of a core, around its shard.
    pub fn new(config: RouterConfig, shard: LocalShard, send: SendMessage) -> Self {
        Self {
            inner: Rc::new(Inner {
                config,
                shard,
                send,
                catalog: RefCell::default(),
                names: RefCell::default(),
                gate: CatalogGate::default(),
                pending: RefCell::default(),
                stats_pending: RefCell::default(),
                next_stats_id: Cell::new(0),
                early: RefCell::default(),
                has_catalog: Cell::new(false),
                cancels: RefCell::default(),
                hops_in: Cell::new(0),
                hops_out: Cell::new(0),
                edge_stats: RefCell::new(Box::new(CounterSnapshot::default)),
            }),
        }
    }

    /// This core's snapshot of the catalog.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.inner.catalog.borrow())
    }

    /// The resource of that kind that a client names, if the catalog has it. One hash look-up.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>> {
        self.inner.names.borrow_mut().find(&self.inner.catalog.borrow(), kind, name)
    }

    /// As [`Router::find`]; creates the resource with default settings if `create` and the server's auto-create allow it.
    ///
    /// # Errors
    /// An illegal name, a path of another kind, or `RESOURCE_NOT_FOUND`.
    pub async fn resolve(&self, kind: Kind, name: &str, create: bool) -> Result<Arc<ResourceInfo>, Reject> {
        if let Some(info) = self.find(kind, name) {
            return Ok(info);
        }
        let path = ResourcePath::parse(kind, name)?;
        if !(create && self.inner.config.auto_create) {
            return Err(Reject::ResourceNotFound { path: path.to_string() });
        }
        let create =
            CatalogCommand::Create { path, settings: Settings::default_for(kind), or_existing: true };
        match self.call(ShardId(0), Command::Catalog(create)).await? {
            Reply::Resource { info, .. } => Ok(info),
            _ => Err(Reject::Internal("a catalog change was answered with another reply")),
        }
    }

    /// The shard that holds a stream's or queue's partition.
    pub fn shard_of_partition(&self, info: &ResourceInfo, partition: u32) -> ShardId {
        self.inner.config.slots.shard(info.placement.partition_slot(partition))
    }

    /// The shard that holds a key.
    pub fn shard_of_key(&self, info: &ResourceInfo, key: &[u8]) -> ShardId {
        if self.inner.config.shards == 1 {
            return ShardId(0);
        }
        self.inner.config.slots.shard(info.placement.key_slot(key))
    }

    /// The shard that holds a worker.
    pub fn shard_of_worker(&self, path: &WorkerPath) -> ShardId {
        self.inner.config.slots.shard(worker_slot(path))
    }

    /// How many shards there are, numbered from 0.
    pub fn shards(&self) -> u16 {
        self.inner.config.shards
    }

    /// The shard of this core.
    pub fn local_shard(&self) -> ShardId {
        self.inner.config.shard
    }

    /// This core's shard itself, for health and checkpoints.
    pub fn shard(&self) -> &LocalShard {
        &self.inner.shard
    }

    /// The time now, for deadlines and waits.
    pub fn now(&self) -> Millis {
        self.inner.shard.now()
    }

    /// Hands a command over; `sink` gets the reply later, or at once. The fast path of unary calls: no task, no waker.
    pub fn dispatch(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>) {
        if to != self.inner.config.shard {
            self.hop(to, command, sink);
        } else if let Command::Catalog(change) = command {
            self.change_catalog(change, sink);
        } else {
            self.inner.shard.submit(command, sink);
        }
    }

    /// Hands a command over and waits for the reply.
    pub async fn call(&self, to: ShardId, command: Command) -> Result<Reply, Reject> {
        let (sender, receiver) = reply_channel();
        self.dispatch(to, command, Box::new(sender));
        receiver.await
    }

    /// Whether this core has got a catalog yet; before it must not serve.
    pub fn has_catalog(&self) -> bool {
        self.inner.has_catalog.get()
    }

    /// Where the edges' counters come from.
    pub fn set_edge_stats(&self, source: Box<dyn Fn() -> CounterSnapshot>) {
        *self.inner.edge_stats.borrow_mut() = source;
    }
}
