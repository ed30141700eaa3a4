//! A damaged log: in the middle it is refused by name, at the end it is cut.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::common::Home;
use crate::common::server::flip_byte;

/// Batches start at multiples of this, with this word.
const PAGE: usize = 4096;
const BATCH_MAGIC: &[u8] = b"FMB1";

/// A home whose log has many batches that no checkpoint covers, killed; how many records it has, all acknowledged.
async fn logged(home: &Home) -> usize {
    const RECORDS: usize = 60;
    let server = home.start();
    let mut client = server.client().await;
    for i in 0..RECORDS {
        client.append("logs", [format!("record {i} {:0>5000}", i)]).await.unwrap();
    }
    server.kill9();
    RECORDS
}

fn home() -> Home {
    Home::new().set("checkpoint_interval_ms", "1h")
}

/// The places of all batches of a shard's log, oldest first.
fn batches(home: &Home, shard: u16) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for path in home.log_files(shard) {
        let bytes = fs::read(&path).unwrap();
        let starts = (PAGE..bytes.len()).step_by(PAGE).filter(|at| bytes[*at..].starts_with(BATCH_MAGIC));
        found.extend(starts.map(|at| (path.clone(), at as u64)));
    }
    assert!(found.len() >= 10, "enough batches to have a middle: {}", found.len());
    found
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_with_shard_file_and_offset() {
    let home = home();
    logged(&home).await;
    let all = batches(&home, 0);
    let (file, at) = &all[all.len() / 2];
    let healthy = fs::read(file).unwrap();
    // In the batch's header, in an entry's header, in a record.
    for inside in [10, 70, 3000] {
        flip_byte(file, at + inside);
        let (_, said) = home.start_refused();
        let name = file.file_name().unwrap().to_str().unwrap();
        for wanted in ["shard 0", name, "damaged"] {
            assert!(said.contains(wanted), "byte {inside}: it should say {wanted}: {said}");
        }
        // The batch or the entry that cannot be read.
        let place =
            said.split("at byte ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let place = place.unwrap_or_else(|| panic!("byte {inside}: it should say where: {said}"));
        assert!((*at..=at + inside).contains(&place), "byte {inside} of {at}: {said}");
        // It does not make things worse: the same bytes, and the same answer again.
        home.start_refused();
        flip_byte(file, at + inside);
        assert!(fs::read(file).unwrap() == healthy, "a refused log is left as it is");
    }
    let server = home.start();
    assert_eq!(server.client().await.values("logs").await.len(), 60);
}

#[tokio::test]
async fn one_damaged_shard_keeps_the_server_down_and_is_named() {
    for damaged in [0, 1] {
        let home = home().shards(2);
        let server = home.start();
        let mut client = server.client().await;
        let entries: Vec<_> =
            (0..40).map(|i| crate::common::client::entry(format!("key{i}"), vec![1u8; 5000])).collect();
        for entry in &entries {
            client.set_entry("store", entry.clone()).await.unwrap();
        }
        server.kill9();
        let all = batches(&home, damaged);
        let (file, at) = &all[all.len() / 2];
        flip_byte(file, at + 10);
        let (_, said) = home.start_refused();
        assert!(said.contains(&format!("shard {damaged}")) && said.contains("damaged"), "{said}");
        flip_byte(file, at + 10);
        assert_eq!(home.start().client().await.scan("store", b"", 0).await.len(), 40);
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_log_goes_on() {
    let home = home();
    let records = logged(&home).await;
    let (file, at) = batches(&home, 0).pop().unwrap();
    // As after a power cut in the middle of the last write: its second half never arrived. (That it was acknowledged is
    // this test's lie; a write that was not synced is all that a real power cut can tear.)
    File::options().write(true).open(&file).unwrap().write_all_at(&[0u8; PAGE], at + PAGE as u64).unwrap();
    let server = home.start();
    let mut client = server.client().await;
    let left = client.values("logs").await.len();
    assert_eq!(left, records - 1, "only what was torn is gone");
    assert_eq!(client.append("logs", ["next"]).await.unwrap().base_offset, left as u64, "offsets stay dense");
    server.kill9();
    let server = home.start();
    let values = server.client().await.values("logs").await;
    assert_eq!((values.len(), values.last().unwrap().as_ref()), (records, &b"next"[..]));
}

#[tokio::test]
async fn a_missing_segment_is_refused_by_its_number() {
    let home = home();
    let server = home.start();
    let mut client = server.client().await;
    // Several segments of 16 MiB.
    for _ in 0..60 {
        client.append("logs", [vec![7u8; 1 << 20]]).await.unwrap();
    }
    server.kill9();
    let files = home.log_files(0);
    assert!(files.len() >= 4, "{files:?}");
    let hidden = home.scratch().join("hidden.log");
    let with_batches: Vec<PathBuf> = {
        let mut all: Vec<PathBuf> = batches(&home, 0).into_iter().map(|(file, _)| file).collect();
        all.dedup();
        all
    };
    fs::rename(&with_batches[1], &hidden).unwrap();
    let (_, said) = home.start_refused();
    assert!(said.contains("shard 0") && said.contains("missing"), "{said}");
    fs::rename(&hidden, &with_batches[1]).unwrap();
    let server = home.start();
    assert_eq!(server.client().await.values("logs").await.len(), 60);
}

#[tokio::test]
async fn a_segment_of_a_newer_format_is_refused() {
    let home = home();
    logged(&home).await;
    let file = home.log_files(0).remove(0);
    let mut head = fs::read(&file).unwrap()[..64].to_vec();
    head[8..12].copy_from_slice(&99u32.to_le_bytes());
    head[12..16].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &head[16..64]);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    File::options().write(true).open(&file).unwrap().write_all_at(&head, 0).unwrap();
    let (_, said) = home.start_refused();
    assert!(said.contains("format") && said.contains("99"), "{said}");
}
