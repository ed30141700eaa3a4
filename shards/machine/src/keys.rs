//! Keys of the index, and what stands at the start of every value.
//!
//! | space | key | value |
//! |---|---|---|
//! | meta | slot `u16`, resource `u64`, `0` | a held resource: path and counters |
//! | meta | slot `u16`, stream `u64`, `1`, partition `u32` | a partition: offsets and counters |
//! | meta | `0xFFFF`, `0`, `2` | the shard: the time of its newest entry |
//! | meta | `0xFFFF`, `0`, `3` | the catalog: version and last number |
//! | meta | `0xFFFF`, resource `u64`, `4` | a resource of the catalog |
//! | meta | slot `u16`, stream `u64`, `5`, partition `u32`, producer `u64` | an idempotent producer of a partition |
//! | meta | slot `u16`, stream `u64`, `6`, the name | the producer of a name |
//! | meta | slot `u16`, stream `u64`, `7`, partition `u32`, number `u64` | some closed segments of a partition |
//! | meta | slot `u16`, stream or queue `u64`, `9`, partition `u32`, source `u64` | up to where it has what a queue sent |
//! | meta | slot `u16`, store `u64`, `17` | the history of a store: since when, and its parts |
//! | meta | slot `u16`, `0` as `u64`, `16`, the full path | a worker |
//! | jobs | slot `u16`, queue `u64`, job `u64` | a job; numbers are below 2^56, so that the first byte is 0 |
//! | jobs | slot `u16`, queue `u64`, `1`, the key | a key by which a job is recognised |
//! | bodies | slot `u16`, queue `u64`, job `u64` | what a job is about |
//! | jobs | slot `u16`, queue `u64`, `3`, the name | a schedule |
//! | jobs | slot `u16`, queue `u64`, `5`, number `u64` | a job on its way to another queue or a stream |
//! | jobs | slot `u16`, queue `u64`, `6`, the name | what became of the jobs that a worker had |
//! | jobs | slot `u16`, queue `u64`, `7` | what the queue counts of such jobs |
//! | keys | slot `u16`, store `u64`, the key | an entry |
//! | pages | slot `u16`, store `u64`, collection `u64`, page `u32` | a page of a collection; 2^32 - 1 stands for pages of one that is gone, 2^32 - 2 for those of one that only the history has |
//! | history | slot `u16`, store `u64`, part `u64`, the key, time and LSN `u64`, number `u32` | what was before a change of a key |
//! | groups | slot `u16`, group `u64`, `0`, member `u32` | a member |
//! | groups | slot `u16`, group `u64`, `1`, stream `u64`, partition `u32` | a partition as the group sees it |
//!
//! Integers in keys are big-endian, so that a slot, a resource, a queue's jobs are ranges in order. `0xFFFF` is no slot:
//! what stands there belongs to the shard. A held resource itself is in the slot of its partition 0. Every value starts
//! with a format byte: 1, or what stands at its encoder.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader};
use flowmesh_model::placement::{PlacementHash, worker_slot};
use flowmesh_model::{
    JobId, MemberNumber, PartitionRef, ProducerId, ResourceId, ResourceInfo, ResourcePath, SlotId, WorkerPath,
};

/// The format byte of every value. Raise it when a value's shape changes; decoders keep the old shapes for ever.
pub(crate) const FORMAT: u8 = 1;

/// Stands where a slot would, for what belongs to the shard itself.
pub(crate) const SHARD: SlotId = SlotId(u16::MAX);

const RESOURCE: u8 = 0;
const PARTITION: u8 = 1;
const CLOCK: u8 = 2;
const CATALOG: u8 = 3;
const CATALOG_RESOURCE: u8 = 4;

const MEMBER: u8 = 0;
const PLACE: u8 = 1;
const DEDUP: u8 = 1;

const PRODUCER: u8 = 5;
const PRODUCER_NAME: u8 = 6;
const SEGMENTS: u8 = 7;

const RECEIVED: u8 = 9;

const SCHEDULE: u8 = 3;
const OUTBOX: u8 = 5;
const WORK_COUNTS: u8 = 6;
const OUTBOX_TOTALS: u8 = 7;

const WORKER: u8 = 16;
const HISTORY: u8 = 17;

/// A resource that the shard holds something of: its names and where its parts belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub id: ResourceId,
    pub path: ResourcePath,
    placement: PlacementHash,
    first_slot: SlotId,
}

impl Home {
    pub fn new(id: ResourceId, path: ResourcePath) -> Self {
        let placement = PlacementHash::of(&path);
        Self::placed(id, path, placement)
    }

    /// Of a store's feed.
    pub fn of_feed(id: ResourceId, path: ResourcePath) -> Self {
        let placement = PlacementHash::of_feed(&path);
        Self::placed(id, path, placement)
    }

    fn placed(id: ResourceId, path: ResourcePath, placement: PlacementHash) -> Self {
        let first_slot = placement.partition_slot(0);
        Self { id, path, placement, first_slot }
    }

    /// Whether it is a store's feed.
    pub fn is_feed(&self) -> bool {
        self.placement.is_feed()
    }

    /// Uses the path and the placement of the catalog, which are the same, so that they are in memory once.
    pub fn share(&mut self, info: &ResourceInfo) {
        if self.path == info.path && self.is_feed() == info.placement.is_feed() {
            (self.path, self.placement) = (info.path.clone(), info.placement.clone());
        }
    }

    pub fn resource_key(&self) -> Bytes {
        key(self.first_slot, self.id, &[RESOURCE])
    }

    pub fn partition_key(&self, partition: u32) -> Bytes {
        let [a, b, c, d] = partition.to_be_bytes();
        key(self.placement.partition_slot(partition), self.id, &[PARTITION, a, b, c, d])
    }

    pub fn producer_key(&self, partition: u32, producer: ProducerId) -> Bytes {
        let mut rest = [PRODUCER; 13];
        rest[1..5].copy_from_slice(&partition.to_be_bytes());
        rest[5..].copy_from_slice(&producer.0.to_be_bytes());
        key(self.placement.partition_slot(partition), self.id, &rest)
    }

    pub fn segments_key(&self, partition: u32, chunk: u64) -> Bytes {
        let mut rest = [SEGMENTS; 13];
        rest[1..5].copy_from_slice(&partition.to_be_bytes());
        rest[5..].copy_from_slice(&chunk.to_be_bytes());
        key(self.placement.partition_slot(partition), self.id, &rest)
    }

    pub fn received_key(&self, partition: u32, source: ResourceId) -> Bytes {
        let mut rest = [RECEIVED; 13];
        rest[1..5].copy_from_slice(&partition.to_be_bytes());
        rest[5..].copy_from_slice(&source.0.to_be_bytes());
        key(self.placement.partition_slot(partition), self.id, &rest)
    }

    pub fn outbox_key(&self, number: u64) -> Bytes {
        let mut rest = [OUTBOX; 9];
        rest[1..].copy_from_slice(&number.to_be_bytes());
        key(self.first_slot, self.id, &rest)
    }

    pub fn outbox_totals_key(&self) -> Bytes {
        key(self.first_slot, self.id, &[OUTBOX_TOTALS])
    }

    pub fn producer_name_key(&self, name: &[u8]) -> Bytes {
        key(self.first_slot, self.id, &[&[PRODUCER_NAME], name].concat())
    }

    pub fn job_key(&self, job: JobId) -> Bytes {
        key(self.first_slot, self.id, &job.0.to_be_bytes())
    }

    pub fn job_dedup_key(&self, dedup: &[u8]) -> Bytes {
        key(self.first_slot, self.id, &[&[DEDUP], dedup].concat())
    }

    pub fn schedule_key(&self, name: &str) -> Bytes {
        key(self.first_slot, self.id, &[&[SCHEDULE], name.as_bytes()].concat())
    }

    pub fn work_counts_key(&self, name: &[u8]) -> Bytes {
        key(self.first_slot, self.id, &[&[WORK_COUNTS], name].concat())
    }

    pub fn member_key(&self, member: MemberNumber) -> Bytes {
        let [a, b, c, d] = member.0.to_be_bytes();
        key(self.first_slot, self.id, &[MEMBER, a, b, c, d])
    }

    pub fn place_key(&self, at: PartitionRef) -> Bytes {
        let mut rest = [PLACE; 13];
        rest[1..9].copy_from_slice(&at.resource.0.to_be_bytes());
        rest[9..].copy_from_slice(&at.partition.to_be_bytes());
        key(self.first_slot, self.id, &rest)
    }

    pub fn entry_key(&self, entry: &[u8]) -> Bytes {
        entry_key(self.entry_slot(entry), self.id, entry)
    }

    pub fn entry_slot(&self, entry: &[u8]) -> SlotId {
        self.placement.key_slot(entry)
    }

    pub fn history_key(&self) -> Bytes {
        key(self.first_slot, self.id, &[HISTORY])
    }

    pub fn history_row_key(&self, row: &[u8]) -> Bytes {
        history_row_key(self.first_slot, self.id, row)
    }

    pub fn page_key(&self, slot: SlotId, collection: u64, page: u32) -> Bytes {
        let mut rest = [0; 12];
        rest[..8].copy_from_slice(&collection.to_be_bytes());
        rest[8..].copy_from_slice(&page.to_be_bytes());
        key(slot, self.id, &rest)
    }
}

fn key(slot: SlotId, resource: ResourceId, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + rest.len());
    out.put_u16(slot.0);
    out.put_u64(resource.0);
    out.put_slice(rest);
    out.freeze()
}

/// Of an entry of a store, in the slot of its key.
pub(crate) fn entry_key(slot: SlotId, store: ResourceId, entry: &[u8]) -> Bytes {
    key(slot, store, entry)
}

/// Of a record of a store's history, in the slot of the store itself.
pub(crate) fn history_row_key(slot: SlotId, store: ResourceId, row: &[u8]) -> Bytes {
    key(slot, store, row)
}

pub(crate) fn clock_key() -> Bytes {
    key(SHARD, ResourceId(0), &[CLOCK])
}

pub(crate) fn catalog_key() -> Bytes {
    key(SHARD, ResourceId(0), &[CATALOG])
}

pub(crate) fn catalog_resource_key(id: ResourceId) -> Bytes {
    key(SHARD, id, &[CATALOG_RESOURCE])
}

pub(crate) fn worker_key(path: &WorkerPath) -> Bytes {
    key(worker_slot(path), ResourceId(0), &[&[WORKER], path.as_str().as_bytes()].concat())
}

/// What a key of the meta space names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaKey<'a> {
    Resource(ResourceId),
    Partition(ResourceId, u32),
    Clock,
    Catalog,
    CatalogResource(ResourceId),
    Producer(PartitionRef, ProducerId),
    ProducerName(ResourceId, &'a [u8]),
    Segments(PartitionRef),
    Worker(&'a str),
    History(ResourceId),
    Received(PartitionRef, ResourceId),
}

impl<'a> MetaKey<'a> {
    pub fn read(key: &'a [u8]) -> Result<Self, Malformed> {
        let (_, id, rest) = split(key)?;
        match rest {
            [RESOURCE] => Ok(Self::Resource(id)),
            [PARTITION, a, b, c, d] => Ok(Self::Partition(id, u32::from_be_bytes([*a, *b, *c, *d]))),
            [CLOCK] => Ok(Self::Clock),
            [CATALOG] => Ok(Self::Catalog),
            [CATALOG_RESOURCE] => Ok(Self::CatalogResource(id)),
            [PRODUCER, a, b, c, d, producer @ ..] => {
                let producer = producer.try_into().map_err(|_| Malformed("a producer has eight bytes"))?;
                let at = PartitionRef { resource: id, partition: u32::from_be_bytes([*a, *b, *c, *d]) };
                Ok(Self::Producer(at, ProducerId(u64::from_be_bytes(producer))))
            }
            [PRODUCER_NAME, name @ ..] => Ok(Self::ProducerName(id, name)),
            [SEGMENTS, a, b, c, d, chunk @ ..] if chunk.len() == 8 => {
                let partition = u32::from_be_bytes([*a, *b, *c, *d]);
                Ok(Self::Segments(PartitionRef { resource: id, partition }))
            }
            [RECEIVED, a, b, c, d, source @ ..] => {
                let source = source.try_into().map_err(|_| Malformed("a source has eight bytes"))?;
                let at = PartitionRef { resource: id, partition: u32::from_be_bytes([*a, *b, *c, *d]) };
                Ok(Self::Received(at, ResourceId(u64::from_be_bytes(source))))
            }
            [HISTORY] => Ok(Self::History(id)),
            [WORKER, path @ ..] => {
                let path = std::str::from_utf8(path);
                path.map(Self::Worker).map_err(|_| Malformed("a worker's path is not UTF-8"))
            }
            _ => Err(Malformed("unknown key in meta")),
        }
    }
}

/// What a key of the jobs space names within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKey<'a> {
    Job(JobId),
    Schedule(&'a [u8]),
    Outbox(u64),
    OutboxTotals,
    Dedup(&'a [u8]),
    Work(&'a [u8]),
}

impl<'a> QueueKey<'a> {
    /// Reads what follows slot and resource.
    pub fn read(rest: &'a [u8]) -> Result<Self, Malformed> {
        match rest {
            [0, ..] => {
                let job = rest.try_into().map_err(|_| Malformed("a job's number is eight bytes"))?;
                Ok(Self::Job(JobId(u64::from_be_bytes(job))))
            }
            [SCHEDULE, name @ ..] => Ok(Self::Schedule(name)),
            [DEDUP, key @ ..] => Ok(Self::Dedup(key)),
            [WORK_COUNTS, name @ ..] => Ok(Self::Work(name)),
            [OUTBOX, number @ ..] => {
                let number = number.try_into().map_err(|_| Malformed("a number is eight bytes"))?;
                Ok(Self::Outbox(u64::from_be_bytes(number)))
            }
            [OUTBOX_TOTALS] => Ok(Self::OutboxTotals),
            _ => Err(Malformed("unknown key in jobs")),
        }
    }
}

/// What a key of the groups space names within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupKey {
    Member(MemberNumber),
    Place(PartitionRef),
}

impl GroupKey {
    /// Reads what follows slot and resource.
    pub fn read(rest: &[u8]) -> Result<Self, Malformed> {
        match rest {
            [MEMBER, a, b, c, d] => Ok(Self::Member(MemberNumber(u32::from_be_bytes([*a, *b, *c, *d])))),
            [PLACE, rest @ ..] => {
                let (stream, partition) =
                    rest.split_first_chunk::<8>().ok_or(Malformed("key without a stream"))?;
                let partition = partition.try_into().map_err(|_| Malformed("a partition is four bytes"))?;
                let resource = ResourceId(u64::from_be_bytes(*stream));
                Ok(Self::Place(PartitionRef { resource, partition: u32::from_be_bytes(partition) }))
            }
            _ => Err(Malformed("unknown key in groups")),
        }
    }
}

/// Slot, resource and the rest of a key.
pub(crate) fn split(key: &[u8]) -> Result<(SlotId, ResourceId, &[u8]), Malformed> {
    let (slot, rest) = key.split_first_chunk::<2>().ok_or(Malformed("key without a slot"))?;
    let (id, rest) = rest.split_first_chunk::<8>().ok_or(Malformed("key without a resource"))?;
    Ok((SlotId(u16::from_be_bytes(*slot)), ResourceId(u64::from_be_bytes(*id)), rest))
}

/// Reads the format byte.
pub(crate) fn open(value: Bytes) -> Result<Reader, Malformed> {
    let mut reader = Reader::new(value);
    if reader.byte()? == FORMAT { Ok(reader) } else { Err(Malformed("index value of an unknown format")) }
}

/// Refuses what is left over.
pub(crate) fn close(reader: &Reader) -> Result<(), Malformed> {
    if reader.is_empty() { Ok(()) } else { Err(Malformed("index value is longer than its shape")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::Kind;

    #[test]
    fn keys_are_read_back() {
        let home = Home::new(ResourceId(7), ResourcePath::parse(Kind::Stream, "logs").unwrap());
        assert_eq!(MetaKey::read(&home.resource_key()).unwrap(), MetaKey::Resource(ResourceId(7)));
        assert_eq!(MetaKey::read(&home.partition_key(9)).unwrap(), MetaKey::Partition(ResourceId(7), 9));
        assert_eq!(MetaKey::read(&clock_key()).unwrap(), MetaKey::Clock);
        assert_eq!(MetaKey::read(&catalog_key()).unwrap(), MetaKey::Catalog);
        let resource = catalog_resource_key(ResourceId(3));
        assert_eq!(MetaKey::read(&resource).unwrap(), MetaKey::CatalogResource(ResourceId(3)));
        let at = PartitionRef { resource: ResourceId(7), partition: 9 };
        let producer = home.producer_key(9, ProducerId(3 << 40));
        assert_eq!(MetaKey::read(&producer).unwrap(), MetaKey::Producer(at, ProducerId(3 << 40)));
        assert!(MetaKey::read(&producer[..producer.len() - 1]).is_err());
        assert_eq!(MetaKey::read(&home.segments_key(9, 1 << 40)).unwrap(), MetaKey::Segments(at));
        let received = home.received_key(9, ResourceId(5));
        assert_eq!(MetaKey::read(&received).unwrap(), MetaKey::Received(at, ResourceId(5)));
        assert!(MetaKey::read(&received[..received.len() - 1]).is_err());
        let outbox = home.outbox_key(1 << 60);
        assert_eq!(QueueKey::read(split(&outbox).unwrap().2), Ok(QueueKey::Outbox(1 << 60)));
        assert!(QueueKey::read(&split(&outbox).unwrap().2[..8]).is_err());
        let totals = home.outbox_totals_key();
        assert_eq!(QueueKey::read(split(&totals).unwrap().2), Ok(QueueKey::OutboxTotals));
        let name = home.producer_name_key(b"orders");
        assert_eq!(MetaKey::read(&name).unwrap(), MetaKey::ProducerName(ResourceId(7), b"orders"));
        let worker = worker_key(&WorkerPath::parse("w1").unwrap());
        assert_eq!(MetaKey::read(&worker).unwrap(), MetaKey::Worker("default/default/worker/w1"));
        assert_eq!(MetaKey::read(&home.history_key()).unwrap(), MetaKey::History(ResourceId(7)));
        let job = home.job_key(JobId(5));
        assert_eq!(QueueKey::read(split(&job).unwrap().2), Ok(QueueKey::Job(JobId(5))));
        let schedule = home.schedule_key("nightly");
        assert_eq!(QueueKey::read(split(&schedule).unwrap().2), Ok(QueueKey::Schedule(b"nightly")));
        let work = home.work_counts_key(b"w1");
        assert_eq!(QueueKey::read(split(&work).unwrap().2), Ok(QueueKey::Work(b"w1")));
        assert!(QueueKey::read(&schedule[..0]).is_err() && QueueKey::read(&[9, 2]).is_err());
        assert!(QueueKey::read(&[0; 7]).is_err());
        let (member, at) = (MemberNumber(9), PartitionRef { resource: ResourceId(5), partition: 6 });
        let group_key = |key: &[u8]| GroupKey::read(split(key).unwrap().2);
        assert_eq!(group_key(&home.member_key(member)).unwrap(), GroupKey::Member(member));
        assert_eq!(group_key(&home.place_key(at)).unwrap(), GroupKey::Place(at));
        assert!(GroupKey::read(&home.place_key(at)[10..22]).is_err());
        assert!(MetaKey::read(&job[..9]).is_err());
        assert!(MetaKey::read(&job).is_err());
    }

    #[test]
    fn an_unknown_format_is_refused() {
        assert!(open(Bytes::from_static(&[2])).is_err());
        assert!(open(Bytes::new()).is_err());
    }
}
