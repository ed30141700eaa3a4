//! Groups through crashes: killed servers and killed consumers. With commits after the work every record is worked on at
//! least once, and exactly once by a consumer that stores its offset with its result.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::v1;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::common::client::{entry, record};
use crate::common::consumer::{Work, Worker, hello, no_work};
use crate::common::{Client, Home, Random, Server, eventually};

const PARTITIONS: u32 = 4;
const ROUNDS: u64 = 150;

/// Appends `ROUNDS` records to every partition, each with its offset as value, through whatever happens.
fn produce(port: u16) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = Client::connect(port).await;
        for partition in 0..PARTITIONS {
            for round in 0..ROUNDS {
                client = append_once(client, port, partition, round).await;
            }
        }
    })
}

/// Appends the record that belongs at this offset, unless it is there.
async fn append_once(mut client: Client, port: u16, partition: u32, offset: u64) -> Client {
    loop {
        match try_append(&mut client, partition, offset).await {
            Ok(()) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        if let Ok(again) = Client::try_connect(port).await {
            client = again;
        }
    }
}

async fn try_append(client: &mut Client, partition: u32, offset: u64) -> Result<(), Status> {
    let status = v1::StreamStatusRequest { stream: "logs".into(), partitions: vec![partition] };
    let next = client.stream.status(status).await?.into_inner().partitions[0].next_offset;
    if next <= offset {
        let records = vec![record(offset.to_string())];
        let append = v1::AppendRequest {
            stream: "logs".into(),
            partition: Some(partition),
            records,
            ..Default::default()
        };
        client.stream.append(append).await?;
    }
    Ok(())
}

async fn prepare(home: &Home) -> Server {
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", PARTITIONS).await;
    let settings = v1::GroupSettings { session_timeout_ms: Some(2_000), ..v1::GroupSettings::default() };
    client.create("g", v1::settings::Kind::Group(settings)).await.unwrap();
    server
}

async fn worked_on(workers: &[Worker], count: usize) {
    eventually("records were worked on", || async {
        let done: usize = workers.iter().map(|worker| worker.look(|seen| seen.records.len())).sum();
        (done >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_commits_after_the_work_every_record_is_worked_on_at_least_once() {
    let home = Home::new().shards(2);
    let mut server = prepare(&home).await;
    let producer = produce(server.grpc_port());
    let slowly: Work = Arc::new(|_, _, _| Box::pin(tokio::time::sleep(Duration::from_millis(5))));
    let mut workers: Vec<Worker> =
        (0..3).map(|_| Worker::start(&server, hello("g", &["logs"]), Arc::clone(&slowly))).collect();
    let mut killed = BTreeSet::new();
    for round in 1..=2 {
        worked_on(&workers, 60 * round).await;
        server.kill9();
        server = home.start();
    }
    worked_on(&workers, 150).await;
    let dead = workers.remove(0);
    dead.look(|seen| killed.extend(seen.records.iter().map(|(partition, offset, _)| (*partition, *offset))));
    dead.kill().await;
    producer.await.unwrap();
    eventually("every record", || async {
        let mut all = killed.clone();
        for worker in &workers {
            worker.look(|seen| all.extend(seen.records.iter().map(|(p, o, _)| (*p, *o))));
        }
        (all.len() as u64 == u64::from(PARTITIONS) * ROUNDS).then_some(())
    })
    .await;
    // Offset and value agree everywhere, and in the end all is committed.
    for worker in &workers {
        worker
            .look(|seen| assert!(seen.records.iter().all(|(_, offset, value)| *value == offset.to_string())));
    }
    let mut client = server.client().await;
    all_committed(&mut client).await;
}

async fn all_committed(client: &mut Client) {
    eventually("all is committed", || {
        let mut client = client.clone();
        async move {
            let request = v1::FetchOffsetsRequest { group: "g".into(), ..Default::default() };
            let offsets = client.group.fetch_offsets(request).await.ok()?.into_inner().offsets;
            let done = offsets.iter().filter(|offset| offset.offset == ROUNDS).count();
            (done == PARTITIONS as usize).then_some(())
        }
    })
    .await;
}

/// Adds values up in a store, one entry a partition: the next offset, and the sum of all before it. Whatever comes
/// twice is seen by the offset; who writes over another's work is refused by the version.
fn sum_up(port: u16) -> Work {
    Arc::new(move |partition, base, values: Vec<Bytes>| {
        Box::pin(async move {
            let mut client = None;
            loop {
                if client.is_none() {
                    client = Client::try_connect(port).await.ok();
                }
                if let Some(connected) = &mut client
                    && try_sum_up(connected, partition, base, &values).await.is_ok()
                {
                    return;
                }
                client = None;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    })
}

async fn try_sum_up(client: &mut Client, partition: u32, base: u64, values: &[Bytes]) -> Result<(), Status> {
    let key = format!("p{partition}");
    let known = client.entry("sums", key.clone()).await?;
    let (next, sum) = known.as_ref().map_or((0, 0), |known| parse(&known.value));
    assert!(base <= next, "partition {partition}: a record was passed over, {base} comes after {next}");
    let new = (base..).zip(values).filter(|(offset, _)| *offset >= next);
    let sum = new.fold(sum, |sum, (_, value)| sum + number(value));
    let end = next.max(base + values.len() as u64);
    let condition = match known {
        None => v1::set_entry::Condition::IfAbsent(true),
        Some(known) => v1::set_entry::Condition::IfVersion(known.version),
    };
    let entry = v1::SetEntry { condition: Some(condition), ..entry(key, format!("{end}:{sum}")) };
    match client.set_entry("sums", entry).await?.error {
        None => Ok(()),
        Some(error) => Err(Status::aborted(error.reason)),
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn parse(value: &[u8]) -> (u64, u64) {
    let (next, sum) = std::str::from_utf8(value).unwrap().split_once(':').unwrap();
    (next.parse().unwrap(), sum.parse().unwrap())
}

#[tokio::test]
async fn a_consumer_that_stores_its_offset_with_its_result_works_on_every_record_exactly_once() {
    let home = Home::new().shards(2);
    let mut random = Random::new("exactly_once");
    let mut server = prepare(&home).await;
    let store = v1::settings::Kind::Kv(v1::KvSettings::default());
    server.client().await.create("sums", store).await.unwrap();
    let producer = produce(server.grpc_port());
    let work = sum_up(server.grpc_port());
    let mut workers: Vec<Worker> =
        (0..3).map(|_| Worker::start(&server, hello("g", &["logs"]), Arc::clone(&work))).collect();
    for round in 1..=4u64 {
        worked_on(&workers, 20).await;
        if round % 2 == 0 {
            server.kill9();
            server = home.start();
        } else {
            let dead = workers.remove(random.below(workers.len() as u64) as usize);
            dead.kill().await;
            workers.push(Worker::start(&server, hello("g", &["logs"]), Arc::clone(&work)));
        }
    }
    producer.await.unwrap();
    let mut client = server.client().await;
    eventually("everything was summed up", || {
        let mut client = client.clone();
        async move {
            for partition in 0..PARTITIONS {
                let value = client.get("sums", format!("p{partition}")).await?;
                let (next, _) = parse(&value);
                if next < ROUNDS {
                    return None;
                }
            }
            Some(())
        }
    })
    .await;
    for partition in 0..PARTITIONS {
        let value = client.get("sums", format!("p{partition}")).await.unwrap();
        assert_eq!(parse(&value), (ROUNDS, (0..ROUNDS).sum()), "partition {partition}");
    }
}

#[tokio::test]
async fn after_a_restart_members_come_back_to_what_they_had() {
    let home = Home::new();
    let server = prepare(&home).await;
    let a = Worker::start(&server, hello("g", &["logs"]), no_work());
    let b = Worker::start(&server, hello("g", &["logs"]), no_work());
    let (of_a, of_b) = (a.owns(2).await, b.owns(2).await);
    server.kill9();
    eventually("the call is lost", || async { Some(()).filter(|()| a.owned().is_empty()) }).await;
    let server = home.start();
    assert_eq!((a.owns(2).await, b.owns(2).await), (of_a, of_b));
    drop(server);
}
