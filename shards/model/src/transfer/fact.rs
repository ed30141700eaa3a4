//! What becomes true of jobs on their way, at their source and at their target.
//!
//! | tag | fact | fields after the queue or stream |
//! |---|---|---|
//! | 128 | `Sending` | number, job, target, its partition, mode, ready at |
//! | 129 | `Sent` | number |
//! | 130 | `SendFailed` | number, error |
//! | 131 | `Received` | partition, source, number |
//! | 132 | `ReceivedForgotten` | source |

use bytes::{BufMut, Bytes};

use super::TransferMode;
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::ids::{JobId, Millis, PartitionRef, ResourceId};
use crate::job::fact::one_of;

/// What became true of a job on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferFact {
    /// Source: the job is to go there. Until it has, or never will, nothing else happens to it.
    Sending {
        /// The number under which it is sent, above all before it.
        sequence: u64,
        /// Which.
        job: JobId,
        /// Where to.
        to: PartitionRef,
        /// What becomes of it here.
        mode: TransferMode,
        /// When it is ready there.
        ready_at: Millis,
    },
    /// Source: the target has it. A job that moves is gone.
    Sent {
        /// Its number.
        sequence: u64,
    },
    /// Source: the target will never take it. The job stays.
    SendFailed {
        /// Its number.
        sequence: u64,
        /// Why.
        error: Bytes,
    },
    /// Target: it has all that the source sent up to this number.
    Received {
        /// Of a stream, in which partition.
        partition: u32,
        /// The queue it comes from.
        source: ResourceId,
        /// The number.
        sequence: u64,
    },
    /// Target: the source is gone, and so is what was known of it.
    ReceivedForgotten {
        /// The queue it came from.
        source: ResourceId,
    },
}

/// Tags of facts about jobs on their way.
pub const TAGS: std::ops::RangeInclusive<u8> = 128..=135;

const SENDING: u8 = 128;
const SENT: u8 = 129;
const SEND_FAILED: u8 = 130;
const RECEIVED: u8 = 131;
const RECEIVED_FORGOTTEN: u8 = 132;

impl TransferFact {
    /// The tag on disk.
    #[must_use]
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Sending { .. } => SENDING,
            Self::Sent { .. } => SENT,
            Self::SendFailed { .. } => SEND_FAILED,
            Self::Received { .. } => RECEIVED,
            Self::ReceivedForgotten { .. } => RECEIVED_FORGOTTEN,
        }
    }

    /// Appends what follows tag and resource.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Sending { sequence, job, to, mode, ready_at } => {
                for number in [*sequence, job.0, to.resource.0, u64::from(to.partition)] {
                    put_varint(out, number);
                }
                out.put_u8(*mode as u8);
                put_varint(out, ready_at.0);
            }
            Self::Sent { sequence } => put_varint(out, *sequence),
            Self::SendFailed { sequence, error } => {
                put_varint(out, *sequence);
                put_bytes(out, error);
            }
            Self::Received { partition, source, sequence } => {
                put_varint(out, u64::from(*partition));
                put_varint(out, source.0);
                put_varint(out, *sequence);
            }
            Self::ReceivedForgotten { source } => put_varint(out, source.0),
        }
    }

    /// An upper bound of what [`TransferFact::encode`] appends beyond four integers, a byte and a length.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        match self {
            Self::Sending { .. } => 10,
            Self::SendFailed { error, .. } => error.len(),
            _ => 0,
        }
    }

    /// Reads what [`TransferFact::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match tag {
            SENDING => Self::Sending {
                sequence: reader.varint()?,
                job: JobId(reader.varint()?),
                to: PartitionRef { resource: ResourceId(reader.varint()?), partition: reader.varint_u32()? },
                mode: one_of(&TransferMode::ALL, reader.byte()?)?,
                ready_at: Millis(reader.varint()?),
            },
            SENT => Self::Sent { sequence: reader.varint()? },
            SEND_FAILED => Self::SendFailed { sequence: reader.varint()?, error: reader.bytes()? },
            RECEIVED => Self::Received {
                partition: reader.varint_u32()?,
                source: ResourceId(reader.varint()?),
                sequence: reader.varint()?,
            },
            RECEIVED_FORGOTTEN => Self::ReceivedForgotten { source: ResourceId(reader.varint()?) },
            _ => return Err(Malformed("unknown fact about jobs on their way")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_jobs_on_their_way_have_these_bytes_for_ever() {
        let to = PartitionRef { resource: ResourceId(300), partition: 2 };
        let (sequence, job) = (7, JobId(300));
        let sending =
            TransferFact::Sending { sequence, job, to, mode: TransferMode::DeadLetter, ready_at: Millis(9) };
        let rows: [(TransferFact, &[u8]); 5] = [
            (sending, &[128, 7, 0xAC, 2, 0xAC, 2, 2, 1, 9]),
            (TransferFact::Sent { sequence }, &[129, 7]),
            (
                TransferFact::SendFailed { sequence, error: Bytes::from_static(b"no") },
                &[130, 7, 2, b'n', b'o'],
            ),
            (
                TransferFact::Received { partition: 2, source: ResourceId(300), sequence },
                &[131, 2, 0xAC, 2, 7],
            ),
            (TransferFact::ReceivedForgotten { source: ResourceId(300) }, &[132, 0xAC, 2]),
        ];
        for (fact, bytes) in rows {
            let mut out = vec![fact.tag()];
            fact.encode(&mut out);
            assert_eq!(out, bytes);
            let mut reader = Reader::new(Bytes::copy_from_slice(&out[1..]));
            assert_eq!(TransferFact::decode(out[0], &mut reader), Ok(fact));
            assert!(reader.is_empty());
        }
        for largest in [
            TransferFact::Sending {
                sequence: u64::MAX,
                job: JobId(u64::MAX),
                to: PartitionRef { resource: ResourceId(u64::MAX), partition: u32::MAX },
                mode: TransferMode::Replay,
                ready_at: Millis(u64::MAX),
            },
            TransferFact::Received { partition: u32::MAX, source: ResourceId(u64::MAX), sequence: u64::MAX },
        ] {
            let fact = crate::Fact::Transfer(ResourceId(u64::MAX), largest);
            let mut out = Vec::new();
            fact.encode(&mut out);
            assert!(out.len() <= fact.encoded_len_max());
        }
    }

    #[test]
    fn modes_are_their_bytes() {
        assert!((0u8..).zip(TransferMode::ALL).all(|(byte, mode)| mode as u8 == byte));
    }
}
