//! What a queue or a partition of a stream remembers of jobs that other queues sent: up to which number it has those of
//! each. A source numbers what it sends in the order in which it does, so what comes again is at or below it.
//!
//! It is forgotten once the source is gone from the catalog, which is also when nothing of it is taken any more: so at most
//! as much is remembered as there are queues.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{Lsn, ResourceId, Space};

use crate::changes::Seals;
use crate::held::Apply;
use crate::items::{Indexed, Item, Items, Key, item_bytes};
use crate::keys::{self, Home};

/// A partition, and a queue whose jobs it got; a queue is its own partition 0.
type Place = (u32, ResourceId);

impl Key for Place {
    type Home = Home;

    const SPACE: Space = Space::Meta;

    fn in_index(&self, home: &Home) -> Bytes {
        home.received_key(self.0, self.1)
    }
}

/// Up to which number all is here, and the entry that brought the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    sequence: u64,
    last_lsn: Lsn,
}

/// What is remembered of a source in the index.
///
/// | field | size |
/// |---|---|
/// | format | 1 |
/// | number, last LSN | varint each |
impl Item for Known {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(21);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, self.sequence);
        put_varint(&mut out, self.last_lsn.0);
        out.freeze()
    }
}

/// What is remembered of all sources.
#[derive(Debug, Default)]
pub(crate) struct Received {
    known: Items<Place, Known>,
}

impl Received {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        size_of::<Self>() as u64 + self.known.len() as u64 * item_bytes::<Place, Known>()
    }

    /// Up to which number all of a source is here, and the entry that brought the last.
    pub fn upto(&self, partition: u32, source: ResourceId) -> (u64, Lsn) {
        self.known.get(&(partition, source)).map_or((0, Lsn(0)), |known| (known.sequence, known.last_lsn))
    }

    /// All sources, some more than once.
    pub fn sources(&self) -> impl Iterator<Item = ResourceId> {
        self.known.iter().map(|((_, source), _)| *source)
    }

    /// `Received`.
    pub fn received(&mut self, cx: &mut Apply<'_>, partition: u32, source: ResourceId, sequence: u64) {
        let last_lsn = cx.at.lsn;
        let new = || Known { sequence: 0, last_lsn };
        self.known.change(cx.home, cx.seals, &(partition, source), new, |known| {
            assert!(sequence > known.sequence, "what a source sends is taken once");
            *known = Known { sequence, last_lsn };
        });
    }

    /// `ReceivedForgotten`.
    pub fn forgotten(&mut self, cx: &mut Apply<'_>, source: ResourceId) {
        let of = self.known.iter().filter(|((_, of), _)| *of == source).map(|(place, _)| *place);
        for place in of.collect::<Vec<_>>() {
            self.known.remove(cx.home, cx.seals, &place);
        }
    }

    /// Takes what is remembered of a source out of the index.
    pub fn restore(&mut self, partition: u32, source: ResourceId, value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let known = Known { sequence: reader.varint()?, last_lsn: Lsn(reader.varint()?) };
        keys::close(&reader)?;
        if self.known.restore((partition, source), known) {
            Ok(())
        } else {
            Err(Malformed("the same source twice"))
        }
    }

    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> &mut dyn Indexed<Home> {
        &mut self.known
    }

    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        self.known.check(seals);
        assert!(self.known.iter().all(|(_, known)| known.sequence > 0));
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        use std::fmt::Write;
        for ((partition, source), known) in self.known.iter() {
            let Known { sequence, last_lsn } = known;
            let _ = writeln!(out, "  received {partition} from {source} upto {sequence} lsn {last_lsn}");
        }
    }
}
