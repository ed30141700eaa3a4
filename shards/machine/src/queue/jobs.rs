//! The jobs of a queue by number: pages of 64 consecutive numbers that hold only those that are there.
//!
//! Numbers only grow, so a page fills from its start and a job costs its own size and little more, without a table that
//! must grow all at once. What a job is about, its **body**, is kept apart: once the index has it, memory can do without.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{COPY_BELOW_BYTES, Malformed, put_varint};
use flowmesh_model::{JobId, Millis};

use super::job::Job;
use crate::keys;

const PAGE_BITS: u32 = 6;

/// Pages at the front of a queue whose bodies are not dropped: 16 384 jobs, some tenths of a second of work.
const FRONT_PAGES: usize = 256;

/// What a page takes in memory beside its jobs: itself, its place in the map, and what the allocator adds.
const PAGE_BYTES: u64 = (size_of::<Page>() + 32) as u64;

/// What a body takes in memory beside its bytes.
const BODY_BYTES: u64 = (size_of::<Body>() + 16) as u64;

/// Not an epoch: no checkpoint took the body.
const NOWHERE: u32 = 0;

/// Not an epoch: the body comes from the index.
const STORED: u32 = u32::MAX;

/// Headers and payload of a job.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    /// Headers, then payload: one piece of memory.
    bytes: Bytes,
    headers_bytes: u32,
    /// The seal whose checkpoint took it for the index; [`NOWHERE`] if none did, [`STORED`] if it comes from there.
    epoch: u32,
    pub enqueued_at: Millis,
}

impl Body {
    pub fn new(headers: &Bytes, payload: &Bytes, enqueued_at: Millis) -> Self {
        Self {
            bytes: join(headers, payload),
            headers_bytes: headers.len() as u32,
            epoch: NOWHERE,
            enqueued_at,
        }
    }

    pub fn headers(&self) -> Bytes {
        if self.headers_bytes == 0 { Bytes::new() } else { self.bytes.slice(..self.headers_bytes as usize) }
    }

    pub fn payload(&self) -> Bytes {
        if self.headers_bytes == 0 {
            self.bytes.clone()
        } else {
            self.bytes.slice(self.headers_bytes as usize..)
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the index has it, of which `written` is the last seal that got there.
    fn is_stored(&self, written: u32) -> bool {
        self.epoch == STORED || (self.epoch != NOWHERE && self.epoch <= written)
    }

    /// The body in the index: format (1), enqueued at (varint), headers (length + bytes), payload (the rest).
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24 + self.bytes.len());
        out.put_u8(keys::FORMAT);
        put_varint(&mut out, self.enqueued_at.0);
        put_varint(&mut out, u64::from(self.headers_bytes));
        out.put_slice(&self.bytes);
        out.freeze()
    }

    /// Reads what [`Body::encode`] wrote.
    pub fn decode(value: Bytes) -> Result<Self, Malformed> {
        let mut reader = keys::open(value)?;
        let enqueued_at = Millis(reader.varint()?);
        let headers = reader.bytes()?;
        // It would keep the piece of the index alive that it was read with.
        let payload = Bytes::copy_from_slice(&reader.take(reader.remaining())?);
        Ok(Self::new(&headers, &payload, enqueued_at))
    }
}

fn join(headers: &Bytes, payload: &Bytes) -> Bytes {
    let bytes = headers.len() + payload.len();
    if headers.is_empty() && bytes >= COPY_BELOW_BYTES {
        return payload.clone();
    }
    let mut body = Vec::with_capacity(bytes);
    body.extend_from_slice(headers);
    body.extend_from_slice(payload);
    body.into()
}

/// Up to 64 jobs with consecutive numbers.
#[derive(Debug, Default)]
struct Page {
    /// One bit for each job that is there, and for each body in memory.
    live: u64,
    hot: u64,
    /// In order.
    jobs: Vec<Job>,
    bodies: Vec<Body>,
}

/// How many of the bits below this one are set.
fn rank(bits: u64, bit: u32) -> usize {
    (bits & ((1 << bit) - 1)).count_ones() as usize
}

fn place(id: JobId) -> (u64, u32) {
    (id.0 >> PAGE_BITS, (id.0 & ((1 << PAGE_BITS) - 1)) as u32)
}

/// Gives back the room of what is gone, not each time.
fn shrink<T>(items: &mut Vec<T>) {
    if items.len() * 2 < items.capacity() {
        items.shrink_to(items.len() + items.len() / 4);
    }
}

impl Page {
    fn get(&self, bit: u32) -> Option<&Job> {
        (self.live >> bit & 1 == 1).then(|| self.jobs.get(rank(self.live, bit))).flatten()
    }

    fn get_mut(&mut self, bit: u32) -> Option<&mut Job> {
        (self.live >> bit & 1 == 1).then(|| self.jobs.get_mut(rank(self.live, bit))).flatten()
    }

    fn body(&self, bit: u32) -> Option<&Body> {
        (self.hot >> bit & 1 == 1).then(|| self.bodies.get(rank(self.hot, bit))).flatten()
    }

    fn body_mut(&mut self, bit: u32) -> Option<&mut Body> {
        (self.hot >> bit & 1 == 1).then(|| self.bodies.get_mut(rank(self.hot, bit))).flatten()
    }

    fn insert_body(&mut self, bit: u32, body: Body) {
        self.bodies.insert(rank(self.hot, bit), body);
        self.hot |= 1 << bit;
    }

    fn take_body(&mut self, bit: u32) -> Option<Body> {
        if self.hot >> bit & 1 == 0 {
            return None;
        }
        let body = self.bodies.remove(rank(self.hot, bit));
        self.hot &= !(1 << bit);
        shrink(&mut self.bodies);
        Some(body)
    }
}

/// All jobs of a queue.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    pages: BTreeMap<u64, Box<Page>>,
    /// Pages with a body in memory.
    hot: BTreeSet<u64>,
    len: u64,
    /// Bodies in memory.
    hot_len: u64,
    memory_bytes: u64,
    /// Of it, bodies.
    hot_bytes: u64,
    /// The last seal whose checkpoint the index has.
    written_epoch: u32,
}

impl Jobs {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is a job whose body is only in the index.
    pub fn has_cold(&self) -> bool {
        self.hot_len < self.len
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + self.hot_bytes
    }

    /// Of it, bodies.
    pub fn hot_bytes(&self) -> u64 {
        self.hot_bytes
    }

    pub fn get(&self, id: JobId) -> Option<&Job> {
        let (page, bit) = place(id);
        self.pages.get(&page)?.get(bit)
    }

    /// Changes a job. What it takes beside its own size must be told with [`Jobs::resized`].
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let (page, bit) = place(id);
        self.pages.get_mut(&page)?.get_mut(bit)
    }

    /// What a job takes beside its own size has changed.
    pub fn resized(&mut self, before: u64, after: u64) {
        self.memory_bytes = self.memory_bytes + after - before;
    }

    /// Adds a job. Returns whether its number was free.
    pub fn insert(&mut self, id: JobId, job: Job) -> bool {
        let (number, bit) = place(id);
        let page = self.pages.entry(number).or_insert_with(|| {
            self.memory_bytes += PAGE_BYTES;
            Box::default()
        });
        if page.live >> bit & 1 == 1 {
            return false;
        }
        self.memory_bytes += size_of::<Job>() as u64 + job.extra_bytes();
        let at = rank(page.live, bit);
        page.jobs.insert(at, job);
        page.live |= 1 << bit;
        self.len += 1;
        true
    }

    /// Takes a job away, with its body.
    pub fn remove(&mut self, id: JobId) -> Option<Job> {
        self.evict(id);
        let (number, bit) = place(id);
        let page = self.pages.get_mut(&number).filter(|page| page.live >> bit & 1 == 1)?;
        let job = page.jobs.remove(rank(page.live, bit));
        page.live &= !(1 << bit);
        shrink(&mut page.jobs);
        if page.live == 0 {
            self.pages.remove(&number);
            self.memory_bytes -= PAGE_BYTES;
        }
        self.len -= 1;
        self.memory_bytes -= size_of::<Job>() as u64 + job.extra_bytes();
        Some(job)
    }

    /// The body, if it is in memory.
    pub fn body(&self, id: JobId) -> Option<&Body> {
        let (page, bit) = place(id);
        self.pages.get(&page)?.body(bit)
    }

    /// Takes a body into memory; of a job that is there, and nothing happens if it has one.
    pub fn warm(&mut self, id: JobId, body: Body) {
        let (number, bit) = place(id);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if page.get(bit).is_none() || page.body(bit).is_some() {
            return;
        }
        self.hot_bytes += BODY_BYTES + body.len() as u64;
        self.hot_len += 1;
        page.insert_body(bit, body);
        self.hot.insert(number);
    }

    /// Takes in a body that the index has.
    pub fn warm_stored(&mut self, id: JobId, mut body: Body) {
        body.epoch = STORED;
        self.warm(id, body);
    }

    fn evict(&mut self, id: JobId) {
        let (number, bit) = place(id);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if let Some(body) = page.take_body(bit) {
            self.hot_bytes -= BODY_BYTES + body.len() as u64;
            self.hot_len -= 1;
        }
        if page.hot == 0 {
            self.hot.remove(&number);
        }
    }

    /// The body for the index, if it has not been taken for one yet; taken now for the seal of `epoch`.
    pub fn store_body(&mut self, id: JobId, epoch: u32) -> Option<Bytes> {
        let (page, bit) = place(id);
        let body = self.pages.get_mut(&page)?.body_mut(bit).filter(|body| body.epoch == NOWHERE)?;
        body.epoch = epoch;
        Some(body.encode())
    }

    /// The index has what was taken for the seal of `epoch`.
    pub fn stored(&mut self, epoch: u32) {
        self.written_epoch = epoch;
    }

    /// The index does not have what was taken of this job for the seal of `epoch`.
    pub fn not_stored(&mut self, id: JobId, epoch: u32) {
        let (page, bit) = place(id);
        if let Some(body) = self.pages.get_mut(&page).and_then(|page| page.body_mut(bit))
            && body.epoch == epoch
        {
            body.epoch = NOWHERE;
        }
    }

    /// Drops bodies from memory that the index has, those of the last jobs first, until at most `bytes_max` are left or
    /// `pages_max` pages were looked at, below page `below`. Those of the first [`FRONT_PAGES`] stay, however much comes in
    /// behind them: they are wanted next. Returns where to go on, if there is more to look at.
    pub fn evict_bodies(&mut self, bytes_max: u64, pages_max: usize, below: u64) -> Option<u64> {
        let mut below = below;
        // Within what there is room for at all.
        let front = FRONT_PAGES.min((bytes_max / (BODY_BYTES << PAGE_BITS)) as usize);
        let front = self.pages.keys().nth(front).copied()?;
        for _ in 0..pages_max {
            if self.hot_bytes <= bytes_max {
                return None;
            }
            let number = self.hot.range(front..below).next_back().copied()?;
            below = number;
            let Some(page) = self.pages.get_mut(&number) else { continue };
            let written = self.written_epoch;
            for bit in 0..1 << PAGE_BITS {
                if page.body(bit).is_some_and(|body| body.is_stored(written))
                    && let Some(body) = page.take_body(bit)
                {
                    self.hot_bytes -= BODY_BYTES + body.len() as u64;
                    self.hot_len -= 1;
                }
            }
            if page.hot == 0 {
                self.hot.remove(&number);
            }
        }
        Some(below)
    }

    /// Jobs behind a number, in order.
    pub fn after(&self, after: JobId) -> impl Iterator<Item = (JobId, &Job)> {
        let (first, _) = place(after);
        self.pages.range(first..).flat_map(move |(number, page)| {
            let number = *number;
            let ids = (0..1u32 << PAGE_BITS)
                .filter(|bit| page.live >> bit & 1 == 1)
                .map(move |bit| JobId(number << PAGE_BITS | u64::from(bit)));
            ids.zip(&page.jobs).filter(move |(id, _)| *id > after)
        })
    }

    /// All jobs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.after(JobId(0))
    }

    /// The first job there is.
    pub fn first(&self) -> Option<JobId> {
        self.iter().next().map(|(id, _)| id)
    }

    /// Checks every invariant.
    pub fn check(&self) {
        let (mut len, mut hot_len, mut memory_bytes, mut hot_bytes) = (0, 0, 0, 0);
        for (number, page) in &self.pages {
            assert!(page.live != 0 && page.hot & !page.live == 0);
            assert_eq!(page.live.count_ones() as usize, page.jobs.len());
            assert_eq!(page.hot.count_ones() as usize, page.bodies.len());
            assert_eq!(self.hot.contains(number), page.hot != 0);
            len += page.jobs.len() as u64;
            hot_len += page.bodies.len() as u64;
            memory_bytes += PAGE_BYTES;
            memory_bytes +=
                page.jobs.iter().map(|job| size_of::<Job>() as u64 + job.extra_bytes()).sum::<u64>();
            hot_bytes += page.bodies.iter().map(|body| BODY_BYTES + body.len() as u64).sum::<u64>();
        }
        assert_eq!((self.len, self.hot_len), (len, hot_len));
        assert_eq!((self.memory_bytes, self.hot_bytes), (memory_bytes, hot_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::JobState;
    use super::*;
    use proptest::prelude::*;

    fn body(id: u64) -> Body {
        Body::new(&Bytes::from_static(b"hh"), &Bytes::from(vec![7; (id % 9) as usize]), Millis(id))
    }

    #[test]
    fn a_body_comes_back_from_the_index_as_it_was() {
        for (headers, payload) in [(&b""[..], &b""[..]), (b"hh", b""), (b"", b"work"), (b"hh", b"work")] {
            let body = Body::new(&Bytes::from_static(headers), &Bytes::from_static(payload), Millis(300));
            let read = Body::decode(body.encode()).unwrap();
            assert_eq!(
                (read.headers(), read.payload(), read.enqueued_at),
                (body.headers(), body.payload(), Millis(300))
            );
        }
        assert!(Body::decode(Bytes::from_static(&[1, 5, 9, 1])).is_err());
    }

    proptest! {
        #[test]
        fn jobs_are_a_map(steps in prop::collection::vec((0u8..6, 1u64..400), 1..300)) {
            let (mut jobs, mut model) = (Jobs::default(), BTreeMap::<u64, (bool, bool)>::new());
            for (step, number) in steps {
                let id = JobId(number);
                match step {
                    0 | 1 => {
                        let job = Job::new(0, 3, 0, JobState::Ready { since: Millis(number) });
                        let new = jobs.insert(id, job);
                        prop_assert_eq!(new, !model.contains_key(&number));
                        if new {
                            jobs.warm(id, body(number));
                            model.insert(number, (true, false));
                        }
                    }
                    2 => {
                        prop_assert_eq!(jobs.remove(id).is_some(), model.remove(&number).is_some());
                    }
                    3 => {
                        let stored = jobs.store_body(id, 7).is_some();
                        let wanted = model.get(&number) == Some(&(true, false));
                        prop_assert_eq!(stored, wanted);
                        model.entry(number).and_modify(|known| known.1 = true);
                    }
                    4 => {
                        jobs.stored(7);
                        let mut below = Some(u64::MAX);
                        while let Some(from) = below {
                            below = jobs.evict_bodies(0, 1, from);
                        }
                        model.values_mut().filter(|(_, stored)| *stored).for_each(|(hot, _)| *hot = false);
                    }
                    _ => {
                        if let Some((hot, _)) = model.get_mut(&number).filter(|(hot, _)| !hot) {
                            jobs.warm_stored(id, body(number));
                            *hot = true;
                        }
                    }
                }
                jobs.check();
            }
            prop_assert_eq!(jobs.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(jobs.first().map(|id| id.0), model.keys().next().copied());
            for (number, (hot, _)) in &model {
                prop_assert_eq!(jobs.body(JobId(*number)).is_some(), *hot);
            }
        }
    }
}
