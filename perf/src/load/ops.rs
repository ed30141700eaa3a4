//! Unary operations: what is asked, and whether the answer is right.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::keys::{self, FILLER, KEY_BYTES, STAMP_BYTES};
use super::run_ops;
use super::wire::{Fields, Value, put_varint};
use crate::http2::grpc::set_length;
use crate::http2::{GRPC_HEAD_BYTES, MethodId, Methods};

/// The paths of the methods that load calls.
pub mod paths {
    /// Stream.Append.
    pub const APPEND: &str = "/flowmesh.v1.Stream/Append";
    /// Stream.Read.
    pub const READ: &str = "/flowmesh.v1.Stream/Read";
    /// Stream.Status.
    pub const STREAM_STATUS: &str = "/flowmesh.v1.Stream/Status";
    /// Stream.AppendStream.
    pub const APPEND_STREAM: &str = "/flowmesh.v1.Stream/AppendStream";
    /// Stream.Subscribe.
    pub const SUBSCRIBE: &str = "/flowmesh.v1.Stream/Subscribe";
    /// Queue.Enqueue.
    pub const ENQUEUE: &str = "/flowmesh.v1.Queue/Enqueue";
    /// Queue.Reserve.
    pub const RESERVE: &str = "/flowmesh.v1.Queue/Reserve";
    /// Queue.Ack.
    pub const ACK: &str = "/flowmesh.v1.Queue/Ack";
    /// Queue.Work.
    pub const WORK: &str = "/flowmesh.v1.Queue/Work";
    /// Queue.Status.
    pub const QUEUE_STATUS: &str = "/flowmesh.v1.Queue/Status";
    /// Kv.Get.
    pub const GET: &str = "/flowmesh.v1.Kv/Get";
    /// Kv.Set.
    pub const SET: &str = "/flowmesh.v1.Kv/Set";
    /// Kv.Delete.
    pub const DELETE: &str = "/flowmesh.v1.Kv/Delete";
    /// Kv.Run.
    pub const RUN: &str = "/flowmesh.v1.Kv/Run";
    /// Kv.Status.
    pub const STORE_STATUS: &str = "/flowmesh.v1.Kv/Status";
    /// Group.Heartbeat.
    pub const HEARTBEAT: &str = "/flowmesh.v1.Group/Heartbeat";
    /// Admin.CreateResource.
    pub const CREATE: &str = "/flowmesh.v1.Admin/CreateResource";
    /// Admin.UpdateResource.
    pub const UPDATE: &str = "/flowmesh.v1.Admin/UpdateResource";
    /// Admin.Topology.
    pub const TOPOLOGY: &str = "/flowmesh.v1.Admin/Topology";
    /// What the bare echo server answers; it answers every path alike.
    pub const ECHO: &str = "/flowmesh.bench.Echo/Echo";
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Appends `batch` records.
    Append,
    /// Reads `batch` records from the start of the stream.
    Read,
    /// Reads `batch` keys.
    Get,
    /// Sets `batch` keys.
    Set,
    /// Deletes `batch` keys.
    Delete,
    /// Enqueues `batch` jobs, which nobody works.
    Enqueue,
    /// Adds one to one counter, `batch` times.
    Increment,
    /// Looks at one sorted set, `batch` times: what an operation costs that finds its key and does nothing.
    Inspect,
    /// Adds `batch` members to one sorted set, an operation each.
    SortedAdd,
    /// Asks for the ranks of `batch` members of one sorted set, an operation each.
    SortedRank,
    /// Reads ten members of one sorted set from a rank on, `batch` times.
    SortedRange,
    /// Sends the bytes of an append to a server that sends them back.
    EchoAppend,
    /// Sends the bytes of a get to a server that sends them back.
    EchoGet,
    /// Sends the bytes of a set to a server that sends them back.
    EchoSet,
    /// Sends the bytes of an increment to a server that sends them back.
    EchoIncrement,
}

const NAMES: [(OpKind, &str); 15] = [
    (OpKind::Append, "append"),
    (OpKind::Read, "read"),
    (OpKind::Get, "get"),
    (OpKind::Set, "set"),
    (OpKind::Delete, "delete"),
    (OpKind::Enqueue, "enqueue"),
    (OpKind::Increment, "increment"),
    (OpKind::Inspect, "inspect"),
    (OpKind::SortedAdd, "sorted-add"),
    (OpKind::SortedRank, "sorted-rank"),
    (OpKind::SortedRange, "sorted-range"),
    (OpKind::EchoAppend, "echo-append"),
    (OpKind::EchoGet, "echo-get"),
    (OpKind::EchoSet, "echo-set"),
    (OpKind::EchoIncrement, "echo-increment"),
];

impl OpKind {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// The echo of the same bytes.
    #[must_use]
    pub fn echo(self) -> Self {
        match self {
            Self::Get | Self::Delete | Self::EchoGet => Self::EchoGet,
            Self::Set | Self::EchoSet => Self::EchoSet,
            Self::Increment
            | Self::Inspect
            | Self::SortedAdd
            | Self::SortedRank
            | Self::SortedRange
            | Self::EchoIncrement => Self::EchoIncrement,
            Self::Append | Self::Read | Self::Enqueue | Self::EchoAppend => Self::EchoAppend,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Append => paths::APPEND,
            Self::Read => paths::READ,
            Self::Get => paths::GET,
            Self::Set => paths::SET,
            Self::Delete => paths::DELETE,
            Self::Enqueue => paths::ENQUEUE,
            Self::Increment | Self::Inspect | Self::SortedAdd | Self::SortedRank | Self::SortedRange => {
                paths::RUN
            }
            Self::EchoAppend | Self::EchoGet | Self::EchoSet | Self::EchoIncrement => paths::ECHO,
        }
    }
}

/// One operation of a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpSpec {
    /// What it does.
    pub kind: OpKind,
    /// Items in one call.
    pub batch: u32,
    /// Bytes of each value.
    pub value_bytes: u32,
    /// How often, against the others.
    pub weight: u32,
    /// Only how values start is known, not all of them.
    pub by_chance: bool,
}

impl OpSpec {
    /// Single items of 100 bytes.
    pub fn new(kind: OpKind) -> Self {
        Self { kind, batch: 1, value_bytes: 100, weight: 1, by_chance: false }
    }

    /// With another batch.
    #[must_use]
    pub fn batch(self, batch: u32) -> Self {
        Self { batch, ..self }
    }

    /// With other values.
    #[must_use]
    pub fn value_bytes(self, value_bytes: u32) -> Self {
        Self { value_bytes, ..self }
    }

    /// With values that are by chance behind how they start.
    #[must_use]
    pub fn by_chance(self) -> Self {
        Self { by_chance: true, ..self }
    }
}

impl fmt::Display for OpSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}*{}/{}", self.kind.name(), self.batch, self.value_bytes)
    }
}

/// A mix that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an operation; write NAME[*BATCH][/VALUE_BYTES][=WEIGHT] with one of append, read, get, set, delete, enqueue, increment, inspect, sorted-add, sorted-rank, sorted-range, echo-append, echo-get, echo-set, echo-increment"
)]
pub struct BadOp(String);

impl FromStr for OpSpec {
    type Err = BadOp;

    /// `NAME[*BATCH][/VALUE_BYTES][=WEIGHT]`
    fn from_str(text: &str) -> Result<Self, BadOp> {
        let bad = || BadOp(text.to_owned());
        let number = |text: Option<&str>, default: u32, max: u32| match text {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|n| (1..=max).contains(n)).ok_or_else(bad),
        };
        let split = |text: &'static str| {
            move |whole: &str| match whole.split_once(text) {
                Some((before, after)) => (before.to_owned(), Some(after.to_owned())),
                None => (whole.to_owned(), None),
            }
        };
        let (rest, weight) = split("=")(text.trim());
        let (rest, value_bytes) = split("/")(&rest);
        let (name, batch) = split("*")(&rest);
        let (kind, _) = NAMES.iter().find(|(_, known)| *known == name).ok_or_else(bad)?;
        Ok(Self {
            kind: *kind,
            batch: number(batch.as_deref(), 1, 10_000)?,
            value_bytes: number(value_bytes.as_deref(), 100, 16 << 20)?,
            weight: number(weight.as_deref(), 1, 1 << 20)?,
            by_chance: false,
        })
    }
}

/// Why an answer is wrong.
pub type Wrong = &'static str;

/// An operation ready to be sent: its request's bytes, in which only keys and what follows from them change.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What it is.
    pub spec: OpSpec,
    /// The method it calls.
    pub method: MethodId,
    bytes: Vec<u8>,
    /// Where each key, and the start of its value, stand in `bytes`; of a sorted set member and score, or first and last
    /// rank.
    places: Vec<(usize, Option<usize>)>,
    /// Where the number of the resource stands in `bytes`, for calls that go to many in turn.
    turn: Range<usize>,
    next: usize,
}

impl Operation {
    /// The operation on a resource. A `#` in its name stands for a digit: calls go in turn to all resources there can be.
    pub fn new(spec: OpSpec, resource: &str, methods: &mut Methods) -> Self {
        let method = methods.id(spec.kind.path());
        let (places, turn) = (Vec::new(), 0..0);
        let mut operation = Self { spec, method, bytes: vec![0; GRPC_HEAD_BYTES], places, turn, next: 0 };
        put_bytes_field(&mut operation.bytes, 1, resource.as_bytes());
        if let (Some(first), Some(last)) = (resource.find('#'), resource.rfind('#')) {
            let start = operation.bytes.len() - resource.len();
            operation.turn = start + first..start + last + 1;
        }
        match spec.kind {
            OpKind::Append | OpKind::EchoAppend => put_records(&mut operation.bytes, spec),
            OpKind::Read => {
                put_number_field(&mut operation.bytes, 3, 1);
                put_number_field(&mut operation.bytes, 6, u64::from(spec.batch));
                put_number_field(&mut operation.bytes, 7, 4 << 20);
            }
            OpKind::Get | OpKind::Delete | OpKind::EchoGet => operation.put_keys(),
            OpKind::Set | OpKind::EchoSet => operation.put_entries(),
            OpKind::Enqueue => put_jobs(&mut operation.bytes, spec),
            OpKind::Increment
            | OpKind::Inspect
            | OpKind::SortedAdd
            | OpKind::SortedRank
            | OpKind::SortedRange
            | OpKind::EchoIncrement => run_ops::put(&mut operation.bytes, spec, &mut operation.places),
        }
        set_length(&mut operation.bytes, 0);
        operation
    }

    /// Names the next resource in turn.
    #[inline]
    pub fn turn(&mut self) {
        let mut number = self.next;
        self.next += 1;
        for digit in self.bytes.get_mut(self.turn.clone()).unwrap_or_default().iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }

    /// How many keys each call names.
    pub fn keys(&self) -> usize {
        self.places.len()
    }

    /// Names the key at a place, and gives it its value.
    #[inline]
    pub fn set_key(&mut self, place: usize, number: u64) {
        let Some(&(key_at, stamp_at)) = self.places.get(place) else { return };
        if matches!(self.spec.kind, OpKind::SortedAdd | OpKind::SortedRange) {
            return run_ops::set(&mut self.bytes, self.spec.kind, (key_at, stamp_at), number);
        }
        if let Some(key) = self.bytes.get_mut(key_at..key_at + KEY_BYTES) {
            key.copy_from_slice(&keys::key_bytes(number));
        }
        let stamp = keys::stamp(number);
        let Some(stamp_at) = stamp_at else { return };
        let length = STAMP_BYTES.min(self.spec.value_bytes as usize);
        if let (Some(start), Some(stamp)) =
            (self.bytes.get_mut(stamp_at..stamp_at + length), stamp.get(..length))
        {
            start.copy_from_slice(stamp);
        }
    }

    /// The request, framed.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks the answer to a request with `keys`, byte for byte if `whole`. Returns items and bytes of values.
    #[inline]
    pub fn check(
        &self,
        keys: &[u64],
        message: &[u8],
        whole: bool,
        may_miss: bool,
    ) -> Result<(u64, u64), Wrong> {
        let (batch, value_bytes) = (u64::from(self.spec.batch), u64::from(self.spec.value_bytes));
        match self.spec.kind {
            OpKind::Append => check_appended(message, batch)?,
            OpKind::Read => return check_read(message, self.spec, whole),
            OpKind::Get => check_values(message, keys, self.spec, whole, may_miss)?,
            OpKind::Set => check_outcomes(message, batch, 2)?,
            OpKind::Delete => check_flags(message, batch)?,
            OpKind::Enqueue => check_enqueued(message, batch)?,
            OpKind::Increment
            | OpKind::Inspect
            | OpKind::SortedAdd
            | OpKind::SortedRank
            | OpKind::SortedRange => {
                run_ops::check(message, self.spec, may_miss)?;
                return Ok((batch, 0));
            }
            OpKind::EchoAppend | OpKind::EchoGet | OpKind::EchoSet | OpKind::EchoIncrement => {
                if message.len() + GRPC_HEAD_BYTES != self.bytes.len() {
                    return Err("the echo has another length");
                }
            }
        }
        Ok((batch, batch * value_bytes))
    }

    fn put_keys(&mut self) {
        for _ in 0..self.spec.batch {
            put_bytes_field(&mut self.bytes, 2, &[0; KEY_BYTES]);
            self.places.push((self.bytes.len() - KEY_BYTES, None));
        }
    }

    fn put_entries(&mut self) {
        let value = vec![FILLER; self.spec.value_bytes as usize];
        for _ in 0..self.spec.batch {
            let mut entry = Vec::new();
            put_bytes_field(&mut entry, 1, &[0; KEY_BYTES]);
            let key_end = entry.len();
            put_bytes_field(&mut entry, 2, &value);
            put_bytes_field(&mut self.bytes, 2, &entry);
            let entry_at = self.bytes.len() - entry.len();
            self.places.push((entry_at + key_end - KEY_BYTES, Some(self.bytes.len() - value.len())));
        }
    }
}

/// Appends a field of bytes, text or a message.
pub fn put_bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a number's field.
pub fn put_number_field(out: &mut Vec<u8>, number: u8, value: u64) {
    out.push(number << 3);
    put_varint(out, value);
}

/// Appends the records of an append: field 3 of both append requests.
pub fn put_records(out: &mut Vec<u8>, spec: OpSpec) {
    let mut record = Vec::new();
    put_bytes_field(&mut record, 2, &keys::value(0, spec.value_bytes as usize));
    for _ in 0..spec.batch {
        put_bytes_field(out, 3, &record);
    }
}

/// Appends the jobs of an enqueue.
pub fn put_jobs(out: &mut Vec<u8>, spec: OpSpec) {
    let mut job = Vec::new();
    put_bytes_field(&mut job, 1, &keys::value(0, spec.value_bytes as usize));
    for _ in 0..spec.batch {
        put_bytes_field(out, 2, &job);
    }
}

pub(super) const BROKEN: Wrong = "the answer is no protobuf";

fn check_appended(message: &[u8], batch: u64) -> Result<(), Wrong> {
    let mut count = 0;
    for field in Fields(message) {
        match field.map_err(|_| BROKEN)? {
            (3, value) => count = value.number(),
            (5, _) => return Err("an append to one partition was answered in parts"),
            _ => {}
        }
    }
    if count == batch { Ok(()) } else { Err("another number of records was appended") }
}

/// What a batch of records holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordBatchView {
    /// The first record's offset.
    pub base: u64,
    /// When it was appended.
    pub appended_at_ms: u64,
    /// How many records there are.
    pub count: u64,
    /// Bytes of all values, as far as they were looked at.
    pub value_bytes: u64,
}

/// Looks at a RecordBatch whose values all have `value_bytes`; `whole`: at every byte of them.
#[inline]
pub fn check_batch(message: &[u8], value_bytes: u32, whole: bool) -> Result<RecordBatchView, Wrong> {
    let mut view = RecordBatchView::default();
    let (mut records, mut said) = (0, 0);
    for field in Fields(message) {
        match field.map_err(|_| BROKEN)? {
            (1, value) => view.base = value.number(),
            (2, value) => view.appended_at_ms = value.number(),
            (3, value) => {
                records += 1;
                check_record(value.bytes(), value_bytes, whole)?;
            }
            (5, value) => said = value.number(),
            _ => {}
        }
    }
    if records != said {
        return Err("a batch counts other than its records");
    }
    view.count = records;
    view.value_bytes = records * u64::from(value_bytes);
    Ok(view)
}

#[inline]
fn check_record(record: &[u8], value_bytes: u32, whole: bool) -> Result<(), Wrong> {
    // Tag, length, value and nothing else, as we wrote it.
    let head = if value_bytes < 128 { 2 } else { 1 + varint_bytes(value_bytes) };
    if record.len() != head + value_bytes as usize {
        return Err("a record has another length");
    }
    let value = record.get(head..).unwrap_or_default();
    if whole && !keys::value_fits(0, value_bytes as usize, value, true) {
        return Err("a record holds something else");
    }
    Ok(())
}

fn varint_bytes(value: u32) -> usize {
    (32 - value.leading_zeros()).div_ceil(7).max(1) as usize
}

fn check_read(message: &[u8], spec: OpSpec, whole: bool) -> Result<(u64, u64), Wrong> {
    let (mut items, mut bytes) = (0, 0);
    for field in Fields(message) {
        if let (1, Value::Bytes(batch)) = field.map_err(|_| BROKEN)? {
            let view = check_batch(batch, spec.value_bytes, whole)?;
            items += view.count;
            bytes += view.value_bytes;
        }
    }
    if items == 0 { Err("nothing was read") } else { Ok((items, bytes)) }
}

#[inline]
fn check_values(
    message: &[u8],
    keys: &[u64],
    spec: OpSpec,
    whole: bool,
    may_miss: bool,
) -> Result<(), Wrong> {
    let mut keys = keys.iter();
    for field in Fields(message) {
        let (1, Value::Bytes(entry)) = field.map_err(|_| BROKEN)? else { continue };
        let key = *keys.next().ok_or("more entries than keys")?;
        let (mut found, mut value) = (false, &[][..]);
        for field in Fields(entry) {
            match field.map_err(|_| BROKEN)? {
                (1, flag) => found = flag.number() == 1,
                (2, bytes) => value = bytes.bytes(),
                _ => {}
            }
        }
        if found && !keys::value_fits(key, spec.value_bytes as usize, value, whole && !spec.by_chance) {
            return Err("a key holds something else");
        }
        if !found && !may_miss {
            return Err("a key is missing");
        }
    }
    if keys.next().is_some() { Err("fewer entries than keys") } else { Ok(()) }
}

/// Outcomes in field 1, one an item, of which none has the field `error`.
#[inline]
pub fn check_outcomes(message: &[u8], batch: u64, error: u64) -> Result<(), Wrong> {
    let mut outcomes = 0;
    for field in Fields(message) {
        let (1, Value::Bytes(outcome)) = field.map_err(|_| BROKEN)? else { continue };
        outcomes += 1;
        for field in Fields(outcome) {
            if field.map_err(|_| BROKEN)?.0 == error {
                return Err("an item failed");
            }
        }
    }
    if outcomes == batch { Ok(()) } else { Err("another number of outcomes") }
}

fn check_flags(message: &[u8], batch: u64) -> Result<(), Wrong> {
    match Fields(message).next() {
        Some(Ok((1, Value::Bytes(flags)))) if flags.len() as u64 == batch => Ok(()),
        _ => Err("another number of flags"),
    }
}

/// Job numbers, packed.
#[inline]
pub fn check_enqueued(message: &[u8], batch: u64) -> Result<(), Wrong> {
    let Some(Ok((1, Value::Bytes(ids)))) = Fields(message).next() else { return Err(BROKEN) };
    let count = ids.iter().filter(|byte| **byte < 0x80).count() as u64;
    if count == batch { Ok(()) } else { Err("another number of jobs was enqueued") }
}

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
