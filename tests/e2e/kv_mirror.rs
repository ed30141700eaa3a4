//! The feed of a store, carried over into a second store by a reader that knows nothing else, makes that store the same.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use flowmesh_proto::v1::{self, KvChange, KvChangeKind as Change, KvItem};
use prost::Message;

use super::kv_feed::{feed, line};
use super::shell::ok;
use crate::common::kv::{command, text};
use crate::common::wait::DEADLINE;
use crate::common::{Client, Home, Random};

const PARTITIONS: u32 = 4;
/// No list has an item of that name.
const MARKER: &str = "mirror-marker";

fn word(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// What makes a key hold what a change says that it holds as a whole, or goes on with its items.
fn whole(key: &str, change: &KvChange, lines: &mut Vec<String>) {
    if change.kind() != Change::Items {
        lines.push(format!("DEL {key}"));
    }
    let value = word(&change.value);
    let item = |item: &KvItem| {
        let member = word(&item.member);
        match change.holds() {
            v1::KeyType::Hash => {
                let mut lines = vec![format!("HSET {key} {member} {}", word(&item.value))];
                lines.extend(
                    item.expires_at_ms.map(|end| format!("HPEXPIREAT {key} {end} FIELDS 1 {member}")),
                );
                lines
            }
            v1::KeyType::SortedSet => vec![format!("ZADD {key} {} {member}", item.score.unwrap())],
            v1::KeyType::List => vec![format!("RPUSH {key} {}", word(&item.value))],
            _ => vec![format!("SADD {key} {member}")],
        }
    };
    match change.holds() {
        v1::KeyType::Bytes => lines.push(format!("SET {key} {value}")),
        v1::KeyType::Counter if change.integer.is_some() => lines.push(format!("INCRBY {key} {value}")),
        v1::KeyType::Counter => lines.push(format!("INCRBYFLOAT {key} {value}")),
        _ => lines.extend(change.items.iter().flat_map(item)),
    }
    lines.extend(change.expires_at_ms.map(|end| format!("PEXPIREAT {key} {end}")));
}

/// A change as commands that any Redis user knows. `at` is what a list has now where the change inserts.
fn lines(key: &str, change: &KvChange, at: Option<String>) -> Vec<String> {
    let (member, value) = (word(&change.member), word(&change.value));
    let (index, count) = (change.index.unwrap_or_default(), change.count.unwrap_or_default());
    let mut lines = Vec::new();
    match change.kind() {
        Change::Set | Change::Rename | Change::Copy | Change::Present | Change::Items => {
            whole(key, change, &mut lines);
        }
        Change::Delete | Change::Expire => lines.push(format!("DEL {key}")),
        Change::End => lines.push(match change.expires_at_ms {
            Some(end) => format!("PEXPIREAT {key} {end}"),
            None => format!("PERSIST {key}"),
        }),
        Change::FieldSet => {
            lines.push(format!("HSET {key} {member} {value}"));
            lines.extend(change.expires_at_ms.map(|end| format!("HPEXPIREAT {key} {end} FIELDS 1 {member}")));
        }
        Change::FieldEnd => lines.push(match change.expires_at_ms {
            Some(end) => format!("HPEXPIREAT {key} {end} FIELDS 1 {member}"),
            None => format!("HPERSIST {key} FIELDS 1 {member}"),
        }),
        Change::FieldDelete | Change::FieldExpire => lines.push(format!("HDEL {key} {member}")),
        Change::MemberAdd => lines.push(format!("SADD {key} {member}")),
        Change::MemberRemove => lines.push(format!("SREM {key} {member}")),
        Change::ScoreSet => lines.push(format!("ZADD {key} {} {member}", change.score.unwrap())),
        Change::ScoreRemove => lines.push(format!("ZREM {key} {member}")),
        Change::PushFront => lines.push(format!("LPUSH {key} {value}")),
        Change::PushBack => lines.push(format!("RPUSH {key} {value}")),
        Change::ItemSet => lines.push(format!("LSET {key} {index} {value}")),
        Change::ItemInsert => match at {
            None => lines.push(format!("RPUSH {key} {value}")),
            Some(at) => lines.extend([
                format!("LSET {key} {index} {MARKER}"),
                format!("LINSERT {key} BEFORE {MARKER} {value}"),
                format!("LSET {key} {} {at}", index + 1),
            ]),
        },
        Change::ItemsRemove => {
            lines.extend((index..index + count).map(|index| format!("LSET {key} {index} {MARKER}")));
            lines.push(format!("LREM {key} 0 {MARKER}"));
        }
        Change::Unspecified => panic!("{change:?}"),
    }
    lines
}

/// Carries over what a partition of the feed has from `offset` on; where it goes on.
async fn carry(client: &mut Client, partition: u32, offset: u64) -> u64 {
    let records = client.read_from("changes", partition, offset).await;
    let next = records.last().map_or(offset, |(offset, _)| offset + 1);
    let mut operations = Vec::new();
    for (_, record) in records {
        let (key, change) = (word(&record.key.unwrap()), KvChange::decode(record.value).unwrap());
        let mut at = None;
        if change.kind() == Change::ItemInsert {
            carry_out(client, &mut operations).await;
            let line = format!("LINDEX {key} {}", change.index.unwrap());
            at = Some(text(&client.redis("mirror", &line).await.unwrap())).filter(|at| at != "(nil)");
        }
        operations.extend(lines(&key, &change, at).iter().flat_map(|line| command(line).operations));
        if operations.len() > 500 {
            carry_out(client, &mut operations).await;
        }
    }
    carry_out(client, &mut operations).await;
    next
}

async fn carry_out(client: &mut Client, operations: &mut Vec<v1::Operation>) {
    if !operations.is_empty() {
        client.operate("mirror", std::mem::take(operations), false).await.unwrap();
    }
}

/// Writes until it is over. What is refused, for a key that is not there, changes nothing.
async fn write(mut client: Client, mut random: Random, is_over: Arc<AtomicBool>) {
    while !is_over.load(Relaxed) {
        let line = match random.below(20) {
            0 => format!("LSET l{} -1 {}", random.below(12), random.below(1_000)),
            1 => format!("LINSERT l{} AFTER {} {}", random.below(12), random.below(20), random.below(20)),
            2 => format!("LREM l{} 0 {}", random.below(12), random.below(20)),
            3 => format!("LINSERT l{} BEFORE {} {}", random.below(12), random.below(20), random.below(20)),
            4 => format!("INCRBYFLOAT d{} 0.5", random.below(12)),
            5 => format!("COPY {{t}}r{} {{t}}c{}", random.below(12), random.below(12)),
            _ => line(&mut random),
        };
        let request = command(&line);
        client.operate("source", request.operations, request.atomic).await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_a_feed_is_carried_over_into_is_the_same() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create("source", feed("changes", PARTITIONS, None)).await.unwrap();
    client.create("mirror", v1::settings::Kind::Kv(v1::KvSettings::default())).await.unwrap();
    let mut random = Random::new("kv_mirror");
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..3 {
        let client = server.client().await;
        writers.push(tokio::spawn(write(client, random.fork(), Arc::clone(&is_over))));
    }
    let mut offsets = [0; PARTITIONS as usize];
    let mut carried = 0;
    while carried < 6_000 {
        for (partition, offset) in (0..).zip(&mut offsets) {
            *offset = carry(&mut client, partition, *offset).await;
        }
        carried = offsets.iter().sum();
    }
    is_over.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // What ends still ends.
    let started = Instant::now();
    loop {
        for (partition, offset) in (0..).zip(&mut offsets) {
            *offset = carry(&mut client, partition, *offset).await;
        }
        let source = ok(&server, &home, "flowmesh kv export source -");
        let mirror = ok(&server, &home, "flowmesh kv export mirror -");
        if source == mirror {
            assert!(source.lines().count() > 30, "{source}");
            break;
        }
        assert!(started.elapsed() < DEADLINE, "the source has\n{source}\nthe mirror\n{mirror}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
