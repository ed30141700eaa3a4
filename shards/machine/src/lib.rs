//! The pure state machine of a shard: streams, queues, key-value stores, the catalog.

mod decision;
mod machine;

pub use decision::{
    ColdRead, Decision, EntryContext, MachineConfig, MachineStats, StreamFlush, Tick, WaitKey,
};
pub use machine::Machine;
