//! Keys by which jobs are recognised that are enqueued again.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::{JobId, Millis, Space};
use xxhash_rust::xxh3::xxh3_64;

use crate::changes::Seals;
use crate::held::Apply;
use crate::items::{Indexed, Item, Items, Key, item_bytes};
use crate::keys::{self, Home};

/// What a key takes in memory beside its bytes: it is there again by its time.
const KEY_BYTES: u64 = item_bytes::<DedupKey, Known>() + (size_of::<(Millis, DedupKey)>() + 16) as u64;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DedupKey(Bytes);

impl Key for DedupKey {
    type Home = Home;

    const SPACE: Space = Space::Jobs;

    fn in_index(&self, home: &Home) -> Bytes {
        home.job_dedup_key(&self.0)
    }
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
struct Known {
    job: JobId,
    /// Until then; `None`: until the job has ended.
    until: Option<Millis>,
    /// Of the job's payload.
    digest: u64,
}

/// The keys of a queue. Those whose time is up count no more, and are forgotten by `KeysForgotten`.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    known: Items<DedupKey, Known>,
    by_time: BTreeSet<(Millis, DedupKey)>,
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
    pub fn find(&self, key: &Bytes, now: Millis, of: u64) -> Option<(JobId, bool)> {
        let known = self.known.get(&DedupKey(key.clone()))?;
        known.until.is_none_or(|until| until > now).then_some((known.job, known.digest == of))
    }

    /// A job has this key from now on.
    pub fn add(&mut self, cx: &mut Apply<'_>, key: &Bytes, job: JobId, until: Option<Millis>, digest: u64) {
        let key = DedupKey(Bytes::copy_from_slice(key));
        self.forget(cx, &key);
        let known = Known { job, until, digest };
        self.known.change(cx.home, cx.seals, &key, || known, |_| ());
        self.added(key, known);
    }

    fn added(&mut self, key: DedupKey, known: Known) {
        self.memory_bytes += KEY_BYTES + key.0.len() as u64;
        self.by_time.extend(known.until.map(|until| (until, key)));
    }

    fn forget(&mut self, cx: &mut Apply<'_>, key: &DedupKey) {
        let Some(known) = self.known.remove(cx.home, cx.seals, key) else { return };
        self.memory_bytes -= KEY_BYTES + key.0.len() as u64;
        if let Some(until) = known.until {
            self.by_time.remove(&(until, key.clone()));
        }
    }

    /// The job has ended: its key goes unless it has a time of its own.
    pub fn ended(&mut self, cx: &mut Apply<'_>, key: &Bytes, job: JobId) {
        let key = DedupKey(key.clone());
        if self.known.get(&key).is_some_and(|known| known.job == job && known.until.is_none()) {
            self.forget(cx, &key);
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
        let (key, known) = (DedupKey(Bytes::copy_from_slice(key)), Known { job, until, digest });
        if !self.known.restore(key.clone(), known) {
            return Err(Malformed("the same key twice"));
        }
        self.added(key, known);
        Ok(())
    }

    /// What checkpoints take of it.
    pub fn indexed(&mut self) -> &mut dyn Indexed<Home> {
        &mut self.known
    }

    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        self.known.check(seals);
        let (mut memory_bytes, mut timed) = (0, 0);
        for (key, known) in self.known.iter() {
            memory_bytes += KEY_BYTES + key.0.len() as u64;
            timed += usize::from(known.until.is_some());
            assert!(known.until.is_none_or(|until| self.by_time.contains(&(until, key.clone()))));
        }
        assert_eq!((self.memory_bytes, self.by_time.len()), (memory_bytes, timed));
    }

    /// Keys with what is known of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, JobId, Option<Millis>, u64)> {
        self.known.iter().map(|(key, known)| (&key.0, known.job, known.until, known.digest))
    }
}

impl Item for Known {
    /// Format (1), job, until (0 = as long as the job), digest of its payload, varints.
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, self.job.0);
        put_varint(&mut out, self.until.map_or(0, Millis::get));
        put_varint(&mut out, self.digest);
        out.freeze()
    }
}
