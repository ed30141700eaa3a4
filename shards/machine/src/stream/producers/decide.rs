//! What an append of a producer comes to, and what initialising one does.

use bytes::Bytes;
use flowmesh_model::limits::{NAME_BYTES_MAX, SEQUENCE_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Fact, Lsn, Millis, PartitionRef, ProducerId, ProducerStamp, Reject, Reply, ShardId, StreamSettings,
};
use smallvec::smallvec;

use super::{Producer, Producers, Sent};
use crate::decision::Decision;
use crate::limit;

/// The producers of a stream, and what deciding on one needs besides.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `None`: there never was one.
    pub producers: Option<&'a Producers>,
    pub settings: &'a StreamSettings,
    pub at: PartitionRef,
    pub now: Millis,
    /// The entry that is being decided on, and whose log it is in.
    pub lsn: Lsn,
    pub shard: ShardId,
}

impl Asked<'_> {
    /// Whether a batch is to be appended; if it was before, the answer it got.
    #[inline]
    pub fn append(&self, stamp: ProducerStamp, count: u32) -> Result<Option<Decision>, Reject> {
        if stamp.id.0 == 0 {
            return Err(Reject::invalid("producer.id", "is 0; InitProducer gives one"));
        }
        within("producer.sequence", stamp.sequence, 0, SEQUENCE_MAX - u64::from(count))?;
        let Some(producer) = self.known(stamp.id) else {
            return match stamp.sequence {
                0 => Ok(None),
                sequence => Err(Reject::UnknownProducer { id: stamp.id, sequence }),
            };
        };
        let again = producer.find(stamp, count)?;
        Ok(again.map(|Sent { base, count, appended_at, .. }| Decision::Answer {
            reply: Reply::Appended { base, count, appended_at, duplicate: true },
            seen: producer.last_lsn,
        }))
    }

    fn known(&self, id: ProducerId) -> Option<&Producer> {
        let producer = self.producers?.known.get(&(self.at.partition, id))?;
        Some(producer).filter(|producer| !producer.is_idle(self.now, self.settings.producer_retention_ms()))
    }

    /// The producer of that name with its next epoch, or a new one.
    pub fn init(&self, name: &Bytes) -> Result<Decision, Reject> {
        limit::size("name", name, NAME_BYTES_MAX)?;
        if std::str::from_utf8(name).is_err() {
            return Err(Reject::invalid("name", "is not UTF-8"));
        }
        if self.at.partition != 0 {
            return Err(Reject::invalid("partition", "is not 0, which alone initialises producers"));
        }
        let named = self.producers.and_then(|producers| producers.names.get(name));
        let next = named.and_then(|named| Some((named.id, named.epoch.checked_add(1)?)));
        let (id, epoch) = next.unwrap_or_else(|| (ProducerId::of_entry(self.lsn, self.shard), 0));
        Ok(self.initialise(id, epoch, name.clone()))
    }

    /// Fences older epochs.
    pub fn fence(&self, id: ProducerId, epoch: u32) -> Decision {
        match self.known(id) {
            Some(producer) if producer.epoch >= epoch => Decision::Answer {
                reply: Reply::Producer { id, epoch: producer.epoch },
                seen: producer.last_lsn,
            },
            _ => self.initialise(id, epoch, Bytes::new()),
        }
    }

    fn initialise(&self, id: ProducerId, epoch: u32, name: Bytes) -> Decision {
        Decision::Change {
            facts: smallvec![Fact::ProducerInitialised { at: self.at, id, epoch, name }],
            reply: Reply::Producer { id, epoch },
        }
    }
}

impl Producer {
    /// The batch, if it was appended before and is remembered; `None` if it is the next one.
    fn find(&self, stamp: ProducerStamp, count: u32) -> Result<Option<Sent>, Reject> {
        let ProducerStamp { id, epoch, sequence } = stamp;
        if epoch < self.epoch {
            return Err(Reject::ProducerFenced { id, epoch, current: self.epoch });
        }
        let expected = if epoch > self.epoch { 0 } else { self.next };
        if sequence == expected {
            return Ok(None);
        }
        if sequence > expected {
            return Err(Reject::SequenceGap { expected, got: sequence });
        }
        let index = self.batches.partition_point(|sent| sent.sequence < sequence);
        match self.batches.get(index) {
            Some(sent) if (sent.sequence, sent.count) == (sequence, count) => Ok(Some(*sent)),
            _ => Err(Reject::DuplicateSequence {
                sequence,
                count,
                remembered_from: self.batches.front().map_or(self.next, |sent| sent.sequence),
                next: self.next,
            }),
        }
    }
}
