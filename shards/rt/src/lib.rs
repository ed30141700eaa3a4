//! The only crate that talks to the runtime (glommio): everything else sees these small modules, so that its traps
//! are handled once and another runtime stays a bounded job.
//!
//! In the order a server uses them:
//! - [`startup`]: may this machine run us? Named errors before anything is opened.
//! - [`signal`]: SIGTERM and SIGINT as a future; installed before any thread is made.
//! - [`core`]: one pinned executor a core; tasks; panics made visible.
//! - [`mesh`]: messages between cores, bounded, never waiting.
//! - [`net`]: listeners and connections with tokio's I/O traits.
//! - [`disk`]: the store's `Disk` with O_DIRECT and io_uring.
//! - [`time`]: sleeping, deadlines, clocks.
//! - [`blocking`]: what would stall a core, on ordinary threads beside the cores.
//!
//! Nothing here is `Send` unless it says so: a core's things stay on their core.

pub mod blocking;
pub mod core;
pub mod disk;
pub mod mesh;
pub mod net;
pub mod signal;
pub mod startup;
pub mod time;

mod affinity;
