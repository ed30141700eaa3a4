//! `Kv.Watch`: the changes of a store from its feed, behind a snapshot of it if one is wanted.
//!
//! Where the feed ends is noted first; then the snapshot is read, shard by shard, part by part; then the feed from what was
//! noted, but for what the snapshot has ([`SnapshotBounds`]). So nothing is kept for each key, and no change is missed or
//! told twice. The snapshot is complete once the feed was read as far as it went when its last part had been read: of what
//! comes then it has nothing, whoever goes on from there. One read of the feed is in flight for each partition, and none
//! starts before the client has taken what the last ones brought.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{put_varint, read_varint};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codecs;
use flowmesh_model::kv::change::{SnapshotFrom, version_of};
use flowmesh_model::kv::snapshot::SnapshotBounds;
use flowmesh_model::limits::{FILTER_PROGRESS_MS, KEY_BYTES_MAX, SNAPSHOT_AGAIN_MAX};
use flowmesh_model::record::{RecordSlices, RecordView};
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::settings::FeedSettings;
use flowmesh_model::{
    Command, Kind, KvCommand, Lsn, Offset, PartitionRef, Reject, Reply, ResourceInfo, Settings, ShardId,
    StreamCommand,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::watch_request::{Keys, Start};
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;

use super::decode;
use super::kv::existing;
use super::stream::partition_status;
use super::subscribe::{Cursor, ready_now, start_read};
use super::unpack::readable;
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::put_message;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::streaming::{Ended, StreamCall};
use crate::edge::grpc::wire::{bytes_field_len, put_bytes_field, put_length, put_present_integer};

/// Bytes of events of one message, and of what gathers before it is sent.
const MESSAGE_BYTES: usize = 512 * 1024;

/// The first byte of a token.
const TOKEN_FORMAT: u8 = 1;

/// The next offset of each partition.
type Offsets = BTreeMap<u32, Offset>;

/// What is watched.
struct Watch {
    store: Arc<ResourceInfo>,
    feed: Arc<ResourceInfo>,
    settings: FeedSettings,
    key: Option<Bytes>,
    prefix: Bytes,
    /// Of each shard that was read, which changes the snapshot has.
    bounds: Vec<Option<SnapshotBounds>>,
}

/// What is to be sent.
#[derive(Default)]
struct Outgoing {
    out: BytesMut,
    events: BytesMut,
}

impl Outgoing {
    /// An event; `change` is the message as it rests.
    fn push(&mut self, key: &[u8], change: &[u8]) {
        if self.events.len() + key.len() + change.len() > MESSAGE_BYTES && !self.events.is_empty() {
            self.close(&[], false);
        }
        put_length(&mut self.events, 1, bytes_field_len(key.len()) + bytes_field_len(change.len()));
        put_bytes_field(&mut self.events, 1, key);
        put_bytes_field(&mut self.events, 2, change);
    }

    /// Ends a message.
    fn close(&mut self, resume: &[u8], done: bool) {
        let events = std::mem::take(&mut self.events);
        put_message(&mut self.out, |out| {
            out.put_slice(&events);
            put_bytes_field(out, 2, resume);
            if done {
                put_present_integer(out, 3, 1);
            }
        });
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.out).freeze()
    }
}

/// Serves one watcher.
pub async fn watch<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let request: v1::WatchRequest = decode(call.only().await?)?;
    let mut watch = Watch::of(edge, &request)?;
    let mut offsets = watch.begin(edge, request.start.as_ref()).await?;
    call.open()?;
    let mut outgoing = Outgoing::default();
    let is_snapshot = matches!(request.start, Some(Start::Snapshot(true)));
    let mut ends = Offsets::new();
    if is_snapshot {
        for shard in watch.shards(edge) {
            watch.read_snapshot(edge, call, shard, &mut outgoing).await?;
        }
        ends = watch.begin(edge, None).await?;
    }
    let mut reads = FuturesUnordered::new();
    for (partition, offset) in &offsets {
        let cursor = Cursor::of_many(*partition, *offset, offsets.len());
        start_read(edge, &watch.feed, cursor, &mut reads);
    }
    let (mut is_behind, mut unsaid, mut told_at) = (true, false, edge.backend.now());
    loop {
        let now = edge.backend.now();
        // Whoever watches few keys of many is told now and then how far it is.
        let is_late = unsaid && now.since(told_at) >= FILTER_PROGRESS_MS;
        // From there on a watcher knows where to go on, and that no later change is missed.
        let reaches_end =
            is_behind && ends.iter().all(|(partition, end)| offsets.get(partition) >= Some(end));
        if reaches_end || !outgoing.events.is_empty() || !outgoing.out.is_empty() || is_late {
            if reaches_end {
                is_behind = false;
                watch.bounds.clear();
            }
            let token = if is_behind { Bytes::new() } else { watch.token(&offsets) };
            outgoing.close(&token, reaches_end && is_snapshot);
            call.send(outgoing.take()).await?;
            (unsaid, told_at) = (false, now);
        }
        call.until_over(edge.backend.yield_if_needed()).await?;
        let Some(first) = call.until_over(reads.next()).await? else { return Ok(()) };
        let mut next = Some(first);
        while let Some((cursor, outcome)) = next {
            let records = readable(outcome?, Codecs::default(), MESSAGE_BYTES)?;
            watch.pass_on(edge, cursor.partition, &records, &mut outgoing)?;
            unsaid |= !records.runs.is_empty();
            offsets.insert(cursor.partition, records.next);
            let cursor = Cursor::of_many(cursor.partition, records.next, offsets.len());
            start_read(edge, &watch.feed, cursor, &mut reads);
            let more = outgoing.out.len() + outgoing.events.len() < MESSAGE_BYTES;
            next = if more { ready_now(&mut reads).await } else { None };
        }
    }
}

impl Watch {
    fn of<B: Backend>(edge: &Edge<B>, request: &v1::WatchRequest) -> Result<Self, Reject> {
        let store = existing(edge, &request.store)?;
        let Settings::Kv(settings) = &store.settings else { return Err(wrong_reply()) };
        let Some(settings) = settings.feed.clone() else {
            return Err(Reject::NoFeed { path: store.path.to_string() });
        };
        let feed = edge
            .backend
            .find(Kind::Stream, &settings.stream)
            .ok_or_else(|| missing(Kind::Stream, &settings.stream))?;
        let (key, prefix) = match &request.keys {
            Some(Keys::Key(key)) => (Some(key.clone()), Bytes::new()),
            Some(Keys::Prefix(prefix)) => (None, prefix.clone()),
            None => (None, Bytes::new()),
        };
        if key.as_ref().is_some_and(Bytes::is_empty) {
            return Err(Reject::invalid("key", "is empty; at least 1 byte is needed"));
        }
        let (what, len) = match &key {
            Some(key) => ("key", key.len()),
            None => ("prefix", prefix.len()),
        };
        if len > KEY_BYTES_MAX {
            return Err(Reject::TooLarge { what, size: len as u64, max: KEY_BYTES_MAX as u64 });
        }
        let bounds = vec![None; usize::from(edge.backend.shards())];
        Ok(Self { store, feed, settings, key, prefix, bounds })
    }

    /// The partitions that have changes of its keys.
    fn partitions(&self) -> Vec<u32> {
        match &self.key {
            Some(key) => vec![self.settings.partition(self.store.placement.key_slot(key))],
            None => (0..self.settings.partitions).collect(),
        }
    }

    /// The shards that have its keys.
    fn shards<B: Backend>(&self, edge: &Edge<B>) -> Vec<ShardId> {
        match &self.key {
            Some(key) => vec![edge.backend.shard_of_key(&self.store, key)],
            None => (0..edge.backend.shards()).map(ShardId).collect(),
        }
    }

    fn wants(&self, key: &[u8]) -> bool {
        match &self.key {
            Some(only) => *only == key,
            None => key.starts_with(&self.prefix),
        }
    }

    /// Where it begins in each partition.
    async fn begin<B: Backend>(&self, edge: &Rc<Edge<B>>, start: Option<&Start>) -> Result<Offsets, Reject> {
        let partitions = self.partitions();
        if let Some(Start::Resume(token)) = start {
            return self.read_token(token, &partitions);
        }
        if let Some(Start::FromVersion(_)) = start
            && self.key.is_none()
            && edge.backend.shards() > 1
        {
            let reason = "is of one shard; with several shards name a key, or resume with a token";
            return Err(Reject::invalid("from_version", reason));
        }
        let found = try_join_all(partitions.into_iter().map(|partition| async move {
            let status = partition_status(edge, &self.feed, partition).await?;
            let (earliest, next) = (Offset(status.earliest_offset), Offset(status.next_offset));
            let offset = match start {
                Some(Start::Earliest(true)) => earliest,
                Some(Start::FromVersion(version)) => {
                    self.behind_version(edge, partition, earliest..next, Lsn(*version)).await?
                }
                _ => next,
            };
            Ok::<_, Reject>((partition, offset))
        }));
        Ok(found.await?.into_iter().collect())
    }

    /// The first record of a partition behind a version, by halving: versions never go back.
    async fn behind_version<B: Backend>(
        &self,
        edge: &Rc<Edge<B>>,
        partition: u32,
        kept: std::ops::Range<Offset>,
        version: Lsn,
    ) -> Result<Offset, Reject> {
        // What was trimmed, or came before the feed, is not behind the first that is kept.
        let is_cut = kept.start.0 > 0 || self.settings.late;
        if is_cut {
            let earliest = if kept.is_empty() {
                self.last_entry(edge, partition).await?
            } else {
                self.version_at(edge, partition, kept.start).await?
            };
            if version < earliest {
                return Err(Reject::VersionNotKept { requested: version, earliest });
            }
        }
        let (mut low, mut high) = (kept.start.0, kept.end.0);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.version_at(edge, partition, Offset(middle)).await? > version {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(Offset(low))
    }

    async fn version_at<B: Backend>(
        &self,
        edge: &Rc<Edge<B>>,
        partition: u32,
        at: Offset,
    ) -> Result<Lsn, Reject> {
        let from = ReadFrom::Offset(at);
        let read = StreamCommand::Read { from, records_max: 1, bytes_max: 1, bytes_min: 0, wait_until: None };
        let target = PartitionRef { resource: self.feed.id, partition };
        let to = edge.backend.shard_of_partition(&self.feed, partition);
        let Reply::Records(records) = edge.backend.call(to, Command::Stream(target, read)).await? else {
            return Err(wrong_reply());
        };
        let records = readable(records, Codecs::default(), 1)?;
        let first = records.runs.iter().find_map(|run| RecordSlices::new(&run.records).next());
        let record = first.ok_or(NO_CHANGE)?.and_then(RecordView::read).map_err(|_| NO_CHANGE)?;
        version_of(record.value).map_err(|_| NO_CHANGE)
    }

    /// The last entry of the log of a partition's shard.
    async fn last_entry<B: Backend>(&self, edge: &Rc<Edge<B>>, partition: u32) -> Result<Lsn, Reject> {
        let to = edge.backend.shard_of_partition(&self.feed, partition);
        let none = Some(Bytes::from_static(&[0]));
        let snapshot = KvCommand::Snapshot { prefix: Bytes::new(), key: none, from: SnapshotFrom::Start };
        match edge.backend.call(to, Command::Kv(self.store.id, snapshot)).await? {
            Reply::KvSnapshot(part) => Ok(part.upto),
            _ => Err(wrong_reply()),
        }
    }

    /// Sends what keys of a shard hold.
    async fn read_snapshot<B: Backend>(
        &mut self,
        edge: &Rc<Edge<B>>,
        call: &mut StreamCall,
        shard: ShardId,
        outgoing: &mut Outgoing,
    ) -> Result<(), Ended> {
        let (mut bounds, mut from, mut again) = (SnapshotBounds::default(), SnapshotFrom::Start, 0);
        loop {
            let (prefix, key) = (self.prefix.clone(), self.key.clone());
            let snapshot = KvCommand::Snapshot { prefix, key, from: from.clone() };
            let reply = edge.backend.call(shard, Command::Kv(self.store.id, snapshot));
            let Reply::KvSnapshot(part) = call.until_over(reply).await?? else {
                return Err(wrong_reply().into());
            };
            again += u32::from(part.again);
            if again > SNAPSHOT_AGAIN_MAX {
                let what = "snapshot of a list that changes all the time";
                return Err(Reject::Overloaded { what, retry_after_ms: 1_000 }.into());
            }
            bounds.note(&from, &part);
            for (key, change) in &part.changes {
                outgoing.push(key, change);
            }
            if !outgoing.events.is_empty() {
                outgoing.close(&[], false);
                call.send(outgoing.take()).await?;
            }
            let Some(next) = part.next else { break };
            from = next;
        }
        if let Some(place) = self.bounds.get_mut(usize::from(shard.0)) {
            *place = Some(bounds);
        }
        Ok(())
    }

    /// Passes on the records that are wanted and not in the snapshot.
    fn pass_on<B: Backend>(
        &mut self,
        edge: &Edge<B>,
        partition: u32,
        records: &RecordRuns,
        outgoing: &mut Outgoing,
    ) -> Result<(), Reject> {
        let shard = edge.backend.shard_of_partition(&self.feed, partition);
        let bounds = self.bounds.get(usize::from(shard.0)).and_then(Option::as_ref);
        for run in &records.runs {
            for record in RecordSlices::new(&run.records) {
                let record = record.and_then(RecordView::read).map_err(|_| NO_CHANGE)?;
                let key = record.key.unwrap_or_default();
                if !self.wants(key) {
                    continue;
                }
                if let Some(bounds) = bounds
                    && bounds.has(key, version_of(record.value).map_err(|_| NO_CHANGE)?)
                {
                    continue;
                }
                outgoing.push(key, record.value);
            }
        }
        Ok(())
    }

    /// Where to go on: the feed's number, and of each partition its number and the next offset.
    ///
    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | feed, count, (partition, offset)* | varint each |
    fn token(&self, offsets: &Offsets) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + offsets.len() * 8);
        out.put_u8(TOKEN_FORMAT);
        put_varint(&mut out, self.feed.id.0);
        put_varint(&mut out, offsets.len() as u64);
        for (partition, offset) in offsets {
            put_varint(&mut out, u64::from(*partition));
            put_varint(&mut out, offset.0);
        }
        out.freeze()
    }

    /// Reads what [`Watch::token`] wrote: for the same keys, or others, of the same feed.
    fn read_token(&self, token: &[u8], partitions: &[u32]) -> Result<Offsets, Reject> {
        let malformed = || Reject::invalid("resume", "is no token of a watch");
        let mut rest = token.strip_prefix(&[TOKEN_FORMAT]).ok_or_else(malformed)?;
        let mut next = || {
            let (number, used) = read_varint(rest).map_err(|_| malformed())?;
            rest = rest.get(used..).unwrap_or_default();
            Ok::<u64, Reject>(number)
        };
        if next()? != self.feed.id.0 {
            return Err(Reject::invalid("resume", "is a token of the watch of another store"));
        }
        let count = next()?;
        let mut offsets = Vec::new();
        for _ in 0..count.min(u64::from(self.settings.partitions)) {
            offsets.push((next()?, Offset(next()?)));
        }
        let found = partitions.iter().map(|partition| {
            let place = offsets.iter().find(|(of, _)| *of == u64::from(*partition));
            let other = || Reject::invalid("resume", "is a token of a watch of other keys");
            place.map(|(_, offset)| (*partition, *offset)).ok_or_else(other)
        });
        found.collect()
    }
}

const NO_CHANGE: Reject = Reject::Internal("a record of a feed that is no change");

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn messages_are_those_that_prost_would_write() {
        let change = v1::KvChange { version: 7, value: Bytes::from_static(b"v"), ..Default::default() };
        let mut outgoing = Outgoing::default();
        outgoing.push(b"k", &change.encode_to_vec());
        outgoing.push(b"l", &change.encode_to_vec());
        outgoing.close(b"token", true);
        let message = outgoing.take().slice(5..);
        let read = v1::WatchResponse::decode(message).unwrap();
        assert_eq!((&read.resume[..], read.snapshot_done), (&b"token"[..], true));
        let keys: Vec<_> = read.events.iter().map(|event| &event.key[..]).collect();
        assert_eq!(keys, [b"k", b"l"]);
        assert!(read.events.iter().all(|event| event.change.as_ref() == Some(&change)));
    }
}
