//! The log as the engine uses it: gathering, committing, rolling, trimming, pushing back, and failing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use std::io::ErrorKind;

use bytes::BufMut;
use common::*;
use flowmesh_model::{Lsn, Millis};
use flowmesh_sim::{Operation, SimDisk};
use flowmesh_store::log::{Entry, Log, LogConfig, LogError, LogFull};

#[test]
fn what_gathers_is_one_batch_and_comes_back_in_order() {
    block_on(async {
        let disk = disk(1);
        let (mut log, ..) = open(&disk, config(1), Lsn(0)).await;
        assert!(log.take_batch().is_none() && log.sync_job().is_none());
        for len in [0, 1, 100, 4_000] {
            append(&mut log, len).unwrap();
        }
        assert_eq!((log.written_lsn(), log.durable_lsn()), (Lsn(0), Lsn(0)));
        let batch = log.take_batch().unwrap();
        assert_eq!((batch.entries(), batch.last_lsn()), (4, Lsn(4)));
        assert!(batch.bytes() < 3 * PAGE, "a small batch is a small write, whatever the buffer's size");
        let written = batch.write().await.unwrap();
        log.written(written);
        assert_eq!((log.written_lsn(), log.durable_lsn()), (Lsn(4), Lsn(0)));
        let job = log.sync_job().unwrap();
        assert!(log.sync_job().is_none(), "one sync at a time");
        let synced = job.run().await.unwrap();
        log.durable(synced);
        assert_eq!(log.durable_lsn(), Lsn(4));
        let (_, _, entries) = open(&disk.crash(), config(2), Lsn(0)).await;
        assert_eq!(entries.iter().map(|entry| entry.body.len() - 8).collect::<Vec<_>>(), [0, 1, 100, 4_000]);
    });
}

#[test]
fn the_next_batch_fills_while_one_is_written() {
    block_on(async {
        let disk = disk(2);
        let (mut log, ..) = open(&disk, config(2), Lsn(0)).await;
        append(&mut log, 10).unwrap();
        let first = log.take_batch().unwrap();
        append(&mut log, 20).unwrap();
        let second = log.take_batch().unwrap();
        // The second one lands first: nothing counts as written before the gap is closed.
        let written = second.write().await.unwrap();
        log.written(written);
        assert_eq!(log.written_lsn(), Lsn(0));
        assert!(log.sync_job().is_none());
        let written = first.write().await.unwrap();
        log.written(written);
        assert_eq!(log.written_lsn(), Lsn(2));
        commit(&mut log).await.unwrap();
        let (_, _, entries) = open(&disk, config(3), Lsn(0)).await;
        assert_eq!(entries.len(), 2);
    });
}

#[test]
fn the_largest_entry_fits_and_a_larger_one_is_refused() {
    block_on(async {
        let disk = disk(3);
        let config =
            LogConfig { segment_bytes: 16 * MIB, buffered_bytes_max: 16 * MIB as usize, ..config(3) };
        let max = config.body_bytes_max();
        assert_eq!(max, flowmesh_model::limits::ENTRY_BYTES_MAX);
        let (mut log, ..) = open(&disk, config.clone(), Lsn(0)).await;
        append(&mut log, 10).unwrap();
        log.append(Millis(2), max, |out| out.put_slice(&body(Lsn(2), max - 8))).unwrap();
        append(&mut log, 10).unwrap();
        let refused =
            log.append(Millis(4), max + 1, |_| panic!("a refused entry is not encoded")).unwrap_err();
        assert_eq!(refused, LogFull::EntryTooLarge { bytes: max + 1, max });
        commit(&mut log).await.unwrap();
        let (_, _, entries) = open(&disk, config, Lsn(0)).await;
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].body.len(), max);
    });
}

#[test]
fn full_buffers_push_back_until_they_are_written() {
    block_on(async {
        let disk = disk(4);
        let (mut log, ..) = open(&disk, config(4), Lsn(0)).await;
        let full = loop {
            if let Err(full) = append(&mut log, 3_000) {
                break full;
            }
        };
        assert_eq!(full, LogFull::Buffers);
        assert!(log.buffered_bytes() <= config(4).buffered_bytes_max);
        let batch = log.take_batch().unwrap();
        assert_eq!(append(&mut log, 3_000), Err(LogFull::Buffers), "memory in flight counts");
        let written = batch.write().await.unwrap();
        log.written(written);
        append(&mut log, 3_000).unwrap();
        commit(&mut log).await.unwrap();
        assert_eq!(log.buffered_bytes(), 0);
        let (_, _, entries) = open(&disk, config(5), Lsn(0)).await;
        assert_eq!(entries.len() as u64, log.durable_lsn().0);
    });
}

#[test]
fn segments_roll_and_trimmed_ones_are_recycled() {
    block_on(async {
        let disk = disk(5);
        let (mut log, ..) = open(&disk, config(5), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 95]).await;
        assert!(log.trim(Lsn(5)).is_none(), "the first segment holds entries after 5");
        let before = log.log_bytes();
        let trimmed = log.trim(Lsn(60)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        assert!(log.log_bytes() < before && log.first_lsn() <= Lsn(61) && log.first_lsn() > Lsn(40));
        let spares = |disk: &SimDisk| {
            disk.paths().iter().filter(|path| path.extension().is_some_and(|e| e == "spare")).count()
        };
        assert_eq!(spares(&disk), config(5).spares_max, "the others are removed");
        disk.set_space(Some(disk.used_bytes()));
        commit_each(&mut log, &[100_000; 20]).await;
        assert_eq!(spares(&disk), 0, "with no space left, the spares were used");
        let applied = Lsn(log.first_lsn().0 - 1);
        let (log, ..) = open(&disk.crash(), config(6), applied).await;
        assert_eq!(log.durable_lsn(), Lsn(115));
    });
}

#[test]
fn the_last_durable_batch_is_never_trimmed() {
    block_on(async {
        let disk = disk(6);
        let (mut log, ..) = open(&disk, config(6), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 10]).await;
        // The next entry rolls, and is not durable yet.
        prepare(&mut log).await.unwrap();
        append(&mut log, 100_000).unwrap();
        assert!(log.trim(Lsn(10)).is_none());
        commit(&mut log).await.unwrap();
        let trimmed = log.trim(Lsn(11)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        assert_eq!(log.first_lsn(), Lsn(11));
        let (log, ..) = open(&disk.crash(), config(7), Lsn(11)).await;
        assert_eq!(log.next_lsn(), Lsn(12));
    });
}

#[test]
fn a_full_disk_pushes_back_and_space_brings_the_log_back() {
    block_on(async {
        let disk = disk(7);
        let (mut log, ..) = open(&disk, config(7), Lsn(0)).await;
        disk.set_space(Some(disk.used_bytes()));
        let full = prepare(&mut log).await.unwrap_err();
        assert!(full.is_disk_full(), "{full}");
        let full = loop {
            match append(&mut log, 100_000) {
                Ok(_) => commit(&mut log).await.unwrap(),
                Err(full) => break full,
            }
        };
        assert_eq!(full, LogFull::DiskFull);
        append(&mut log, 10).unwrap();
        commit(&mut log).await.unwrap();
        let last = log.durable_lsn();
        assert!(last > Lsn(8), "what fits the segment is still taken");
        disk.set_space(None);
        prepare(&mut log).await.unwrap();
        append(&mut log, 100_000).unwrap();
        commit(&mut log).await.unwrap();
        let (_, _, entries) = open(&disk.crash(), config(8), Lsn(0)).await;
        assert_eq!(entries.len() as u64, last.0 + 1);
        assert!(disk.paths().iter().all(|path| path.extension().is_some_and(|e| e != "new")));
    });
}

#[test]
fn a_segment_that_is_not_ready_is_told_apart_from_a_full_disk() {
    block_on(async {
        let disk = disk(8);
        let (mut log, ..) = open(&disk, config(8), Lsn(0)).await;
        let request = log.wants_segment().unwrap();
        assert!(log.wants_segment().is_none(), "one at a time");
        let full = loop {
            match append(&mut log, 100_000) {
                Ok(_) => commit(&mut log).await.unwrap(),
                Err(full) => break full,
            }
        };
        assert_eq!(full, LogFull::NoSegment);
        log.segment_prepared(request.prepare().await);
        append(&mut log, 100_000).unwrap();
    });
}

#[test]
fn a_failed_preparation_leaves_a_log_that_opens() {
    block_on(async {
        for operation in
            [Operation::Create, Operation::Write, Operation::Sync, Operation::Names, Operation::SyncDir]
        {
            let disk = disk(9);
            let (mut log, ..) = open(&disk, config(9), Lsn(0)).await;
            append(&mut log, 10).unwrap();
            commit(&mut log).await.unwrap();
            disk.fail(operation, 1, ErrorKind::TimedOut);
            prepare(&mut log).await.unwrap_err();
            prepare(&mut log).await.unwrap();
            commit_each(&mut log, &[100_000; 15]).await;
            let (_, _, entries) = open(&disk.crash(), config(10), Lsn(0)).await;
            assert_eq!(entries.len(), 16, "after a failed {operation:?}");
        }
    });
}

#[test]
fn failed_writes_and_syncs_are_named_and_nothing_counts() {
    block_on(async {
        for (operation, kind) in [
            (Operation::Write, ErrorKind::TimedOut),
            (Operation::Write, ErrorKind::StorageFull),
            (Operation::Sync, ErrorKind::TimedOut),
        ] {
            let disk = disk(11);
            let (mut log, ..) = open(&disk, config(11), Lsn(0)).await;
            commit_each(&mut log, &[10, 10]).await;
            append(&mut log, 10).unwrap();
            disk.fail(operation, 1, kind);
            let error = commit(&mut log).await.unwrap_err();
            assert_eq!(error.is_disk_full(), kind == ErrorKind::StorageFull);
            assert!(matches!(&error, LogError::Io { file, .. } if *file == log_file(1)), "{error}");
            assert_eq!(log.durable_lsn(), Lsn(2));
            assert!(log.sync_job().is_none(), "a sync that failed is not tried again");
        }
    });
}

#[test]
fn memory_counts_and_forgets() {
    let mut log = Log::<SimDisk>::in_memory();
    for lsn in 1..=3 {
        let taken = log.append(Millis(1), 10, |_| panic!("nothing is encoded")).unwrap();
        assert_eq!((taken, log.durable_lsn(), log.written_lsn()), (Lsn(lsn), Lsn(lsn), Lsn(lsn)));
    }
    assert!(log.take_batch().is_none() && log.sync_job().is_none() && log.wants_segment().is_none());
    assert!(log.trim(Lsn(3)).is_none() && log.range(Lsn(1), Lsn(2)).is_none());
    assert_eq!((log.log_bytes(), log.buffered_bytes(), log.next_lsn()), (0, 0, Lsn(4)));
}

#[test]
fn a_wrong_setting_is_named() {
    block_on(async {
        let disk = disk(12);
        for (setting, config) in [
            ("segment_bytes", LogConfig { segment_bytes: 4096, ..config(1) }),
            ("segment_bytes", LogConfig { segment_bytes: MIB + 1, ..config(1) }),
            ("buffer_bytes", LogConfig { buffer_bytes: 1000, ..config(1) }),
            ("buffered_bytes_max", LogConfig { buffered_bytes_max: 16 * 1024, ..config(1) }),
            ("segments_ahead", LogConfig { segments_ahead: 0, ..config(1) }),
        ] {
            match try_open(&disk, config, Lsn(0)).await.err().unwrap() {
                LogError::Config { setting: named, .. } => assert_eq!(named, setting),
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn another_segment_size_takes_over_old_segments() {
    block_on(async {
        let disk = disk(13);
        let (mut log, ..) = open(&disk, config(13), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 35]).await;
        let trimmed = log.trim(Lsn(35)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        let applied = Lsn(log.first_lsn().0 - 1);
        let larger = LogConfig { segment_bytes: 2 * MIB, ..config(14) };
        let (mut log, ..) = open(&disk, larger.clone(), applied).await;
        commit_each(&mut log, &[100_000; 45]).await;
        let (log, ..) = open(&disk, larger, applied).await;
        assert_eq!(log.next_lsn(), Lsn(81));
    });
}

async fn read_back(log: &Log<SimDisk>, from: u64, to: u64) -> Result<Vec<Entry>, LogError> {
    let mut entries = Vec::new();
    let range = log.range(Lsn(from), Lsn(to)).expect("the log holds the range");
    range.run(|entry| entries.push(entry)).await?;
    check_entries(&entries, Lsn(from - 1));
    assert_eq!(entries.len() as u64, to + 1 - from);
    Ok(entries)
}

#[test]
fn ranges_are_read_back() {
    block_on(async {
        let disk = disk(20);
        let (mut log, ..) = open(&disk, config(20), Lsn(0)).await;
        for _ in 0..3 {
            commit_each(&mut log, &[100_000; 9]).await;
            for _ in 0..7 {
                append(&mut log, 50).unwrap();
            }
            commit(&mut log).await.unwrap();
        }
        for (from, to) in [(1, 48), (1, 1), (48, 48), (5, 30), (11, 13)] {
            read_back(&log, from, to).await.unwrap();
        }
        append(&mut log, 10).unwrap();
        for (from, to) in [(0, 3), (5, 49), (9, 8)] {
            assert!(log.range(Lsn(from), Lsn(to)).is_none(), "{from} to {to}");
        }
        let range = log.range(Lsn(1), Lsn(20)).unwrap();
        let trimmed = log.trim(Lsn(40)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        let gone = range.run(|_| {}).await.unwrap_err();
        assert!(matches!(gone, LogError::OutOfRange { from: Lsn(1), .. }), "{gone}");
        read_back(&log, log.first_lsn().0, 48).await.unwrap();
    });
}

#[test]
fn a_suffix_is_cut_off_for_good() {
    for keep in [1, 9, 10, 11, 14, 20, 39, 40] {
        block_on(async {
            let disk = disk(30);
            let (mut log, ..) = open(&disk, config(30), Lsn(0)).await;
            commit_each(&mut log, &[100_000; 10]).await;
            for _ in 0..10 {
                append(&mut log, 50).unwrap();
            }
            commit(&mut log).await.unwrap();
            commit_each(&mut log, &[100_000; 20]).await;
            let mut log = log.truncate_after(Lsn(keep)).await.unwrap();
            assert_eq!((log.next_lsn(), log.durable_lsn()), (Lsn(keep + 1), Lsn(keep)));
            let (_, _, entries) = open(&disk.crash(), config(31), Lsn(0)).await;
            assert_eq!(entries.len() as u64, keep);
            commit_each(&mut log, &[77; 5]).await;
            let (log, _, entries) = open(&disk.crash(), config(32), Lsn(0)).await;
            assert_eq!(entries.len() as u64, keep + 5);
            read_back(&log, 1, keep + 5).await.unwrap();
        });
    }
}

#[test]
fn truncation_before_the_log_is_refused() {
    block_on(async {
        let disk = disk(33);
        let (mut log, ..) = open(&disk, config(33), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 15]).await;
        let trimmed = log.trim(Lsn(15)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        let refused = log.truncate_after(Lsn(3)).await.err().unwrap();
        assert!(matches!(refused, LogError::OutOfRange { to: Lsn(3), .. }), "{refused}");
    });
}
