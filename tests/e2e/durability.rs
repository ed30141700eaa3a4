//! `kill -9` at any moment: everything that was acknowledged is there after the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1;
use tokio::task::JoinSet;

use crate::common::client::{entry, record};
use crate::common::{Home, Random, Server, eventually, within};
use crate::e2e::append_stream;

/// How many writes must be acknowledged before the kill, at least; the seed adds some.
const ACKNOWLEDGED_MIN: u64 = 200;
const ROUNDS: u64 = 4;
const WRITERS: u64 = 4;

/// One shard or two, with checkpoints all the time or never, so that kills hit all of it.
fn some_home(random: &mut Random) -> Home {
    let interval = ["100ms", "1h"][random.below(2) as usize];
    Home::new().shards(1 + random.below(2) as u16).set("checkpoint_interval_ms", interval)
}

/// Kills the server once enough was acknowledged; writers stop at their first error.
struct Killer {
    acknowledged: Arc<AtomicU64>,
    killed: Arc<AtomicBool>,
    limit: u64,
}

impl Killer {
    fn new(random: &mut Random) -> Self {
        let limit = ACKNOWLEDGED_MIN + random.below(600);
        Self { acknowledged: Arc::default(), killed: Arc::default(), limit }
    }

    async fn kill(&self, server: Server) {
        eventually("enough is acknowledged", || async {
            (self.acknowledged.load(Ordering::Relaxed) >= self.limit).then_some(())
        })
        .await;
        self.killed.store(true, Ordering::Relaxed);
        server.kill9();
    }
}

/// What a writer knows of its own writes: acknowledged, or sent without an answer.
#[derive(Default)]
struct Ledger<K, V> {
    acknowledged: BTreeMap<K, V>,
    unknown: BTreeSet<V>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_survive_a_kill_and_offsets_stay_dense() {
    let mut random = Random::new("acknowledged_records");
    let home = some_home(&mut random);
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..ROUNDS {
        let server = home.start();
        let killer = Killer::new(&mut random);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let mut client = server.client().await;
            let (count, mut random) = (Arc::clone(&killer.acknowledged), random.fork());
            writers.spawn(async move {
                let mut ledger = Vec::new();
                for call in 0u64.. {
                    let values: Vec<String> =
                        (0..=random.below(20)).map(|n| format!("{round}/{writer}/{call}/{n}")).collect();
                    match client.append("logs", values.clone()).await {
                        Ok(answer) => ledger.extend((answer.base_offset..).zip(values)),
                        Err(_) => break,
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                ledger
            });
        }
        killer.kill(server).await;
        for ledger in within("the writers notice", writers.join_all()).await {
            for (offset, value) in ledger {
                assert_eq!(acknowledged.insert(offset, value), None, "offset {offset} was given twice");
            }
        }
    }
    let server = home.start();
    let mut client = server.client().await;
    // `read_from` itself checks that offsets are dense.
    let read: BTreeMap<u64, v1::Record> = client.read_from("logs", 0, 0).await.into_iter().collect();
    for (offset, value) in &acknowledged {
        assert_eq!(read.get(offset).map(|r| r.value.as_ref()), Some(value.as_bytes()), "offset {offset}");
    }
    let values: BTreeSet<&Bytes> = read.values().map(|record| &record.value).collect();
    assert_eq!(values.len(), read.len(), "nothing is there twice");
    assert!(acknowledged.len() as u64 >= ROUNDS * ACKNOWLEDGED_MIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipelined_producer_loses_nothing_that_was_acknowledged() {
    let mut random = Random::new("a_pipelined_producer");
    let home = some_home(&mut random);
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..ROUNDS {
        let server = home.start();
        let killer = Killer::new(&mut random);
        let mut client = server.client().await;
        let value = move |sequence: u64| format!("{round}/{sequence}");
        let (sender, mut answers) =
            append_stream::open(&mut client, append_stream::append("logs", 0, &[value(0)])).await;
        let producer = tokio::spawn(async move {
            for sequence in 1u64.. {
                if sender.send(append_stream::append("", sequence, &[value(sequence)])).await.is_err() {
                    break;
                }
            }
        });
        let count = Arc::clone(&killer.acknowledged);
        let consumer = tokio::spawn(async move {
            let mut ledger = Vec::new();
            while let Ok(Some(answer)) = answers.message().await {
                count.fetch_add(answer.acks.len() as u64, Ordering::Relaxed);
                ledger.extend(answer.acks);
            }
            ledger
        });
        killer.kill(server).await;
        for ack in within("the consumer notices", consumer).await.unwrap() {
            assert_eq!(ack.error, None);
            assert_eq!(acknowledged.insert(ack.base_offset, value(ack.sequence)), None);
        }
        drop(client);
        within("the producer notices", producer).await.unwrap();
    }
    let server = home.start();
    let read = server.client().await.values("logs").await;
    for (offset, value) in &acknowledged {
        assert_eq!(read[*offset as usize], value.as_bytes(), "offset {offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_keys_survive_a_kill_with_their_versions() {
    let mut random = Random::new("acknowledged_keys");
    let home = some_home(&mut random);
    // By key: version and value. Each writer has keys of its own, so its last acknowledged write is what must be there,
    // or one that it sent later.
    let mut model: BTreeMap<String, Ledger<u64, String>> = BTreeMap::new();
    for round in 0..ROUNDS {
        let server = home.start();
        let killer = Killer::new(&mut random);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let mut client = server.client().await;
            let (count, mut random) = (Arc::clone(&killer.acknowledged), random.fork());
            writers.spawn(async move {
                let mut ledgers: BTreeMap<String, Ledger<u64, String>> = BTreeMap::new();
                for call in 0u64.. {
                    let key = format!("{writer}/{}", random.below(50));
                    let value = format!("{round}/{call}");
                    let ledger = ledgers.entry(key.clone()).or_default();
                    match client.set("store", key, value.clone()).await {
                        Ok(version) => {
                            ledger.acknowledged.insert(version, value);
                        }
                        Err(_) => {
                            ledger.unknown.insert(value);
                            break;
                        }
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                ledgers
            });
        }
        killer.kill(server).await;
        for (key, ledger) in within("the writers notice", writers.join_all()).await.into_iter().flatten() {
            let known = model.entry(key).or_default();
            known.acknowledged.extend(ledger.acknowledged);
            known.unknown.extend(ledger.unknown);
        }
    }
    let server = home.start();
    let mut client = server.client().await;
    for (key, ledger) in &model {
        let got = client.entry("store", key.clone()).await.unwrap();
        let Some((version, value)) = ledger.acknowledged.last_key_value() else { continue };
        let got = got.unwrap_or_else(|| panic!("{key} was acknowledged and is gone"));
        let text = std::str::from_utf8(&got.value).unwrap();
        let kept = got.version == *version && text == value;
        assert!(
            kept || (got.version > *version && ledger.unknown.contains(text)),
            "{key}: {got:?}, not {value} {version}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_jobs_survive_a_kill_and_done_ones_do_not_return() {
    let mut random = Random::new("acknowledged_jobs");
    let home = some_home(&mut random);
    let (mut enqueued, mut done, mut maybe_done) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut tokens_seen = BTreeSet::new();
    for round in 0..ROUNDS {
        let server = home.start();
        let mut client = server.client().await;
        let settings = v1::QueueSettings {
            max_attempts: Some(10_000),
            backoff_initial_ms: Some(0),
            ..v1::QueueSettings::default()
        };
        if round == 0 {
            client.create("mail", v1::settings::Kind::Queue(settings)).await.unwrap();
        }
        let killer = Killer::new(&mut random);
        let mut producers = JoinSet::new();
        for writer in 0..WRITERS / 2 {
            let (mut client, count) = (server.client().await, Arc::clone(&killer.acknowledged));
            producers.spawn(async move {
                let mut known = Vec::new();
                for call in 0u64.. {
                    let names: Vec<String> = (0..3).map(|n| format!("{round}/{writer}/{call}/{n}")).collect();
                    match client.enqueue("mail", names.clone()).await {
                        Ok(ids) => known.extend(ids.into_iter().zip(names)),
                        Err(_) => break,
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                known
            });
        }
        let mut workers = JoinSet::new();
        for _ in 0..WRITERS / 2 {
            let mut client = server.client().await;
            workers.spawn(async move {
                let (mut acked, mut unknown, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
                while let Ok(jobs) = client.reserve("mail", 4, 3_000, 100).await {
                    tokens.extend(jobs.iter().map(|job| job.token));
                    let leases = jobs.iter().map(crate::common::client::ack_of).collect();
                    let ids = jobs.iter().map(|job| job.job_id);
                    if jobs.is_empty() {
                        continue;
                    }
                    match client.queue.ack(v1::AckRequest { queue: "mail".into(), leases }).await {
                        // On a very slow machine a lease may have run out: then the job is not done.
                        Ok(answer) => {
                            let outcomes = answer.into_inner().outcomes;
                            acked.extend(
                                ids.zip(outcomes).filter_map(|(id, o)| o.error.is_none().then_some(id)),
                            );
                        }
                        Err(_) => {
                            unknown.extend(ids);
                            break;
                        }
                    }
                }
                (acked, unknown, tokens)
            });
        }
        killer.kill(server).await;
        enqueued.extend(within("the producers notice", producers.join_all()).await.into_iter().flatten());
        let token_max = tokens_seen.last().copied().unwrap_or(0);
        for (acked, unknown, tokens) in within("the workers notice", workers.join_all()).await {
            for job in acked {
                assert!(done.insert(job), "job {job} was done twice");
            }
            maybe_done.extend(unknown);
            // Every lease of this round is above every lease of the rounds before it.
            assert!(tokens.iter().all(|token| *token > token_max), "tokens grow across restarts");
            tokens_seen.extend(tokens);
        }
    }
    let server = home.start();
    let mut client = server.client().await;
    let mut left = BTreeMap::new();
    // Leases that were open at a kill run out in their own time.
    let total = client.queue_status("mail").await;
    assert_eq!(total.dead, 0);
    while (left.len() as u64) < total.ready + total.leased + total.delayed {
        let jobs = client.reserve("mail", 100, 600_000, 60_000).await.unwrap();
        for job in jobs {
            left.insert(job.job_id, String::from_utf8(job.payload.to_vec()).unwrap());
        }
    }
    for (id, name) in &enqueued {
        match left.get(id) {
            Some(payload) => assert_eq!(payload, name),
            None => {
                assert!(done.contains(id) || maybe_done.contains(id), "job {id} was acknowledged and is gone")
            }
        }
    }
    assert!(done.iter().all(|id| !left.contains_key(id)), "a job that is done came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_that_left_memory_survive_kills_as_they_were() {
    /// Beyond what a server of 64 MiB keeps of them in memory, several times.
    const ROUND_BYTES: usize = 16 << 20;
    const BATCH: u64 = 20;
    const PAYLOAD_BYTES: usize = 32 << 10;
    let mut random = Random::new("payloads_that_left_memory");
    let home = Home::new().set("memory_bytes", "64MiB").set("checkpoint_interval_ms", "100ms");
    let mut enqueued: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut token_max = 0;
    for round in 1..=3 {
        let server = home.start();
        let mut client = server.client().await;
        while enqueued.len() * PAYLOAD_BYTES < ROUND_BYTES * round {
            let payloads: Vec<Vec<u8>> = (0..BATCH).map(|_| random.bytes(PAYLOAD_BYTES)).collect();
            enqueued
                .extend(client.enqueue("mail", payloads.clone()).await.unwrap().into_iter().zip(payloads));
        }
        // Some are worked on, so that not only new ones are in the way of a kill.
        let done = client.reserve("mail", 30, 600_000, 0).await.unwrap();
        for job in &done {
            assert_eq!(enqueued.remove(&job.job_id), Some(job.payload.to_vec()), "job {}", job.job_id);
            assert!(job.token > token_max, "tokens grow across restarts");
            token_max = job.token;
        }
        assert!(client.ack("mail", &done).await.iter().all(Option::is_none));
        server.kill9();
    }
    let server = home.start();
    let mut client = server.client().await;
    let kept = server.metric("flowmesh_memory_bytes", "").unwrap();
    assert!(kept < (enqueued.len() * PAYLOAD_BYTES / 2) as f64, "most payloads are not in memory: {kept}");
    while !enqueued.is_empty() {
        let jobs = client.reserve("mail", 50, 600_000, 0).await.unwrap();
        assert!(!jobs.is_empty(), "{} jobs are gone", enqueued.len());
        for job in jobs {
            assert_eq!(enqueued.remove(&job.job_id), Some(job.payload.to_vec()), "job {}", job.job_id);
        }
    }
    assert!(client.reserve("mail", 1, 600_000, 0).await.unwrap().is_empty(), "a job that is done came back");
}

#[tokio::test]
async fn a_read_never_shows_what_a_kill_takes_back() {
    let mut random = Random::new("a_read_never_shows");
    let home = some_home(&mut random);
    for round in 0..3 {
        let server = home.start();
        let mut client = server.client().await;
        let mut writers = JoinSet::new();
        for _ in 0..2 {
            let mut client = server.client().await;
            writers.spawn(async move {
                for i in 0u64.. {
                    if client.set("store", "k", format!("{round}/{i}")).await.is_err() {
                        break;
                    }
                    if client.append("logs", [i.to_string()]).await.is_err() {
                        break;
                    }
                }
            });
        }
        eventually("something is written", || {
            let mut client = client.clone();
            async move {
                let written = client.entry("store", "k").await.ok().flatten()?;
                let logged = client.stream.read(crate::common::client::read_at("logs", 0)).await.ok()?;
                (!logged.into_inner().batches.is_empty() && written.found).then_some(())
            }
        })
        .await;
        let (mut version, mut watermark) = (0, 0);
        for _ in 0..50 + random.below(100) {
            version = client.entry("store", "k").await.unwrap().unwrap().version;
            let tail = v1::ReadRequest {
                start: Some(v1::read_request::Start::Latest(true)),
                ..crate::common::client::read_at("logs", 0)
            };
            watermark = client.stream.read(tail).await.unwrap().into_inner().high_watermark;
        }
        server.kill9();
        writers.join_all().await;
        let server = home.start();
        let mut client = server.client().await;
        assert!(client.entry("store", "k").await.unwrap().unwrap().version >= version);
        assert!(client.values("logs").await.len() as u64 >= watermark);
    }
}

#[tokio::test]
async fn what_was_set_to_end_still_ends_after_a_restart() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let ttl = Some(v1::set_entry::Ttl::TtlMs(1_000));
    client.set_entry("store", v1::SetEntry { ttl, ..entry("short", "v") }).await.unwrap();
    client.set("store", "long", "v").await.unwrap();
    let job = v1::NewJob { delay_ms: 1_000, ..crate::common::client::job("later") };
    client.enqueue_jobs("mail", vec![job]).await.unwrap();
    server.kill9();
    let server = home.start();
    let mut client = server.client().await;
    let jobs = within("the delayed job", client.reserve("mail", 1, 60_000, 60_000)).await.unwrap();
    assert_eq!(jobs[0].payload, "later");
    eventually("the key is gone", || {
        let mut client = client.clone();
        async move { client.get("store", "short").await.is_none().then_some(()) }
    })
    .await;
    assert!(client.get("store", "long").await.is_some());
}

#[tokio::test]
async fn weaker_policies_lose_nothing_when_only_the_process_dies() {
    for durability in ["interval", "never"] {
        let home = Home::new().set("durability", durability);
        let server = home.start();
        let mut client = server.client().await;
        for i in 0..100 {
            client.append("logs", [i.to_string()]).await.unwrap();
        }
        server.kill9();
        let server = home.start();
        assert_eq!(
            server.client().await.values("logs").await.len(),
            100,
            "{durability}: written is with the kernel"
        );
    }
}

#[tokio::test]
async fn interval_syncs_within_its_interval_and_never_does_not() {
    for (durability, synced) in [("interval", true), ("never", false)] {
        let home = Home::new()
            .set("durability", durability)
            .set("sync_interval_ms", "20ms")
            .set("checkpoint_interval_ms", "1h");
        let server = home.start();
        let mut client = server.client().await;
        client.append("logs", ["x"]).await.unwrap();
        let behind = || {
            let written = server.metric("flowmesh_log_entries_total", "").unwrap();
            written - server.metric("flowmesh_synced_lsn", "").unwrap()
        };
        if synced {
            eventually("it is synced", || async { (behind() == 0.0).then_some(()) }).await;
        } else {
            for _ in 0..20 {
                client.append("logs", ["x"]).await.unwrap();
            }
            assert!(behind() >= 20.0, "nobody asked for a sync");
        }
    }
}

#[tokio::test]
async fn a_kill_during_recovery_changes_nothing() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for batch in 0..20 {
        let records = (0..500).map(|i| record(format!("{batch}/{i}"))).collect();
        let request =
            v1::AppendRequest { stream: "logs".into(), partition: None, records, ..Default::default() };
        client.stream.append(request).await.unwrap();
    }
    server.kill9();
    let mut random = Random::new("a_kill_during_recovery");
    for _ in 0..6 {
        let server = home.start_unready();
        // Not a synchronisation: any moment will do, the seed chooses one.
        tokio::time::sleep(Duration::from_millis(random.below(150))).await;
        server.kill9();
    }
    let server = home.start();
    assert_eq!(server.client().await.values("logs").await.len(), 10_000);
}
