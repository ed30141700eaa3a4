//! What becomes true of a schedule: facts with the tags 96 to 103 (see [`crate::fact`]).
//!
//! | tag | fact | fields after the queue's number |
//! |---|---|---|
//! | 96 | `Created` | name, 1 paused or 0 not, next time, spec |
//! | 97 | `Deleted` | name |
//! | 98 | `Paused` | name |
//! | 99 | `Resumed` | name, next time |
//! | 100 | `Fired` | name, job, the time it was for, next time |
//! | 101 | `Skipped` | name, count, next time |
//! | 102 | `Updated` | name, next time, spec |
//!
//! `next time`: ms + 1, 0 = none. Times were computed when the fact came to be: reading the log computes nothing again, so
//! other rules of a time zone never change what an old log means.
//!
//! | part of a spec | encoded as |
//! |---|---|
//! | format | 1 |
//! | timing | 0, time; or 1, expression, time zone |
//! | end | as a next time |
//! | missed | 0 skip, 1 once, 2 all |
//! | job | priority (one byte), delay, maximum of attempts (0 = the queue's), headers, payload, group, time to live (0 = none), 0; or 1, own retries |

use bytes::BufMut;

use super::{MissedPolicy, ScheduleSpec, Timing};
use crate::codec::{Malformed, Reader, bytes_len, put_bytes, put_varint};
use crate::command::NewJob;
use crate::group::Name;
use crate::ids::{JobId, Millis};
use crate::job::JobOptions;
use crate::job::fact::{put_retry, read_retry};
use crate::replay::fact::{put_time, time};

/// What became true of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleFact {
    /// The schedule is there.
    Created {
        /// Its name.
        name: Name,
        /// Whether it is paused.
        paused: bool,
        /// When it fires first, unless it is paused.
        next_at: Option<Millis>,
        /// What it does.
        spec: Box<ScheduleSpec>,
    },
    /// The schedule is gone.
    Deleted {
        /// Which.
        name: Name,
    },
    /// Its times pass.
    Paused {
        /// Which.
        name: Name,
    },
    /// It fires again.
    Resumed {
        /// Which.
        name: Name,
        /// When; `None`: it is finished.
        next_at: Option<Millis>,
    },
    /// Its job was enqueued, in the same entry.
    Fired {
        /// Which.
        name: Name,
        /// The job.
        job: JobId,
        /// The time that this was for.
        scheduled_for: Millis,
        /// When it fires next.
        next_at: Option<Millis>,
    },
    /// Times were missed and are left out.
    Skipped {
        /// Which.
        name: Name,
        /// How many.
        count: u64,
        /// When it fires next.
        next_at: Option<Millis>,
    },
    /// It does something else from now on.
    Updated {
        /// Which.
        name: Name,
        /// When it fires next, unless it is paused; `None`: it is finished.
        next_at: Option<Millis>,
        /// What it does.
        spec: Box<ScheduleSpec>,
    },
}

const CREATED: u8 = 96;
const DELETED: u8 = 97;
const PAUSED: u8 = 98;
const RESUMED: u8 = 99;
const FIRED: u8 = 100;
const SKIPPED: u8 = 101;
const UPDATED: u8 = 102;

/// The tags that are a schedule's.
pub(crate) const TAGS: std::ops::RangeInclusive<u8> = 96..=103;

/// The format of a spec. Raise it when its shape changes; the decoder keeps the old shapes for ever.
const SPEC_FORMAT: u8 = 1;

const ONCE: u8 = 0;
const CRON: u8 = 1;

impl ScheduleFact {
    /// The fact's tag on disk.
    pub(crate) const fn tag(&self) -> u8 {
        match self {
            Self::Created { .. } => CREATED,
            Self::Deleted { .. } => DELETED,
            Self::Paused { .. } => PAUSED,
            Self::Resumed { .. } => RESUMED,
            Self::Fired { .. } => FIRED,
            Self::Skipped { .. } => SKIPPED,
            Self::Updated { .. } => UPDATED,
        }
    }

    /// Which schedule.
    #[must_use]
    pub const fn name(&self) -> &Name {
        match self {
            Self::Created { name, .. }
            | Self::Deleted { name }
            | Self::Paused { name }
            | Self::Resumed { name, .. }
            | Self::Fired { name, .. }
            | Self::Skipped { name, .. }
            | Self::Updated { name, .. } => name,
        }
    }

    /// Appends what follows tag and queue.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        put_bytes(out, self.name().as_bytes());
        match self {
            Self::Created { paused, next_at, spec, .. } => {
                out.put_u8(u8::from(*paused));
                put_time(out, *next_at);
                spec.encode(out);
            }
            Self::Deleted { .. } | Self::Paused { .. } => {}
            Self::Resumed { next_at, .. } => put_time(out, *next_at),
            Self::Fired { job, scheduled_for, next_at, .. } => {
                put_varint(out, job.0);
                put_varint(out, scheduled_for.0);
                put_time(out, *next_at);
            }
            Self::Skipped { count, next_at, .. } => {
                put_varint(out, *count);
                put_time(out, *next_at);
            }
            Self::Updated { next_at, spec, .. } => {
                put_time(out, *next_at);
                spec.encode(out);
            }
        }
    }

    /// An upper bound of what [`ScheduleFact::encode`] appends beyond some dozens of bytes.
    pub(crate) fn encoded_len_max(&self) -> usize {
        self.name().len()
            + match self {
                Self::Created { spec, .. } | Self::Updated { spec, .. } => spec.encoded_len_max(),
                Self::Deleted { .. }
                | Self::Paused { .. }
                | Self::Resumed { .. }
                | Self::Fired { .. }
                | Self::Skipped { .. } => 0,
            }
    }

    /// Reads what [`ScheduleFact::encode`] wrote.
    pub(crate) fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        let name = Name::from(reader.text()?);
        Ok(match tag {
            CREATED => Self::Created {
                name,
                paused: reader.byte()? != 0,
                next_at: time(reader)?,
                spec: Box::new(ScheduleSpec::decode(reader)?),
            },
            DELETED => Self::Deleted { name },
            PAUSED => Self::Paused { name },
            RESUMED => Self::Resumed { name, next_at: time(reader)? },
            FIRED => Self::Fired {
                name,
                job: JobId(reader.varint()?),
                scheduled_for: Millis(reader.varint()?),
                next_at: time(reader)?,
            },
            SKIPPED => Self::Skipped { name, count: reader.varint()?, next_at: time(reader)? },
            UPDATED => {
                Self::Updated { name, next_at: time(reader)?, spec: Box::new(ScheduleSpec::decode(reader)?) }
            }
            _ => return Err(Malformed("unknown fact of a schedule; a newer version wrote it")),
        })
    }
}

impl ScheduleSpec {
    /// Appends the spec in its form on disk.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(SPEC_FORMAT);
        match &self.timing {
            Timing::Once(at) => {
                out.put_u8(ONCE);
                put_varint(out, at.0);
            }
            Timing::Cron { expression, time_zone } => {
                out.put_u8(CRON);
                put_bytes(out, expression.as_bytes());
                put_bytes(out, time_zone.as_bytes());
            }
        }
        put_time(out, self.end);
        out.put_u8(self.missed as u8);
        let NewJob { payload, headers, priority, delay_ms, max_attempts, options } = &self.job;
        out.put_u8(*priority);
        put_varint(out, *delay_ms);
        put_varint(out, u64::from(max_attempts.unwrap_or(0)));
        put_bytes(out, headers);
        put_bytes(out, payload);
        let (group, ttl_ms, retry) = options
            .as_ref()
            .map_or((&[][..], None, None), |options| (&*options.group, options.ttl_ms, options.retry));
        put_bytes(out, group);
        put_varint(out, ttl_ms.unwrap_or(0));
        out.put_u8(u8::from(retry.is_some()));
        if let Some(retry) = &retry {
            put_retry(out, retry);
        }
    }

    /// An upper bound of what [`ScheduleSpec::encode`] appends.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        /// Six integers, six bytes, and retries of two integers and two bytes.
        const FIXED: usize = 6 * 10 + 6 + 2 * 10 + 2;
        let timing = match &self.timing {
            Timing::Once(_) => 0,
            Timing::Cron { expression, time_zone } => {
                bytes_len(expression.len()) + bytes_len(time_zone.len())
            }
        };
        let group = self.job.options.as_ref().map_or(0, |options| options.group.len());
        let job = [self.job.headers.len(), self.job.payload.len(), group].map(bytes_len);
        FIXED + timing + job.into_iter().sum::<usize>()
    }

    /// Reads what [`ScheduleSpec::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`]: another version wrote it.
    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        if reader.byte()? != SPEC_FORMAT {
            return Err(Malformed("a schedule of an unknown format"));
        }
        let timing = match reader.byte()? {
            ONCE => Timing::Once(Millis(reader.varint()?)),
            CRON => Timing::Cron { expression: reader.text()?.into(), time_zone: reader.text()?.into() },
            _ => return Err(Malformed("a schedule of an unknown timing")),
        };
        let end = time(reader)?;
        let missed = MissedPolicy::ALL.get(usize::from(reader.byte()?));
        let missed = *missed.ok_or(Malformed("a schedule of an unknown policy"))?;
        let (priority, delay_ms) = (reader.byte()?, reader.varint()?);
        let max_attempts = Some(reader.varint_u32()?).filter(|attempts| *attempts > 0);
        let (headers, payload) = (reader.bytes()?, reader.bytes()?);
        let (group, ttl_ms) = (reader.bytes()?, Some(reader.varint()?).filter(|ms| *ms > 0));
        let retry = if reader.byte()? == 0 { None } else { Some(read_retry(reader)?) };
        let options = JobOptions { ttl_ms, retry, group, ..JobOptions::default() };
        let options = Some(options).filter(|options| *options != JobOptions::default()).map(Box::new);
        let job = NewJob { payload, headers, priority, delay_ms, max_attempts, options };
        Ok(Self { timing, end, missed, job })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fact;
    use crate::ids::ResourceId;
    use bytes::{Bytes, BytesMut};

    fn spec(
        timing: Timing,
        missed: MissedPolicy,
        end: Option<Millis>,
        max_attempts: Option<u32>,
    ) -> Box<ScheduleSpec> {
        let job = NewJob {
            payload: Bytes::from_static(b"p"),
            headers: Bytes::from_static(b"h"),
            priority: 200,
            delay_ms: 300,
            max_attempts,
            options: None,
        };
        Box::new(ScheduleSpec { timing, end, missed, job })
    }

    /// One of each, with its form on disk, which never changes.
    fn golden() -> Vec<(ScheduleFact, &'static [u8])> {
        let name = || Name::from("s");
        let cron = Timing::Cron { expression: "@daily".into(), time_zone: "UTC".into() };
        let cron = spec(cron, MissedPolicy::All, Some(Millis(6)), Some(3));
        let once = spec(Timing::Once(Millis(300)), MissedPolicy::Once, None, None);
        let again = once.clone();
        vec![
            (
                ScheduleFact::Created { name: name(), paused: false, next_at: Some(Millis(300)), spec: once },
                &[
                    96, 9, 1, b's', 0, 0xAD, 2, 1, 0, 0xAC, 2, 0, 1, 200, 0xAC, 2, 0, 1, b'h', 1, b'p', 0, 0,
                    0,
                ],
            ),
            (
                ScheduleFact::Created { name: name(), paused: true, next_at: None, spec: cron },
                &[
                    96, 9, 1, b's', 1, 0, 1, 1, 6, b'@', b'd', b'a', b'i', b'l', b'y', 3, b'U', b'T', b'C',
                    7, 2, 200, 0xAC, 2, 3, 1, b'h', 1, b'p', 0, 0, 0,
                ],
            ),
            (ScheduleFact::Deleted { name: name() }, &[97, 9, 1, b's']),
            (ScheduleFact::Paused { name: name() }, &[98, 9, 1, b's']),
            (ScheduleFact::Resumed { name: name(), next_at: None }, &[99, 9, 1, b's', 0]),
            (
                ScheduleFact::Fired {
                    name: name(),
                    job: JobId(7),
                    scheduled_for: Millis(300),
                    next_at: Some(Millis(301)),
                },
                &[100, 9, 1, b's', 7, 0xAC, 2, 0xAE, 2],
            ),
            (
                ScheduleFact::Skipped { name: name(), count: 300, next_at: None },
                &[101, 9, 1, b's', 0xAC, 2, 0],
            ),
            (
                ScheduleFact::Updated { name: name(), next_at: Some(Millis(300)), spec: again },
                &[102, 9, 1, b's', 0xAD, 2, 1, 0, 0xAC, 2, 0, 1, 200, 0xAC, 2, 0, 1, b'h', 1, b'p', 0, 0, 0],
            ),
        ]
    }

    #[test]
    fn the_form_on_disk_never_changes() {
        for (fact, bytes) in golden() {
            let fact = Fact::Schedule(ResourceId(9), fact);
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
                let mut reader = Reader::new(Bytes::from_static(&bytes[..end]));
                assert!(Fact::decode(&mut reader).is_err(), "{fact:?} was read from {end} bytes");
            }
        }
        let mut reader = Reader::new(Bytes::from_static(&[103, 9, 1, b's']));
        assert!(Fact::decode(&mut reader).is_err());
        let mut reader = Reader::new(Bytes::from_static(&[2]));
        assert!(ScheduleSpec::decode(&mut reader).is_err());
    }
}
