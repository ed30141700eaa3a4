//! What becomes true of a queue and its jobs beside what every job's life has (see [`crate::fact`]).
//!
//! | tag | fact | fields after the queue |
//! |---|---|---|
//! | 104 | `Finished` | job, kept until (0 = not kept), result |
//! | 105 | `Removed` | job, cause |
//! | 106 | `Progressed` | job, progress |
//! | 107 | `CancelRequested` | job |
//! | 108 | `Changed` | job, priority, ready at |
//! | 109 | `Redriven` | job, ready at |
//! | 110 | `Paused` | 1 paused, 0 not |
//! | 111 | `KeysForgotten` | time |

use bytes::{BufMut, Bytes};

use super::{Backoff, RetryPolicy};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::ids::{JobId, Millis};

/// What an enqueued job has that most have not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnqueuedOptions {
    /// Its group; empty: none.
    pub group: Bytes,
    /// Removed then if no worker has it.
    pub expires_at: Option<Millis>,
    /// Its own retries.
    pub retry: Option<RetryPolicy>,
    /// By which it is recognised, and until when; without a time until it has ended.
    pub key: Option<(Bytes, Option<Millis>)>,
    /// Jobs it waits for.
    pub after: Vec<JobId>,
    /// Goes on however those end.
    pub after_any_end: bool,
}

/// Why a job is gone that was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalCause {
    /// It was cancelled.
    Cancelled,
    /// Nobody had it in its time.
    Expired,
    /// The queue was full.
    Dropped,
    /// It was kept, dead or done, and that is over.
    Purged,
}

impl RemovalCause {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 4] = [Self::Cancelled, Self::Expired, Self::Dropped, Self::Purged];
}

/// What became true of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueFact {
    /// The leased job is done.
    Finished {
        /// Which.
        job: JobId,
        /// Kept until then; `None`: gone.
        keep_until: Option<Millis>,
        /// What its worker said.
        result: Bytes,
    },
    /// The job is gone.
    Removed {
        /// Which.
        job: JobId,
        /// Why.
        cause: RemovalCause,
    },
    /// The worker says how far it is.
    Progressed {
        /// Which job.
        job: JobId,
        /// What it says.
        progress: Bytes,
    },
    /// The worker of the leased job is to stop.
    CancelRequested {
        /// Which.
        job: JobId,
    },
    /// The waiting job has another priority or time.
    Changed {
        /// Which.
        job: JobId,
        /// Its priority now.
        priority: u8,
        /// When it is ready now.
        ready_at: Millis,
    },
    /// The dead job waits again, with all its attempts to come.
    Redriven {
        /// Which.
        job: JobId,
        /// When it is ready.
        ready_at: Millis,
    },
    /// No job is given out, or they are again.
    Paused(bool),
    /// Keys whose time was up by then are forgotten.
    KeysForgotten(Millis),
}

/// Tags of facts about queues.
pub const TAGS: std::ops::RangeInclusive<u8> = 104..=119;

const FINISHED: u8 = 104;
const REMOVED: u8 = 105;
const PROGRESSED: u8 = 106;
const CANCEL_REQUESTED: u8 = 107;
const CHANGED: u8 = 108;
const REDRIVEN: u8 = 109;
const PAUSED: u8 = 110;
const KEYS_FORGOTTEN: u8 = 111;

impl QueueFact {
    /// The tag on disk.
    #[must_use]
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Finished { .. } => FINISHED,
            Self::Removed { .. } => REMOVED,
            Self::Progressed { .. } => PROGRESSED,
            Self::CancelRequested { .. } => CANCEL_REQUESTED,
            Self::Changed { .. } => CHANGED,
            Self::Redriven { .. } => REDRIVEN,
            Self::Paused(_) => PAUSED,
            Self::KeysForgotten(_) => KEYS_FORGOTTEN,
        }
    }

    /// Appends what follows tag and queue.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Finished { job, keep_until, result } => {
                put_varint(out, job.0);
                put_varint(out, keep_until.map_or(0, Millis::get));
                put_bytes(out, result);
            }
            Self::Removed { job, cause } => {
                put_varint(out, job.0);
                out.put_u8(*cause as u8);
            }
            Self::Progressed { job, progress } => {
                put_varint(out, job.0);
                put_bytes(out, progress);
            }
            Self::CancelRequested { job } => put_varint(out, job.0),
            Self::Changed { job, priority, ready_at } => {
                put_varint(out, job.0);
                out.put_u8(*priority);
                put_varint(out, ready_at.0);
            }
            Self::Redriven { job, ready_at } => {
                put_varint(out, job.0);
                put_varint(out, ready_at.0);
            }
            Self::Paused(paused) => out.put_u8(u8::from(*paused)),
            Self::KeysForgotten(upto) => put_varint(out, upto.0),
        }
    }

    /// An upper bound of what [`QueueFact::encode`] appends beyond two integers, a byte and a length.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        match self {
            Self::Finished { result: bytes, .. } | Self::Progressed { progress: bytes, .. } => bytes.len(),
            _ => 0,
        }
    }

    /// Reads what [`QueueFact::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(tag: u8, reader: &mut Reader) -> Result<Self, Malformed> {
        if tag == PAUSED {
            return Ok(Self::Paused(reader.byte()? != 0));
        }
        let first = reader.varint()?;
        let job = JobId(first);
        Ok(match tag {
            FINISHED => {
                let keep_until = some_time(reader.varint()?);
                Self::Finished { job, keep_until, result: reader.bytes()? }
            }
            REMOVED => Self::Removed { job, cause: one_of(&RemovalCause::ALL, reader.byte()?)? },
            PROGRESSED => Self::Progressed { job, progress: reader.bytes()? },
            CANCEL_REQUESTED => Self::CancelRequested { job },
            CHANGED => Self::Changed { job, priority: reader.byte()?, ready_at: Millis(reader.varint()?) },
            REDRIVEN => Self::Redriven { job, ready_at: Millis(reader.varint()?) },
            KEYS_FORGOTTEN => Self::KeysForgotten(Millis(first)),
            _ => return Err(Malformed("unknown fact about a queue")),
        })
    }
}

/// 0 stands for no time.
fn some_time(ms: u64) -> Option<Millis> {
    Some(Millis(ms)).filter(|at| at.0 > 0)
}

/// What a byte on disk stands for.
///
/// # Errors
/// [`Malformed`] if it stands for nothing.
pub fn one_of<T: Copy>(all: &[T], byte: u8) -> Result<T, Malformed> {
    all.get(usize::from(byte)).copied().ok_or(Malformed("a byte that stands for nothing"))
}

const HAS_RETRY: u8 = 1;
const HAS_KEY: u8 = 2;
const AFTER_ANY_END: u8 = 4;

/// Appends options: flags (1 retry, 2 key, 4 after any end), group, expires at (0 = never), retry (backoff, initial, max,
/// jitter), key (bytes, until or 0), jobs it waits for (count, numbers).
pub fn put_options(out: &mut impl BufMut, options: &EnqueuedOptions) {
    let EnqueuedOptions { group, expires_at, retry, key, after, after_any_end } = options;
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.put_u8(
        flag(retry.is_some(), HAS_RETRY) | flag(key.is_some(), HAS_KEY) | flag(*after_any_end, AFTER_ANY_END),
    );
    put_bytes(out, group);
    put_varint(out, expires_at.map_or(0, Millis::get));
    if let Some(retry) = retry {
        put_retry(out, retry);
    }
    if let Some((key, until)) = key {
        put_bytes(out, key);
        put_varint(out, until.map_or(0, Millis::get));
    }
    put_varint(out, after.len() as u64);
    for job in after {
        put_varint(out, job.0);
    }
}

/// Reads what [`put_options`] wrote.
pub fn read_options(reader: &mut Reader) -> Result<EnqueuedOptions, Malformed> {
    let flags = reader.byte()?;
    let (group, expires_at) = (reader.bytes()?, some_time(reader.varint()?));
    let retry = if flags & HAS_RETRY != 0 { Some(read_retry(reader)?) } else { None };
    let key = match flags & HAS_KEY {
        0 => None,
        _ => Some((reader.bytes()?, some_time(reader.varint()?))),
    };
    let mut after = Vec::new();
    for _ in 0..reader.varint()? {
        after.push(JobId(reader.varint()?));
    }
    let after_any_end = flags & AFTER_ANY_END != 0;
    Ok(EnqueuedOptions { group, expires_at, retry, key, after, after_any_end })
}

/// An upper bound of what [`put_options`] appends.
#[must_use]
pub fn options_len_max(options: &EnqueuedOptions) -> usize {
    const FIXED: usize = 1 + 6 * 10 + 2;
    FIXED
        + options.group.len()
        + options.key.as_ref().map_or(0, |(key, _)| key.len())
        + 10 * options.after.len()
}

/// Appends a retry policy: backoff, initial, max, jitter.
pub fn put_retry(out: &mut impl BufMut, retry: &RetryPolicy) {
    out.put_u8(retry.backoff as u8);
    put_varint(out, retry.initial_ms);
    put_varint(out, retry.max_ms);
    out.put_u8(retry.jitter_percent);
}

/// Reads what [`put_retry`] wrote.
pub fn read_retry(reader: &mut Reader) -> Result<RetryPolicy, Malformed> {
    Ok(RetryPolicy {
        backoff: one_of(&Backoff::ALL, reader.byte()?)?,
        initial_ms: reader.varint()?,
        max_ms: reader.varint()?,
        jitter_percent: reader.byte()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_queues_have_these_bytes_for_ever() {
        let job = JobId(300);
        let rows: [(QueueFact, &[u8]); 9] = [
            (
                QueueFact::Finished { job, keep_until: Some(Millis(5)), result: Bytes::from_static(b"ok") },
                &[104, 0xAC, 2, 5, 2, b'o', b'k'],
            ),
            (QueueFact::Finished { job, keep_until: None, result: Bytes::new() }, &[104, 0xAC, 2, 0, 0]),
            (QueueFact::Removed { job, cause: RemovalCause::Dropped }, &[105, 0xAC, 2, 2]),
            (QueueFact::Progressed { job, progress: Bytes::from_static(b"7") }, &[106, 0xAC, 2, 1, b'7']),
            (QueueFact::CancelRequested { job }, &[107, 0xAC, 2]),
            (QueueFact::Changed { job, priority: 9, ready_at: Millis(6) }, &[108, 0xAC, 2, 9, 6]),
            (QueueFact::Redriven { job, ready_at: Millis(6) }, &[109, 0xAC, 2, 6]),
            (QueueFact::Paused(true), &[110, 1]),
            (QueueFact::KeysForgotten(Millis(300)), &[111, 0xAC, 2]),
        ];
        for (fact, bytes) in rows {
            let mut out = vec![fact.tag()];
            fact.encode(&mut out);
            assert_eq!(out, bytes);
            let mut reader = Reader::new(Bytes::copy_from_slice(&out[1..]));
            assert_eq!(QueueFact::decode(out[0], &mut reader), Ok(fact));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn options_have_these_bytes_for_ever() {
        let full = EnqueuedOptions {
            group: Bytes::from_static(b"g"),
            expires_at: Some(Millis(9)),
            retry: Some(RetryPolicy {
                backoff: Backoff::Linear,
                initial_ms: 1,
                max_ms: 2,
                jitter_percent: 3,
            }),
            key: Some((Bytes::from_static(b"k"), Some(Millis(4)))),
            after: vec![JobId(1), JobId(300)],
            after_any_end: true,
        };
        let rows: [(EnqueuedOptions, &[u8]); 2] = [
            (full, &[7, 1, b'g', 9, 1, 1, 2, 3, 1, b'k', 4, 2, 1, 0xAC, 2]),
            (EnqueuedOptions::default(), &[0, 0, 0, 0]),
        ];
        for (options, bytes) in rows {
            let mut out = Vec::new();
            put_options(&mut out, &options);
            assert_eq!(out, bytes);
            assert!(out.len() <= options_len_max(&options));
            assert_eq!(read_options(&mut Reader::new(out.into())), Ok(options));
        }
    }
}
