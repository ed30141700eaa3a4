//! The vocabulary of FlowMesh, shared by every crate and free of I/O.
//!
//! Read in this order: [`ids`] (numbers that must not be mixed), [`path`] (what a resource is called),
//! [`placement`] (which shard owns it), [`settings`] (what can be set for it), [`record`] (how stream records
//! are packed), [`filter`] (which of them a reader wants), [`job`] and [`worker`] (what is told about them), [`trace`] (of
//! which trace a job is a part), [`transfer`] (how jobs go elsewhere), [`kv`] (what keys hold), [`command`] → [`fact`] → [`reply`]
//! (what is asked, what became true, what is answered), [`compaction`] (what is kept of each key), [`reject`] (why not)
//! and [`limits`] (how much).

pub mod catalog;
pub mod codec;
pub mod command;
pub mod compaction;
pub mod compression;
pub mod fact;
pub mod filter;
pub mod group;
pub mod ids;
pub mod index;
pub mod job;
pub mod kv;
pub mod limits;
pub mod mutation;
mod names;
pub mod path;
pub mod placement;
pub mod record;
pub mod reject;
pub mod replay;
pub mod reply;
pub mod schedule;
pub mod settings;
pub mod trace;
pub mod transfer;
pub mod worker;

pub use catalog::{Catalog, ResourceInfo};
pub use command::{CatalogCommand, Command, KvCommand, ProducerStamp, QueueCommand, StreamCommand};
pub use compaction::{Cleaned, CompactedSegment, CompactionJob};
pub use fact::Fact;
pub use group::{GroupCommand, GroupReply};
pub use ids::{
    CatalogVersion, GroupEpoch, JobId, LeaseToken, Lsn, MemberNumber, Millis, Offset, PartitionRef,
    ProducerId, ResourceId, ShardId, SlotId,
};
pub use index::{IndexWrite, Space};
pub use mutation::Mutation;
pub use names::RecentNames;
pub use path::{Kind, ResourcePath};
pub use reject::{Code, Reject};
pub use replay::{ReplayCommand, ReplaySettings};
pub use reply::Reply;
pub use schedule::{ScheduleCommand, ScheduleReply};
pub use settings::{
    Assignor, Durability, FeedSettings, GroupSettings, KvSettings, QueueSettings, Settings, StreamSettings,
};
pub use transfer::{TransferCommand, TransferReply};
pub use worker::{WorkerCommand, WorkerPath, WorkerReply};

/// A batch that usually holds one item and then lives without an allocation.
pub type Batch<T> = smallvec::SmallVec<[T; 1]>;
