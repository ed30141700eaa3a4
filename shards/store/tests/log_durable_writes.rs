//! Commits that are one durable write: what a power cut, a torn or a failed one leaves in the log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use std::io;

use common::*;
use flowmesh_model::Lsn;
use flowmesh_sim::{Operation, SimDisk};
use flowmesh_store::log::{Log, LogError};

/// A log with three commits of a few pages each, and another that has gathered.
async fn with_one_gathered(disk: &SimDisk, seed: u64) -> Log<SimDisk> {
    let (mut log, ..) = open(disk, config(seed), Lsn(0)).await;
    for _ in 0..3 {
        prepare(&mut log).await.unwrap();
        append(&mut log, 5_000).unwrap();
        commit_at_once(&mut log).await.unwrap();
    }
    append(&mut log, 9_000).unwrap();
    append(&mut log, 100).unwrap();
    log
}

#[test]
fn a_commit_that_was_one_durable_write_survives_a_crash() {
    for seed in 0..32 {
        block_on(async {
            let disk = disk(seed);
            let mut log = with_one_gathered(&disk, seed).await;
            commit_at_once(&mut log).await.unwrap();
            assert_eq!((log.durable_lsn(), log.written_lsn()), (Lsn(5), Lsn(5)));
            let (_, _, entries) = open(&disk.crash(), config(seed + 1), Lsn(0)).await;
            assert_eq!(entries.len(), 5, "seed {seed}");
        });
    }
}

#[test]
fn one_that_is_torn_by_a_power_cut_is_cut_off_and_nothing_before_it() {
    let (mut whole, mut torn, mut nothing) = (0, 0, 0);
    for (seed, cut) in (0..48).flat_map(|seed| [(seed, 1), (seed, 2)]) {
        block_on(async {
            let disk = disk(seed);
            let mut log = with_one_gathered(&disk, seed).await;
            disk.power_cut_after(cut);
            let failed = commit_at_once(&mut log).await;
            assert!(matches!(failed, Err(LogError::Io { .. })), "{failed:?}");
            assert_eq!(log.durable_lsn(), Lsn(3), "it is not acknowledged");
            let (mut log, recovered, entries) = open(&disk.crash(), config(seed + 1), Lsn(0)).await;
            match (entries.len(), recovered.cut.is_some()) {
                (5, _) => whole += 1,
                (3, true) => torn += 1,
                (3, false) => nothing += 1,
                (found, _) => panic!("seed {seed}: {found} entries, a commit is whole or not there"),
            }
            // And the log goes on behind it.
            prepare(&mut log).await.unwrap();
            append(&mut log, 700).unwrap();
            commit_at_once(&mut log).await.unwrap();
            assert_eq!(log.durable_lsn().0, entries.len() as u64 + 1);
        });
    }
    assert!(whole > 0 && torn > 0 && nothing > 0, "{whole} whole, {torn} torn, {nothing} without effect");
}

#[test]
fn one_whose_write_or_sync_fails_says_so_and_loses_nothing_before_it() {
    for (operation, kind) in [
        (Operation::Write, io::ErrorKind::StorageFull),
        (Operation::Write, io::ErrorKind::Other),
        (Operation::Sync, io::ErrorKind::Other),
    ] {
        for seed in 0..16 {
            block_on(async {
                let disk = disk(seed);
                let mut log = with_one_gathered(&disk, seed).await;
                disk.fail(operation, 1, kind);
                let failed = commit_at_once(&mut log).await.unwrap_err();
                assert_eq!(failed.is_disk_full(), kind == io::ErrorKind::StorageFull, "{failed}");
                assert_eq!(log.durable_lsn(), Lsn(3));
                let (_, _, entries) = open(&disk.crash(), config(seed + 1), Lsn(0)).await;
                let found = entries.len();
                assert!(found == 3 || (found == 5 && operation == Operation::Sync), "seed {seed}: {found}");
            });
        }
    }
}

#[test]
fn a_log_with_writes_that_are_not_synced_is_not_clean_for_a_durable_one() {
    block_on(async {
        let disk = disk(1);
        let mut log = with_one_gathered(&disk, 1).await;
        write(&mut log).await.unwrap();
        assert!(!log.is_clean(), "what was written is not durable");
        commit(&mut log).await.unwrap();
        assert!(log.is_clean());
    });
}
