//! A client that sends faster than the disk takes is pushed back; memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use flowmesh_proto::v1;
use tokio::task::JoinSet;
use tonic::Code;
use v1::operation::Action;

use crate::common::client::{entry, record};
use crate::common::kv::on;
use crate::common::{Home, eventually, refused, within};
use crate::e2e::append_stream;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_producers_are_slowed_down_and_memory_stays_bounded() {
    const PRODUCERS: usize = 4;
    const BYTES_EACH: u64 = 320 * MIB;
    const BUDGET: u64 = 256 * MIB;
    const RECORD: usize = 64 * 1024;
    let home = Home::new().set("memory_bytes", &BUDGET.to_string()).set("checkpoint_interval_ms", "500ms");
    let server = home.start();
    let mut producers = JoinSet::new();
    let acknowledged = Arc::new(AtomicU64::new(0));
    for number in 0..PRODUCERS {
        let mut client = server.client().await;
        let acknowledged = Arc::clone(&acknowledged);
        producers.spawn(async move {
            let values = Bytes::from(vec![number as u8; RECORD]);
            let request = move |sequence| v1::AppendStreamRequest {
                stream: format!("logs{number}"),
                records: vec![record(values.clone()); 8],
                sequence,
                ..v1::AppendStreamRequest::default()
            };
            let (sender, mut answers) = append_stream::open(&mut client, request(0)).await;
            let appends = BYTES_EACH / (8 * RECORD as u64);
            let sending = tokio::spawn(async move {
                for sequence in 1..appends {
                    sender.send(request(sequence)).await.unwrap();
                }
            });
            let mut answered = 0;
            while let Some(answer) = answers.message().await.unwrap() {
                for ack in answer.acks {
                    answered += 1;
                    match ack.error {
                        None => {
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        Some(error) => {
                            assert_eq!(error.reason, "OVERLOADED", "{error:?}");
                            assert!(error.retry_after_ms.is_some());
                        }
                    }
                }
            }
            assert_eq!(answered, appends, "every append is answered");
            sending.await.unwrap();
        });
    }
    let running = Arc::new(AtomicBool::new(true));
    let mut peak = 0;
    while running.load(Ordering::Relaxed) {
        peak = peak.max(server.rss_bytes());
        tokio::select! {
            done = producers.join_next() => match done {
                Some(result) => result.unwrap(),
                None => running.store(false, Ordering::Relaxed),
            },
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
        }
    }
    println!("{} MiB were sent, {} MiB resident at most", PRODUCERS as u64 * BYTES_EACH / MIB, peak / MIB);
    // The budget is for what is kept; buffers on the way come on top. Far below what was sent, in any case.
    assert!(peak < 3 * BUDGET, "{} MiB resident with a budget of {} MiB", peak / MIB, BUDGET / MIB);
    assert!(acknowledged.load(Ordering::Relaxed) > 0);
    server.assert_healthy();
    let mut client = server.client().await;
    let mut stored = 0;
    for number in 0..PRODUCERS {
        let status = v1::StreamStatusRequest { stream: format!("logs{number}"), partitions: vec![] };
        stored += client.stream.status(status).await.unwrap().into_inner().partitions[0].next_offset;
    }
    assert_eq!(
        stored,
        acknowledged.load(Ordering::Relaxed) * 8,
        "what was acknowledged is there, and nothing else"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_beyond_the_memory_budget_is_refused_and_reads_go_on() {
    const AT_ONCE: u64 = 500;
    let home = Home::new().set("memory_bytes", "64MiB").set("checkpoint_interval_ms", "200ms");
    let server = home.start();
    let mut client = server.client().await;
    let name = |number: u64| Bytes::from(format!("{number:0>1000}"));
    let value = |number: u64| Bytes::from(format!("value {number}"));
    let mut kept = 0u64;
    // Values leave memory, keys do not: they are refused by name, and there is never an out-of-memory kill.
    loop {
        let entries = (kept..kept + AT_ONCE).map(|number| entry(name(number), value(number))).collect();
        match client.kv.set(v1::SetRequest { store: "store".into(), entries }).await {
            Ok(_) => kept += AT_ONCE,
            Err(status) => {
                refused(Err::<(), _>(status), Code::ResourceExhausted, "OVERLOADED");
                break;
            }
        }
        assert!(kept < 100_000, "nothing was refused");
    }
    println!("{kept} keys of 1000 bytes kept, {} MiB resident", server.rss_bytes() / MIB);
    assert!(kept * 1000 > 32 * MIB, "{kept} keys are all that there is room for");
    assert!(server.rss_bytes() < 400 * MIB);
    for number in [0, kept / 2, kept - 1] {
        assert_eq!(client.get("store", name(number)).await.unwrap(), value(number));
    }
    // Deleting makes room.
    for first in (0..kept).step_by(AT_ONCE as usize) {
        let keys = (first..first + AT_ONCE).map(name).collect();
        client.kv.delete(v1::DeleteRequest { store: "store".into(), keys, if_version: None }).await.unwrap();
    }
    eventually("writes go on", || {
        let mut client = client.clone();
        async move { client.set("store", "k", "v").await.ok() }
    })
    .await;
}

#[tokio::test]
async fn no_operation_that_adds_to_a_store_gets_past_the_memory_budget_and_what_takes_away_does() {
    let home = Home::new().set("memory_bytes", "64MiB");
    let server = home.start();
    let mut client = server.client().await;
    let (member, mib) = (Bytes::from_static(b"m"), Bytes::from(vec![b'v'; MIB as usize]));
    let members = vec![member.clone()];
    let push = |value| {
        Action::ListPush(v1::ListPush { side: v1::Side::Back.into(), values: vec![value], if_present: false })
    };
    let field = v1::FieldValue { field: member.clone(), value: member.clone() };
    let score = v1::ScoredMember { member: member.clone(), score: 1.0 };
    let add_score = v1::SortedAdd { members: vec![score], ..v1::SortedAdd::default() };
    let adds = [
        ("b", Action::Set(v1::BytesSet { value: member.clone(), ..v1::BytesSet::default() })),
        ("b", Action::Append(v1::BytesAppend { value: member.clone() })),
        ("b", Action::Copy(v1::KeyCopy { to: "b".into(), replace: true })),
        ("n", Action::Increment(v1::BytesIncrement { by: 1 })),
        ("h", Action::HashSet(v1::HashSet { fields: vec![field], ..v1::HashSet::default() })),
        ("s", Action::SetAdd(v1::SetAdd { members: members.clone() })),
        ("z", Action::SortedAdd(add_score)),
        ("l", push(member.clone())),
    ];
    for (key, action) in adds.clone() {
        client.operate("store", vec![on(key, action)], false).await.unwrap();
    }
    let mut kept = 0;
    let status = loop {
        match client.operate("store", vec![on("l", push(mib.clone()))], false).await {
            Ok(_) => kept += 1,
            Err(status) => break status,
        }
        assert!(kept < 400, "nothing was refused");
    };
    refused(Err::<(), _>(status), Code::ResourceExhausted, "OVERLOADED");
    for (key, action) in adds {
        let outcome = client.operate("store", vec![on(key, action.clone())], false).await;
        assert!(outcome.is_err(), "{action:?} was taken");
        refused(outcome, Code::ResourceExhausted, "OVERLOADED");
    }
    // Reads go on, and so does what takes away; then there is room again.
    let fields = members.clone();
    for (key, action) in [
        ("l", Action::ListLen(v1::ListLen {})),
        ("h", Action::HashDelete(v1::HashDelete { fields })),
        ("s", Action::SetRemove(v1::SetRemove { members: members.clone() })),
        ("z", Action::SortedRemove(v1::SortedRemove { members })),
        ("l", Action::ListTrim(v1::ListTrim { first: 0, last: 0 })),
        ("l", Action::Delete(v1::KeyDelete {})),
    ] {
        let outcomes = client.operate("store", vec![on(key, action.clone())], false).await.unwrap();
        assert_eq!(outcomes[0].error, None, "{action:?}");
    }
    eventually("writes go on", || {
        let (mut client, push) = (client.clone(), on("l", push(mib.clone())));
        async move { client.operate("store", vec![push], false).await.ok() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_costs_a_window_and_no_more() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    for _ in 0..64 {
        client.append("logs", [vec![1u8; MIB as usize]]).await.unwrap();
    }
    let before = server.rss_bytes();
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = server.client().await;
        let request = v1::SubscribeRequest { stream: "logs".into(), ..v1::SubscribeRequest::default() };
        let mut batches = client.stream.subscribe(request).await.unwrap().into_inner();
        within("the first batch", batches.message()).await.unwrap().unwrap();
        idle.push((client, batches));
    }
    let grown = server.rss_bytes().saturating_sub(before);
    println!("20 idle subscribers cost {} MiB", grown / MIB);
    assert!(grown < 20 * 8 * MIB, "{} MiB for 20 subscribers that do not read", grown / MIB);
    server.assert_healthy();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let home = Home::new().set("connections_max", "4");
    let server = home.start();
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut client = server.client().await;
        client.append("logs", ["x"]).await.unwrap();
        kept.push(client);
    }
    let one_more = async {
        let mut client = crate::common::Client::try_connect(server.grpc_port()).await.ok()?;
        client.append("logs", ["x"]).await.ok()
    };
    assert!(within("it is closed", one_more).await.is_none());
    kept.pop();
    eventually("there is room again", || async {
        let mut client = crate::common::Client::try_connect(server.grpc_port()).await.ok()?;
        client.append("logs", ["x"]).await.ok()
    })
    .await;
    server.assert_healthy();
}
