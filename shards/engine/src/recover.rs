//! Start: the index as of its LSN, segment files cut to what it knows, then the log from there.
//!
//! | state | from |
//! |---|---|
//! | everything up to LSN L | the index, tagged with L; records up to the offsets it knows from segment files |
//! | L+1 … the end | the log, applied fact by fact, by the same code as when they were new |

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use flowmesh_machine::{ChillCursor, EntryContext, Machine, MachineConfig};
use flowmesh_model::codec::Malformed;
use flowmesh_model::{Durability, Fact, Lsn, Reject, ShardId, Space, fact};
use flowmesh_store::disk::Disk;
use flowmesh_store::index::{Index, IndexConfig, IndexError};
use flowmesh_store::log::{Log, LogConfig, LogError, recover_with};
use flowmesh_store::segments::{SegmentError, StreamFiles, StreamFilesConfig};
use thiserror::Error;

use crate::chill;
use crate::config::ShardConfig;
use crate::large::Parts;
use crate::metrics::ShardStats;
use crate::metrics::resources::Resources;
use crate::release::Parked;
use crate::shard::{Durable, Inner, Shard, Signals, State};
use crate::timer::Timer;

/// Log segments that are ready before they are needed: at 1 GB/s one of 64 MiB lasts 60 ms.
const SEGMENTS_AHEAD: usize = 2;

/// Entries of stores looked at after an entry of the log, while memory is short: more than one entry of the log adds.
const REPLAY_LOOKS: usize = 64;

/// Why a shard cannot be opened. Its data is left as it is.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The log cannot be read to its end.
    #[error("{0}")]
    Log(#[from] LogError),
    /// The index cannot be opened.
    #[error("{0}")]
    Index(#[from] IndexError),
    /// Segment files do not fit the index.
    #[error("{0}")]
    Segments(#[from] SegmentError),
    /// The index's entries do not fit together.
    #[error("shard {shard}: the index does not fit together: {error}; was it written by a newer server?")]
    Restore {
        /// Whose index.
        shard: ShardId,
        /// What is wrong.
        error: Malformed,
    },
    /// The log changes a key whose value only the index has, and it is not there.
    #[error("shard {shard}: {reject}")]
    Cold {
        /// Whose index.
        shard: ShardId,
        /// What is wrong.
        reject: Reject,
    },
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Opens a shard: reads what its directory holds, or makes a new one.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk was changed that a later, better try would need.
    pub async fn open(config: ShardConfig, disk: D, timer: T) -> Result<Self, OpenError> {
        let started_ns = timer.monotonic_ns();
        let mut machine = Machine::new(MachineConfig {
            shard: config.shard,
            catalog_owner: config.shard.0 == 0,
            shards: config.shards,
            shares: config.shares,
            hash_seed: config.hash_seed,
            checkpoints: config.durability != Durability::Memory,
        });
        let mut stats = ShardStats::default();
        let (log, durable) = if config.durability == Durability::Memory {
            (Log::in_memory(), None)
        } else {
            let (durable, applied) = restore(&config, &disk, &mut machine).await?;
            let mut log_config = LogConfig::new(&config.dir, config.shard);
            log_config.segment_bytes = config.log_segment_bytes;
            // All of the log that may be kept is used again: writing zeros costs as much as writing data.
            log_config.spares_max =
                usize::try_from(config.log_bytes_max / config.log_segment_bytes).unwrap_or(1);
            log_config.segments_ahead = SEGMENTS_AHEAD;
            let (mut facts, mut parts) = (0, Parts::default());
            let replay_started_ns = timer.monotonic_ns();
            let (mut cursor, mut refused) = (ChillCursor::default(), None);
            let recovered = recover_with(&disk, log_config, applied, async |entry| {
                for fact in fact::decode_all(entry.body)? {
                    facts += 1;
                    let Some(fact) = parts.join(fact)? else { continue };
                    warm(&mut machine, &durable.index, &fact).await.map_err(|error| {
                        refused = Some(error);
                        Malformed("it changes what the index must have")
                    })?;
                    machine.apply(EntryContext { lsn: entry.lsn, time: entry.time }, fact);
                }
                if machine.memory_bytes() > config.memory_bytes / 16 * 15 {
                    machine.chill(chill::low(config.memory_bytes), REPLAY_LOOKS, &mut cursor);
                }
                Ok(())
            })
            .await;
            if let Some(refused) = refused {
                return Err(refused);
            }
            let (log, recovered) = recovered?;
            stats.replay_ns = timer.monotonic_ns().saturating_sub(replay_started_ns);
            durable.streams.remove_unknown().await?;
            if let Some(cut) = &recovered.cut {
                tracing::info!(shard = %config.shard, ?cut, "cut the unfinished end of the log: none of it was acknowledged");
            }
            stats.recovered_facts = facts;
            stats.checkpoint_lsn = applied.0;
            (log, Some(durable))
        };
        machine.forget_woken();
        // What the log says was done is counted by those who did it.
        machine.take_tallies(&mut |_, _| ());
        stats.recovery_ns = timer.monotonic_ns().saturating_sub(started_ns);
        let last = Lsn(log.next_lsn().0 - 1);
        let mut state = State {
            machine,
            parked: Parked::new(last),
            expected_replies: 0,
            last_commit_ns: 0,
            waiting: crate::waiting::Waiting::default(),
            stalled: crate::stalled::Stalled::default(),
            large: crate::large::Large::default(),
            fetches: VecDeque::new(),
            looking_ahead: 0,
            stats,
            resources: Resources::new(config.metric_resources_max),
            default_durability: config.durability,
            durability_of: HashMap::new(),
            disk_full: false,
            segment_failures: 0,
            memory_only: config.durability == Durability::Memory,
            log_bytes_at_checkpoint: 0,
            untrimmed: None,
            checkpointing: false,
            fenced: None,
            stopping: false,
            log_bytes_max: config.log_bytes_max,
            memory_bytes_max: config.memory_bytes,
            chill_above: 0,
            checkpoint_log_bytes: config.checkpoint_log_bytes,
            armed: None,
            sync_due: false,
            committed_at_ns: None,
            log,
        };
        state.may_chill();
        let signals = Signals::default();
        Ok(Self {
            inner: Rc::new(Inner {
                config,
                timer,
                state: RefCell::new(state),
                durable,
                signals,
                warming: futures::lock::Mutex::default(),
            }),
        })
    }
}

/// Opens index and segment files, and brings the machine to the LSN they are at.
async fn restore<D: Disk>(
    config: &ShardConfig,
    disk: &D,
    machine: &mut Machine,
) -> Result<(Durable<D>, Lsn), OpenError> {
    let mut index_config = IndexConfig::new(&config.dir, config.shard);
    index_config.cache_bytes = chill::index_cache(config.memory_bytes).max(index_config.cache_bytes);
    index_config.on_thread_start.clone_from(&config.on_thread_start);
    let (index, applied) = match disk.index(&index_config) {
        Some(server) => Index::open_at(&index_config, server).await?,
        None => Index::open(index_config).await?,
    };
    machine.restore_within(chill::low(config.memory_bytes));
    for space in Space::STATE {
        index.scan_all(space, |key, value| machine.restore(space, &key, value)).await?;
    }
    machine.finish_restore().map_err(|error| OpenError::Restore { shard: config.shard, error })?;
    let streams =
        StreamFiles::open(disk.clone(), &config.dir, StreamFilesConfig::default(), machine.stream_ends())
            .await?;
    Ok((Durable { index, streams }, applied))
}

/// Brings into memory what a fact of the log keeps and only the index has.
async fn warm(machine: &mut Machine, index: &Index, fact: &Fact) -> Result<(), OpenError> {
    let Some(cold) = machine.cold_of(fact) else { return Ok(()) };
    let shard = machine.shard();
    let refused = |reject| OpenError::Cold { shard, reject };
    for item in machine.cold_items(&cold, false).map_err(refused)? {
        let mut found = index.beside(item.space, vec![item.index_key.clone()]).await?;
        machine.warm_item(cold.store, &item, found.pop().flatten()).map_err(refused)?;
    }
    Ok(())
}
