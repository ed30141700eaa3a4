//! The pure state machine of a shard: streams, queues, key-value stores, the catalog.
//!
//! Nothing here waits, reads a clock, draws a number or touches a file. Commands are decided on ([`Machine::decide`]),
//! which yields facts; facts are applied ([`Machine::apply`]), which is the only way the state changes, when they are new
//! and when the log is read again. Time comes in as an argument, and [`Machine::tick`] says what it brings.
//!
//! | module | what |
//! |---|---|
//! | `decision` | what goes in and comes out, besides commands and facts |
//! | `machine` | which part of the state a command or fact is for |
//! | `held` | a resource that the shard holds something of |
//! | `stream`, `queue`, `kv`, `group`, `catalog` | the five kinds of state: `decide`, `apply`, their form in the index, their checks |
//! | `workers` | workers that registered, which no resource holds |
//! | `replay` | what a consumer group is for that is the sandbox of a replay session |
//! | `received` | what queues and streams remember of jobs that other queues sent |
//! | `cold` | values of stores that leave memory and come back |
//! | `ticks` | what is due |
//! | `woken` | for what something became available |
//! | `changes`, `checkpoint`, `restore`, `keys` | writing the state to the index while it changes, and reading it back |
//! | `inspect`, `walk` | counts, invariants, the state as text; what each resource holds |
//! | `siphash`, `limit` | the keyed hash; checks that kinds share |

mod catalog;
mod changes;
mod checkpoint;
mod cold;
mod compaction;
mod decision;
mod group;
mod held;
mod inspect;
mod items;
mod keys;
mod kv;
mod limit;
mod machine;
mod queue;
mod received;
mod replay;
mod restore;
mod siphash;
mod stream;
mod ticks;
mod walk;
mod woken;
mod workers;

pub use checkpoint::{BodyCursor, HistoryStep};
pub use cold::{Chill, ChillCursor};
pub use decision::{
    CatalogNews, ColdFind, ColdKeys, ColdRead, Decision, EntryContext, FlushRange, MachineConfig,
    MachineStats, Tick, WaitKey,
};
pub use kv::cold::ColdItem;
pub use kv::past::HistoryStats;
pub use kv::past::rows::{PastRange, PastRead, PastRows};
pub use machine::Machine;
pub use queue::{QueueTally, Spread};
pub use walk::{PartitionHeld, QueueHeld, StoreHeld};
