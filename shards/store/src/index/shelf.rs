//! What jobs are about, in files beside the database: written once, in the order of their numbers, and never by an LSM tree.
//!
//! A checkpoint that brings many bodies writes them to a **file** of its own, `bodies/NNNNNNNNNNNNNNNN` (hex); a file is
//! never changed. A **part** of it holds bodies of jobs with the same upper bits of their number (64 consecutive jobs):
//!
//! | part of the file | size | meaning |
//! |---|---|---|
//! | lengths | 8 each | length u32 and CRC of each body, in the order of the jobs |
//! | crc | 4 | of the lengths |
//! | bodies | | one behind the other |
//!
//! | end of the file | size | meaning |
//! |---|---|---|
//! | parts | 38 each | slot and resource (10, as in the key), job number / 64 u64 BE, offset u64, bytes u32, which jobs u64 (a bit each) |
//! | crc | 4 | of the parts |
//! | count | 4 | parts |
//! | shard, version | 2 each | version 1 |
//! | magic | 4 | `FMBO` |
//!
//! | keyspace `shelf`, key | value |
//! |---|---|
//! | file number u64 BE | bytes u64 LE: the file belongs to the index |
//! | file number u64 BE, part u32 BE | u64 LE: which jobs of the part are still there; all, if there is no such key |
//!
//! Both change in the same batch that makes a checkpoint happen. A file without such a key is from a checkpoint that never
//! happened, and is removed. One of which nothing is left goes with the checkpoint that took the last body; of one of which
//! little is left the rest is written again with the next checkpoint, and so it goes too: the disk shrinks although one old
//! job stays. What a checkpoint brings of few bodies goes to the keyspace `bodies`, so that no file is small.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use crc32c::crc32c;
use fjall::{Keyspace, OwnedWriteBatch};
use flowmesh_model::{IndexWrite, ShardId, Space};

use crate::pages::Fields;

const MAGIC: u32 = u32::from_le_bytes(*b"FMBO");
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 38;
const TAIL_BYTES: usize = 16;

/// Jobs of a part have these bits of their number different.
const PART_BITS: u32 = 6;

/// Bodies of a checkpoint below this size go to the database.
const FILE_BYTES_MIN: usize = 256 * 1024;

/// A part has no more bytes than this and one body.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// A part up to this size is read at once, whatever is wanted of it.
const READ_WHOLE_MAX: usize = 64 * 1024;

/// Written again is what is left of a file of which at least three quarters are gone, so much with one checkpoint.
const LEFT_SHARE: u64 = 4;
const AGAIN_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A key of the space: slot and resource, and the number of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    home: [u8; 10],
    page: u64,
}

fn place_of(key: &[u8]) -> Option<(Place, u32)> {
    let (home, job) = key.split_first_chunk::<10>()?;
    let job = u64::from_be_bytes(job.try_into().ok()?);
    Some((Place { home: *home, page: job >> PART_BITS }, (job & ((1 << PART_BITS) - 1)) as u32))
}

fn key_of(place: Place, bit: u32) -> Bytes {
    let job = place.page << PART_BITS | u64::from(bit);
    [&place.home[..], &job.to_be_bytes()].concat().into()
}

/// Where a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PartId {
    place: Place,
    file: u64,
    number: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    bytes: u32,
    /// Whose bodies it has, and whose of them are still wanted.
    has: u64,
    live: u64,
}

impl Part {
    /// How many bodies stand before that of a job.
    fn rank(&self, bit: u32) -> usize {
        (self.has & ((1 << bit) - 1)).count_ones() as usize
    }

    fn head_bytes(&self) -> usize {
        self.has.count_ones() as usize * 8 + 4
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    jobs: u64,
    live: u64,
    bytes: u64,
    parts: u32,
}

/// All parts with something in them that is wanted.
#[derive(Debug, Default)]
struct Parts {
    parts: BTreeMap<PartId, Part>,
    files: BTreeMap<u64, Held>,
}

impl Parts {
    fn at(&self, place: Place) -> impl DoubleEndedIterator<Item = (PartId, Part)> {
        let id = |file, number| PartId { place, file, number };
        self.parts.range(id(0, 0)..=id(u64::MAX, u32::MAX)).map(|(id, part)| (*id, *part))
    }

    fn insert(&mut self, id: PartId, part: Part) {
        let held = self.files.entry(id.file).or_default();
        held.parts = held.parts.max(id.number + 1);
        held.jobs += u64::from(part.has.count_ones());
        held.live += u64::from(part.live.count_ones());
        if part.live != 0 {
            self.parts.insert(id, part);
        }
    }

    fn set_live(&mut self, id: PartId, live: u64) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        let gone = part.live.count_ones() - (part.live & live).count_ones();
        part.live &= live;
        if part.live == 0 {
            self.parts.remove(&id);
        }
        if let Some(held) = self.files.get_mut(&id.file) {
            held.live -= u64::from(gone);
        }
    }
}

fn lock(parts: &Mutex<Parts>) -> MutexGuard<'_, Parts> {
    // Changed only after a commit, in steps that cannot fail.
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path_of(dir: &Path, file: u64) -> PathBuf {
    dir.join(format!("{file:016x}"))
}

fn damaged(file: u64, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bodies/{file:016x}: {what}"))
}

/// Reads bodies; from any thread, beside a checkpoint.
#[derive(Clone)]
pub(super) struct Reader {
    dir: PathBuf,
    parts: Arc<Mutex<Parts>>,
}

impl Reader {
    /// The bodies of these keys as far as files have them.
    pub fn get_many(&self, keys: &[Bytes]) -> io::Result<Vec<Option<Bytes>>> {
        let mut found = vec![None; keys.len()];
        let mut order: Vec<(Place, u32, usize)> = keys
            .iter()
            .enumerate()
            .filter_map(|(at, key)| place_of(key).map(|(place, bit)| (place, bit, at)))
            .collect();
        order.sort_unstable();
        let mut files = Files { dir: &self.dir, last: None };
        for jobs in order.chunk_by(|(one, ..), (next, ..)| one == next) {
            let Some(&(place, ..)) = jobs.first() else { continue };
            let wanted = jobs.iter().fold(0u64, |bits, (_, bit, _)| bits | 1 << bit);
            for (bit, body) in self.read_place(&mut files, place, wanted)? {
                for (_, _, at) in jobs.iter().filter(|(_, wanted, _)| *wanted == bit) {
                    if let Some(found) = found.get_mut(*at) {
                        *found = Some(body.clone());
                    }
                }
            }
        }
        Ok(found)
    }

    fn read_place(&self, files: &mut Files<'_>, place: Place, wanted: u64) -> io::Result<Vec<(u32, Bytes)>> {
        let mut bodies = Vec::with_capacity(wanted.count_ones() as usize);
        let mut tries = 0;
        let mut left = wanted;
        loop {
            let parts: Vec<(PartId, Part)> =
                lock(&self.parts).at(place).filter(|(_, part)| part.live & left != 0).collect();
            let Some((id, part)) = parts.last() else { return Ok(bodies) };
            let bits = part.live & left;
            match files.read(*id, part, bits, &mut bodies) {
                Ok(()) => left &= !bits,
                // Written again elsewhere and removed since the look at where it is: what is there now is found.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 8 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Files to read from; the last one stays open.
struct Files<'a> {
    dir: &'a Path,
    last: Option<(u64, File)>,
}

impl Files<'_> {
    /// Reads some bodies of a part.
    fn read(&mut self, id: PartId, part: &Part, bits: u64, bodies: &mut Vec<(u32, Bytes)>) -> io::Result<()> {
        let file = match self.last.take() {
            Some((number, file)) if number == id.file => file,
            _ => File::open(path_of(self.dir, id.file))?,
        };
        let (_, file) = self.last.insert((id.file, file));
        let whole = part.bytes as usize <= READ_WHOLE_MAX;
        let head_bytes = part.head_bytes();
        let mut read = vec![0; if whole { part.bytes as usize } else { head_bytes }];
        file.read_exact_at(&mut read, part.offset)?;
        let (head, rest) =
            read.split_at_checked(head_bytes).ok_or_else(|| damaged(id.file, "a short part"))?;
        let (lens, mut crc) = head.split_at(head_bytes - 4);
        if crc32c(lens) != crc.get_u32_le() {
            return Err(damaged(id.file, "the lengths of a part are damaged"));
        }
        let mut ends = Vec::with_capacity(lens.len() / 8);
        let (mut lens, mut end) = (Fields(lens), 0);
        for _ in 0..part.has.count_ones() {
            let (len, crc) = (lens.u32() as usize, lens.u32());
            ends.push((end, len, crc));
            end += len;
        }
        for bit in (0..1 << PART_BITS).filter(|bit| bits >> bit & 1 == 1) {
            let Some(&(from, len, crc)) = ends.get(part.rank(bit)) else {
                return Err(damaged(id.file, "a part has fewer bodies than it says"));
            };
            let body = if whole {
                let body = rest.get(from..from + len);
                Bytes::copy_from_slice(body.ok_or_else(|| damaged(id.file, "a body beyond its part"))?)
            } else {
                let mut body = vec![0; len];
                file.read_exact_at(&mut body, part.offset + (head_bytes + from) as u64)?;
                body.into()
            };
            if crc32c(&body) != crc {
                return Err(damaged(id.file, "a body is damaged"));
            }
            bodies.push((bit, body));
        }
        Ok(())
    }
}

/// The part that is being gathered.
struct Gathering {
    place: Place,
    bodies: BTreeMap<u32, Bytes>,
    bytes: usize,
}

/// The file of the checkpoint in progress.
struct Writing {
    file: u64,
    out: BufWriter<File>,
    at: u64,
    parts: Vec<(Place, Part)>,
}

/// What the checkpoint in progress changes.
#[derive(Default)]
struct Pending {
    /// Not yet enough for a file.
    few: BTreeMap<Bytes, Bytes>,
    few_bytes: usize,
    gathering: Option<Gathering>,
    writing: Option<Writing>,
    live: BTreeMap<PartId, u64>,
    /// Files that go with it.
    empty: Vec<u64>,
}

/// The files, on the storage thread.
pub(super) struct Shelf {
    dir: PathBuf,
    shard: ShardId,
    keyspace: Keyspace,
    parts: Arc<Mutex<Parts>>,
    pending: Pending,
    next_file: u64,
}

impl Shelf {
    /// The files that the keyspace knows; others are removed.
    pub fn open(index_dir: &Path, shard: ShardId, keyspace: Keyspace) -> fjall::Result<Self> {
        let dir = index_dir.with_file_name("bodies");
        fs::create_dir_all(&dir)?;
        let mut live = BTreeMap::new();
        let mut files = Vec::new();
        for entry in keyspace.iter() {
            let (key, value) = entry.into_inner()?;
            let mut number = &key[..];
            match number.len() {
                8 => files.push(number.get_u64()),
                12 => {
                    let id = (number.get_u64(), number.get_u32());
                    live.insert(id, Fields(&value).u64());
                }
                _ => return Err(fjall::Error::Unrecoverable),
            }
        }
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if !files.iter().any(|file| path_of(&dir, *file) == path) {
                fs::remove_file(path)?;
            }
        }
        let mut parts = Parts::default();
        for file in &files {
            let (table, bytes) = read_table(&dir, *file, shard)?;
            for (number, (place, part)) in (0u32..).zip(table) {
                let live = live.get(&(*file, number)).map_or(part.has, |live| live & part.has);
                parts.insert(PartId { place, file: *file, number }, Part { live, ..part });
            }
            parts.files.entry(*file).or_default().bytes = bytes;
        }
        let next_file = files.last().map_or(1, |file| file + 1);
        let (parts, pending) = (Arc::new(Mutex::new(parts)), Pending::default());
        Ok(Self { dir, shard, keyspace, parts, pending, next_file })
    }

    pub fn reader(&self) -> Reader {
        Reader { dir: self.dir.clone(), parts: Arc::clone(&self.parts) }
    }

    /// Forgets a checkpoint that was not committed.
    pub fn begin(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.pending).writing {
            Some(writing) => fs::remove_file(path_of(&self.dir, writing.file)),
            None => Ok(()),
        }
    }

    /// Adds a body; `false` if such a key is not kept here.
    pub fn add(&mut self, key: &Bytes, body: &Bytes) -> io::Result<bool> {
        let Some((place, bit)) = place_of(key) else { return Ok(false) };
        if self.pending.writing.is_some() {
            self.gather(place, bit, body.clone())?;
            return Ok(true);
        }
        self.pending.few_bytes += body.len();
        self.pending.few.insert(key.clone(), body.clone());
        if self.pending.few_bytes < FILE_BYTES_MIN {
            return Ok(true);
        }
        let file = self.next_file;
        let out = BufWriter::with_capacity(1024 * 1024, File::create(path_of(&self.dir, file))?);
        self.next_file += 1;
        self.pending.writing = Some(Writing { file, out, at: 0, parts: Vec::new() });
        self.pending.few_bytes = 0;
        for (key, body) in std::mem::take(&mut self.pending.few) {
            if let Some((place, bit)) = place_of(&key) {
                self.gather(place, bit, body)?;
            }
        }
        Ok(true)
    }

    fn gather(&mut self, place: Place, bit: u32, body: Bytes) -> io::Result<()> {
        let gathered = self.pending.gathering.as_ref();
        if gathered.is_some_and(|part| part.place != place || part.bytes >= PART_BYTES_MAX) {
            self.write_part()?;
        }
        let part = self.pending.gathering.get_or_insert_with(|| Gathering {
            place,
            bodies: BTreeMap::new(),
            bytes: 0,
        });
        part.bytes += body.len();
        part.bodies.insert(bit, body);
        Ok(())
    }

    fn write_part(&mut self) -> io::Result<()> {
        let (Some(part), Some(writing)) = (self.pending.gathering.take(), &mut self.pending.writing) else {
            return Ok(());
        };
        let mut head = Vec::with_capacity(part.bodies.len() * 8 + 4);
        let mut has = 0;
        for (bit, body) in &part.bodies {
            has |= 1 << bit;
            head.put_u32_le(body.len() as u32);
            head.put_u32_le(crc32c(body));
        }
        let crc = crc32c(&head);
        head.put_u32_le(crc);
        writing.out.write_all(&head)?;
        let mut bytes = head.len();
        for body in part.bodies.values() {
            writing.out.write_all(body)?;
            bytes += body.len();
        }
        let bytes = bytes as u32;
        writing.parts.push((part.place, Part { offset: writing.at, bytes, has, live: has }));
        writing.at += u64::from(bytes);
        Ok(())
    }

    /// Takes a body away; `false` if no file has it.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some((place, bit)) = place_of(key) else { return false };
        let mut found = false;
        let parts = lock(&self.parts);
        for (id, part) in parts.at(place) {
            let live = self.pending.live.get(&id).map_or(part.live, |live| *live);
            if live >> bit & 1 == 1 {
                self.pending.live.insert(id, live & !(1 << bit));
                found = true;
            }
        }
        found
    }

    /// Writes again what is left of files of which most is gone. What is written goes the way of all bodies.
    fn write_again(&mut self) -> io::Result<()> {
        let mut bytes_left = AGAIN_BYTES_MAX;
        let sparse: Vec<u64> = {
            let parts = lock(&self.parts);
            let sparse = parts.files.iter().filter(|(_, held)| {
                let share = held.bytes * held.live / held.jobs.max(1);
                let few = held.live > 0 && held.live * LEFT_SHARE <= held.jobs && share <= bytes_left;
                bytes_left -= if few { share } else { 0 };
                few
            });
            sparse.map(|(file, _)| *file).collect()
        };
        if sparse.is_empty() {
            return Ok(());
        }
        let left: Vec<(PartId, Part)> = {
            let parts = lock(&self.parts);
            let of = |id: &PartId| sparse.binary_search(&id.file).is_ok();
            parts.parts.iter().filter(|(id, _)| of(id)).map(|(id, part)| (*id, *part)).collect()
        };
        let dir = self.dir.clone();
        let mut files = Files { dir: &dir, last: None };
        for (id, part) in left {
            let live = self.pending.live.get(&id).map_or(part.live, |live| *live);
            let mut bodies = Vec::new();
            files.read(id, &part, live, &mut bodies)?;
            for (bit, body) in bodies {
                self.add(&key_of(id.place, bit), &body)?;
            }
            self.pending.live.insert(id, 0);
        }
        Ok(())
    }

    /// All of the checkpoint is here: what goes to files is durable. Returns what is too little for a file.
    pub fn finish(&mut self) -> io::Result<Vec<IndexWrite>> {
        self.write_again()?;
        self.write_part()?;
        if let Some(writing) = &mut self.pending.writing {
            let table = encode_table(&writing.parts, self.shard);
            writing.out.write_all(&table)?;
            writing.out.flush()?;
            writing.out.get_ref().sync_all()?;
            writing.at += table.len() as u64;
            File::open(&self.dir)?.sync_all()?;
        }
        let few = std::mem::take(&mut self.pending.few).into_iter();
        Ok(few.map(|(key, body)| IndexWrite { space: Space::Bodies, key, value: Some(body) }).collect())
    }

    /// Puts into the batch that makes the checkpoint happen what it changes here.
    pub fn put(&mut self, batch: &mut OwnedWriteBatch) {
        if let Some(writing) = &self.pending.writing {
            batch.insert(&self.keyspace, writing.file.to_be_bytes(), writing.at.to_le_bytes());
        }
        let parts = lock(&self.parts);
        let mut gone: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, live) in &self.pending.live {
            let before = parts.parts.get(id).map_or(0, |part| part.live);
            *gone.entry(id.file).or_default() += u64::from((before & !live).count_ones());
        }
        self.pending.empty.clear();
        for (file, gone) in gone {
            let Some(held) = parts.files.get(&file).filter(|held| held.live == gone) else { continue };
            self.pending.empty.push(file);
            batch.remove(&self.keyspace, file.to_be_bytes());
            for part in 0..held.parts {
                batch.remove(&self.keyspace, part_key(file, part));
            }
        }
        for (id, live) in &self.pending.live {
            if self.pending.empty.binary_search(&id.file).is_err() {
                batch.insert(&self.keyspace, part_key(id.file, id.number), live.to_le_bytes());
            }
        }
    }

    /// The checkpoint has happened.
    pub fn committed(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        {
            let mut parts = lock(&self.parts);
            if let Some(writing) = pending.writing {
                for (number, (place, part)) in (0u32..).zip(writing.parts) {
                    parts.insert(PartId { place, file: writing.file, number }, part);
                }
                parts.files.entry(writing.file).or_default().bytes = writing.at;
            }
            for (id, live) in pending.live {
                parts.set_live(id, live);
            }
            for file in &pending.empty {
                parts.files.remove(file);
            }
        }
        pending.empty.iter().try_for_each(|file| fs::remove_file(path_of(&self.dir, *file)))
    }
}

fn part_key(file: u64, part: u32) -> Vec<u8> {
    [&file.to_be_bytes()[..], &part.to_be_bytes()].concat()
}

fn encode_table(parts: &[(Place, Part)], shard: ShardId) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.len() * ENTRY_BYTES + TAIL_BYTES);
    for (place, part) in parts {
        out.put_slice(&place.home);
        out.put_u64(place.page);
        out.put_u64_le(part.offset);
        out.put_u32_le(part.bytes);
        out.put_u64_le(part.has);
    }
    let crc = crc32c(&out);
    out.put_u32_le(crc);
    out.put_u32_le(parts.len() as u32);
    out.put_u16_le(shard.0);
    out.put_u16_le(VERSION);
    out.put_u32_le(MAGIC);
    out
}

/// The parts of a file, and its length.
fn read_table(dir: &Path, number: u64, shard: ShardId) -> io::Result<(Vec<(Place, Part)>, u64)> {
    let wrong = |what| damaged(number, what);
    let file = File::open(path_of(dir, number))?;
    let len = file.metadata()?.len();
    let tail_at = len.checked_sub(TAIL_BYTES as u64).ok_or_else(|| wrong("is cut off"))?;
    let mut tail = [0; TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_at)?;
    let mut tail = Fields(&tail);
    let (crc, count, of, version) = (tail.u32(), tail.u32(), tail.u16(), tail.u16());
    if tail.u32() != MAGIC {
        return Err(wrong("is no file of bodies, or is cut off"));
    }
    if version > VERSION {
        return Err(wrong("is of a newer server; start that again"));
    }
    if of != shard.0 {
        return Err(wrong("belongs to another shard"));
    }
    let bytes = count as usize * ENTRY_BYTES;
    let at = tail_at.checked_sub(bytes as u64).ok_or_else(|| wrong("has no room for its parts"))?;
    let mut table = vec![0; bytes];
    file.read_exact_at(&mut table, at)?;
    if crc32c(&table) != crc {
        return Err(wrong("has damaged parts"));
    }
    let part = |entry: &[u8]| {
        let (home, mut rest) = entry.split_first_chunk::<10>()?;
        let place = Place { home: *home, page: rest.get_u64() };
        let (offset, bytes, has) = (rest.get_u64_le(), rest.get_u32_le(), rest.get_u64_le());
        Some((place, Part { offset, bytes, has, live: has }))
    };
    Ok((table.chunks_exact(ENTRY_BYTES).filter_map(part).collect(), len))
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
