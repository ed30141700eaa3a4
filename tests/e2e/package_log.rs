//! The main job on real input: this machine's package log goes line by line into a stream; a consumer makes a job of
//! every line about a package; workers count packages per action in a store; the server is killed in the middle. The
//! counts must equal those computed directly from the file.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use flowmesh_proto::v1;
use tokio::sync::Barrier;
use tonic::Status;

use crate::common::client::ack_of;
use crate::common::{Client, Home, Random, eventually, within};

const LOG: &str = "/var/log/dpkg.log";
const LINES_MAX: usize = 4_000;
const ACTIONS: [&str; 3] = ["install", "upgrade", "remove"];
const WORKERS: usize = 3;
const KILLS: usize = 3;

/// The machine's package log, or one made up where there is none.
fn lines(random: &mut Random) -> Vec<String> {
    let words = ["status installed", "install", "upgrade", "remove", "configure", "trigproc"];
    let real = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<String> = real.lines().take(LINES_MAX).map(str::to_owned).collect();
    if lines.iter().any(|line| action(line).is_some()) {
        return lines;
    }
    (0..LINES_MAX)
        .map(|i| {
            format!(
                "2026-01-01 00:00:00 {} package{i}:amd64 1 2",
                words[random.below(words.len() as u64) as usize]
            )
        })
        .collect()
}

/// What the line says was done to a package.
fn action(line: &str) -> Option<&'static str> {
    let word = line.split(' ').nth(2)?;
    ACTIONS.into_iter().find(|action| *action == word)
}

/// Reconnects for ever: while the server is down there is nothing else to do.
async fn connect(port: u16) -> Client {
    eventually("the server is back", || async { Client::try_connect(port).await.ok() }).await
}

/// One line is one offset: after a reconnect the stream itself says which line is next.
async fn produce(port: u16, lines: Arc<Vec<String>>) {
    loop {
        let mut client = connect(port).await;
        let outcome: Result<(), Status> = async {
            let status = v1::StreamStatusRequest { stream: "packages".into(), partitions: vec![] };
            let mut next =
                client.stream.status(status).await?.into_inner().partitions[0].next_offset as usize;
            while let Some(chunk) =
                lines.get(next..lines.len().min(next + 50)).filter(|chunk| !chunk.is_empty())
            {
                client.append("packages", chunk.to_vec()).await?;
                next += chunk.len();
            }
            Ok(())
        }
        .await;
        if outcome.is_ok() {
            return;
        }
    }
}

/// Makes jobs out of lines. Its place is a key: after a reconnect it goes on there, and may enqueue a job again.
async fn consume(port: u16, lines: usize) {
    loop {
        let mut client = connect(port).await;
        let outcome: Result<(), Status> = async {
            let place = client
                .entry("counts", "consumer")
                .await?
                .map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap());
            let mut next: usize = place;
            let request = v1::SubscribeRequest {
                stream: "packages".into(),
                start: Some(v1::subscribe_request::Start::Offset(place as u64)),
                max_batch_bytes: 8 * 1024,
                ..v1::SubscribeRequest::default()
            };
            let mut batches = client.stream.subscribe(request).await?.into_inner();
            while next < lines {
                let Some(batch) = batches.message().await? else { break };
                let jobs: Vec<String> = (batch.base_offset..)
                    .zip(&batch.records)
                    .filter_map(|(offset, record)| {
                        let action = action(std::str::from_utf8(&record.value).unwrap())?;
                        Some(format!("{offset} {action}"))
                    })
                    .collect();
                if !jobs.is_empty() {
                    client.enqueue("work", jobs).await?;
                }
                next = batch.base_offset as usize + batch.records.len();
                client.set("counts", "consumer", next.to_string()).await?;
            }
            Ok(())
        }
        .await;
        if outcome.is_ok() {
            return;
        }
    }
}

/// Does jobs until told to stop: one key per job, so that doing a job twice counts once.
async fn work(port: u16, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let mut client = connect(port).await;
        let _: Result<(), Status> = async {
            while !stop.load(Ordering::Relaxed) {
                let jobs = client.reserve("work", 8, 2_000, 200).await?;
                for job in &jobs {
                    let text = std::str::from_utf8(&job.payload).unwrap();
                    let (offset, action) = text.split_once(' ').unwrap();
                    client.set("counts", format!("done/{action}/{offset}"), "").await?;
                    let ack = v1::AckRequest { queue: "work".into(), leases: vec![ack_of(job)] };
                    client.queue.ack(ack).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        }
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_exact_although_the_server_is_killed_in_the_middle() {
    let mut random = Random::new("package_log");
    let lines = Arc::new(lines(&mut random));
    let expected: BTreeMap<&str, usize> = ACTIONS
        .into_iter()
        .map(|wanted| (wanted, lines.iter().filter(|line| action(line) == Some(wanted)).count()))
        .collect();
    let jobs: usize = expected.values().sum();

    let home = Home::new().shards(2).set("checkpoint_interval_ms", "200ms");
    let mut server = home.start();
    let port = server.grpc_port();
    let mut client = server.client().await;
    client.create_stream("packages", 1).await;
    let settings = v1::QueueSettings {
        max_attempts: Some(1_000),
        backoff_initial_ms: Some(0),
        ..v1::QueueSettings::default()
    };
    client.create("work", v1::settings::Kind::Queue(settings)).await.unwrap();
    client.create("counts", v1::settings::Kind::Kv(v1::KvSettings::default())).await.unwrap();

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let started = Arc::new(Barrier::new(2));
    let producer = tokio::spawn({
        let (lines, started) = (Arc::clone(&lines), Arc::clone(&started));
        async move {
            started.wait().await;
            produce(port, lines).await;
        }
    });
    let consumer = tokio::spawn(consume(port, lines.len()));
    let workers: Vec<_> =
        (0..WORKERS).map(|_| tokio::spawn(work(port, Arc::clone(&stop), Arc::clone(&done)))).collect();
    started.wait().await;

    for kill in 1..=KILLS {
        let reached = jobs * kill / (KILLS + 2);
        eventually("some jobs are done", || async {
            (done.load(Ordering::Relaxed) >= reached).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random.below(20))).await; // any moment will do
        server.kill9();
        server = home.start();
    }
    within("the producer", producer).await.unwrap();
    within("the consumer", consumer).await.unwrap();
    let mut client = server.client().await;
    eventually("all jobs are done", || {
        let mut client = client.clone();
        async move {
            let status = client.queue_status("work").await;
            assert_eq!(status.dead, 0);
            (status.ready + status.delayed + status.leased == 0).then_some(())
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        within("a worker", worker).await.unwrap();
    }
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for wanted in ACTIONS {
        counted.insert(wanted, client.scan("counts", format!("done/{wanted}/").as_bytes(), 0).await.len());
    }
    assert_eq!(counted, expected);
    let stored: Vec<String> =
        client.values("packages").await.iter().map(|v| String::from_utf8(v.to_vec()).unwrap()).collect();
    assert_eq!(stored, *lines);
}
