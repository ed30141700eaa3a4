//! A file system in memory behind the store's `Disk` trait.
//!
//! The faults it makes are those a real disk, kernel or person may make, and no others:
//!
//! | fault | how it is had |
//! |---|---|
//! | a crash: of every 512-byte sector any version since the last sync survives: writes are lost, torn at sectors or at pages, kept as a whole, in order or in any other | [`SimDisk::crash`] |
//! | a crash: of names made, changed or removed since the last directory sync any part survives | [`SimDisk::crash`] |
//! | a crash: a file has its synced or its latest length | [`SimDisk::crash`] |
//! | the process is killed: nothing is lost, and what was not synced still may be | [`SimDisk::restart`] |
//! | power fails at the n-th operation, which may still have an effect; none after it is carried out | [`SimDisk::power_cut_after`] |
//! | the n-th operation of a kind fails, a read among them, without effect (a sync: with an unknown effect) | [`SimDisk::fail`] |
//! | a durable write fails or is cut off: in its write, or in its sync, which makes no other write durable | as a [`Operation::Write`] and an [`Operation::Sync`] after it |
//! | no space for more than so many bytes | [`SimDisk::set_space`] |
//! | an index, if it has those, fails: its commits happen as a whole or not at all | as an [`Operation::Index`] |
//! | a bit decays that was synced, of data of which later writes say that they were | [`SimDisk::decay`], [`SimDisk::heal`]; anywhere: [`SimDisk::flip_bit`] |
//! | a file is copied, moved, cut, overwritten or removed by hand | [`SimDisk::put_file`], [`SimDisk::remove_file`] |
//! | every operation takes a while, and others overtake it | always: a seeded number of polls, [`SimDisk::set_polls_max`] |
//!
//! What happened is counted ([`crate::happened`]), torn and reordered writes included.
//!
//! A future that is dropped may have had its effect, as with io_uring: effects come with the first poll (a sync's with
//! the last).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;

use flowmesh_store::disk::{ALIGN, Disk, DiskFile, IoBuf};
use flowmesh_store::index::{IndexConfig, Server};

use crate::file::{FileBytes, SECTOR};
use crate::happened::{Happened, Happening};
use crate::index::{Client, Database, Requests, SimIndex, serve};
use crate::names::{Names, Node};
use crate::random::Random;
use crate::survival::{Remains, Survival};

/// Aligned memory, or what stands for it.
#[derive(Debug)]
pub struct SimBuf(Vec<u8>);

impl AsRef<[u8]> for SimBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for SimBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl IoBuf for SimBuf {}

/// A kind of operation that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Creating a file.
    Create,
    /// Opening a file.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Syncing a file.
    Sync,
    /// Cutting or growing a file.
    Truncate,
    /// Renaming, removing, listing, making directories.
    Names,
    /// Syncing a directory.
    SyncDir,
    /// Anything of an index.
    Index,
}

/// A file system in memory. Clones are the same one.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<RefCell<World>>,
}

/// An open file.
pub struct SimFile {
    world: Rc<RefCell<World>>,
    id: u64,
}

pub(crate) struct World {
    random: Random,
    polls_max: u64,
    names: Names,
    files: HashMap<u64, FileBytes>,
    next_id: u64,
    /// Counts writes.
    stamp: u64,
    operations: u64,
    cut_at: Option<u64>,
    space: Option<u64>,
    planned: Vec<(Operation, u64, io::ErrorKind)>,
    /// Reads that have begun and neither ended nor were given up, and the most of them at once.
    reads: u64,
    reads_most: u64,
    /// Bits that decayed, in order.
    decayed: Vec<Decayed>,
    happened: Happened,
    /// Indexes are simulated too, by their directories.
    has_indexes: bool,
    pub indexes: BTreeMap<PathBuf, Database>,
    pub requests: Requests,
}

/// A sector with a bit that decayed.
#[derive(Clone)]
struct Decayed {
    file: u64,
    sector: usize,
    was: [u8; SECTOR],
    is: [u8; SECTOR],
}

/// What becomes of an operation.
pub(crate) struct Fate {
    pub polls: u64,
    pub error: Option<io::Error>,
    /// Whether it has an effect nevertheless.
    pub takes_effect: bool,
}

/// What a failed operation counts as.
fn failure(operation: Operation, kind: io::ErrorKind) -> Option<Happening> {
    match operation {
        Operation::Write => Some(Happening::FailedWrite),
        Operation::Sync => Some(Happening::FailedSync),
        Operation::Read => Some(Happening::FailedRead),
        Operation::Create => Some(Happening::FailedCreate),
        Operation::Index if kind == io::ErrorKind::StorageFull => Some(Happening::FullIndex),
        Operation::Index => Some(Happening::FailedIndex),
        Operation::Open | Operation::Truncate | Operation::Names | Operation::SyncDir => None,
    }
}

impl World {
    pub fn begin(&mut self, operation: Operation) -> Fate {
        self.operations += 1;
        let polls = self.random.below(self.polls_max + 1);
        if let Some(cut_at) = self.cut_at
            && self.operations >= cut_at
        {
            if self.operations == cut_at {
                self.happened.note(Happening::PowerCut);
            }
            let error = Some(io::Error::other("simulated power cut"));
            return Fate { polls, error, takes_effect: self.operations == cut_at && self.random.coin() };
        }
        let mut error = None;
        for (_, left, kind) in self.planned.iter_mut().filter(|planned| planned.0 == operation) {
            *left -= 1;
            if *left == 0 {
                error = Some(io::Error::from(*kind));
            }
        }
        self.planned.retain(|planned| planned.1 > 0);
        if let Some(happening) = error.as_ref().and_then(|error| failure(operation, error.kind())) {
            self.happened.note(happening);
        }
        Fate { polls, takes_effect: error.is_none(), error }
    }

    fn has_space_for(&self, more: u64) -> bool {
        let used: u64 = self.names.files().map(|(_, id)| self.files[&id].len() as u64).sum();
        let has = self.space.is_none_or(|space| used + more <= space);
        if !has {
            self.happened.note(Happening::NoSpace);
        }
        has
    }

    fn file(&mut self, id: u64) -> &mut FileBytes {
        self.files.get_mut(&id).expect("an open file exists")
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(id),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&mut self, path: &Path, content: FileBytes) -> io::Result<u64> {
        if self.names.get(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if path.parent().and_then(|dir| self.names.get(dir)) != Some(Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = self.next_id;
        self.next_id += 1;
        self.files.insert(id, content);
        self.names.add(path, Node::File(id));
        Ok(id)
    }
}

impl SimDisk {
    /// An empty file system.
    pub fn new(seed: u64) -> Self {
        let world = World {
            random: Random::new(seed),
            polls_max: 2,
            names: Names::default(),
            files: HashMap::new(),
            next_id: 1,
            stamp: 0,
            operations: 0,
            cut_at: None,
            space: None,
            planned: Vec::new(),
            reads: 0,
            reads_most: 0,
            decayed: Vec::new(),
            happened: Happened::default(),
            has_indexes: false,
            indexes: BTreeMap::new(),
            requests: Requests::default(),
        };
        Self { world: Rc::new(RefCell::new(world)) }
    }

    /// Has indexes as well, which [`SimDisk::serve_indexes`] serves. Without, they are databases on a real disk.
    #[must_use]
    pub fn with_indexes(self) -> Self {
        self.world.borrow_mut().has_indexes = true;
        self
    }

    /// Serves what is asked of indexes, until it is dropped.
    pub async fn serve_indexes(self) {
        serve(self.world).await;
    }

    /// Lets operations take up to `polls` polls more than one.
    #[must_use]
    pub fn with_polls_max(self, polls: u64) -> Self {
        self.world.borrow_mut().polls_max = polls;
        self
    }

    /// From now on operations take up to `polls` polls more than one.
    pub fn set_polls_max(&self, polls: u64) {
        self.world.borrow_mut().polls_max = polls;
    }

    /// The disk after a crash at this moment. The old one goes on by itself.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut world = self.world.borrow_mut();
        let mut random = Random::new(world.random.next_u64());
        let names = world.names.after_crash(&mut random);
        let mut ids: Vec<u64> = names.files().map(|(_, id)| id).collect();
        ids.sort_unstable();
        let pending = ids.iter().filter_map(|id| world.files[id].first_pending()).min();
        let survival = Survival::new(&mut random, pending.unwrap_or(world.stamp), world.stamp);
        let mut remains = Remains::default();
        let after = |id| (id, world.files[&id].after_crash(&mut random, &survival, &mut remains));
        let files = ids.into_iter().map(after).collect();
        remains.count(&world.happened);
        let after = World {
            random,
            names,
            files,
            planned: Vec::new(),
            cut_at: None,
            operations: 0,
            stamp: world.stamp,
            polls_max: world.polls_max,
            next_id: world.next_id,
            space: world.space,
            reads: 0,
            reads_most: 0,
            decayed: world.decayed.clone(),
            happened: world.happened.clone(),
            has_indexes: world.has_indexes,
            indexes: world.indexes.clone(),
            requests: Requests::default(),
        };
        Self { world: Rc::new(RefCell::new(after)) }
    }

    /// The process dies, the machine does not: nothing is lost, and no fault is planned any more.
    pub fn restart(&self) {
        let mut world = self.world.borrow_mut();
        world.cut_at = None;
        world.planned.clear();
        world.requests = Requests::default();
    }

    /// Nothing is planned to fail any more.
    pub fn forget_faults(&self) {
        let mut world = self.world.borrow_mut();
        world.cut_at = None;
        world.planned.clear();
    }

    /// Lets the power fail at the `nth` operation from now, 1 being the next.
    pub fn power_cut_after(&self, nth: u64) {
        let mut world = self.world.borrow_mut();
        world.cut_at = Some(world.operations + nth);
    }

    /// Whether power has failed.
    pub fn is_off(&self) -> bool {
        let world = self.world.borrow();
        world.cut_at.is_some_and(|cut_at| world.operations >= cut_at)
    }

    /// Lets the `nth` operation of a kind from now fail, 1 being the next.
    pub fn fail(&self, operation: Operation, nth: u64, kind: io::ErrorKind) {
        assert!(nth > 0, "operations are counted from 1");
        self.world.borrow_mut().planned.push((operation, nth, kind));
    }

    /// Bounds the bytes of all files; `None`: no bound.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.world.borrow_mut().space = bytes;
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        let world = self.world.borrow();
        world.names.files().map(|(_, id)| world.files[&id].len() as u64).sum()
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.world.borrow().operations
    }

    /// The most reads that were under way at once since this was asked last.
    pub fn reads_at_once(&self) -> u64 {
        let mut world = self.world.borrow_mut();
        let reads = world.reads;
        std::mem::replace(&mut world.reads_most, reads)
    }

    /// Flips a bit of a file, on the disk itself.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) {
        let mut world = self.world.borrow_mut();
        let id = world.find(path).expect("the file is there");
        let byte = usize::try_from(byte).expect("files fit memory");
        world.file(id).data_mut()[byte] ^= 1 << bit;
    }

    /// Counts here what happens.
    #[must_use]
    pub fn with_happened(self, happened: &Happened) -> Self {
        self.world.borrow_mut().happened = happened.clone();
        self
    }

    /// Flips a bit somewhere in what was written and synced, if anything was. Spared is, in a directory with files that are
    /// written durably (a log), what such a write put there last, and all that came later: that it was durable is written
    /// nowhere yet. Returns which file and byte.
    pub fn decay(&self) -> Option<(PathBuf, u64)> {
        let world = &mut *self.world.borrow_mut();
        let mut last: HashMap<&Path, u64> = HashMap::new();
        for (path, id) in world.names.files() {
            let last = last.entry(path.parent()?).or_default();
            *last = world.files[&id].durable_write().max(*last);
        }
        let known = |path: &Path| match path.parent().map(|dir| last[dir]) {
            Some(0) | None => u64::MAX,
            Some(last) => last,
        };
        let files = world.names.files();
        let files = files.map(|(path, id)| (path, id, world.files[&id].durable_sectors(known(path)).count()));
        let files: Vec<_> = files.filter(|(.., sectors)| *sectors > 0).collect();
        if files.is_empty() {
            return None;
        }
        let (path, id, sectors) = files[world.random.below(files.len() as u64) as usize];
        let sector =
            world.files[&id].durable_sectors(known(path)).nth(world.random.below(sectors as u64) as usize)?;
        let path = path.clone();
        let was = world.files[&id].sector(sector);
        let mut is = was;
        // Most of what is on a disk of pages is zero, and read by nobody.
        let places: Vec<usize> = (0..16).map(|_| world.random.below(SECTOR as u64) as usize).collect();
        let byte = places.iter().copied().find(|byte| was[*byte] != 0).unwrap_or(places[0]);
        is[byte] ^= 1 << world.random.below(8);
        world.file(id).replace_sector(sector, &was, &is);
        world.decayed.push(Decayed { file: id, sector, was, is });
        world.happened.note(Happening::DecayedBit);
        Some((path, (sector * SECTOR + byte) as u64))
    }

    /// Whether a bit decayed.
    pub fn is_decayed(&self) -> bool {
        !self.world.borrow().decayed.is_empty()
    }

    /// Undoes all decay, wherever it is left.
    pub fn heal(&self) {
        let world = &mut *self.world.borrow_mut();
        while let Some(Decayed { file, sector, was, is }) = world.decayed.pop() {
            if let Some(file) = world.files.get_mut(&file) {
                file.replace_sector(sector, &is, &was);
            }
        }
    }

    /// All files, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.world.borrow().names.files().map(|(path, _)| path.clone()).collect()
    }

    /// A file's bytes as reads see them.
    pub fn file(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.world.borrow();
        let id = world.find(path).ok()?;
        Some(world.files[&id].data().to_vec())
    }

    /// Puts a file there, durably, in place of any other; directories above it are made.
    pub fn put_file(&self, path: &Path, bytes: Vec<u8>) {
        let mut world = self.world.borrow_mut();
        make_dirs(&mut world, path.parent().expect("a file is in a directory"));
        let id = world.next_id;
        world.next_id += 1;
        world.files.insert(id, FileBytes::durable(bytes));
        world.names.add(path, Node::File(id));
        world.names.sync_all();
    }

    /// Makes a directory, durably.
    pub fn put_dir(&self, path: &Path) {
        let mut world = self.world.borrow_mut();
        make_dirs(&mut world, path);
        world.names.sync_all();
    }

    /// Removes a file, durably.
    pub fn remove_file(&self, path: &Path) {
        let mut world = self.world.borrow_mut();
        world.names.remove(path);
        world.names.sync_all();
    }

    /// An operation: waits, then has its effect or fails.
    async fn act<T>(
        &self,
        operation: Operation,
        effect: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        act(&self.world, operation, effect).await
    }
}

async fn act<T>(
    world: &Rc<RefCell<World>>,
    operation: Operation,
    effect: impl FnOnce(&mut World) -> io::Result<T>,
) -> io::Result<T> {
    let (fate, outcome) = {
        let mut world = world.borrow_mut();
        let fate = world.begin(operation);
        let outcome = fate.takes_effect.then(|| effect(&mut world));
        (fate, outcome)
    };
    polls(fate.polls).await;
    match (fate.error, outcome) {
        (Some(error), _) => Err(error),
        (None, Some(outcome)) => outcome,
        (None, None) => Err(io::Error::other("an operation without a fate")),
    }
}

/// A read that is under way.
struct Reading<'a>(&'a Rc<RefCell<World>>);

impl<'a> Reading<'a> {
    fn begin(world: &'a Rc<RefCell<World>>) -> Self {
        let mut of = world.borrow_mut();
        of.reads += 1;
        of.reads_most = of.reads_most.max(of.reads);
        Self(world)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().reads -= 1;
    }
}

/// Completes at the poll after so many.
pub(crate) async fn polls(count: u64) {
    let left = Cell::new(count);
    poll_fn(|context| {
        if left.get() == 0 {
            return Poll::Ready(());
        }
        left.set(left.get() - 1);
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn make_dirs(world: &mut World, dir: &Path) {
    let mut missing: Vec<&Path> = dir.ancestors().filter(|above| world.names.get(above).is_none()).collect();
    while let Some(above) = missing.pop() {
        world.names.add(above, Node::Dir);
    }
}

impl Disk for SimDisk {
    type Buf = SimBuf;
    type File = SimFile;

    fn alloc(&self, bytes: usize) -> SimBuf {
        assert!(bytes.is_multiple_of(ALIGN) && bytes > 0, "memory for I/O is made of whole pages");
        SimBuf(vec![0; bytes])
    }

    async fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<SimFile> {
        let id = self.act(Operation::Create, |world| {
            if !world.has_space_for(bytes) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            world.create(path, FileBytes::durable(vec![0; bytes as usize]))
        });
        Ok(SimFile { world: Rc::clone(&self.world), id: id.await? })
    }

    async fn create(&self, path: &Path) -> io::Result<SimFile> {
        let id = self.act(Operation::Create, |world| world.create(path, FileBytes::default())).await?;
        Ok(SimFile { world: Rc::clone(&self.world), id })
    }

    async fn open(&self, path: &Path) -> io::Result<SimFile> {
        let id = self.act(Operation::Open, |world| world.find(path)).await?;
        Ok(SimFile { world: Rc::clone(&self.world), id })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.act(Operation::Names, |world| Ok(world.names.list(dir))).await
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.act(Operation::Names, |world| {
            make_dirs(world, dir);
            Ok(())
        })
        .await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Operation::Names, |world| {
            world.find(from)?;
            world.names.rename(from, to);
            Ok(())
        })
        .await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.act(Operation::Names, |world| {
            world.find(path)?;
            world.names.remove(path);
            Ok(())
        })
        .await
    }

    async fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Operation::Names, |world| {
            if world.names.get(dir) != Some(Node::Dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if !world.names.list(dir).is_empty() {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            world.names.remove(dir);
            Ok(())
        })
        .await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.act(Operation::SyncDir, |world| {
            if world.names.get(dir) != Some(Node::Dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            world.names.sync(dir);
            Ok(())
        })
        .await
    }

    fn index(&self, config: &IndexConfig) -> Option<Rc<dyn Server>> {
        let is_here = self.world.borrow().has_indexes;
        is_here.then(|| -> Rc<dyn Server> {
            Rc::new(Client(Rc::new(SimIndex::new(Rc::clone(&self.world), config))))
        })
    }

    async fn sync_below(&self, dir: &Path) -> io::Result<()> {
        let (fate, stamp, lens) = {
            let mut world = self.world.borrow_mut();
            let fate = world.begin(Operation::Sync);
            if fate.takes_effect {
                world.names.sync_below(dir);
            }
            let below = world.names.files().filter(|(path, _)| path.starts_with(dir));
            let ids: Vec<u64> = below.map(|(_, id)| id).collect();
            let lens: Vec<(u64, usize)> = ids.into_iter().map(|id| (id, world.file(id).len())).collect();
            (fate, world.stamp, lens)
        };
        polls(fate.polls).await;
        if fate.takes_effect {
            for (id, len) in lens {
                self.world.borrow_mut().file(id).synced(stamp, len);
            }
        }
        fate.error.map_or(Ok(()), Err)
    }
}

impl SimFile {
    /// Writes; returns the write's number.
    async fn write(&self, buf: &SimBuf, bytes: usize, position: u64) -> io::Result<u64> {
        assert!(bytes.is_multiple_of(ALIGN) && bytes > 0 && bytes <= buf.0.len(), "writes are whole pages");
        assert!(position.is_multiple_of(ALIGN as u64), "writes are at whole pages");
        let start = usize::try_from(position).expect("files fit memory");
        act(&self.world, Operation::Write, |world| {
            let growth = (start + bytes).saturating_sub(world.file(self.id).len());
            if growth > 0 && !world.has_space_for(growth as u64) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            world.stamp += 1;
            let stamp = world.stamp;
            world.file(self.id).write(start, &buf.0[..bytes], stamp);
            Ok(stamp)
        })
        .await
    }
}

impl DiskFile for SimFile {
    type Buf = SimBuf;

    async fn write_at(&self, buf: SimBuf, bytes: usize, position: u64) -> io::Result<SimBuf> {
        self.write(&buf, bytes, position).await?;
        Ok(buf)
    }

    async fn write_durable_at(&self, buf: SimBuf, bytes: usize, position: u64) -> io::Result<SimBuf> {
        let stamp = self.write(&buf, bytes, position).await?;
        let fate = self.world.borrow_mut().begin(Operation::Sync);
        polls(fate.polls).await;
        if fate.takes_effect {
            self.world.borrow_mut().file(self.id).written_durably(position as usize, bytes, stamp);
        }
        fate.error.map_or(Ok(buf), Err)
    }

    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<SimBuf> {
        assert!(
            bytes.is_multiple_of(ALIGN) && position.is_multiple_of(ALIGN as u64),
            "reads are whole pages"
        );
        let start = usize::try_from(position).expect("files fit memory");
        let read = |world: &mut World| Ok(SimBuf(world.file(self.id).read(start, bytes).to_vec()));
        let _under_way = Reading::begin(&self.world);
        act(&self.world, Operation::Read, read).await
    }

    async fn sync(&self) -> io::Result<()> {
        let (fate, stamp, len) = {
            let mut world = self.world.borrow_mut();
            let fate = world.begin(Operation::Sync);
            (fate, world.stamp, world.file(self.id).len())
        };
        polls(fate.polls).await;
        if fate.takes_effect {
            self.world.borrow_mut().file(self.id).synced(stamp, len);
        }
        fate.error.map_or(Ok(()), Err)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        act(&self.world, Operation::Truncate, |world| {
            let more = bytes.saturating_sub(world.file(self.id).len() as u64);
            if !world.has_space_for(more) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            world.stamp += 1;
            let (stamp, len) = (world.stamp, bytes as usize);
            if more > 0 {
                world.file(self.id).truncate(len, stamp);
            }
            Ok(())
        })
        .await
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        act(&self.world, Operation::Truncate, |world| {
            world.stamp += 1;
            let stamp = world.stamp;
            world.file(self.id).truncate(bytes as usize, stamp);
            Ok(())
        })
        .await
    }

    async fn size(&self) -> io::Result<u64> {
        Ok(self.world.borrow_mut().file(self.id).len() as u64)
    }
}
