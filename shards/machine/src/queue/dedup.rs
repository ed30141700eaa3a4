//! Keys by which jobs are recognised that are enqueued again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{IndexWrite, JobId, Millis, Space};
use xxhash_rust::xxh3::xxh3_64;

use crate::changes::{Change, Changes, Mark, Seals, Touch, image, removal};
use crate::held::Apply;
use crate::keys::{self, Home};

/// What a key takes in memory beside its bytes, which are there twice if it has a time.
const KEY_BYTES: u64 = (size_of::<Bytes>() * 2 + size_of::<Known>() + 80) as u64;

/// A key that is known.
#[derive(Debug)]
struct Known {
    job: JobId,
    /// Until then; `None`: until the job has ended.
    until: Option<Millis>,
    /// Of the job's payload.
    digest: u64,
    mark: Mark,
}

/// The keys of a queue. Those whose time is up count no more, and are forgotten by `KeysForgotten`.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    known: BTreeMap<Bytes, Known>,
    by_time: BTreeSet<(Millis, Bytes)>,
    changes: Changes<Bytes>,
    memory_bytes: u64,
}

/// What a payload is recognised by.
pub(crate) fn digest(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

impl Keys {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The job of a key, and whether it has a payload of that digest.
    pub fn find(&self, key: &[u8], now: Millis, of: u64) -> Option<(JobId, bool)> {
        let known = self.known.get(key).filter(|known| known.until.is_none_or(|until| until > now))?;
        Some((known.job, known.digest == of))
    }

    /// A job has this key from now on.
    pub fn add(&mut self, cx: &mut Apply<'_>, key: &Bytes, job: JobId, until: Option<Millis>, digest: u64) {
        self.forget(cx, key);
        let mark = Mark::new(self.changes.is_back(&key[..]));
        let key = Bytes::copy_from_slice(key);
        let known = Known { job, until, digest, mark };
        self.insert(key.clone(), known);
        if let Some(known) = self.known.get_mut(&key)
            && cx.seals.touch(&mut known.mark) != Touch::Known
        {
            self.changes.list(key);
        }
    }

    fn insert(&mut self, key: Bytes, known: Known) {
        self.memory_bytes += KEY_BYTES + key.len() as u64;
        self.by_time.extend(known.until.map(|until| (until, key.clone())));
        self.known.insert(key, known);
    }

    fn forget(&mut self, cx: &mut Apply<'_>, key: &[u8]) {
        let Some((key, mut known)) = self.known.remove_entry(key) else { return };
        self.memory_bytes -= KEY_BYTES + key.len() as u64;
        if let Some(until) = known.until {
            self.by_time.remove(&(until, key.clone()));
        }
        if cx.seals.touch(&mut known.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Jobs, cx.home.job_dedup_key(&key), encode(&known)));
        }
        if known.mark.in_index() {
            self.changes.list_gone(key);
        } else if self.changes.is_stale(self.known.len()) {
            let known = &self.known;
            self.changes.thin(|key| known.contains_key(key));
        }
    }

    /// The job has ended: its key goes unless it has a time of its own.
    pub fn ended(&mut self, cx: &mut Apply<'_>, key: &[u8], job: JobId) {
        if self.known.get(key).is_some_and(|known| known.job == job && known.until.is_none()) {
            self.forget(cx, key);
        }
    }

    /// `KeysForgotten`.
    pub fn forgotten(&mut self, cx: &mut Apply<'_>, upto: Millis) {
        while let Some((_, key)) = self.by_time.first().filter(|(until, _)| *until <= upto).cloned() {
            self.forget(cx, &key);
        }
    }

    /// When the next key is to be forgotten.
    pub fn next_due(&self) -> Option<Millis> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// Up to when keys can be forgotten at `now`, so that it is about `keys_max` of them.
    pub fn due(&self, now: Millis, keys_max: usize) -> Option<Millis> {
        let due = self.by_time.iter().take(keys_max.max(1)).take_while(|(until, _)| *until <= now);
        due.last().map(|(until, _)| *until)
    }

    /// Takes a key out of the index.
    pub fn restore(&mut self, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let job = JobId(reader.varint()?);
        let until = Some(Millis(reader.varint()?)).filter(|until| until.0 > 0);
        let digest = reader.varint()?;
        keys::close(&reader)?;
        self.insert(Bytes::copy_from_slice(key), Known { job, until, digest, mark: Mark::IN_INDEX });
        Ok(())
    }

    pub fn seal(&mut self) {
        self.changes.seal();
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        for count in 0..items_max {
            match self.changes.next() {
                None => return count,
                Some(Change::Gone(key)) => out.push(removal(Space::Jobs, home.job_dedup_key(&key))),
                Some(Change::Listed(key)) => {
                    if let Some(known) = self.known.get_mut(&key).filter(|known| seals.is_sealed(known.mark))
                    {
                        Seals::written(&mut known.mark);
                        out.push(image(Space::Jobs, home.job_dedup_key(&key), encode(known)));
                    }
                }
            }
        }
        items_max
    }

    pub fn sealed_written(&mut self) {
        self.changes.sealed_written();
    }

    pub fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for key in changed {
            if let Some(known) = self.known.get_mut(&key)
                && seals.touch(&mut known.mark) != Touch::Known
            {
                self.changes.list(key);
            }
        }
        for key in gone {
            match self.known.get_mut(&key) {
                Some(known) => known.mark.set_in_index(),
                None => self.changes.list_gone(key),
            }
        }
    }

    /// Takes at most `items_max` keys of a dropped queue apart and appends what the index has of them. Returns how many.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let key = match self.known.pop_first() {
                Some((_, known)) if !known.mark.in_index() => continue,
                Some((key, _)) => key,
                None => match self.changes.next() {
                    Some(Change::Gone(key)) => key,
                    Some(Change::Listed(_)) => continue,
                    None => return count,
                },
            };
            gone.push((Space::Jobs, home.job_dedup_key(&key)));
        }
        items_max
    }

    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let mut memory_bytes = 0;
        for (key, known) in &self.known {
            memory_bytes += KEY_BYTES + key.len() as u64;
            assert!(known.until.is_none_or(|until| self.by_time.contains(&(until, key.clone()))));
            if seals.is_listed(known.mark) && seals.are_made() {
                assert!(self.changes.has_listed(key), "a key is marked but not listed");
            }
        }
        let timed = self.known.values().filter(|known| known.until.is_some()).count();
        assert_eq!((self.memory_bytes, self.by_time.len()), (memory_bytes, timed));
    }

    /// Keys with what is known of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, JobId, Option<Millis>, u64)> {
        self.known.iter().map(|(key, known)| (key, known.job, known.until, known.digest))
    }
}

/// A key in the index: format (1), job, until (0 = as long as the job), digest of its payload, varints.
fn encode(known: &Known) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    out.put_u8(keys::FORMAT);
    put_varint(&mut out, known.job.0);
    put_varint(&mut out, known.until.map_or(0, Millis::get));
    put_varint(&mut out, known.digest);
    out.freeze()
}
