//! Files that begin and go with the segments of a stream, and times found in them, on a simulated disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use std::io::ErrorKind;

use common::{block_on, disk, shard_dir};
use flowmesh_model::record::{RecordPacker, RecordView};
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Millis, Offset, PartitionRef, ResourceId};
use flowmesh_sim::{Operation, Random, SimDisk};
use flowmesh_store::segments::{FewRecords, SegmentError, StreamFiles, StreamFilesConfig};
use proptest::prelude::*;

const AT: PartitionRef = PartitionRef { resource: ResourceId(7), partition: 0 };
const OTHER: PartitionRef = PartitionRef { resource: ResourceId(8), partition: 3 };

async fn open(disk: &SimDisk, next: u64) -> Result<StreamFiles<SimDisk>, SegmentError> {
    let config = StreamFilesConfig { block_bytes: 8 * 1024, ..StreamFilesConfig::default() };
    StreamFiles::open(disk.clone(), &shard_dir(), config, [(AT, Offset(next))]).await
}

/// The same as of a checkpoint. What it had nothing of is unknown.
async fn open_known(disk: &SimDisk, known: &Known) -> Result<StreamFiles<SimDisk>, SegmentError> {
    let config = StreamFilesConfig { block_bytes: 8 * 1024, ..StreamFilesConfig::default() };
    let ends = [(AT, Offset(known.next)), (OTHER, Offset(known.other))];
    let ends = ends.into_iter().filter(|(_, next)| next.0 > 0);
    StreamFiles::open(disk.clone(), &shard_dir(), config, ends).await
}

/// `count` records of `len` bytes, appended at `time`.
fn run(base: u64, count: u32, len: usize, time: u64) -> RecordRun {
    let mut packer = RecordPacker::default();
    for offset in base..base + u64::from(count) {
        let mut value = offset.to_le_bytes().to_vec();
        value.resize(8 + len, 0);
        packer.push(&RecordView { value: &value, ..RecordView::default() });
    }
    RecordRun { base: Offset(base), count, appended_at: Millis(time), records: packer.finish() }
}

fn end(run: &RecordRun) -> u64 {
    run.base.0 + u64::from(run.count)
}

/// First offsets of the files on the disk.
fn bases(disk: &SimDisk) -> Vec<u64> {
    bases_of(disk, AT)
}

fn bases_of(disk: &SimDisk, at: PartitionRef) -> Vec<u64> {
    let dir = shard_dir().join("streams").join(format!("{}-{}", at.resource.0, at.partition));
    let files = disk.paths().into_iter().filter(|path| path.starts_with(&dir));
    let stems = files.filter(|path| path.extension().is_some_and(|e| e == "seg"));
    stems.map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

async fn read_all(files: &StreamFiles<SimDisk>, from: u64) -> u64 {
    read_all_of(files, AT, from).await
}

async fn read_all_of(files: &StreamFiles<SimDisk>, at: PartitionRef, mut from: u64) -> u64 {
    loop {
        let runs = files.read(at, Offset(from), 1000, 1 << 20).await.unwrap().runs;
        let Some(last) = runs.last() else { return from };
        assert_eq!(runs[0].base.0, from);
        from = end(last);
    }
}

#[test]
fn a_segment_begins_a_file_and_goes_with_it() {
    block_on(async {
        let disk = disk(1);
        let files = open(&disk, 0).await.unwrap();
        for segment in 0..4 {
            files.append_segment(AT, &[run(segment * 20, 10, 100, segment)]).await.unwrap();
            files.append(AT, &[run(segment * 20 + 10, 10, 100, segment)]).await.unwrap();
        }
        files.sync().await.unwrap();
        assert_eq!(bases(&disk), [0, 20, 40, 60]);
        files.trim(AT, Offset(39)).await.unwrap();
        assert_eq!(bases(&disk), [20, 40, 60], "a file goes when all of it is gone");
        files.trim(AT, Offset(40)).await.unwrap();
        assert_eq!((bases(&disk), read_all(&files, 45).await), (vec![40, 60], 80));
        files.trim(AT, Offset(20)).await.unwrap();
        files.trim(PartitionRef { partition: 1, ..AT }, Offset(20)).await.unwrap();
        assert_eq!(bases(&disk), [40, 60]);
        // After a start nothing is known of the files but how far they count.
        let files = open(&disk, 80).await.unwrap();
        files.trim(AT, Offset(80)).await.unwrap();
        assert!(bases(&disk).is_empty());
        files.append_segment(AT, &[run(80, 5, 10, 9)]).await.unwrap();
        assert_eq!((bases(&disk), read_all(&files, 80).await), (vec![80], 85));
    });
}

#[test]
fn a_segment_may_begin_behind_records_that_are_gone() {
    block_on(async {
        let disk = disk(2);
        let files = open(&disk, 0).await.unwrap();
        files.append_segment(AT, &[run(0, 10, 100, 1)]).await.unwrap();
        files.sync().await.unwrap();
        let gap = files.append(AT, &[run(30, 10, 100, 2)]).await.unwrap_err();
        assert!(matches!(gap, SegmentError::Missing { record: Offset(10), .. }), "{gap}");
        // The first try fails, the second one begins elsewhere.
        disk.fail(Operation::Write, 2, ErrorKind::StorageFull);
        files.append_segment(AT, &[run(20, 10, 100, 2)]).await.unwrap_err();
        files.append_segment(AT, &[run(30, 10, 100, 3)]).await.unwrap();
        files.append(AT, &[run(40, 10, 100, 3)]).await.unwrap();
        files.sync().await.unwrap();
        assert_eq!(read_all(&files, 30).await, 50);
        // Before the index knows of it, a crash leaves all as it was.
        let before = open(&disk.crash(), 10).await.unwrap();
        assert_eq!(read_all(&before, 0).await, 10);
        files.trim(AT, Offset(30)).await.unwrap();
        let after = open(&disk.crash(), 50).await.unwrap();
        assert_eq!(read_all(&after, 30).await, 50);
        after.append(AT, &[run(50, 1, 10, 4)]).await.unwrap();
        assert_eq!(read_all(&after, 30).await, 51);
    });
}

#[test]
fn a_file_that_cannot_be_removed_goes_later() {
    block_on(async {
        let disk = disk(3);
        let files = open(&disk, 0).await.unwrap();
        for segment in 0..3 {
            files.append_segment(AT, &[run(segment * 10, 10, 10, segment)]).await.unwrap();
        }
        disk.fail(Operation::Names, 2, ErrorKind::TimedOut);
        files.trim(AT, Offset(20)).await.unwrap_err();
        assert_eq!((bases(&disk), read_all(&files, 20).await), (vec![10, 20], 30));
        files.trim(AT, Offset(20)).await.unwrap();
        assert_eq!(bases(&disk), [20]);
    });
}

/// What the files must have, as the index knows it.
#[derive(Clone, Default)]
struct Known {
    earliest: u64,
    next: u64,
    /// The first record of the segment with `earliest`.
    base: u64,
    /// Where a partition ends that is only written to with others.
    other: u64,
}

/// One checkpoint: some segments are appended to or begun, some go.
async fn checkpoint(
    files: &StreamFiles<SimDisk>,
    random: &mut Random,
    known: &mut Known,
) -> Result<(), SegmentError> {
    let mut after = known.clone();
    let mut begins = after.next == after.base;
    if random.below(4) == 0 {
        // Everything went, and so did records that never came here.
        after.next += random.below(50);
        (after.earliest, after.base, begins) = (after.next, after.next, true);
    }
    for _ in 0..random.below(4) {
        let from = after.next;
        let run = run(from, 1 + random.below(5) as u32, random.below(3_000) as usize, from);
        after.next = end(&run);
        if random.below(3) == 0 {
            let other =
                FewRecords { at: OTHER, runs: vec![self::run(after.other, 3, 100, from)], new_file: false };
            let few = FewRecords { at: AT, runs: vec![run], new_file: begins };
            files.append_few(vec![few, other]).await?;
            after.other += 3;
        } else if begins {
            files.append_segment(AT, &[run]).await?;
        } else {
            files.append(AT, &[run]).await?;
        }
        if begins && random.below(2) == 0 {
            (after.earliest, after.base) = (from, from);
        }
        begins = random.below(3) == 0;
    }
    files.sync().await?;
    *known = after;
    files.trim(AT, Offset(known.base)).await
}

/// Checkpoint by checkpoint; the power fails at some operation; the index knew what was synced.
async fn lives(seed: u64, cuts: &[u64]) {
    let (mut disk, mut random) = (disk(seed), Random::new(seed));
    let mut known = Known::default();
    for &cut in cuts {
        disk.power_cut_after(cut);
        if let Ok(files) = open_known(&disk, &known).await {
            while checkpoint(&files, &mut random, &mut known).await.is_ok() {}
        }
        if random.below(3) == 0 {
            disk.restart();
        } else {
            disk = disk.crash();
        }
        let files = open_known(&disk, &known).await.unwrap();
        assert_eq!(read_all(&files, known.earliest).await, known.next);
        assert_eq!(read_all_of(&files, OTHER, 0).await, known.other);
    }
    let files = open_known(&disk, &known).await.unwrap();
    files.trim(AT, Offset(known.base)).await.unwrap();
    assert!(bases_of(&disk, AT).iter().all(|base| *base >= known.base), "nothing is left of what is gone");
    assert_eq!(read_all(&files, known.earliest).await, known.next);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments_that_come_and_go_survive_any_crash(seed: u64, cuts in proptest::collection::vec(1u64..120, 1..6)) {
        block_on(lives(seed, &cuts));
    }

    #[test]
    fn a_time_is_found_as_by_looking_at_every_run(
        seed: u64,
        runs in proptest::collection::vec((1u32..5, 0usize..6_000, 0u64..3, 0u32..6), 1..60),
        asked in proptest::collection::vec((0u64..200, 0u64..100), 1..30),
    ) {
        block_on(async {
            let disk = disk(seed);
            let files = open(&disk, 0).await.unwrap();
            let (mut all, mut next, mut time): (Vec<RecordRun>, _, _) = (Vec::new(), 0, 10);
            for (count, len, later, segment) in runs {
                time += later;
                let run = run(next, count, len, time);
                next = end(&run);
                if segment == 0 || all.is_empty() {
                    files.append_segment(AT, std::slice::from_ref(&run)).await.unwrap();
                } else {
                    files.append(AT, std::slice::from_ref(&run)).await.unwrap();
                }
                all.push(run);
            }
            files.sync().await.unwrap();
            for reopened in [files, open(&disk, next).await.unwrap()] {
                for (from, since) in &asked {
                    let found = reopened.find(AT, Offset(*from), Millis(*since)).await.unwrap();
                    let run = all.iter().find(|run| end(run) > *from && run.appended_at.0 >= *since);
                    let expected = run.map(|run| (run.base.max(Offset(*from)), run.appended_at));
                    assert_eq!(found, expected, "from {from} since {since}");
                }
            }
        });
    }
}

#[test]
fn a_time_in_a_large_file_is_found_with_few_reads() {
    block_on(async {
        let disk = disk(4);
        let files = open(&disk, 0).await.unwrap();
        for at in 0..2_000u64 {
            let run = run(at, 1, 7_000, at * 10);
            if at == 0 {
                files.append_segment(AT, &[run]).await.unwrap();
            } else {
                files.append(AT, &[run]).await.unwrap();
            }
        }
        files.sync().await.unwrap();
        for since in [0, 1, 9_995, 19_990, 19_991] {
            let found = files.find(AT, Offset(0), Millis(since)).await.unwrap();
            let expected = since.div_ceil(10);
            assert_eq!(found, (expected < 2_000).then_some((Offset(expected), Millis(expected * 10))));
        }
    });
}
