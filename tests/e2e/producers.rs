//! Idempotent producers and conditional appends: each record once, whatever is lost; zombies are fenced; of those who
//! want the same offset one gets it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use flowmesh_proto::{rpc, v1};
use tonic::{Code, Status};

use crate::common::client::{details, names_field, reason, record};
use crate::common::flaky::Flaky;
use crate::common::{Client, Home, Random, refused, within};
use crate::e2e::append_stream::open;
use crate::e2e::shell::shell;

async fn init(client: &mut Client, stream: &str, name: &str) -> Result<(u64, u32), Status> {
    let request = v1::InitProducerRequest { stream: stream.into(), name: name.into() };
    let given = client.stream.init_producer(request).await?.into_inner();
    Ok((given.id, given.epoch))
}

fn batch(
    stream: &str,
    partition: u32,
    (id, epoch): (u64, u32),
    sequence: u64,
    values: &[String],
) -> v1::AppendRequest {
    v1::AppendRequest {
        compressed: None,
        stream: stream.into(),
        partition: Some(partition),
        records: values.iter().cloned().map(record).collect(),
        producer: Some(v1::Producer { id, epoch, sequence }),
        expected_offset: None,
    }
}

fn one(value: &str) -> Vec<String> {
    vec![value.to_owned()]
}

/// The numbers that a program finds in a refusal.
fn numbers(status: &Status) -> BTreeMap<String, u64> {
    let infos: Vec<rpc::ErrorInfo> = details(status, "ErrorInfo");
    infos[0].metadata.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
}

/// A client that is cut off all the time: connects again until it is through.
async fn call<T, F: Future<Output = Result<T, Status>>>(
    port: u16,
    mut attempt: impl FnMut(Client) -> F,
) -> Result<T, Status> {
    loop {
        if let Ok(client) = Client::try_connect(port).await {
            match tokio::time::timeout(Duration::from_secs(20), attempt(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) if is_answer(&status) => return Err(status),
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the server said no, for good.
fn is_answer(status: &Status) -> bool {
    !status.details().is_empty() && !matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// Kills and starts the server again, so many times, a while apart.
fn reaper(
    home: Home,
    mut random: Random,
    kills: u64,
) -> tokio::task::JoinHandle<(Home, crate::common::Server)> {
    tokio::task::spawn_blocking(move || {
        let mut server = home.start();
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(100 + random.below(300)));
            server.kill9();
            server = home.start();
        }
        (home, server)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_killed_servers_leave_every_record_once_and_in_order() {
    const KILLS: u64 = 4;
    let mut random = Random::new("lost_answers");
    let interval = ["100ms", "1h"][random.below(2) as usize];
    let home = Home::new().shards(1 + random.below(2) as u16).set("checkpoint_interval_ms", interval);
    let port = {
        let server = home.start();
        server.client().await.create_stream("logs", 2).await;
        server.grpc_port()
    };
    let way = Flaky::start(port, 500, &mut random).await;
    let reaper = reaper(home, random.fork(), KILLS);
    let mut producers = tokio::task::JoinSet::new();
    for (number, partition) in [(0, 0), (1, 0), (2, 1)] {
        let (way, mut random) = (way.port(), random.fork());
        producers.spawn(async move {
            let name = format!("producer {number}");
            let identity = call(way, |mut client| {
                let name = name.clone();
                async move { init(&mut client, "logs", &name).await }
            })
            .await
            .unwrap();
            let (mut made, mut again) = (Vec::new(), 0);
            for _ in 0..150 {
                let first = made.len();
                made.extend((0..=random.below(5)).map(|n| format!("{number}/{}", first + n as usize)));
                let values = &made[first..];
                let answer = call(way, |mut client| {
                    let request = batch("logs", partition, identity, first as u64, values);
                    async move { client.stream.append(request).await }
                });
                let answer = answer.await.unwrap().into_inner();
                assert_eq!(answer.count as usize, values.len());
                again += u64::from(answer.duplicate);
            }
            (number, partition, made, again)
        });
    }
    let made = within("the producers get all their answers", producers.join_all()).await;
    let (_home, server) = reaper.await.unwrap();
    let mut client = server.client().await;
    let mut there = [client.read_from("logs", 0, 0).await, client.read_from("logs", 1, 0).await];
    assert!(way.cuts() > 20, "the way was not flaky: {} cuts", way.cuts());
    let mut recognised = 0;
    for (number, partition, made, again) in made {
        recognised += again;
        let prefix = format!("{number}/");
        let own: Vec<Bytes> = there[partition as usize]
            .extract_if(.., |(_, record)| record.value.starts_with(prefix.as_bytes()))
            .map(|(_, record)| record.value)
            .collect();
        assert!(own.iter().eq(made.iter()), "producer {number}: each record once and in order");
    }
    assert!(recognised > 0, "no answer was ever lost");
    assert!(there.iter().all(Vec::is_empty), "nothing else is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipelined_producer_sends_again_without_a_gap_or_a_double() {
    const BATCHES: u64 = 400;
    let mut random = Random::new("a_pipelined_producer_again");
    let home = Home::new().set("checkpoint_interval_ms", "200ms");
    let port = {
        let server = home.start();
        server.client().await.create_stream("logs", 1).await;
        server.grpc_port()
    };
    let way = Flaky::start(port, 4000, &mut random).await;
    let reaper = reaper(home, random.fork(), 3);
    let identity =
        call(way.port(), |mut client| async move { init(&mut client, "logs", "").await }).await.unwrap();
    let request = |number: u64| v1::AppendStreamRequest {
        stream: "logs".into(),
        records: vec![record(format!("{number}"))],
        sequence: number,
        producer: Some(v1::Producer { id: identity.0, epoch: identity.1, sequence: number }),
        ..Default::default()
    };
    let mut waiting: VecDeque<u64> = (0..BATCHES).collect();
    while !waiting.is_empty() {
        let Ok(mut client) = Client::try_connect(way.port()).await else { continue };
        // All that is open goes out again, in order, up to what the server remembers.
        let sent: Vec<u64> = waiting.iter().copied().take(32).collect();
        let requests = futures::stream::iter(sent.into_iter().map(request).collect::<Vec<_>>());
        let call = async {
            let mut answers = client.stream.append_stream(requests).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                for ack in answer.acks {
                    match ack.error {
                        None => waiting.retain(|number| *number != ack.sequence),
                        // Behind one that was refused for now.
                        Some(error) => assert!(
                            error.reason == "SEQUENCE_GAP" || error.code == Code::Unavailable as i32,
                            "{error:?}"
                        ),
                    }
                }
            }
            Ok::<_, Status>(())
        };
        let _ = within("a call ends", call).await;
    }
    let (_home, server) = reaper.await.unwrap();
    let expected: Vec<String> = (0..BATCHES).map(|number| number.to_string()).collect();
    let there = server.client().await.values("logs").await;
    assert!(there.iter().eq(expected.iter()), "{there:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_appends_a_file_once_while_the_server_is_killed() {
    const LINES: usize = 30_000;
    let mut random = Random::new("the_command_line");
    let home = Home::new().set("checkpoint_interval_ms", "200ms");
    let lines: Vec<String> = (0..LINES).map(|n| format!("line {n}")).collect();
    std::fs::write(home.scratch().join("in.log"), lines.join("\n")).unwrap();
    let (port, mut command) = {
        let server = home.start();
        let script = "flowmesh stream append logs --idempotent --producer-name loader --file in.log --batch 100 -o json";
        (server.grpc_port(), shell(&server, &home, script))
    };
    let way = Flaky::start(port, 2000, &mut random).await;
    command.env("FLOWMESH_ADDR", format!("http://127.0.0.1:{}", way.port()));
    // The first connection is tried once, and may be one that is cut before anything happened.
    let reaper = reaper(home, random.fork(), 3);
    let mut tries = (0..200).map(|_| tokio::task::block_in_place(|| command.output().unwrap()));
    let output = tries.find(|output| output.status.success() || !output.stdout.is_empty());
    let output = output.expect("a connection that carries the first answers");
    assert!(output.status.success(), "{output:?}");
    let (_home, server) = reaper.await.unwrap();
    let tally: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(tally["appended"], LINES, "{tally}");
    let there = server.client().await.values("logs").await;
    assert!(there.iter().eq(lines.iter()), "{} lines, {tally}", there.len());
}

#[tokio::test]
async fn whoever_takes_the_name_over_fences_the_zombie_in_every_partition() {
    let home = Home::new().shards(2);
    let mut server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 4).await;
    let zombie = init(&mut client, "wide", "orders").await.unwrap();
    assert_eq!(zombie.1, 0);
    client.stream.append(batch("wide", 1, zombie, 0, &one("a"))).await.unwrap();
    let next = init(&mut client, "wide", "orders").await.unwrap();
    assert_eq!(next, (zombie.0, 1), "the same producer with the next epoch");
    let other = init(&mut client, "wide", "payments").await.unwrap();
    assert_ne!(other.0, zombie.0);
    for round in 0..2 {
        // Also where neither of them has ever appended.
        for partition in 0..4 {
            let late = client.stream.append(batch("wide", partition, zombie, 0, &one("late"))).await;
            let status = refused(late, Code::FailedPrecondition, "PRODUCER_FENCED");
            assert_eq!((numbers(&status)["epoch"], numbers(&status)["current"]), (0, 1));
        }
        let fresh =
            client.stream.append(batch("wide", 2, next, round, &one("b"))).await.unwrap().into_inner();
        assert_eq!((fresh.base_offset, fresh.duplicate), (round, false));
        // All of it survives.
        server.kill9();
        server = home.start();
        client = server.client().await;
    }
    assert_eq!(init(&mut client, "wide", "orders").await.unwrap(), (zombie.0, 2));
    assert_eq!(client.read_from("wide", 1, 0).await.len(), 1);
    // Numbers are never given out twice, whichever core is asked.
    let mut numbers = std::collections::BTreeSet::from([zombie.0, other.0]);
    for shard in [0, 1] {
        let mut client = server.client_of_core(shard).await;
        for stream in ["wide", "other"] {
            for _ in 0..10 {
                assert!(numbers.insert(init(&mut client, stream, "").await.unwrap().0), "given out twice");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_competing_writers_exactly_one_gets_each_offset() {
    const EACH: usize = 100;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("ledger", 1).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let mut client = server.client().await;
        writers.spawn(async move {
            let (mut next, mut won, mut lost) = (0u64, Vec::new(), 0);
            while won.len() < EACH {
                let value = format!("{writer} at {next}");
                let request = v1::AppendRequest {
                    stream: "ledger".into(),
                    records: vec![record(value.clone())],
                    expected_offset: Some(next),
                    ..Default::default()
                };
                match client.stream.append(request).await {
                    Ok(answer) => {
                        assert_eq!(answer.into_inner().base_offset, next);
                        won.push((next, value));
                        next += 1;
                    }
                    Err(status) => {
                        assert_eq!(reason(&status), "OFFSET_MISMATCH");
                        assert_eq!(numbers(&status)["expected"], next);
                        next = numbers(&status)["next"];
                        lost += 1;
                    }
                }
            }
            (won, lost)
        });
    }
    let (mut won, mut lost) = (BTreeMap::new(), 0);
    for (writer, times) in within("all writers are done", writers.join_all()).await {
        lost += times;
        for (offset, value) in writer {
            assert_eq!(won.insert(offset, value), None, "offset {offset} was won twice");
        }
    }
    assert!(lost > 0, "nobody competed");
    let there = client.values("ledger").await;
    assert!(there.iter().eq(won.values()), "what was won is what is there");
    assert_eq!(won.len(), 3 * EACH);
}

#[tokio::test]
async fn behind_a_gap_everything_is_refused_until_it_is_filled() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 1).await;
    let (id, epoch) = init(&mut client, "logs", "").await.unwrap();
    let request = |sequence: u64| v1::AppendStreamRequest {
        stream: "logs".into(),
        records: vec![record(format!("{sequence}"))],
        sequence,
        producer: Some(v1::Producer { id, epoch, sequence }),
        ..Default::default()
    };
    let (sender, mut answers) = open(&mut client, request(0)).await;
    for sequence in [2, 3, 1, 2, 0, 3, 4] {
        sender.send(request(sequence)).await.unwrap();
    }
    drop(sender);
    let mut acks = Vec::new();
    while let Some(answer) = within("an answer", answers.message()).await.unwrap() {
        acks.extend(answer.acks);
    }
    let told: Vec<(u64, &str, bool)> = acks
        .iter()
        .map(|ack| (ack.sequence, ack.error.as_ref().map_or("", |error| &error.reason), ack.duplicate))
        .collect();
    let gap = "SEQUENCE_GAP";
    let expected = [
        (0, "", false),
        (2, gap, false),
        (3, gap, false),
        (1, "", false),
        (2, "", false),
        (0, "", true),
        (3, "", false),
        (4, "", false),
    ];
    assert_eq!(told, expected);
    assert_eq!(acks[1].error.as_ref().unwrap().details["expected"], "1");
    assert_eq!(acks[5].base_offset, 0, "the first answer");
    assert_eq!(client.values("logs").await, ["0", "1", "2", "3", "4"]);
    assert_eq!(server.metric("flowmesh_stream_producers", ""), Some(1.0));
}

#[tokio::test]
async fn a_retry_outside_of_the_window_is_named() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("logs", 1).await;
    let identity = init(&mut client, "logs", "").await.unwrap();
    for sequence in 0..40 {
        client.stream.append(batch("logs", 0, identity, sequence, &one("x"))).await.unwrap();
    }
    let again = client.stream.append(batch("logs", 0, identity, 8, &one("x"))).await.unwrap().into_inner();
    assert_eq!((again.duplicate, again.base_offset), (true, 8));
    let old = client.stream.append(batch("logs", 0, identity, 7, &one("x"))).await;
    let status = refused(old, Code::AlreadyExists, "DUPLICATE_SEQUENCE");
    assert_eq!((numbers(&status)["remembered_from"], numbers(&status)["next"]), (8, 40));
    let cut_otherwise = batch("logs", 0, identity, 38, &["x".into(), "y".into(), "z".into()]);
    refused(client.stream.append(cut_otherwise).await, Code::AlreadyExists, "DUPLICATE_SEQUENCE");
    assert_eq!(client.values("logs").await.len(), 40);
}

#[tokio::test]
async fn what_can_be_no_producer_is_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 3).await;
    client.create_stream("logs", 1).await;
    let nowhere = v1::AppendRequest { partition: None, ..batch("wide", 0, (7, 0), 0, &one("x")) };
    let status = refused(client.stream.append(nowhere).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    names_field(&status, "producer");
    let anywhere = v1::AppendRequest {
        stream: "wide".into(),
        records: vec![record("x")],
        expected_offset: Some(0),
        ..Default::default()
    };
    let status = refused(client.stream.append(anywhere).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    names_field(&status, "expected_offset");
    let nobody = client.stream.append(batch("logs", 0, (0, 0), 0, &one("x"))).await;
    names_field(&refused(nobody, Code::InvalidArgument, "INVALID_ARGUMENT"), "producer.id");
    let stranger = client.stream.append(batch("logs", 0, (77, 0), 5, &one("x"))).await;
    refused(stranger, Code::FailedPrecondition, "UNKNOWN_PRODUCER");
    let long = init(&mut client, "logs", &"n".repeat(256)).await;
    refused(long, Code::InvalidArgument, "TOO_LARGE");
    assert!(client.values("logs").await.is_empty());
}

#[test]
fn a_shell_appends_on_a_condition_and_under_a_name() {
    let home = Home::new();
    let server = home.start();
    crate::e2e::shell::ok(
        &server,
        &home,
        r"
        flowmesh stream append logs --expect-offset 0 a b
        code=0; flowmesh stream append logs --expect-offset 1 c 2> said || code=$?
        test $code = 5; grep -q 'OFFSET_MISMATCH: the next offset is 2, not 1' said
        flowmesh stream append logs --idempotent --producer-name loader --expect-offset 2 c
        test $(flowmesh stream read logs | wc -l) = 3
        code=0; flowmesh stream append logs --producer-name loader c 2> /dev/null || code=$?; test $code = 2
        code=0; flowmesh stream append logs --retry --expect-offset 3 c 2> /dev/null || code=$?; test $code = 2
        ",
    );
}
