//! Random entries, random commits, a crash at a random operation, again and again: everything that was durable is
//! there, and what is there is what was appended, in order, without a gap, and nothing that was cut before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use std::collections::BTreeMap;

use bytes::BufMut;
use common::*;
use flowmesh_model::{Lsn, Millis};
use flowmesh_sim::{Random, SimDisk};
use flowmesh_store::log::{Entry, Log, LogError, LogFull, recover};
use proptest::prelude::*;

/// What the log must hold: bodies by LSN, and what is known to be durable.
#[derive(Default)]
struct Model {
    appended: BTreeMap<u64, Vec<u8>>,
    durable: u64,
    applied: u64,
}

impl Model {
    /// Compares with what a recovery delivered; what was lost is forgotten.
    fn recovered(&mut self, entries: &[Entry]) {
        let mut next = self.applied + 1;
        for entry in entries {
            assert_eq!(entry.lsn, Lsn(next), "no gap");
            assert_eq!(entry.time, Millis(next * 3));
            let body = self.appended.get(&next).expect("nothing but what was appended last under this LSN");
            assert!(entry.body == body[..], "LSN {next} has other bytes");
            next += 1;
        }
        assert!(next > self.durable, "durable up to {}, found up to {}", self.durable, next - 1);
        self.appended.split_off(&next);
        self.durable = next - 1;
    }
}

struct Run<'a> {
    log: Log<SimDisk>,
    model: &'a mut Model,
    random: Random,
    /// Unique, so that no entry equals one that was lost.
    life: u64,
}

impl Run<'_> {
    async fn step(&mut self) -> Result<(), LogError> {
        match self.random.below(20) {
            0..10 => self.append().await,
            10..13 => write(&mut self.log).await,
            13..17 => {
                let at_once = self.log.is_clean() && self.random.coin();
                let outcome =
                    if at_once { commit_at_once(&mut self.log).await } else { commit(&mut self.log).await };
                self.model.durable = self.log.durable_lsn().0;
                outcome
            }
            17 => self.overlapping().await,
            18 => prepare(&mut self.log).await,
            _ => self.trim().await,
        }
    }

    async fn append(&mut self) -> Result<(), LogError> {
        let lsn = self.log.next_lsn();
        let len = match self.random.below(8) {
            0 => 0,
            1 => self.random.below(60_000),
            2 => self.random.below(300_000),
            _ => self.random.below(700),
        };
        let mut body = format!("{lsn} of life {}", self.life).into_bytes();
        body.extend((0..len).map(|at| (at ^ self.life) as u8));
        match self.log.append(Millis(lsn.0 * 3), body.len() + 5, |out| out.put_slice(&body)) {
            Ok(taken) => {
                assert_eq!(taken, lsn);
                self.model.appended.insert(lsn.0, body);
                Ok(())
            }
            Err(LogFull::Buffers) => write(&mut self.log).await,
            Err(LogFull::NoSegment | LogFull::DiskFull) => prepare(&mut self.log).await,
            Err(other @ LogFull::EntryTooLarge { .. }) => panic!("{other}"),
        }
    }

    /// Two batches in flight, landing in the wrong order.
    async fn overlapping(&mut self) -> Result<(), LogError> {
        let first = self.log.take_batch();
        self.append().await?;
        let second = self.log.take_batch();
        for batch in [second, first].into_iter().flatten() {
            let written = batch.write().await?;
            self.log.written(written);
        }
        Ok(())
    }

    /// Trims to somewhere durable, as a checkpoint does.
    async fn trim(&mut self) -> Result<(), LogError> {
        let applied = self.model.applied + self.random.below(self.model.durable - self.model.applied + 1);
        self.model.applied = applied;
        if let Some(work) = self.log.trim(Lsn(applied)) {
            let trimmed = work.run().await?;
            self.log.trimmed(trimmed);
        }
        Ok(())
    }
}

async fn recover_into(model: &mut Model, disk: &SimDisk, seed: u64) -> Result<Log<SimDisk>, LogError> {
    let mut entries = Vec::new();
    let keep = |entry| {
        entries.push(entry);
        Ok(())
    };
    let (log, _) = recover(disk, config(seed), Lsn(model.applied), keep).await?;
    model.recovered(&entries);
    Ok(log)
}

async fn lives(seed: u64, cuts: &[u64]) {
    let mut disk = disk(seed);
    let mut model = Model::default();
    let mut random = Random::new(seed);
    for (life, &cut) in cuts.iter().enumerate() {
        disk.power_cut_after(cut);
        // Recovery itself may be cut off, too.
        if let Ok(log) = recover_into(&mut model, &disk, random.next_u64()).await {
            let random = Random::new(random.next_u64());
            let mut run = Run { log, model: &mut model, random, life: life as u64 };
            while run.step().await.is_ok() {}
        }
        // A process that was killed leaves what was written to be read, and to be lost later.
        if random.below(3) == 0 {
            disk.restart();
        } else {
            disk = disk.crash();
        }
    }
    let log =
        recover_into(&mut model, &disk, random.next_u64()).await.expect("a log that was not damaged opens");
    assert_eq!(log.durable_lsn().0, model.durable);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_durable_survives_any_crash(seed: u64, cuts in proptest::collection::vec(1u64..150, 1..8)) {
        block_on(lives(seed, &cuts));
    }

    #[test]
    fn a_truncation_that_is_cut_off_leaves_a_prefix(seed: u64, cut in 1u64..60, batches in 1u64..30, keep in 1u64..200) {
        block_on(async {
            let disk = disk(seed);
            let mut random = Random::new(seed);
            let (mut log, ..) = open(&disk, config(seed), Lsn(0)).await;
            for _ in 0..batches {
                prepare(&mut log).await.unwrap();
                for _ in 0..=random.below(5) {
                    let len = if random.coin() { random.below(150_000) } else { random.below(500) };
                    if append(&mut log, len as usize).is_err() {
                        break;
                    }
                }
                commit(&mut log).await.unwrap();
            }
            let (all, keep) = (log.durable_lsn().0, keep.min(log.durable_lsn().0));
            disk.power_cut_after(cut);
            let done = log.truncate_after(Lsn(keep)).await.is_ok();
            let (log, _, entries) = open(&disk.crash(), config(seed + 1), Lsn(0)).await;
            let found = entries.len() as u64;
            assert!((keep..=all).contains(&found), "{found} entries, wanted {keep} to {all}");
            assert!(!done || found == keep);
            assert_eq!(log.next_lsn().0, found + 1);
        });
    }
}
