//! The index on a real directory: atomic checkpoints, small and large, scans, identity.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::{IndexWrite, Lsn, ShardId, Space};
use flowmesh_store::index::{Index, IndexConfig, IndexError};
use futures::executor::block_on;

fn config(dir: &Path) -> IndexConfig {
    IndexConfig { batch_bytes_max: 64 * 1024, ..IndexConfig::new(dir, ShardId(3)) }
}

fn set(space: Space, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> IndexWrite {
    let (key, value) = (Bytes::copy_from_slice(key.as_ref()), Bytes::copy_from_slice(value.as_ref()));
    IndexWrite { space, key, value: Some(value) }
}

fn remove(space: Space, key: impl AsRef<[u8]>) -> IndexWrite {
    IndexWrite { space, key: Bytes::copy_from_slice(key.as_ref()), value: None }
}

async fn all(index: &Index, space: Space) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut last = Vec::new();
    index
        .scan_all(space, |key, value| {
            assert!(found.is_empty() || key[..] > last[..], "keys come in order");
            last = key.to_vec();
            found.insert(key.to_vec(), value.to_vec());
            Ok(())
        })
        .await
        .unwrap();
    found
}

#[test]
fn a_new_index_is_empty_and_a_commit_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, applied) = Index::open(config(dir.path())).await.unwrap();
        assert_eq!(applied, Lsn(0));
        let writes = vec![set(Space::Meta, "a", "1"), set(Space::Jobs, "a", "2"), set(Space::Keys, "b", "3")];
        index.commit(writes, Lsn(7)).await.unwrap();
        index.commit(vec![remove(Space::Jobs, "a"), set(Space::Meta, "a", "4")], Lsn(9)).await.unwrap();
        index.shutdown().await.unwrap();
        let (index, applied) = Index::open(config(dir.path())).await.unwrap();
        assert_eq!(applied, Lsn(9));
        assert_eq!(index.get(Space::Meta, "a".into()).await.unwrap().as_deref(), Some(&b"4"[..]));
        assert_eq!(index.get(Space::Jobs, "a".into()).await.unwrap(), None);
        assert_eq!(all(&index, Space::Keys).await, BTreeMap::from([(b"b".to_vec(), b"3".to_vec())]));
    });
}

#[test]
fn an_empty_commit_moves_the_lsn() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        index.commit(Vec::new(), Lsn(5)).await.unwrap();
        index.shutdown().await.unwrap();
        assert_eq!(Index::open(config(dir.path())).await.unwrap().1, Lsn(5));
    });
}

#[test]
fn a_large_checkpoint_is_as_atomic_as_a_small_one() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        index
            .commit(vec![set(Space::Keys, "key-00005", "old"), set(Space::Keys, "x", "old")], Lsn(1))
            .await
            .unwrap();
        let checkpoint = index.checkpoint();
        for chunk in 0..20u32 {
            let keys = (chunk * 100..chunk * 100 + 100).map(|n| format!("key-{n:05}"));
            checkpoint.add(keys.map(|key| set(Space::Keys, &key, vec![1; 200])).collect()).await.unwrap();
            let seen = index.get(Space::Keys, "key-00005".into()).await.unwrap();
            assert_eq!(seen.as_deref(), Some(&b"old"[..]), "nothing is visible before the commit");
        }
        checkpoint.add(vec![remove(Space::Keys, "key-00007"), remove(Space::Keys, "x")]).await.unwrap();
        checkpoint.commit(Lsn(2)).await.unwrap();
        for reopened in [false, true] {
            let index = if reopened {
                index.clone().shutdown().await.unwrap();
                let (index, applied) = Index::open(config(dir.path())).await.unwrap();
                assert_eq!(applied, Lsn(2));
                index
            } else {
                index.clone()
            };
            let found = all(&index, Space::Keys).await;
            assert_eq!(found.len(), 1999);
            assert!(found.iter().all(|(_, value)| value == &[1; 200]));
            assert!(!found.contains_key(&b"key-00007"[..]) && !found.contains_key(&b"x"[..]));
        }
    });
}

#[test]
fn an_abandoned_checkpoint_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        let abandoned = index.checkpoint();
        abandoned
            .add((0..1000).map(|n| set(Space::Jobs, format!("{n}"), vec![0; 200])).collect())
            .await
            .unwrap();
        let next = index.checkpoint();
        next.add(vec![set(Space::Jobs, "a", "1")]).await.unwrap();
        let refused = abandoned.commit(Lsn(8)).await.unwrap_err();
        assert!(matches!(refused, IndexError::GivenUp { .. }), "{refused}");
        next.commit(Lsn(9)).await.unwrap();
        assert_eq!(all(&index, Space::Jobs).await.len(), 1);
        // One that is staged when the process ends.
        let staged = index.checkpoint();
        staged
            .add((0..1000).map(|n| set(Space::Jobs, format!("{n}"), vec![0; 200])).collect())
            .await
            .unwrap();
        index.shutdown().await.unwrap();
        let (index, applied) = Index::open(config(dir.path())).await.unwrap();
        assert_eq!(applied, Lsn(9));
        assert_eq!(all(&index, Space::Jobs).await.len(), 1);
        let large = (0..1000).map(|n| set(Space::Jobs, format!("{n:04}"), vec![0; 200]));
        index.commit(large.collect(), Lsn(10)).await.unwrap();
        assert_eq!(all(&index, Space::Jobs).await.len(), 1001);
    });
}

#[test]
fn a_scan_of_many_chunks_gives_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        let writes: Vec<_> =
            (0..3000u32).map(|n| set(Space::Meta, n.to_be_bytes(), vec![n as u8; 1500])).collect();
        index.commit(writes, Lsn(1)).await.unwrap();
        let mut scan = index.scan(Space::Meta);
        let (mut chunks, mut entries) = (0, 0u32);
        while let Some(chunk) = scan.next().await.unwrap() {
            chunks += 1;
            for (key, value) in chunk {
                assert_eq!(
                    (&key[..], &value[..]),
                    (&entries.to_be_bytes()[..], &vec![entries as u8; 1500][..])
                );
                entries += 1;
            }
        }
        assert_eq!(entries, 3000);
        assert!(chunks > 3, "{chunks} chunks");
        let refused = index.scan_all(Space::Meta, |_, _| Err(Malformed("no"))).await.unwrap_err();
        assert!(matches!(refused, IndexError::Undecodable { reason: "no", .. }), "{refused}");
    });
}

#[test]
fn another_shards_index_and_one_in_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        let in_use = Index::open(config(dir.path())).await.err().unwrap();
        assert!(matches!(in_use, IndexError::Locked { .. }), "{in_use}");
        index.shutdown().await.unwrap();
        let other = IndexConfig::new(dir.path(), ShardId(4));
        let refused = Index::open(other).await.err().unwrap();
        assert!(matches!(refused, IndexError::WrongShard { found: ShardId(3), .. }), "{refused}");
    });
}

#[test]
fn a_closed_index_says_so() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (index, _) = Index::open(config(dir.path())).await.unwrap();
        let other = index.clone();
        index.shutdown().await.unwrap();
        let closed = other.get(Space::Meta, "a".into()).await.unwrap_err();
        assert!(matches!(closed, IndexError::Closed { .. }), "{closed}");
        assert!(other.commit(Vec::new(), Lsn(1)).await.is_err());
    });
}

#[test]
fn the_thread_starts_with_the_given_hook() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&ran);
    let on_start = Arc::new(move || hook.store(true, Ordering::SeqCst));
    let config = IndexConfig { on_thread_start: Some(on_start), ..config(dir.path()) };
    block_on(Index::open(config)).unwrap();
    assert!(ran.load(Ordering::SeqCst));
}
