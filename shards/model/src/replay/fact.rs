//! What becomes true of a replay session: facts with the tags 80 to 95 (see [`crate::fact`]).
//!
//! | tag | fact | fields after the sandbox's number |
//! |---|---|---|
//! | 80 | `Begun` | speed, positions |
//! | 81 | `Started` | record time |
//! | 82 | `Paused` | |
//! | 83 | `Resumed` | record time |
//! | 84 | `Sought` | record time, positions |
//! | 85 | `Stopped` | |
//! | 86 | `SpeedSet` | speed, record time |
//! | 87 | `Failed` | error |
//! | 88 | `Completed` | |
//! | 89 | `Stepped` | positions |
//!
//! `positions`: count, then that many times stream, partition, offset. `record time`: ms + 1, 0 = none: that of the entry.
//! `speed`: thousandths of real time, 0 = as fast as possible.

use bytes::BufMut;

use super::Speed;
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::group::Name;
use crate::ids::{Millis, Offset, PartitionRef, ResourceId};

/// What became true of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayFact {
    /// The session is there, created, with this speed; these are committed.
    Begun {
        /// How fast it begins.
        speed: Speed,
        /// Where its partitions begin.
        positions: Vec<(PartitionRef, Offset)>,
    },
    /// It is active; records of this time are due now.
    Started {
        /// `None`: records to come are due when they come.
        record_time: Option<Millis>,
    },
    /// It is paused.
    Paused,
    /// It is active again; records of this time are due now.
    Resumed {
        /// See `Started`.
        record_time: Option<Millis>,
    },
    /// These are committed, in a new generation; a completed session is paused; records of this time are due now.
    Sought {
        /// See `Started`.
        record_time: Option<Millis>,
        /// Where to.
        positions: Vec<(PartitionRef, Offset)>,
    },
    /// It is stopped.
    Stopped,
    /// It has this speed; records of this time are due now.
    SpeedSet {
        /// The speed.
        speed: Speed,
        /// See `Started`.
        record_time: Option<Millis>,
    },
    /// It is in error.
    Failed {
        /// What went wrong.
        error: Name,
    },
    /// It is completed.
    Completed,
    /// Records were shown: these are committed, in a new generation.
    Stepped {
        /// Where to.
        positions: Vec<(PartitionRef, Offset)>,
    },
}

const BEGUN: u8 = 80;
const STARTED: u8 = 81;
const PAUSED: u8 = 82;
const RESUMED: u8 = 83;
const SOUGHT: u8 = 84;
const STOPPED: u8 = 85;
const SPEED_SET: u8 = 86;
const FAILED: u8 = 87;
const COMPLETED: u8 = 88;
const STEPPED: u8 = 89;

/// The tags that are a session's.
pub(crate) const TAGS: std::ops::RangeInclusive<u8> = 80..=95;

impl ReplayFact {
    /// The fact's tag on disk.
    pub(crate) const fn tag(&self) -> u8 {
        match self {
            Self::Begun { .. } => BEGUN,
            Self::Started { .. } => STARTED,
            Self::Paused => PAUSED,
            Self::Resumed { .. } => RESUMED,
            Self::Sought { .. } => SOUGHT,
            Self::Stopped => STOPPED,
            Self::SpeedSet { .. } => SPEED_SET,
            Self::Failed { .. } => FAILED,
            Self::Completed => COMPLETED,
            Self::Stepped { .. } => STEPPED,
        }
    }

    /// Appends what follows tag and sandbox.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Begun { speed, positions } => {
                put_varint(out, speed.0);
                put_positions(out, positions);
            }
            Self::Started { record_time } | Self::Resumed { record_time } => put_time(out, *record_time),
            Self::Sought { record_time, positions } => {
                put_time(out, *record_time);
                put_positions(out, positions);
            }
            Self::SpeedSet { speed, record_time } => {
                put_varint(out, speed.0);
                put_time(out, *record_time);
            }
            Self::Failed { error } => put_bytes(out, error.as_bytes()),
            Self::Stepped { positions } => put_positions(out, positions),
            Self::Paused | Self::Stopped | Self::Completed => {}
        }
    }

    /// An upper bound of what [`ReplayFact::encode`] appends beyond two dozen bytes.
    pub(crate) fn encoded_len_max(&self) -> usize {
        /// A stream, a partition and an offset.
        const POSITION: usize = 10 + 5 + 10;
        match self {
            Self::Begun { positions, .. } | Self::Sought { positions, .. } | Self::Stepped { positions } => {
                POSITION * positions.len()
            }
            Self::Failed { error } => error.len(),
            Self::Started { .. }
            | Self::Paused
            | Self::Resumed { .. }
            | Self::Stopped
            | Self::SpeedSet { .. }
            | Self::Completed => 0,
        }
    }

    /// Reads what [`ReplayFact::encode`] wrote.
    pub(crate) fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match tag {
            BEGUN => Self::Begun { speed: Speed(reader.varint()?), positions: positions(reader)? },
            STARTED => Self::Started { record_time: time(reader)? },
            PAUSED => Self::Paused,
            RESUMED => Self::Resumed { record_time: time(reader)? },
            SOUGHT => Self::Sought { record_time: time(reader)?, positions: positions(reader)? },
            STOPPED => Self::Stopped,
            SPEED_SET => Self::SpeedSet { speed: Speed(reader.varint()?), record_time: time(reader)? },
            FAILED => Self::Failed { error: Name::from(reader.text()?) },
            COMPLETED => Self::Completed,
            STEPPED => Self::Stepped { positions: positions(reader)? },
            _ => return Err(Malformed("unknown fact of a replay session; a newer version wrote it")),
        })
    }
}

/// Appends a moment that may be missing.
pub fn put_time(out: &mut impl BufMut, time: Option<Millis>) {
    put_varint(out, time.map_or(0, |time| time.0.saturating_add(1)));
}

/// Reads what [`put_time`] wrote.
///
/// # Errors
/// [`Malformed`].
pub fn time(reader: &mut Reader) -> Result<Option<Millis>, Malformed> {
    Ok(reader.varint()?.checked_sub(1).map(Millis))
}

fn put_positions(out: &mut impl BufMut, positions: &[(PartitionRef, Offset)]) {
    put_varint(out, positions.len() as u64);
    for (at, offset) in positions {
        put_varint(out, at.resource.0);
        put_varint(out, u64::from(at.partition));
        put_varint(out, offset.0);
    }
}

fn positions(reader: &mut Reader) -> Result<Vec<(PartitionRef, Offset)>, Malformed> {
    let count = reader.varint()?;
    // Each takes three bytes at least, so that a wrong count cannot ask for memory.
    if count > reader.remaining() as u64 / 3 {
        return Err(Malformed("more positions than there are bytes"));
    }
    let one = |_| {
        let at = PartitionRef { resource: ResourceId(reader.varint()?), partition: reader.varint_u32()? };
        Ok((at, Offset(reader.varint()?)))
    };
    (0..count).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fact;
    use bytes::BytesMut;

    fn position(partition: u32, offset: u64) -> (PartitionRef, Offset) {
        (PartitionRef { resource: ResourceId(7), partition }, Offset(offset))
    }

    /// One of each, with its form on disk, which never changes.
    fn golden() -> Vec<(ReplayFact, &'static [u8])> {
        let record_time = Some(Millis(300));
        vec![
            (
                ReplayFact::Begun { speed: Speed(1000), positions: vec![position(0, 5), position(2, 300)] },
                &[80, 9, 0xE8, 7, 2, 7, 0, 5, 7, 2, 0xAC, 2],
            ),
            (ReplayFact::Started { record_time }, &[81, 9, 0xAD, 2]),
            (ReplayFact::Paused, &[82, 9]),
            (ReplayFact::Resumed { record_time: None }, &[83, 9, 0]),
            (
                ReplayFact::Sought { record_time, positions: vec![position(1, 4)] },
                &[84, 9, 0xAD, 2, 1, 7, 1, 4],
            ),
            (ReplayFact::Stopped, &[85, 9]),
            (ReplayFact::SpeedSet { speed: Speed::MAX, record_time }, &[86, 9, 0, 0xAD, 2]),
            (ReplayFact::Failed { error: Name::from("no") }, &[87, 9, 2, b'n', b'o']),
            (ReplayFact::Completed, &[88, 9]),
            (ReplayFact::Stepped { positions: vec![] }, &[89, 9, 0]),
        ]
    }

    #[test]
    fn the_form_on_disk_never_changes() {
        for (fact, bytes) in golden() {
            let fact = Fact::Replay(ResourceId(9), fact);
            let mut out = BytesMut::new();
            fact.encode(&mut out);
            assert_eq!(&out[..], bytes, "{fact:?}");
            assert!(out.len() <= fact.encoded_len_max());
            let mut reader = Reader::new(out.freeze());
            assert_eq!(Fact::decode(&mut reader).unwrap(), fact);
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_refused() {
        for (fact, bytes) in golden() {
            for end in 2..bytes.len() {
                let mut reader = Reader::new(bytes::Bytes::from_static(&bytes[..end]));
                assert!(Fact::decode(&mut reader).is_err(), "{fact:?} was read from {end} bytes");
            }
        }
        let mut reader = Reader::new(bytes::Bytes::from_static(&[95, 9]));
        assert!(Fact::decode(&mut reader).is_err());
    }
}
