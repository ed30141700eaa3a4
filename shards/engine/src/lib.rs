//! A shard: the pump that joins the machine and the store, split by phase.
//!
//! ```text
//! submit ─► gate ─► decide ─► apply ─► log ─► park        pump.rs, waiting.rs, fetch.rs
//!                                       │
//!                              commit: write + sync        commit.rs
//!                                       │
//!                                    release               release.rs
//! ticks: time passes                                       ticks.rs
//! checkpoint: state ─► segments and index, log trimmed     checkpoint.rs
//! compact: the latest record of each key                   compact.rs
//! chill, values: values of stores leave memory, come back chill.rs, values.rs
//! transfers: jobs go to other queues and streams           transfers.rs
//! recover: index, segments, log ─► state                   recover.rs
//! ```
//!
//! [`Shard`] is a handle, cheap to clone, that stays on its core. Nothing borrows the state across an await.

mod checkpoint;
mod chill;
mod commit;
mod compact;
pub mod config;
mod fetch;
mod large;
pub mod metrics;
mod pump;
mod recover;
mod release;
mod shard;
mod signal;
pub mod sink;
mod stalled;
mod ticks;
pub mod timer;
pub mod transfers;
mod values;
mod waiting;

pub use config::ShardConfig;
pub use recover::OpenError;
pub use shard::{Health, Shard};
pub use signal::Signal;
pub use sink::{ReplySink, SinkFn};
pub use timer::Timer;
pub use transfers::Transport;
