//! A resource that the shard holds something of.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_bytes};
use flowmesh_model::fact::read_path;
use flowmesh_model::{
    IndexWrite, Kind, Millis, Offset, PartitionRef, ResourceId, ResourceInfo, Settings, Space,
};

use crate::changes::{Mark, Seals, image};
use crate::decision::{EntryContext, FlushRange};
use crate::group::Group;
use crate::keys::{self, Home};
use crate::kv::Store;
use crate::queue::Queue;
use crate::siphash::SipKey;
use crate::stream::Stream;
use crate::stream::tail::Arena;
use crate::woken::Woken;

/// What a held resource takes in memory besides what it holds.
pub(crate) const HELD_BYTES: u64 = (size_of::<Held>() + 48) as u64;

/// Says of a stream in the index that it is a store's feed.
const FEED: u8 = 1;

/// What applying a fact to a resource needs besides the resource.
pub(crate) struct Apply<'a> {
    pub at: EntryContext,
    pub home: &'a Home,
    pub seals: &'a mut Seals,
    pub woken: &'a mut Woken,
    pub arena: &'a mut Arena,
}

/// A resource with what the shard holds of it.
#[derive(Debug)]
pub(crate) struct Held {
    pub home: Home,
    /// As the catalog snapshot has it; `None` once it was deleted. Not part of the state.
    pub info: Option<Arc<ResourceInfo>>,
    /// For the counters in the index.
    pub mark: Mark,
    /// The moment under which the timers have it. Not part of the state.
    pub armed: Option<Millis>,
    pub parts: Parts,
}

/// What the shard holds of a resource.
#[derive(Debug)]
pub(crate) enum Parts {
    Stream(Stream),
    Queue(Box<Queue>),
    Kv(Box<Store>),
    Group(Box<Group>),
}

impl Parts {
    pub fn new(kind: Kind, sip: SipKey) -> Self {
        match kind {
            Kind::Stream => Self::Stream(Stream::default()),
            Kind::Queue => Self::Queue(Box::default()),
            Kind::Kv => Self::Kv(Box::new(Store::new(sip))),
            // All that a replay session holds is held as its sandbox; nothing ever says that it holds anything itself.
            Kind::Group | Kind::Replay => Self::Group(Box::default()),
        }
    }

    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Stream(stream) => stream.memory_bytes(),
            Self::Queue(queue) => queue.memory_bytes(),
            Self::Kv(store) => store.memory_bytes(),
            Self::Group(group) => group.memory_bytes(),
        }
    }

    /// Memory that values take which could leave it, once the index has them.
    pub fn could_go(&self) -> u64 {
        if let Self::Kv(store) = self { store.could_go() } else { 0 }
    }

    /// Queues whose jobs it got.
    pub fn sources(&self) -> Vec<ResourceId> {
        let received = match self {
            Self::Stream(stream) => stream.received(),
            Self::Queue(queue) => queue.received.as_deref(),
            Self::Kv(_) | Self::Group(_) => None,
        };
        received.map_or_else(Vec::new, |received| received.sources().collect())
    }

    /// Takes over what settings say that deciding alone does not look at.
    pub fn configure(&mut self, settings: &Settings, now: Millis, shares: u16) {
        match (self, settings) {
            (Self::Stream(stream), Settings::Stream(settings)) => stream.configure(settings),
            (Self::Queue(queue), Settings::Queue(settings)) => {
                queue.configure(settings, now);
                queue.schedules.wake();
            }
            (Self::Kv(store), Settings::Kv(settings)) => {
                store.configure(settings, shares);
                store.want_history(settings.history_ms);
            }
            (Self::Group(group), Settings::Group(_)) => group.look_at_all(),
            _ => {}
        }
    }

    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        match self {
            Self::Stream(stream) => stream.next_due(),
            Self::Queue(queue) => queue.next_due(),
            Self::Kv(store) => store.next_due(),
            Self::Group(group) => group.next_due(),
        }
    }

    /// Takes changes into the sealed state; a stream's partitions are captured at once.
    pub fn seal(&mut self, home: &Home, seals: &mut Seals, ranges: &mut Vec<FlushRange>) {
        match self {
            Self::Stream(stream) => stream.seal(home, seals, ranges),
            Self::Queue(queue) => queue.seal(),
            Self::Kv(store) => store.seal(),
            Self::Group(group) => group.seal(),
        }
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        match self {
            Self::Stream(stream) => stream.collect(home, seals, items_max, out),
            Self::Queue(queue) => queue.collect(home, seals, items_max, out),
            Self::Kv(store) => store.collect(home, seals, items_max, out),
            Self::Group(group) => group.collect(home, seals, items_max, out),
        }
    }

    /// The sealed state is in the index. Appends to `trimmed` where the files of partitions start now.
    pub fn sealed_written(
        &mut self,
        id: ResourceId,
        seals: &Seals,
        trimmed: &mut Vec<(PartitionRef, Offset)>,
    ) {
        match self {
            Self::Stream(stream) => stream.sealed_written(id, trimmed),
            Self::Queue(queue) => queue.sealed_written(seals),
            Self::Kv(store) => store.sealed_written(),
            Self::Group(group) => group.sealed_written(),
        }
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        match self {
            Self::Stream(stream) => stream.unseal(seals),
            Self::Queue(queue) => queue.unseal(seals),
            Self::Kv(store) => store.unseal(seals),
            Self::Group(group) => group.unseal(seals),
        }
    }

    /// Takes at most `items_max` items of a dropped resource apart and appends the keys the index has of them. Returns
    /// how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        match self {
            Self::Stream(stream) => stream.bury(home, items_max, gone),
            Self::Queue(queue) => queue.bury(home, items_max, gone),
            Self::Kv(store) => store.bury(home, items_max, gone),
            Self::Group(group) => group.bury(home, items_max, gone),
        }
    }
}

impl Held {
    pub fn new(home: Home, sip: SipKey) -> Self {
        let parts = Parts::new(home.path.kind(), sip);
        Self { home, info: None, mark: Mark::NEW, armed: None, parts }
    }

    /// Takes over what the catalog says.
    pub fn set_info(&mut self, info: Option<Arc<ResourceInfo>>, now: Millis, shares: u16) {
        if let Some(info) = &info {
            self.parts.configure(&info.settings, now, shares);
            // One text for both.
            self.home.share(info);
        }
        self.info = info;
    }

    /// The resource in the index.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | format | 1 | 1 |
    /// | path | varint length + bytes | names the kind |
    /// | counters | the rest | by kind; a stream has none, the feed of a store the byte 1 |
    fn encode(&self) -> Bytes {
        let path = self.home.path.to_string();
        let mut out = BytesMut::with_capacity(64 + path.len());
        out.put_u8(keys::FORMAT);
        put_bytes(&mut out, path.as_bytes());
        match &self.parts {
            Parts::Stream(_) if self.home.is_feed() => out.put_u8(FEED),
            Parts::Stream(_) => {}
            Parts::Queue(queue) => queue.encode_counters(&mut out),
            Parts::Kv(store) => store.encode_counters(&mut out),
            Parts::Group(group) => group.encode_counters(&mut out),
        }
        out.freeze()
    }

    /// Reads what [`Held::encode`] wrote.
    pub fn restore(id: ResourceId, value: Bytes, sip: SipKey) -> Result<Self, Malformed> {
        let mut reader = keys::open(value)?;
        let path = read_path(&reader.text()?)?;
        let mut held = Self::new(Home::new(id, path), sip);
        match &mut held.parts {
            Parts::Stream(_) if reader.is_empty() => {}
            Parts::Stream(_) => {
                if reader.byte()? != FEED {
                    return Err(Malformed("a stream of an unknown sort"));
                }
                held.home = Home::of_feed(id, held.home.path);
            }
            Parts::Queue(queue) => queue.restore_counters(&mut reader)?,
            Parts::Kv(store) => store.restore_counters(&mut reader)?,
            Parts::Group(group) => group.restore_counters(&mut reader)?,
        }
        held.mark = Mark::IN_INDEX;
        keys::close(&reader)?;
        Ok(held)
    }

    /// Captures the counters, and takes the changes of the parts into the sealed state.
    pub fn seal(&mut self, seals: &mut Seals, ranges: &mut Vec<FlushRange>) {
        Seals::written(&mut self.mark);
        seals.capture(image(Space::Meta, self.home.resource_key(), self.encode()));
        if let Parts::Kv(store) = &self.parts
            && let Some(history) = store.encode_history()
        {
            seals.capture(image(Space::Meta, self.home.history_key(), history));
        }
        self.parts.seal(&self.home, seals, ranges);
    }
}
