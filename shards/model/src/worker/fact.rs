//! What becomes true of a worker: facts with the tags 120 to 127 (see [`crate::fact`]).
//!
//! | tag | fact | fields after the epoch, which stands where others have a resource |
//! |---|---|---|
//! | 120 | `Registered` | path, registration |
//! | 121 | `Revived` | path |
//! | 122 | `StopRequested` | path |
//! | 123 | `Left` | path |
//! | 124 | `Died` | path |
//! | 125 | `Forgotten` | path |
//!
//! | part of a registration | encoded as |
//! |---|---|
//! | format | 1 |
//! | concurrency, process, session timeout, retention | varint each |
//! | host | text |
//! | queues | count, then the full path of each |
//! | labels | count, then name and value of each |

use bytes::BufMut;

use super::{Registration, WorkerPath};
use crate::codec::{Malformed, Reader, bytes_len, put_bytes, put_varint};
use crate::ids::Lsn;

/// What became true of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerFact {
    /// Which.
    pub path: WorkerPath,
    /// As it is registered.
    pub epoch: Lsn,
    /// What became true.
    pub change: WorkerChange,
}

/// What became true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerChange {
    /// It is there, with this epoch.
    Registered(Box<Registration>),
    /// It was thought dead, and is there.
    Revived,
    /// It is to stop.
    StopRequested,
    /// It has gone.
    Left,
    /// Nothing was heard of it in time.
    Died,
    /// It is shown no more.
    Forgotten,
}

const REGISTERED: u8 = 120;
const REVIVED: u8 = 121;
const STOP_REQUESTED: u8 = 122;
const LEFT: u8 = 123;
const DIED: u8 = 124;
const FORGOTTEN: u8 = 125;

/// The tags that are a worker's.
pub(crate) const TAGS: std::ops::RangeInclusive<u8> = 120..=127;

/// The format of a registration. Raise it when its shape changes; the decoder keeps the old shapes for ever.
const FORMAT: u8 = 1;

impl WorkerFact {
    /// The fact's tag on disk.
    pub(crate) const fn tag(&self) -> u8 {
        match self.change {
            WorkerChange::Registered(_) => REGISTERED,
            WorkerChange::Revived => REVIVED,
            WorkerChange::StopRequested => STOP_REQUESTED,
            WorkerChange::Left => LEFT,
            WorkerChange::Died => DIED,
            WorkerChange::Forgotten => FORGOTTEN,
        }
    }

    /// Appends what follows tag and epoch.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        put_bytes(out, self.path.as_str().as_bytes());
        if let WorkerChange::Registered(registration) = &self.change {
            registration.encode(out);
        }
    }

    /// An upper bound of what [`WorkerFact::encode`] appends beyond some dozens of bytes.
    pub(crate) fn encoded_len_max(&self) -> usize {
        let registration = match &self.change {
            WorkerChange::Registered(registration) => registration.encoded_len_max(),
            _ => 0,
        };
        self.path.as_str().len() + registration
    }

    /// Reads what [`WorkerFact::encode`] wrote.
    pub(crate) fn decode(tag: u8, epoch: Lsn, reader: &mut Reader) -> Result<Self, Malformed> {
        let path = read_worker_path(&reader.text()?)?;
        let change = match tag {
            REGISTERED => WorkerChange::Registered(Box::new(Registration::decode(reader)?)),
            REVIVED => WorkerChange::Revived,
            STOP_REQUESTED => WorkerChange::StopRequested,
            LEFT => WorkerChange::Left,
            DIED => WorkerChange::Died,
            FORGOTTEN => WorkerChange::Forgotten,
            _ => return Err(Malformed("unknown fact of a worker; a newer version wrote it")),
        };
        Ok(Self { path, epoch, change })
    }
}

/// Reads a worker's full path as it stands on disk.
///
/// # Errors
/// [`Malformed`].
pub fn read_worker_path(text: &str) -> Result<WorkerPath, Malformed> {
    WorkerPath::parse(text).map_err(|_| Malformed("illegal path of a worker"))
}

impl Registration {
    /// Appends the registration in its form on disk.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(FORMAT);
        let (concurrency, process) = (u64::from(self.concurrency), u64::from(self.process_id));
        for number in [concurrency, process, self.session_timeout_ms, self.retention_ms] {
            put_varint(out, number);
        }
        put_bytes(out, self.host.as_bytes());
        put_varint(out, self.queues.len() as u64);
        for queue in &self.queues {
            put_bytes(out, queue.as_bytes());
        }
        put_varint(out, self.labels.len() as u64);
        for (name, value) in &self.labels {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value.as_bytes());
        }
    }

    /// An upper bound of what [`Registration::encode`] appends.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        /// The format, four integers and two counts.
        const FIXED: usize = 1 + 4 * 10 + 2 * 10;
        let queues: usize = self.queues.iter().map(|queue| bytes_len(queue.len())).sum();
        let labels: usize =
            self.labels.iter().map(|(name, value)| bytes_len(name.len()) + bytes_len(value.len())).sum();
        FIXED + bytes_len(self.host.len()) + queues + labels
    }

    /// Reads what [`Registration::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`]: another version wrote it.
    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        if reader.byte()? != FORMAT {
            return Err(Malformed("a worker's registration of an unknown format"));
        }
        let (concurrency, process_id) = (reader.varint_u32()?, reader.varint_u32()?);
        let (session_timeout_ms, retention_ms) = (reader.varint()?, reader.varint()?);
        let host = reader.text()?.into();
        let (mut queues, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..reader.varint()? {
            queues.push(reader.text()?.into());
        }
        for _ in 0..reader.varint()? {
            labels.push((reader.text()?.into(), reader.text()?.into()));
        }
        Ok(Self { queues, concurrency, host, process_id, labels, session_timeout_ms, retention_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fact;
    use crate::fact::decode_all;

    fn fact(change: WorkerChange) -> Fact {
        let path = WorkerPath::parse("a/b/w").unwrap();
        Fact::Worker(WorkerFact { path, epoch: Lsn(300), change })
    }

    /// The path as bytes.
    const PATH: &[u8] = b"\x0Ca/b/worker/w";

    #[test]
    fn facts_of_workers_have_these_bytes_for_ever() {
        let registration = Registration {
            queues: vec!["a/b/queue/q".into()],
            concurrency: 200,
            host: "h".into(),
            process_id: 7,
            labels: vec![("k".into(), "v".into())],
            session_timeout_ms: 300,
            retention_ms: 5,
        };
        let said = b"\x01\xC8\x01\x07\xAC\x02\x05\x01h\x01\x0Ba/b/queue/q\x01\x01k\x01v";
        let rows: [(WorkerChange, u8, &[u8]); 6] = [
            (WorkerChange::Registered(Box::new(registration)), 120, said),
            (WorkerChange::Revived, 121, b""),
            (WorkerChange::StopRequested, 122, b""),
            (WorkerChange::Left, 123, b""),
            (WorkerChange::Died, 124, b""),
            (WorkerChange::Forgotten, 125, b""),
        ];
        for (change, tag, rest) in rows {
            let (fact, mut out) = (fact(change), Vec::new());
            fact.encode(&mut out);
            assert_eq!(out, [&[tag, 0xAC, 2], PATH, rest].concat());
            assert!(out.len() <= fact.encoded_len_max());
            assert_eq!(decode_all(out.into()).unwrap().to_vec(), [fact]);
        }
    }

    #[test]
    fn what_is_cut_or_unknown_is_refused() {
        let mut out = Vec::new();
        let registration = Registration { queues: vec!["a/b/queue/q".into()], ..Registration::default() };
        fact(WorkerChange::Registered(Box::new(registration))).encode(&mut out);
        for end in 1..out.len() {
            assert!(decode_all(bytes::Bytes::copy_from_slice(&out[..end])).is_err(), "{end}");
        }
        for (at, byte) in [(0, 126), (16, 2)] {
            let mut other = out.clone();
            other[at] = byte;
            assert!(decode_all(other.into()).is_err(), "{at}");
        }
    }
}
