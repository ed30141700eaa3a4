use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use proptest::prelude::*;

use super::*;

const SHARD: ShardId = ShardId(3);

/// A shelf with a database of its own, and what it must have.
struct Bench {
    dir: tempfile::TempDir,
    database: Option<Database>,
    shelf: Option<Shelf>,
    /// What goes to the database because there is little of it.
    few: BTreeMap<Bytes, Bytes>,
}

fn key(queue: u64, job: u64) -> Bytes {
    [&[0, 7][..], &queue.to_be_bytes(), &job.to_be_bytes()].concat().into()
}

fn body(job: u64, bytes: usize) -> Bytes {
    vec![job as u8; bytes].into()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Self { dir, database: None, shelf: None, few: BTreeMap::new() };
        bench.open().unwrap();
        bench
    }

    /// Opens again, as after a crash.
    fn open(&mut self) -> fjall::Result<()> {
        (self.shelf, self.database) = (None, None);
        let database = Database::builder(self.dir.path().join("index")).open()?;
        let keyspace = database.keyspace("shelf", KeyspaceCreateOptions::default)?;
        self.shelf = Some(Shelf::open(&self.dir.path().join("index"), SHARD, keyspace)?);
        self.database = Some(database);
        Ok(())
    }

    fn shelf(&mut self) -> &mut Shelf {
        self.shelf.as_mut().unwrap()
    }

    fn add(&mut self, key: &Bytes, body: &Bytes) {
        assert!(self.shelf().add(key, body).unwrap());
    }

    fn remove(&mut self, key: &Bytes) {
        if !self.shelf().remove(key) {
            self.few.remove(key);
        }
    }

    /// All of a commit but, if it shall crash before, the batch.
    fn finish(&mut self, crash: bool) {
        let few = self.shelf().finish().unwrap();
        if crash {
            return self.open().unwrap();
        }
        self.few.extend(few.into_iter().map(|write| (write.key, write.value.unwrap())));
        let mut batch = self.database.as_ref().unwrap().batch().durability(Some(PersistMode::SyncAll));
        self.shelf().put(&mut batch);
        batch.commit().unwrap();
    }

    fn commit(&mut self) {
        self.finish(false);
        self.shelf().committed().unwrap();
    }

    fn get(&mut self, keys: &[Bytes]) -> Vec<Option<Bytes>> {
        let found = self.shelf().reader().get_many(keys).unwrap();
        let few = &self.few;
        found.into_iter().zip(keys).map(|(found, key)| found.or_else(|| few.get(key).cloned())).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.dir.path().join("bodies"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }

    fn check(&mut self, model: &BTreeMap<Bytes, Bytes>, keys: &[Bytes]) {
        let found = self.get(keys);
        let wrong = keys.iter().zip(found).find(|(key, found)| model.get(*key) != found.as_ref());
        assert!(
            wrong.is_none(),
            "{:?} is wanted of {wrong:?}",
            wrong.as_ref().map(|(key, _)| model.get(*key))
        );
    }
}

#[test]
fn bodies_are_read_back_and_go() {
    let mut bench = Bench::new();
    let keys: Vec<Bytes> = (1..=4000).map(|job| key(5, job)).collect();
    let model: BTreeMap<Bytes, Bytes> =
        keys.iter().zip(1..).map(|(key, job)| (key.clone(), body(job, (job % 300) as usize))).collect();
    for (key, body) in &model {
        bench.add(key, body);
    }
    assert_eq!(bench.get(&keys[..1]), [None], "not before its commit");
    bench.commit();
    assert_eq!(bench.files().len(), 1);
    let mut wanted = keys.clone();
    wanted.extend([key(5, 4001), key(6, 1), Bytes::from_static(b"other")]);
    wanted.reverse();
    bench.check(&model, &wanted);
    bench.open().unwrap();
    bench.check(&model, &wanted);
    // The last one takes the file along.
    for key in &keys {
        assert!(bench.shelf().remove(key));
        assert!(!bench.shelf().remove(key), "once");
    }
    bench.check(&model, &keys);
    bench.commit();
    assert!(bench.files().is_empty());
    bench.open().unwrap();
    bench.check(&BTreeMap::new(), &keys);
    assert!(bench.shelf().keyspace.is_empty().unwrap());
}

#[test]
fn large_bodies_are_read_one_by_one() {
    let mut bench = Bench::new();
    let keys: Vec<Bytes> = (64..70).map(|job| key(1, job)).collect();
    for (key, job) in keys.iter().zip(64..) {
        bench.add(key, &body(job, 300_000 + job as usize));
    }
    bench.commit();
    assert_eq!(bench.get(&keys[3..4]), [Some(body(67, 300_067))]);
    assert_eq!(bench.get(&keys).into_iter().flatten().count(), 6);
}

#[test]
fn few_bodies_make_no_file() {
    let mut bench = Bench::new();
    bench.add(&key(1, 1), &body(1, 100));
    bench.commit();
    assert!(bench.files().is_empty());
    assert_eq!(bench.get(&[key(1, 1)]), [Some(body(1, 100))]);
    assert!(!bench.shelf().add(&Bytes::from_static(b"short"), &body(1, 1)).unwrap());
}

#[test]
fn a_checkpoint_that_never_happened_leaves_no_file() {
    let mut bench = Bench::new();
    let fill = |bench: &mut Bench| (1..=4000).for_each(|job| bench.add(&key(5, job), &body(job, 100)));
    fill(&mut bench);
    bench.commit();
    // Given up; then cut off by a crash, with its file on the disk and one removed body.
    fill(&mut bench);
    bench.shelf().begin().unwrap();
    assert_eq!(bench.files().len(), 1);
    (4001..=8000).for_each(|job| bench.add(&key(5, job), &body(job, 100)));
    bench.remove(&key(5, 1));
    bench.finish(true);
    assert_eq!(bench.files().len(), 1);
    assert_eq!(bench.get(&[key(5, 1), key(5, 4001)]), [Some(body(1, 100)), None]);
    // Happened, and cut off before the file that is empty now was removed.
    (1..=4000).for_each(|job| bench.remove(&key(5, job)));
    bench.finish(false);
    assert_eq!(bench.files().len(), 1);
    bench.open().unwrap();
    assert!(bench.files().is_empty());
    assert_eq!(bench.get(&[key(5, 1)]), [None]);
}

#[test]
fn what_is_left_of_a_file_is_written_again() {
    let mut bench = Bench::new();
    (1..=8000).for_each(|job| bench.add(&key(5, job), &body(job, 100)));
    bench.commit();
    let first = bench.files();
    // One old job of each page stays: enough for a file.
    (1..=8000).filter(|job| job % 64 != 0).for_each(|job| bench.remove(&key(5, job)));
    bench.commit();
    assert_eq!(bench.files(), first, "found out with the next one");
    (8001..=12_000).for_each(|job| bench.add(&key(5, job), &body(job, 100)));
    bench.remove(&key(5, 64));
    bench.commit();
    let second = bench.files();
    assert!(second.len() == 1 && second != first);
    let keys: Vec<Bytes> = (1..=12_000).map(|job| key(5, job)).collect();
    let there = |job: u64| (job.is_multiple_of(64) && job != 64) || job > 8000;
    let model = (1..=12_000).filter(|job| there(*job)).map(|job| (key(5, job), body(job, 100))).collect();
    bench.check(&model, &keys);
    bench.open().unwrap();
    bench.check(&model, &keys);
    // Very little goes to the database, and no file is left.
    (1..=12_000).filter(|job| there(*job) && *job != 640).for_each(|job| bench.remove(&key(5, job)));
    bench.commit();
    bench.commit();
    assert!(bench.files().is_empty());
    bench.check(&BTreeMap::from([(key(5, 640), body(640, 100))]), &keys);
}

#[test]
fn damage_is_named() {
    let mut bench = Bench::new();
    (1..=4000).for_each(|job| bench.add(&key(5, job), &body(job, 100)));
    bench.commit();
    let path = bench.files().pop().unwrap();
    let whole = fs::read(&path).unwrap();
    for (at, what) in [(0, "the lengths of a part are damaged"), (1000, "a body is damaged")] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        bench.open().unwrap();
        let keys: Vec<_> = (1..=63).map(|job| key(5, job)).collect();
        let error = bench.shelf().reader().get_many(&keys).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("bodies/"), "{error}");
    }
    let mut open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        bench.open().unwrap_err().to_string()
    };
    let end = whole.len();
    let changed = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        bytes[at] = to;
        bytes
    };
    for (bytes, what) in [
        (whole[..end - 1].to_vec(), "cut off"),
        (whole[..9].to_vec(), "cut off"),
        (changed(end - 6, 9), "newer server"),
        (changed(end - 8, 9), "another shard"),
        (changed(end - 20, 9), "damaged parts"),
        (changed(end - 9, 9), "no room"),
    ] {
        let error = open(&bytes);
        assert!(error.contains(what), "{what}: {error}");
    }
    fs::remove_file(&path).unwrap();
    bench.open().unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn files_are_a_map(steps in prop::collection::vec((0u8..10, 1u64..4000, 1u64..900), 1..30)) {
        let mut bench = Bench::new();
        let (mut model, mut next) = (BTreeMap::new(), 1u64);
        for (step, at, count) in steps {
            let (mut changed, few) = (model.clone(), bench.few.clone());
            let crash = step == 9;
            let first = next;
            if step < 6 {
                // Of two queues in turn, most of them enough for a file.
                for job in first..first + count {
                    let (key, body) = (key(1 + job % 2, job), body(job, 400));
                    bench.add(&key, &body);
                    changed.insert(key, body);
                }
                next += count;
            }
            let gone: Vec<Bytes> = model.keys().skip(at as usize % (model.len() + 1)).take(count as usize * 3).cloned().collect();
            for key in &gone {
                bench.remove(key);
                changed.remove(key);
            }
            if crash {
                // What the database has does not change without the commit either.
                bench.few = few;
                bench.finish(true);
                next = first;
            } else {
                bench.commit();
                model = changed;
            }
            if step % 4 == 0 {
                bench.open().unwrap();
            }
            let keys: Vec<Bytes> = (1..next + 1000).map(|job| key(1 + job % 2, job)).collect();
            bench.check(&model, &keys);
        }
    }
}
