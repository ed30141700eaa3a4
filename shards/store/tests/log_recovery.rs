//! The truth table of recovery: one test a row, and what cutting must never bring back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

mod common;

use bytes::BufMut;
use common::*;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{Lsn, ShardId};
use flowmesh_sim::SimDisk;
use flowmesh_store::log::{Damage, LogConfig, LogError, recover};

/// A disk with a log of durable entries, each in a batch of one page, and then some that were only written.
async fn with_entries(seed: u64, durable: usize, written: usize) -> SimDisk {
    let disk = disk(seed);
    let (mut log, ..) = open(&disk, config(seed), Lsn(0)).await;
    commit_each(&mut log, &vec![100; durable]).await;
    for _ in 0..written {
        append(&mut log, 100).unwrap();
        write(&mut log).await.unwrap();
    }
    disk
}

/// Three segments of durable entries of 100 KB.
async fn three_segments(seed: u64) -> SimDisk {
    let disk = disk(seed);
    let (mut log, ..) = open(&disk, config(seed), Lsn(0)).await;
    commit_each(&mut log, &[100_000; 25]).await;
    assert!(disk.file(&log_file(3)).is_some());
    disk
}

async fn error_of(disk: &SimDisk, applied: u64) -> LogError {
    let before: Vec<_> = disk.paths().into_iter().map(|path| (disk.file(&path), path)).collect();
    let error = try_open(disk, config(99), Lsn(applied)).await.err().expect("the log is refused");
    let after: Vec<_> = disk.paths().into_iter().map(|path| (disk.file(&path), path)).collect();
    assert!(before == after, "a refused log is left as it is");
    let text = error.to_string();
    assert!(text.starts_with("shard 0: ") && text.len() > 60, "{text}");
    error
}

#[test]
fn row_1_an_empty_directory_is_a_new_log() {
    block_on(async {
        let disk = disk(1);
        let (log, recovered, _) = open(&disk, config(1), Lsn(0)).await;
        assert_eq!((log.next_lsn(), log.first_lsn()), (Lsn(1), Lsn(1)));
        assert_eq!(recovered.cut, None);
        // And again, still empty.
        let (log, recovered, _) = open(&disk.crash(), config(1), Lsn(0)).await;
        assert_eq!((log.next_lsn(), recovered.cut), (Lsn(1), None));
    });
}

#[test]
fn row_2_a_log_that_is_gone_is_refused() {
    block_on(async {
        let empty = disk(1);
        assert!(matches!(error_of(&empty, 7).await, LogError::EndsEarly { applied: Lsn(7), .. }));
        empty.put_file(&log_file(1).with_extension("spare"), vec![0; 4096]);
        assert!(matches!(error_of(&empty, 0).await, LogError::EndsEarly { .. }));
    });
}

#[test]
fn row_3_a_clean_end_is_accepted() {
    block_on(async {
        let disk = with_entries(3, 5, 0).await;
        let (log, recovered, entries) = open(&disk, config(4), Lsn(0)).await;
        assert_eq!((entries.len(), recovered.cut, log.next_lsn()), (5, None, Lsn(6)));
        let (_, _, entries) = open(&disk, config(5), Lsn(3)).await;
        assert_eq!(entries.len(), 2, "what is applied is not delivered again");
    });
}

#[test]
fn row_3_old_bytes_of_a_recycled_segment_are_a_clean_end() {
    block_on(async {
        let disk = disk(3);
        let (mut log, ..) = open(&disk, config(3), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 30]).await;
        let trimmed = log.trim(Lsn(25)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        commit_each(&mut log, &[100_000; 11]).await;
        let head =
            disk.paths().into_iter().rfind(|path| path.extension().is_some_and(|e| e == "log")).unwrap();
        assert!(
            batches_in(&disk, &head).len() > 2,
            "the last segment is a recycled one, full of old batches"
        );
        let first = log.first_lsn();
        let (log, recovered, entries) = open(&disk, config(4), Lsn(first.0 - 1)).await;
        assert_eq!((recovered.cut, log.next_lsn()), (None, Lsn(42)));
        assert_eq!(entries.len() as u64, 42 - first.0);
    });
}

#[test]
fn row_4_a_torn_tail_is_cut() {
    for what in [Damage::BatchHeader, Damage::EntryChecksum, Damage::NoBatch, Damage::LsnGap] {
        block_on(async {
            let disk = with_entries(4, 5, 3).await;
            // The sixth entry was written and not synced; so were the seventh and eighth.
            let sixth = PAGE * 6;
            match what {
                Damage::BatchHeader => disk.flip_bit(&log_file(1), sixth + 50, 1),
                Damage::EntryChecksum => disk.flip_bit(&log_file(1), sixth + 100, 1),
                Damage::NoBatch => zero(&disk, sixth, PAGE),
                _ => copy_within(&disk, sixth + PAGE, sixth, PAGE),
            }
            let (mut log, recovered, entries) = open(&disk, config(5), Lsn(0)).await;
            let cut = recovered.cut.unwrap();
            assert_eq!((entries.len(), cut.lsn, cut.what), (5, Lsn(6), what));
            assert_eq!(cut.file, log_file(1));
            commit_each(&mut log, &[10]).await;
            let (_, _, entries) = open(&disk, config(6), Lsn(0)).await;
            assert_eq!(entries.len(), 6, "and what was behind the cut stays away");
        });
    }
}

#[test]
fn row_4_a_batch_that_ends_in_the_middle_of_the_file_is_cut() {
    block_on(async {
        let disk = disk(4);
        let (mut log, ..) = open(&disk, config(4), Lsn(0)).await;
        commit_each(&mut log, &[100]).await;
        append(&mut log, 14_000).unwrap();
        write(&mut log).await.unwrap();
        zero(&disk, 4 * PAGE, PAGE);
        let (_, recovered, entries) = open(&disk, config(5), Lsn(0)).await;
        assert_eq!((entries.len(), recovered.cut.unwrap().what), (1, Damage::EntryChecksum));
    });
}

#[test]
fn row_4_whole_segments_behind_the_cut_become_spares() {
    block_on(async {
        let disk = disk(4);
        let (mut log, ..) = open(&disk, config(4), Lsn(0)).await;
        commit_each(&mut log, &[100; 3]).await;
        for _ in 0..30 {
            prepare(&mut log).await.unwrap();
            append(&mut log, 100_000).unwrap();
            write(&mut log).await.unwrap();
        }
        zero(&disk, 4 * PAGE, PAGE);
        let (mut log, recovered, entries) = open(&disk, config(5), Lsn(0)).await;
        assert_eq!((entries.len(), recovered.cut.unwrap().lsn), (3, Lsn(4)));
        assert!(disk.file(&log_file(2)).is_none(), "segment 2 held nothing but lost entries");
        commit_each(&mut log, &[100_000; 15]).await;
        let (_, recovered, entries) = open(&disk, config(6), Lsn(0)).await;
        assert_eq!((entries.len(), recovered.cut), (18, None));
    });
}

#[test]
fn row_5_damage_in_the_middle_is_refused_and_named() {
    for (byte, expected) in [(40, Damage::BatchHeader), (110, Damage::EntryChecksum)] {
        block_on(async {
            let disk = with_entries(5, 8, 0).await;
            disk.flip_bit(&log_file(1), 3 * PAGE + byte, 3);
            match error_of(&disk, 0).await {
                LogError::Damaged { file, offset, lsn, what, .. } => {
                    assert_eq!((file, lsn, what), (log_file(1), Lsn(3), expected));
                    assert!((3 * PAGE..4 * PAGE).contains(&offset), "{offset}");
                }
                other => panic!("{other}"),
            }
        });
    }
}

#[test]
fn row_5_a_durable_batch_that_is_gone_is_damage() {
    block_on(async {
        let disk = with_entries(5, 8, 0).await;
        zero(&disk, 3 * PAGE, PAGE);
        assert!(matches!(
            error_of(&disk, 0).await,
            LogError::Damaged { lsn: Lsn(3), what: Damage::NoBatch, .. }
        ));
    });
}

#[test]
fn row_5_damage_at_a_segments_start_or_end_is_found_from_the_next_segment() {
    block_on(async {
        for (seq, place) in
            [(2, PAGE), (1, *batches_in(&three_segments(5).await, &log_file(1)).last().unwrap())]
        {
            let disk = three_segments(5).await;
            disk.flip_bit(&log_file(seq), place + 200, 0);
            match error_of(&disk, 0).await {
                LogError::Damaged { file, offset, .. } => {
                    assert_eq!(file, log_file(seq));
                    assert!((place..place + PAGE).contains(&offset));
                }
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn row_5_the_index_proves_that_the_last_batch_was_durable() {
    block_on(async {
        let disk = with_entries(5, 5, 0).await;
        disk.flip_bit(&log_file(1), 5 * PAGE + 100, 0);
        assert!(matches!(error_of(&disk, 5).await, LogError::Damaged { lsn: Lsn(5), .. }));
        let (_, recovered, _) = open(&disk, config(6), Lsn(0)).await;
        assert_eq!(recovered.cut.unwrap().lsn, Lsn(5), "without the index it looks like a torn tail");
    });
}

#[test]
fn row_6_a_log_that_ends_before_what_was_applied_is_refused() {
    block_on(async {
        let disk = with_entries(6, 5, 0).await;
        let error = error_of(&disk, 9).await;
        assert!(matches!(error, LogError::EndsEarly { applied: Lsn(9), next: Lsn(6), .. }), "{error}");
    });
}

#[test]
fn row_7_a_log_that_starts_too_late_is_refused() {
    block_on(async {
        let disk = disk(7);
        let (mut log, ..) = open(&disk, config(7), Lsn(0)).await;
        commit_each(&mut log, &[100_000; 25]).await;
        let trimmed = log.trim(Lsn(22)).unwrap().run().await.unwrap();
        log.trimmed(trimmed);
        let first = log.first_lsn();
        assert!(first > Lsn(11));
        let error = error_of(&disk, first.0 - 2).await;
        assert!(matches!(error, LogError::StartsLate { first: found, .. } if found == first), "{error}");
        open(&disk, config(8), Lsn(first.0 - 1)).await;
    });
}

#[test]
fn row_8_a_damaged_segment_header_is_refused() {
    block_on(async {
        for seq in [1, 3] {
            let disk = three_segments(8).await;
            disk.flip_bit(&log_file(seq), 42, 6);
            let error = error_of(&disk, 0).await;
            assert!(
                matches!(error, LogError::Damaged { what: Damage::SegmentHeader, offset: 0, .. }),
                "{error}"
            );
        }
    });
}

#[test]
fn row_8_a_file_of_another_length_is_refused() {
    block_on(async {
        let disk = with_entries(8, 5, 0).await;
        let mut bytes = disk.file(&log_file(1)).unwrap();
        bytes.truncate(3 * PAGE as usize);
        disk.put_file(&log_file(1), bytes);
        let error = error_of(&disk, 0).await;
        assert!(
            matches!(error, LogError::Damaged { what: Damage::SegmentLength, offset: 12_288, .. }),
            "{error}"
        );
    });
}

#[test]
fn row_9_a_newer_format_is_refused() {
    block_on(async {
        let disk = with_entries(9, 5, 0).await;
        let mut bytes = disk.file(&log_file(1)).unwrap();
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        disk.put_file(&log_file(1), bytes);
        let error = error_of(&disk, 0).await;
        assert!(matches!(error, LogError::NewerFormat { version: 2, known: 1, .. }), "{error}");
    });
}

#[test]
fn row_10_another_shards_log_is_refused() {
    block_on(async {
        let disk = disk(10);
        let mut other = config(10);
        other.shard = ShardId(4);
        let (mut log, ..) = open(&disk, other, Lsn(0)).await;
        commit_each(&mut log, &[10]).await;
        let error = error_of(&disk, 0).await;
        assert!(matches!(error, LogError::WrongShard { found: ShardId(4), .. }), "{error}");
    });
}

#[test]
fn row_11_a_copied_segment_is_refused() {
    block_on(async {
        let disk = with_entries(11, 5, 0).await;
        disk.put_file(&log_file(7), disk.file(&log_file(1)).unwrap());
        let error = error_of(&disk, 0).await;
        assert!(matches!(error, LogError::SegmentMisnamed { inside: 1, .. }), "{error}");
    });
}

#[test]
fn row_12_a_missing_segment_is_refused() {
    block_on(async {
        let disk = three_segments(12).await;
        disk.remove_file(&log_file(2));
        let error = error_of(&disk, 0).await;
        assert!(matches!(error, LogError::SegmentMissing { missing: 2, .. }), "{error}");
        // Without it, but needed only from the third on: nothing is missing.
        let (mut log, ..) = open(&three_segments(12).await, config(1), Lsn(0)).await;
        commit(&mut log).await.unwrap();
        let (_, _, entries) = open(&disk, config(1), Lsn(24)).await;
        assert_eq!(entries.len(), 1);
    });
}

#[test]
fn row_13_an_entry_nobody_understands_is_refused() {
    block_on(async {
        let disk = with_entries(13, 5, 0).await;
        let refuse = |entry: flowmesh_store::log::Entry| {
            if entry.lsn == Lsn(3) { Err(Malformed("unknown fact")) } else { Ok(()) }
        };
        let error = recover(&disk, config(1), Lsn(0), refuse).await.err().unwrap();
        assert!(
            matches!(error, LogError::Undecodable { lsn: Lsn(3), reason: "unknown fact", .. }),
            "{error}"
        );
    });
}

#[test]
fn rows_14_and_15_unfinished_files_go_and_foreign_ones_stay() {
    block_on(async {
        let disk = with_entries(14, 5, 0).await;
        let foreign = shard_dir().join("log/notes.txt");
        disk.put_file(&foreign, b"mine".to_vec());
        disk.put_file(&log_file(8).with_extension("new"), vec![1; 4096]);
        disk.put_file(&log_file(9).with_extension("cut"), vec![1; 4096]);
        let (mut log, ..) = open(&disk, LogConfig { segments_ahead: 2, ..config(1) }, Lsn(0)).await;
        prepare(&mut log).await.unwrap();
        let names: Vec<_> = disk.paths();
        assert!(names.contains(&foreign));
        assert!(names.iter().all(|path| path.extension().is_some_and(|e| e != "new" && e != "cut")));
        assert!(names.contains(&log_file(10)), "a number is never used twice: {names:?}");
    });
}

#[test]
fn what_was_cut_never_comes_back() {
    // Batch A is torn, batch B behind it survives. The new A' has A's LSN and size, so B's place and LSN fit again.
    block_on(async {
        let disk = with_entries(20, 3, 2).await;
        zero(&disk, 4 * PAGE, PAGE);
        let (mut log, recovered, _) = open(&disk, config(21), Lsn(0)).await;
        assert_eq!(recovered.cut.unwrap().lsn, Lsn(4));
        append(&mut log, 100).unwrap();
        commit(&mut log).await.unwrap();
        let (log, _, entries) = open(&disk.crash(), config(22), Lsn(0)).await;
        assert_eq!((entries.len(), log.next_lsn()), (4, Lsn(5)), "B is of an earlier run than A'");
    });
}

#[test]
fn a_lost_entry_never_completes_a_new_torn_batch() {
    // The header of batch A is lost, its entries' bytes are not. A' has the same entries and is written over it, and
    // only its first sector survives.
    block_on(async {
        let disk = with_entries(20, 3, 0).await;
        let two_entries = async |seed| {
            let (mut log, _, entries) = open(&disk, config(seed), Lsn(0)).await;
            assert_eq!(entries.len(), 3);
            append(&mut log, 1_000).unwrap();
            append(&mut log, 1_000).unwrap();
            write(&mut log).await.unwrap();
            disk.file(&log_file(1)).unwrap()
        };
        let a = two_entries(21).await;
        zero(&disk, 4 * PAGE, 512);
        let mut torn = two_entries(22).await;
        let (from, to) = (4 * PAGE as usize + 512, 5 * PAGE as usize);
        torn[from..to].copy_from_slice(&a[from..to]);
        disk.put_file(&log_file(1), torn);
        let (_, recovered, entries) = open(&disk, config(23), Lsn(0)).await;
        assert_eq!((entries.len(), recovered.cut.unwrap().what), (3, Damage::EntryChecksum));
    });
}

#[test]
fn a_client_cannot_forge_a_batch() {
    // A record whose bytes are a whole page of the log, batch header and all, one page further on.
    block_on(async {
        let disk = with_entries(24, 3, 0).await;
        let forged = disk.file(&log_file(1)).unwrap()[3 * PAGE as usize..4 * PAGE as usize].to_vec();
        let (mut log, ..) = open(&disk, config(25), Lsn(0)).await;
        // Everything but the salt can be guessed: take a real header of this segment and give it another salt.
        let mut forged = forged;
        forged[24..32].copy_from_slice(&7u64.to_le_bytes());
        forged[48..56].copy_from_slice(&1_000u64.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&forged[..4]), &forged[8..64]);
        forged[4..8].copy_from_slice(&crc.to_le_bytes());
        let entry_start = 64 + 24;
        let padding = PAGE as usize - entry_start;
        log.append(flowmesh_model::Millis(4), 2 * PAGE as usize, |out| {
            out.put_bytes(0, padding);
            out.put_slice(&forged);
        })
        .unwrap();
        write(&mut log).await.unwrap();
        assert!(
            batches_in(&disk, &log_file(1)).contains(&(5 * PAGE)),
            "the forged header lies at the start of a page"
        );
        zero(&disk, 4 * PAGE, 512);
        let (log, recovered, _) = try_open(&disk, config(26), Lsn(0)).await.unwrap();
        assert_eq!((log.next_lsn(), recovered.cut), (Lsn(4), None), "it proves nothing");
    });
}

#[test]
fn every_flipped_bit_is_found_or_harmless() {
    // A segment with a few durable batches, the last one known to be durable: any flip is refused, or hits padding.
    block_on(async {
        let disk = with_entries(30, 3, 0).await;
        let good = disk.file(&log_file(1)).unwrap();
        let (mut refused, mut harmless) = (0, 0);
        for byte in (0..4 * PAGE).filter(|byte| byte % PAGE < 300 || byte % 97 == 0) {
            disk.put_file(&log_file(1), good.clone());
            disk.flip_bit(&log_file(1), byte, (byte % 8) as u8);
            if try_open(&disk, config(31), Lsn(3)).await.is_err() {
                refused += 1;
                continue;
            }
            harmless += 1;
            let entries_end = 64 + 24 + 108;
            let in_padding = if byte < PAGE { byte >= 64 } else { byte % PAGE >= entries_end };
            // With all applied, only the last segment's batches up to LSN 3 are read: all three of them.
            assert!(in_padding, "byte {byte} was flipped unnoticed");
        }
        assert!(refused > 600 && harmless > 100, "{refused} refused, {harmless} harmless");
    });
}

#[test]
fn what_recovery_handed_over_is_durable() {
    // The process is killed: what was only written is read back. Then the power fails.
    block_on(async {
        for seed in 0..20 {
            let disk = with_entries(seed, 2, 3).await;
            disk.restart();
            let (_, _, entries) = open(&disk, config(41), Lsn(0)).await;
            assert_eq!(entries.len(), 5);
            let (_, _, entries) = open(&disk.crash(), config(42), Lsn(0)).await;
            assert_eq!(entries.len(), 5);
        }
    });
}

#[test]
fn a_failed_recovery_can_be_tried_again() {
    block_on(async {
        let disk = with_entries(40, 5, 1).await;
        for nth in 1..6 {
            disk.fail(flowmesh_sim::Operation::Read, nth, std::io::ErrorKind::TimedOut);
            let outcome = try_open(&disk, config(41), Lsn(0)).await;
            assert!(outcome.is_ok() || matches!(outcome, Err(LogError::Io { .. })));
        }
        let (log, ..) = open(&disk, config(42), Lsn(0)).await;
        assert_eq!(log.next_lsn(), Lsn(7));
    });
}

fn zero(disk: &SimDisk, at: u64, bytes: u64) {
    let mut file = disk.file(&log_file(1)).unwrap();
    file[at as usize..(at + bytes) as usize].fill(0);
    disk.put_file(&log_file(1), file);
}

fn copy_within(disk: &SimDisk, from: u64, to: u64, bytes: u64) {
    let mut file = disk.file(&log_file(1)).unwrap();
    file.copy_within(from as usize..(from + bytes) as usize, to as usize);
    disk.put_file(&log_file(1), file);
}
