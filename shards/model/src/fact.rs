//! What became true. Facts are what the commit log holds; applying them in order is the only way state changes.
//!
//! A log entry's body is one atomic change: its facts one after the other. Each is a tag byte and then its fields,
//! integers as LEB128, bytes with their length before them. **A tag's meaning never changes**: a new shape gets a new
//! tag, and the decoder keeps the old one for ever.
//!
//! | tag | fact | fields |
//! |---|---|---|
//! | 1 | `ResourceCreated` | id, path, settings (JSON) |
//! | 2 | `ResourceUpdated` | id, settings (JSON) |
//! | 3 | `ResourceDeleted` | id |
//! | 4 | `ResourceDropped` | id |
//! | 5 | `ResourceHeld` | id, path |
//! | 16 | `RecordsAppended` | stream, partition, base offset, count, packed records |
//! | 17 | `RecordsProduced` | stream, partition, base offset, count, producer, epoch, sequence, packed records |
//! | 18 | `ProducerInitialised` | stream, partition, producer, epoch, name (empty = none) |
//! | 19 | `ProducerForgotten` | stream, partition, producer |
//! | 20 | `SegmentRolled` | stream, partition, base offset |
//! | 21 | `RecordsTrimmed` | stream, partition, earliest offset |
//! | 22 | `SegmentsCompacted` | stream, partition, base offset, end offset, bytes, first time, last time |
//! | 23 | `PartitionCleaned` | stream, partition, offset up to which it is clean, first tombstone + 1 (0 = none) |
//! | 32 | `JobEnqueued` | queue, job, ready at, max attempts, priority, headers, payload |
//! | 33 | `JobLeased` | queue, job, token, until, worker |
//! | 34 | `LeaseExtended` | queue, job, until |
//! | 35 | `JobDone` | queue, job |
//! | 36 | `JobReturned` | queue, job, ready at, cause, error |
//! | 37 | `JobDied` | queue, job, cause, error |
//! | 38 | `JobEnqueued` with options | queue, then as 32, then as [`crate::job::fact::put_options`] says |
//! | 48 | `KeySet` | store, key, value, expires at (0 = never) |
//! | 49 | `KeyDeleted` | store, key |
//! | 50 | `KeyExpired` | store, key |
//! | 64–79 | `Group` | group, then as [`crate::group::fact`] says |
//! | 80–95 | `Replay` | group, then as [`crate::replay::fact`] says |
//! | 96–103 | `Schedule` | queue, then as [`crate::schedule::fact`] says |
//! | 104–119 | `Queue` | queue, then as [`crate::job::fact`] says |
//! | 120–127 | `Worker` | epoch, then as [`crate::worker::fact`] says |
//! | 128–135 | `Transfer` | queue or stream, then as [`crate::transfer::fact`] says |
//! | 136–155, 157, 158, 161–167 | `Kv` | store, then as [`crate::kv::fact`] says |
//! | 156 | `FeedHeld` | id, path |
//! | 159 | `ValuePart` | store, place, of how many, bytes |
//! | 160 | `KeySetOfParts` | store, key, place, length, expires at (0 = never) |
//!
//! The time of a fact and its LSN are its entry's.

use bytes::{BufMut, Bytes};

use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::command::ProducerStamp;
use crate::group::fact::{self as group, GroupFact};
use crate::ids::{JobId, LeaseToken, Lsn, Millis, Offset, PartitionRef, ProducerId, ResourceId};
use crate::job::AttemptEnd;
use crate::job::fact::{self as job, EnqueuedOptions, QueueFact};
use crate::kv::fact::{self as kv, KvFact};
use crate::limits::LOG_PIECE_BYTES;
use crate::path::{Kind, ResourcePath};
use crate::replay::fact::{self as replay, ReplayFact};
use crate::schedule::fact::{self as schedule, ScheduleFact};
use crate::settings::Settings;
use crate::transfer::fact::{self as transfer, TransferFact};
use crate::worker::fact::{self as worker, WorkerFact};

/// What became true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Shard 0: the resource exists.
    ResourceCreated {
        /// Its number.
        id: ResourceId,
        /// Its path.
        path: ResourcePath,
        /// Its settings.
        settings: Box<Settings>,
    },
    /// Shard 0: the resource has these settings.
    ResourceUpdated {
        /// Which.
        id: ResourceId,
        /// All its settings.
        settings: Box<Settings>,
    },
    /// Shard 0: the resource is gone from the catalog.
    ResourceDeleted {
        /// Which.
        id: ResourceId,
    },
    /// Any shard: what it held of a deleted resource is gone.
    ResourceDropped {
        /// Which.
        id: ResourceId,
    },
    /// Any shard, before its first fact about a resource: what follows belongs to this path. So a log says by itself
    /// of what kind a resource is and into which slot its parts belong.
    ResourceHeld {
        /// Its number.
        id: ResourceId,
        /// Its path.
        path: ResourcePath,
    },
    /// This shard holds something of a store's feed from now on: as `ResourceHeld`, but partition `p` is in slot `p`.
    FeedHeld {
        /// Its number.
        id: ResourceId,
        /// Its name.
        path: ResourcePath,
    },
    /// Records `base..base + count` exist.
    RecordsAppended {
        /// Where.
        at: PartitionRef,
        /// The first record's offset.
        base: Offset,
        /// How many.
        count: u32,
        /// The packed records.
        records: Bytes,
    },
    /// As `RecordsAppended`, by an idempotent producer: they are its records from the stamp's sequence number on.
    RecordsProduced {
        /// Where.
        at: PartitionRef,
        /// The first record's offset.
        base: Offset,
        /// How many.
        count: u32,
        /// Whose, and which.
        producer: ProducerStamp,
        /// The packed records.
        records: Bytes,
    },
    /// The producer has this epoch: the partition takes nothing of an older one. On partition 0 it may have a name,
    /// which belongs to this producer from now on.
    ProducerInitialised {
        /// Where.
        at: PartitionRef,
        /// Which.
        id: ProducerId,
        /// Its epoch.
        epoch: u32,
        /// Its name; empty if it has none, or the partition is another one.
        name: Bytes,
    },
    /// The partition knows nothing of the producer any more.
    ProducerForgotten {
        /// Where.
        at: PartitionRef,
        /// Which.
        id: ProducerId,
    },
    /// The next record begins a new segment.
    SegmentRolled {
        /// Where.
        at: PartitionRef,
        /// The offset it will get.
        base: Offset,
    },
    /// Records before this one are gone.
    RecordsTrimmed {
        /// Where.
        at: PartitionRef,
        /// The first record there is, or the next one to come if there is none.
        earliest: Offset,
    },
    /// Segment files have one closed segment in place of those that made up `base..end`, with what compaction left of them.
    SegmentsCompacted {
        /// Where.
        at: PartitionRef,
        /// Where it begins.
        base: Offset,
        /// Where it ends.
        end: Offset,
        /// Packed bytes of its records.
        bytes: u64,
        /// When its first record was appended.
        first_time: Millis,
        /// When its last record was appended.
        last_time: Millis,
    },
    /// Of the records before an offset each key has only one in segment files.
    PartitionCleaned {
        /// Where.
        at: PartitionRef,
        /// The offset.
        upto: Offset,
        /// The first tombstone before it.
        tombstone: Option<Offset>,
    },
    /// The job exists: delayed until `ready_at`, then ready.
    JobEnqueued {
        /// Where.
        queue: ResourceId,
        /// Its number.
        job: JobId,
        /// When it is ready.
        ready_at: Millis,
        /// Deliveries before it is dead.
        max_attempts: u32,
        /// Higher is sooner.
        priority: u8,
        /// Packed headers.
        headers: Bytes,
        /// What the worker gets.
        payload: Bytes,
        /// What most jobs have not.
        options: Option<Box<EnqueuedOptions>>,
    },
    /// The job is with a worker; this is one more attempt.
    JobLeased {
        /// Where.
        queue: ResourceId,
        /// Which.
        job: JobId,
        /// The lease's token, above all before it.
        token: LeaseToken,
        /// When the lease ends.
        until: Millis,
        /// The worker's name.
        worker: Bytes,
    },
    /// The lease ends later (or sooner).
    LeaseExtended {
        /// Where.
        queue: ResourceId,
        /// Which.
        job: JobId,
        /// When the lease ends now.
        until: Millis,
    },
    /// The job is done and gone.
    JobDone {
        /// Where.
        queue: ResourceId,
        /// Which.
        job: JobId,
    },
    /// The lease ended without success; the job is ready again at `ready_at`.
    JobReturned {
        /// Where.
        queue: ResourceId,
        /// Which.
        job: JobId,
        /// When it is ready.
        ready_at: Millis,
        /// Why.
        cause: AttemptEnd,
        /// What the worker said.
        error: Bytes,
    },
    /// The last lease ended without success; the job is dead and kept.
    JobDied {
        /// Where.
        queue: ResourceId,
        /// Which.
        job: JobId,
        /// Why.
        cause: AttemptEnd,
        /// What the worker said.
        error: Bytes,
    },
    /// The key holds this value, with the entry's LSN as its version.
    KeySet {
        /// Where.
        store: ResourceId,
        /// Which.
        key: Bytes,
        /// What it holds.
        value: Bytes,
        /// When it ends, if it does.
        expires_at: Option<Millis>,
    },
    /// Bytes of large values that a later entry may name: only the log has it, and it changes nothing by itself. The one at
    /// place 0 begins anew; each other follows the one before it.
    ValuePart {
        /// For which store.
        store: ResourceId,
        /// How many bytes come before.
        place: u64,
        /// How many bytes there are in all.
        total: u64,
        /// These.
        bytes: Bytes,
    },
    /// `KeySet` as it stands in the log if the value is large: the value is in the parts before it.
    KeySetOfParts {
        /// Where.
        store: ResourceId,
        /// Which.
        key: Bytes,
        /// Where in the bytes of the parts the value begins.
        place: u64,
        /// How many bytes it has.
        len: u64,
        /// When it ends, if it does.
        expires_at: Option<Millis>,
    },
    /// The key is gone: deleted.
    KeyDeleted {
        /// Where.
        store: ResourceId,
        /// Which.
        key: Bytes,
    },
    /// The key is gone: its time was up.
    KeyExpired {
        /// Where.
        store: ResourceId,
        /// Which.
        key: Bytes,
    },
    /// Something else became true of a queue.
    Queue(ResourceId, QueueFact),
    /// Something became true of a consumer group.
    Group(ResourceId, GroupFact),
    /// Something became true of the replay session whose sandbox this group is.
    Replay(ResourceId, ReplayFact),
    /// Something became true of a schedule of this queue.
    Schedule(ResourceId, ScheduleFact),
    /// Something became true of a worker.
    Worker(WorkerFact),
    /// Something became true of jobs on their way from this queue, or to this queue or stream.
    Transfer(ResourceId, TransferFact),
    /// Something else became true of a key-value store.
    Kv(ResourceId, KvFact),
}

const RESOURCE_CREATED: u8 = 1;
const RESOURCE_UPDATED: u8 = 2;
const RESOURCE_DELETED: u8 = 3;
const RESOURCE_DROPPED: u8 = 4;
const RESOURCE_HELD: u8 = 5;
const FEED_HELD: u8 = 156;
const RECORDS_APPENDED: u8 = 16;
const RECORDS_PRODUCED: u8 = 17;
const PRODUCER_INITIALISED: u8 = 18;
const PRODUCER_FORGOTTEN: u8 = 19;
const SEGMENT_ROLLED: u8 = 20;
const RECORDS_TRIMMED: u8 = 21;
const SEGMENTS_COMPACTED: u8 = 22;
const PARTITION_CLEANED: u8 = 23;
const JOB_ENQUEUED: u8 = 32;
const JOB_LEASED: u8 = 33;
const LEASE_EXTENDED: u8 = 34;
const JOB_DONE: u8 = 35;
const JOB_RETURNED: u8 = 36;
const JOB_DIED: u8 = 37;
const JOB_ENQUEUED_WITH_OPTIONS: u8 = 38;
const KEY_SET: u8 = 48;
const KEY_DELETED: u8 = 49;
const KEY_EXPIRED: u8 = 50;
const VALUE_PART: u8 = 159;
const KEY_SET_OF_PARTS: u8 = 160;

impl Fact {
    /// Appends the fact in its form on disk.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::ResourceCreated { id, path, settings } => {
                put_head(out, RESOURCE_CREATED, *id);
                put_bytes(out, path.to_string().as_bytes());
                put_settings(out, settings);
            }
            Self::ResourceUpdated { id, settings } => {
                put_head(out, RESOURCE_UPDATED, *id);
                put_settings(out, settings);
            }
            Self::ResourceDeleted { id } => put_head(out, RESOURCE_DELETED, *id),
            Self::ResourceDropped { id } => put_head(out, RESOURCE_DROPPED, *id),
            Self::ResourceHeld { id, path } => {
                put_head(out, RESOURCE_HELD, *id);
                put_bytes(out, path.to_string().as_bytes());
            }
            Self::FeedHeld { id, path } => {
                put_head(out, FEED_HELD, *id);
                put_bytes(out, path.to_string().as_bytes());
            }
            Self::RecordsAppended { at, base, count, records } => {
                put_head(out, RECORDS_APPENDED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, base.0);
                put_varint(out, u64::from(*count));
                put_bytes(out, records);
            }
            Self::RecordsProduced { at, base, count, producer, records } => {
                put_head(out, RECORDS_PRODUCED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, base.0);
                put_varint(out, u64::from(*count));
                put_varint(out, producer.id.0);
                put_varint(out, u64::from(producer.epoch));
                put_varint(out, producer.sequence);
                put_bytes(out, records);
            }
            Self::ProducerInitialised { at, id, epoch, name } => {
                put_head(out, PRODUCER_INITIALISED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, id.0);
                put_varint(out, u64::from(*epoch));
                put_bytes(out, name);
            }
            Self::ProducerForgotten { at, id } => {
                put_head(out, PRODUCER_FORGOTTEN, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, id.0);
            }
            Self::SegmentRolled { at, base } => {
                put_head(out, SEGMENT_ROLLED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, base.0);
            }
            Self::RecordsTrimmed { at, earliest } => {
                put_head(out, RECORDS_TRIMMED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, earliest.0);
            }
            Self::SegmentsCompacted { at, base, end, bytes, first_time, last_time } => {
                put_head(out, SEGMENTS_COMPACTED, at.resource);
                put_varint(out, u64::from(at.partition));
                for number in [base.0, end.0, *bytes, first_time.0, last_time.0] {
                    put_varint(out, number);
                }
            }
            Self::PartitionCleaned { at, upto, tombstone } => {
                put_head(out, PARTITION_CLEANED, at.resource);
                put_varint(out, u64::from(at.partition));
                put_varint(out, upto.0);
                put_varint(out, tombstone.map_or(0, |offset| offset.0.saturating_add(1)));
            }
            Self::JobEnqueued { queue, job, ready_at, max_attempts, priority, headers, payload, options } => {
                let tag = if options.is_some() { JOB_ENQUEUED_WITH_OPTIONS } else { JOB_ENQUEUED };
                put_head(out, tag, *queue);
                put_varint(out, job.0);
                put_varint(out, ready_at.0);
                put_varint(out, u64::from(*max_attempts));
                out.put_u8(*priority);
                put_bytes(out, headers);
                put_bytes(out, payload);
                if let Some(options) = options {
                    job::put_options(out, options);
                }
            }
            Self::JobLeased { queue, job, token, until, worker } => {
                put_head(out, JOB_LEASED, *queue);
                put_varint(out, job.0);
                put_varint(out, token.0);
                put_varint(out, until.0);
                put_bytes(out, worker);
            }
            Self::LeaseExtended { queue, job, until } => {
                put_head(out, LEASE_EXTENDED, *queue);
                put_varint(out, job.0);
                put_varint(out, until.0);
            }
            Self::JobDone { queue, job } => {
                put_head(out, JOB_DONE, *queue);
                put_varint(out, job.0);
            }
            Self::JobReturned { queue, job, ready_at, cause, error } => {
                put_head(out, JOB_RETURNED, *queue);
                put_varint(out, job.0);
                put_varint(out, ready_at.0);
                out.put_u8(*cause as u8);
                put_bytes(out, error);
            }
            Self::JobDied { queue, job, cause, error } => {
                put_head(out, JOB_DIED, *queue);
                put_varint(out, job.0);
                out.put_u8(*cause as u8);
                put_bytes(out, error);
            }
            Self::KeySet { store, key, value, expires_at } => {
                put_head(out, KEY_SET, *store);
                put_bytes(out, key);
                put_bytes(out, value);
                put_varint(out, expires_at.map_or(0, Millis::get));
            }
            Self::ValuePart { store, place, total, bytes } => {
                put_head(out, VALUE_PART, *store);
                put_varint(out, *place);
                put_varint(out, *total);
                put_bytes(out, bytes);
            }
            Self::KeySetOfParts { store, key, place, len, expires_at } => {
                put_head(out, KEY_SET_OF_PARTS, *store);
                put_bytes(out, key);
                put_varint(out, *place);
                put_varint(out, *len);
                put_varint(out, expires_at.map_or(0, Millis::get));
            }
            Self::KeyDeleted { store, key } => {
                put_head(out, KEY_DELETED, *store);
                put_bytes(out, key);
            }
            Self::KeyExpired { store, key } => {
                put_head(out, KEY_EXPIRED, *store);
                put_bytes(out, key);
            }
            Self::Queue(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
            Self::Group(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
            Self::Replay(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
            Self::Schedule(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
            Self::Worker(fact) => {
                put_head(out, fact.tag(), ResourceId(fact.epoch.0));
                fact.encode(out);
            }
            Self::Transfer(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
            Self::Kv(id, fact) => {
                put_head(out, fact.tag(), *id);
                fact.encode(out);
            }
        }
    }

    /// An upper bound of what [`Fact::encode`] appends, in bytes: cheap, and at most some dozens of bytes too high.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        /// Tag, resource and up to four more integers, a byte and two lengths.
        const FIXED: usize = 1 + 5 * 10 + 1 + 10;
        /// Producer, epoch and sequence.
        const STAMP: usize = 10 + 5 + 10;
        /// More than four integers.
        const RANGE: usize = 2 * 10;
        FIXED
            + match self {
                Self::ResourceCreated { path, settings, .. } => {
                    path.to_string().len() + settings_json(settings).len()
                }
                Self::ResourceUpdated { settings, .. } => settings_json(settings).len(),
                Self::ResourceHeld { path, .. } | Self::FeedHeld { path, .. } => path.to_string().len(),
                Self::RecordsAppended { records, .. } => records.len(),
                Self::RecordsProduced { records, .. } => STAMP + records.len(),
                Self::ProducerInitialised { name, .. } => name.len(),
                Self::SegmentsCompacted { .. } => RANGE,
                Self::JobEnqueued { headers, payload, options, .. } => {
                    let options = options.as_deref().map_or(0, job::options_len_max);
                    headers.len() + payload.len() + options
                }
                Self::JobLeased { worker, .. } => worker.len(),
                Self::JobReturned { error, .. } | Self::JobDied { error, .. } => error.len(),
                Self::KeySet { key, value, .. } => key.len() + value.len(),
                Self::ValuePart { bytes, .. } => bytes.len(),
                Self::KeyDeleted { key, .. }
                | Self::KeyExpired { key, .. }
                | Self::KeySetOfParts { key, .. } => key.len(),
                Self::Queue(_, fact) => fact.encoded_len_max(),
                Self::Group(_, fact) => fact.encoded_len_max(),
                Self::Replay(_, fact) => fact.encoded_len_max(),
                Self::Schedule(_, fact) => fact.encoded_len_max(),
                Self::Worker(fact) => fact.encoded_len_max(),
                Self::Transfer(_, fact) => fact.encoded_len_max(),
                Self::Kv(_, fact) => fact.encoded_len_max(),
                Self::ResourceDeleted { .. }
                | Self::ResourceDropped { .. }
                | Self::ProducerForgotten { .. }
                | Self::SegmentRolled { .. }
                | Self::RecordsTrimmed { .. }
                | Self::PartitionCleaned { .. }
                | Self::LeaseExtended { .. }
                | Self::JobDone { .. } => 0,
            }
    }

    /// The value that goes into the log apart from the entry, if it is large ([`LOG_PIECE_BYTES`]).
    #[must_use]
    pub fn large_value(&self) -> Option<&Bytes> {
        match self {
            Self::KeySet { value, .. } if value.len() > LOG_PIECE_BYTES => Some(value),
            _ => None,
        }
    }

    /// [`Fact::encoded_len_max`] without the value that goes into the log apart.
    #[must_use]
    pub fn entry_len_max(&self) -> usize {
        self.encoded_len_max() - self.large_value().map_or(0, Bytes::len)
    }

    /// Reads one fact. Its bytes share the reader's buffer.
    ///
    /// # Errors
    /// [`Malformed`]: the entry passed its checksum but does not have this shape, so another version wrote it.
    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let tag = reader.byte()?;
        let id = ResourceId(reader.varint()?);
        Ok(match tag {
            RESOURCE_CREATED => {
                let path = read_path(&reader.text()?)?;
                Self::ResourceCreated { id, path, settings: Box::new(read_settings(reader)?) }
            }
            RESOURCE_UPDATED => Self::ResourceUpdated { id, settings: Box::new(read_settings(reader)?) },
            RESOURCE_DELETED => Self::ResourceDeleted { id },
            RESOURCE_DROPPED => Self::ResourceDropped { id },
            RESOURCE_HELD => Self::ResourceHeld { id, path: read_path(&reader.text()?)? },
            FEED_HELD => Self::FeedHeld { id, path: read_path(&reader.text()?)? },
            RECORDS_APPENDED => Self::RecordsAppended {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                base: Offset(reader.varint()?),
                count: reader.varint_u32()?,
                records: reader.bytes()?,
            },
            RECORDS_PRODUCED => Self::RecordsProduced {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                base: Offset(reader.varint()?),
                count: reader.varint_u32()?,
                producer: ProducerStamp {
                    id: ProducerId(reader.varint()?),
                    epoch: reader.varint_u32()?,
                    sequence: reader.varint()?,
                },
                records: reader.bytes()?,
            },
            PRODUCER_INITIALISED => Self::ProducerInitialised {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                id: ProducerId(reader.varint()?),
                epoch: reader.varint_u32()?,
                name: reader.bytes()?,
            },
            PRODUCER_FORGOTTEN => Self::ProducerForgotten {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                id: ProducerId(reader.varint()?),
            },
            SEGMENT_ROLLED => Self::SegmentRolled {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                base: Offset(reader.varint()?),
            },
            RECORDS_TRIMMED => Self::RecordsTrimmed {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                earliest: Offset(reader.varint()?),
            },
            SEGMENTS_COMPACTED => Self::SegmentsCompacted {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                base: Offset(reader.varint()?),
                end: Offset(reader.varint()?),
                bytes: reader.varint()?,
                first_time: Millis(reader.varint()?),
                last_time: Millis(reader.varint()?),
            },
            PARTITION_CLEANED => Self::PartitionCleaned {
                at: PartitionRef { resource: id, partition: reader.varint_u32()? },
                upto: Offset(reader.varint()?),
                tombstone: reader.varint()?.checked_sub(1).map(Offset),
            },
            JOB_ENQUEUED | JOB_ENQUEUED_WITH_OPTIONS => Self::JobEnqueued {
                queue: id,
                job: JobId(reader.varint()?),
                ready_at: Millis(reader.varint()?),
                max_attempts: reader.varint_u32()?,
                priority: reader.byte()?,
                headers: reader.bytes()?,
                payload: reader.bytes()?,
                options: match tag {
                    JOB_ENQUEUED => None,
                    _ => Some(Box::new(job::read_options(reader)?)),
                },
            },
            JOB_LEASED => Self::JobLeased {
                queue: id,
                job: JobId(reader.varint()?),
                token: LeaseToken(reader.varint()?),
                until: Millis(reader.varint()?),
                worker: reader.bytes()?,
            },
            LEASE_EXTENDED => Self::LeaseExtended {
                queue: id,
                job: JobId(reader.varint()?),
                until: Millis(reader.varint()?),
            },
            JOB_DONE => Self::JobDone { queue: id, job: JobId(reader.varint()?) },
            JOB_RETURNED => Self::JobReturned {
                queue: id,
                job: JobId(reader.varint()?),
                ready_at: Millis(reader.varint()?),
                cause: job::one_of(&AttemptEnd::ALL, reader.byte()?)?,
                error: reader.bytes()?,
            },
            JOB_DIED => Self::JobDied {
                queue: id,
                job: JobId(reader.varint()?),
                cause: job::one_of(&AttemptEnd::ALL, reader.byte()?)?,
                error: reader.bytes()?,
            },
            KEY_SET => {
                let (key, value) = (reader.bytes()?, reader.bytes()?);
                let expires_at = Some(Millis(reader.varint()?)).filter(|at| at.0 > 0);
                Self::KeySet { store: id, key, value, expires_at }
            }
            VALUE_PART => {
                let (place, total, bytes) = (reader.varint()?, reader.varint()?, reader.bytes()?);
                Self::ValuePart { store: id, place, total, bytes }
            }
            KEY_SET_OF_PARTS => {
                let (key, place, len) = (reader.bytes()?, reader.varint()?, reader.varint()?);
                let expires_at = Some(Millis(reader.varint()?)).filter(|at| at.0 > 0);
                Self::KeySetOfParts { store: id, key, place, len, expires_at }
            }
            KEY_DELETED => Self::KeyDeleted { store: id, key: reader.bytes()? },
            KEY_EXPIRED => Self::KeyExpired { store: id, key: reader.bytes()? },
            tag if job::TAGS.contains(&tag) => Self::Queue(id, QueueFact::decode(tag, reader)?),
            tag if group::TAGS.contains(&tag) => Self::Group(id, GroupFact::decode(tag, reader)?),
            tag if replay::TAGS.contains(&tag) => Self::Replay(id, ReplayFact::decode(tag, reader)?),
            tag if schedule::TAGS.contains(&tag) => Self::Schedule(id, ScheduleFact::decode(tag, reader)?),
            tag if worker::TAGS.contains(&tag) => Self::Worker(WorkerFact::decode(tag, Lsn(id.0), reader)?),
            tag if transfer::TAGS.contains(&tag) => Self::Transfer(id, TransferFact::decode(tag, reader)?),
            tag if kv::TAGS.contains(&tag) => Self::Kv(id, KvFact::decode(tag, reader)?),
            _ => return Err(Malformed("unknown fact; a newer version wrote it")),
        })
    }
}

fn put_head(out: &mut impl BufMut, tag: u8, id: ResourceId) {
    out.put_u8(tag);
    put_varint(out, id.0);
}

fn settings_json(settings: &Settings) -> Vec<u8> {
    serde_json::to_vec(settings).unwrap_or_default()
}

/// Appends settings in their form on disk: JSON, length-prefixed.
pub fn put_settings(out: &mut impl BufMut, settings: &Settings) {
    put_bytes(out, &settings_json(settings));
}

/// Reads what [`put_settings`] wrote.
pub fn read_settings(reader: &mut Reader) -> Result<Settings, Malformed> {
    serde_json::from_slice(&reader.bytes()?).map_err(|_| Malformed("settings this version does not know"))
}

/// Reads a full path as it stands on disk.
pub fn read_path(text: &str) -> Result<ResourcePath, Malformed> {
    let kind = text.split('/').nth(2).and_then(Kind::parse).ok_or(Malformed("path without a kind"))?;
    ResourcePath::parse(kind, text).map_err(|_| Malformed("illegal path"))
}

/// Reads all facts of an entry.
///
/// # Errors
/// [`Malformed`] as [`Fact::decode`].
pub fn decode_all(body: Bytes) -> Result<crate::Batch<Fact>, Malformed> {
    let mut reader = Reader::new(body);
    let mut facts = crate::Batch::new();
    while !reader.is_empty() {
        facts.push(Fact::decode(&mut reader)?);
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
    }

    fn cause() -> impl Strategy<Value = AttemptEnd> {
        prop::sample::select(AttemptEnd::ALL.to_vec())
    }

    fn options() -> impl Strategy<Value = EnqueuedOptions> {
        let key = prop::option::of((bytes(), prop::option::of(1u64..)));
        let after = prop::collection::vec(any::<u64>(), 0..5);
        (bytes(), prop::option::of(1u64..), key, after, any::<bool>()).prop_map(
            |(group, expires_at, key, after, after_any_end)| EnqueuedOptions {
                group,
                expires_at: expires_at.map(Millis),
                retry: None,
                key: key.map(|(key, until)| (key, until.map(Millis))),
                after: after.into_iter().map(JobId).collect(),
                after_any_end,
            },
        )
    }

    prop_compose! {
        fn ids()(a: u64, b: u64, c: u64, d: u64) -> (ResourceId, JobId, u64, Millis) {
            (ResourceId(a), JobId(b), c, Millis(d))
        }
    }

    fn fact() -> impl Strategy<Value = Fact> {
        prop_oneof![
            any::<u64>().prop_map(|id| Fact::ResourceCreated {
                id: ResourceId(id),
                path: ResourcePath::new("a", "b", Kind::Queue, "mail{7}").unwrap(),
                settings: Box::new(Settings::default_for(Kind::Queue)),
            }),
            any::<u64>().prop_map(|id| Fact::ResourceUpdated {
                id: ResourceId(id),
                settings: Box::new(Settings::default_for(Kind::Stream))
            }),
            any::<u64>().prop_map(|id| Fact::ResourceDeleted { id: ResourceId(id) }),
            any::<u64>().prop_map(|id| Fact::ResourceDropped { id: ResourceId(id) }),
            any::<u64>().prop_map(|id| Fact::ResourceHeld {
                id: ResourceId(id),
                path: ResourcePath::new("a", "b", Kind::Kv, "cart").unwrap(),
            }),
            any::<u64>().prop_map(|id| Fact::FeedHeld {
                id: ResourceId(id),
                path: ResourcePath::new("a", "b", Kind::Stream, "cart-changes").unwrap(),
            }),
            (ids(), any::<u32>(), any::<u32>(), bytes()).prop_map(
                |((id, _, base, _), partition, count, records)| {
                    Fact::RecordsAppended {
                        at: PartitionRef { resource: id, partition },
                        base: Offset(base),
                        count,
                        records,
                    }
                }
            ),
            (ids(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>(), bytes()).prop_map(
                |((id, _, base, producer), partition, count, sequence, epoch, records)| {
                    Fact::RecordsProduced {
                        at: PartitionRef { resource: id, partition },
                        base: Offset(base),
                        count,
                        producer: ProducerStamp { id: ProducerId(producer.0), epoch, sequence },
                        records,
                    }
                }
            ),
            (ids(), any::<u32>(), any::<u32>(), bytes()).prop_map(
                |((resource, _, id, _), partition, epoch, name)| Fact::ProducerInitialised {
                    at: PartitionRef { resource, partition },
                    id: ProducerId(id),
                    epoch,
                    name
                }
            ),
            (ids(), any::<u32>()).prop_map(|((resource, _, id, _), partition)| Fact::ProducerForgotten {
                at: PartitionRef { resource, partition },
                id: ProducerId(id)
            }),
            (ids(), any::<u32>()).prop_map(|((resource, _, base, _), partition)| Fact::SegmentRolled {
                at: PartitionRef { resource, partition },
                base: Offset(base)
            }),
            (ids(), any::<u32>()).prop_map(|((resource, _, offset, _), partition)| Fact::RecordsTrimmed {
                at: PartitionRef { resource, partition },
                earliest: Offset(offset)
            }),
            (ids(), ids(), any::<u32>()).prop_map(
                |((resource, base, end, first_time), (_, _, bytes, last_time), partition)| {
                    Fact::SegmentsCompacted {
                        at: PartitionRef { resource, partition },
                        base: Offset(base.0),
                        end: Offset(end),
                        bytes,
                        first_time,
                        last_time,
                    }
                }
            ),
            (ids(), any::<u32>(), prop::option::of(0..u64::MAX)).prop_map(
                |((resource, _, upto, _), partition, tombstone)| {
                    Fact::PartitionCleaned {
                        at: PartitionRef { resource, partition },
                        upto: Offset(upto),
                        tombstone: tombstone.map(Offset),
                    }
                }
            ),
            (ids(), any::<u32>(), any::<u8>(), bytes(), bytes(), prop::option::of(options())).prop_map(
                |((queue, job, _, ready_at), max_attempts, priority, headers, payload, options)| {
                    let options = options.map(Box::new);
                    Fact::JobEnqueued {
                        queue,
                        job,
                        ready_at,
                        max_attempts,
                        priority,
                        headers,
                        payload,
                        options,
                    }
                }
            ),
            (ids(), bytes(), prop::option::of(1u64..)).prop_map(|((queue, job, ..), result, until)| {
                Fact::Queue(queue, QueueFact::Finished { job, keep_until: until.map(Millis), result })
            }),
            (ids(), any::<u8>()).prop_map(|((queue, job, _, ready_at), priority)| {
                Fact::Queue(queue, QueueFact::Changed { job, priority, ready_at })
            }),
            (ids(), bytes()).prop_map(|((queue, job, token, until), worker)| Fact::JobLeased {
                queue,
                job,
                token: LeaseToken(token),
                until,
                worker
            }),
            ids().prop_map(|(queue, job, _, until)| Fact::LeaseExtended { queue, job, until }),
            ids().prop_map(|(queue, job, _, _)| Fact::JobDone { queue, job }),
            (ids(), cause(), bytes()).prop_map(|((queue, job, _, ready_at), cause, error)| {
                Fact::JobReturned { queue, job, ready_at, cause, error }
            }),
            (ids(), cause(), bytes()).prop_map(|((queue, job, _, _), cause, error)| Fact::JobDied {
                queue,
                job,
                cause,
                error
            }),
            (ids(), bytes(), bytes(), proptest::option::of(1u64..)).prop_map(
                |((store, ..), key, value, at)| Fact::KeySet {
                    store,
                    key,
                    value,
                    expires_at: at.map(Millis)
                }
            ),
            (ids(), bytes()).prop_map(|((store, _, place, total), bytes)| Fact::ValuePart {
                store,
                place,
                total: total.0,
                bytes
            }),
            (ids(), bytes(), proptest::option::of(1u64..)).prop_map(|((store, _, place, len), key, at)| {
                let (len, expires_at) = (len.0, at.map(Millis));
                Fact::KeySetOfParts { store, key, place, len, expires_at }
            }),
            (ids(), bytes()).prop_map(|((store, ..), key)| Fact::KeyDeleted { store, key }),
            (ids(), bytes()).prop_map(|((store, ..), key)| Fact::KeyExpired { store, key }),
        ]
    }

    proptest! {
        #[test]
        fn facts_round_trip(facts in proptest::collection::vec(fact(), 0..8)) {
            let mut out = Vec::new();
            for fact in &facts {
                let before = out.len();
                fact.encode(&mut out);
                prop_assert!(out.len() - before <= fact.encoded_len_max());
            }
            prop_assert_eq!(decode_all(out.into()).unwrap().to_vec(), facts);
        }

        #[test]
        fn noise_never_makes_the_decoder_panic(noise: Vec<u8>) {
            let _ = decode_all(noise.into());
        }
    }

    #[test]
    fn facts_of_compaction_have_these_bytes_for_ever() {
        let at = PartitionRef { resource: ResourceId(17), partition: 2 };
        let compacted = Fact::SegmentsCompacted {
            at,
            base: Offset(40),
            end: Offset(300),
            bytes: 1_000,
            first_time: Millis(7),
            last_time: Millis(9),
        };
        let cleaned = |tombstone| Fact::PartitionCleaned { at, upto: Offset(300), tombstone };
        let rows: [(Fact, &[u8]); 3] = [
            (compacted, &[22, 17, 2, 40, 0xAC, 2, 0xE8, 7, 7, 9]),
            (cleaned(None), &[23, 17, 2, 0xAC, 2, 0]),
            (cleaned(Some(Offset(0))), &[23, 17, 2, 0xAC, 2, 1]),
        ];
        for (fact, bytes) in rows {
            let mut out = Vec::new();
            fact.encode(&mut out);
            assert_eq!(out, bytes);
            assert_eq!(decode_all(out.into()).unwrap().to_vec(), [fact]);
        }
    }
}
