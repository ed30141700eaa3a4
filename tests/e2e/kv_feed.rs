//! Feeds of stores and watches: what a reader has in the end is what the store has, whatever happened in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flowmesh_proto::v1::settings::Kind;
use flowmesh_proto::v1::watch_request::{Keys, Start};
use flowmesh_proto::v1::{self, KvChange, KvChangeKind as Change};
use tonic::{Code, Status, Streaming};

use super::shell::{ok, run};
use crate::common::client::names_field;
use crate::common::kv::{command, text};
use crate::common::wait::DEADLINE;
use crate::common::{Client, Home, Random, Server, refused, within};

const STORE: &str = "cart";
const FEED: &str = "cart-changes";

pub fn feed(stream: &str, partitions: u32, old_values: Option<bool>) -> Kind {
    let feed = v1::FeedSettings { stream: stream.to_owned(), partitions, old_values };
    Kind::Kv(v1::KvSettings { feed: Some(feed), ..v1::KvSettings::default() })
}

async fn update(client: &mut Client, name: &str, settings: Kind) -> Result<v1::Resource, Status> {
    let settings = Some(v1::Settings { kind: Some(settings) });
    let request = v1::UpdateResourceRequest { name: name.to_owned(), settings, ..Default::default() };
    Ok(client.admin.update_resource(request).await?.into_inner().resource.unwrap())
}

async fn watch(
    client: &mut Client,
    keys: Option<Keys>,
    start: Option<Start>,
) -> Result<Streaming<v1::WatchResponse>, Status> {
    let request = v1::WatchRequest { store: STORE.to_owned(), keys, start };
    client.kv.watch(request).await.map(tonic::Response::into_inner)
}

async fn next(messages: &mut Streaming<v1::WatchResponse>) -> v1::WatchResponse {
    within("a message of the watch", messages.message()).await.unwrap().expect("a watch does not end")
}

/// Changes until there are so many.
async fn changes(messages: &mut Streaming<v1::WatchResponse>, count: usize) -> Vec<(Bytes, KvChange)> {
    let mut all = Vec::new();
    while all.len() < count {
        let events = next(messages).await.events;
        all.extend(events.into_iter().map(|event| (event.key, event.change.unwrap())));
    }
    assert_eq!(all.len(), count, "{all:?}");
    all
}

/// What a key holds, as a reader of changes has it.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Text(Bytes),
    Hash(BTreeMap<Bytes, (Bytes, Option<u64>)>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, f64>),
    List(Vec<Bytes>),
}

impl Held {
    fn empty(holds: v1::KeyType) -> Self {
        match holds {
            v1::KeyType::Hash => Self::Hash(BTreeMap::new()),
            v1::KeyType::Set => Self::Set(BTreeSet::new()),
            v1::KeyType::SortedSet => Self::Sorted(BTreeMap::new()),
            v1::KeyType::List => Self::List(Vec::new()),
            other => panic!("no collection: {other:?}"),
        }
    }

    fn add(&mut self, items: &[v1::KvItem]) {
        for item in items {
            match self {
                Self::Hash(fields) => {
                    fields.insert(item.member.clone(), (item.value.clone(), item.expires_at_ms));
                }
                Self::Set(members) => drop(members.insert(item.member.clone())),
                Self::Sorted(scores) => drop(scores.insert(item.member.clone(), item.score.unwrap())),
                Self::List(values) => values.push(item.value.clone()),
                Self::Text(_) => panic!("no collection"),
            }
        }
    }

    /// All of it in one line, as the store is asked for it.
    fn text(&self) -> String {
        let show = |bytes: &Bytes| bytes.escape_ascii().to_string();
        let joined = |items: Vec<String>| format!("[{}]", items.join(" "));
        match self {
            Self::Text(value) => show(value),
            Self::Hash(fields) => joined(
                fields.iter().map(|(field, (value, _))| format!("{}:{}", show(field), show(value))).collect(),
            ),
            Self::Set(members) => joined(members.iter().map(show).collect()),
            Self::Sorted(scores) => {
                let mut all: Vec<_> = scores.iter().collect();
                all.sort_by(|a, b| a.1.total_cmp(b.1).then(a.0.cmp(b.0)));
                joined(all.into_iter().map(|(member, score)| format!("{}:{score}", show(member))).collect())
            }
            Self::List(values) => joined(values.iter().map(show).collect()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Copy {
    keys: BTreeMap<Bytes, Held>,
    /// The version of the last change of a key: it never goes back.
    versions: BTreeMap<Bytes, u64>,
    kinds: BTreeSet<i32>,
}

impl Copy {
    fn open(&mut self, key: &Bytes, holds: v1::KeyType) -> &mut Held {
        self.keys.entry(key.clone()).or_insert_with(|| Held::empty(holds))
    }

    fn apply(&mut self, key: &Bytes, change: &KvChange) {
        let last = self.versions.entry(key.clone()).or_insert(0);
        assert!(*last <= change.version, "{key:?} goes back: {change:?}");
        *last = change.version;
        self.kinds.insert(change.kind);
        let (member, value) = (change.member.clone(), change.value.clone());
        match change.kind() {
            Change::Set | Change::Rename | Change::Copy | Change::Present => {
                let held = match change.holds() {
                    v1::KeyType::Bytes | v1::KeyType::Counter => Held::Text(value),
                    holds => Held::empty(holds),
                };
                self.keys.insert(key.clone(), held);
                if !change.items.is_empty() {
                    self.keys.get_mut(key).unwrap().add(&change.items);
                }
            }
            Change::Items => self.open(key, change.holds()).add(&change.items),
            Change::Delete | Change::Expire => drop(self.keys.remove(key)),
            Change::End | Change::FieldEnd => {}
            Change::FieldSet => {
                let Held::Hash(fields) = self.open(key, v1::KeyType::Hash) else { panic!("{change:?}") };
                fields.insert(member, (value, change.expires_at_ms));
            }
            Change::FieldDelete | Change::FieldExpire => {
                if let Some(Held::Hash(fields)) = self.keys.get_mut(key) {
                    fields.remove(&member);
                }
            }
            Change::MemberAdd => {
                let Held::Set(members) = self.open(key, v1::KeyType::Set) else { panic!("{change:?}") };
                assert!(members.insert(member), "a member is added once: {change:?}");
            }
            Change::MemberRemove => {
                let Held::Set(members) = self.open(key, v1::KeyType::Set) else { panic!("{change:?}") };
                assert!(members.remove(&member), "a member goes once: {change:?}");
            }
            Change::ScoreSet => {
                let Held::Sorted(scores) = self.open(key, v1::KeyType::SortedSet) else { panic!() };
                scores.insert(member, change.score.unwrap());
            }
            Change::ScoreRemove => {
                let Held::Sorted(scores) = self.open(key, v1::KeyType::SortedSet) else { panic!() };
                scores.remove(&member).expect("a member goes once");
            }
            Change::PushFront
            | Change::PushBack
            | Change::ItemsRemove
            | Change::ItemSet
            | Change::ItemInsert => {
                let Held::List(values) = self.open(key, v1::KeyType::List) else { panic!("{change:?}") };
                let index = change.index.unwrap_or_default() as usize;
                match change.kind() {
                    Change::PushFront => values.insert(0, value),
                    Change::PushBack => values.push(value),
                    Change::ItemSet => values[index] = value,
                    Change::ItemInsert => values.insert(index, value),
                    _ => drop(values.drain(index..index + change.count.unwrap() as usize)),
                }
            }
            Change::Unspecified => panic!("{change:?}"),
        }
    }

    fn apply_all(&mut self, message: &v1::WatchResponse) {
        for event in &message.events {
            self.apply(&event.key, event.change.as_ref().unwrap());
        }
    }

    fn texts(&self) -> BTreeMap<Bytes, String> {
        self.keys.iter().map(|(key, held)| (key.clone(), held.text())).collect()
    }
}

/// What the store itself says that its keys hold.
async fn stored(client: &mut Client) -> BTreeMap<Bytes, String> {
    let mut all = BTreeMap::new();
    for entry in client.scan(STORE, b"", 1_000).await {
        let key = String::from_utf8(entry.key.to_vec()).unwrap();
        let (command, is_unordered) = match entry.r#type() {
            v1::KeyType::Hash => (format!("HGETALL {key}"), true),
            v1::KeyType::Set => (format!("SMEMBERS {key}"), true),
            v1::KeyType::SortedSet => (format!("ZRANGE {key} 0 -1 WITHSCORES"), false),
            v1::KeyType::List => (format!("LRANGE {key} 0 -1"), false),
            _ => (format!("GET {key}"), false),
        };
        let mut shown = text(&client.redis(STORE, &command).await.unwrap());
        if is_unordered {
            let mut items: Vec<&str> = shown.trim_matches(['[', ']']).split_whitespace().collect();
            // By field or member: with their values, `f17:1` would come before `f1:1`.
            items.sort_unstable_by_key(|item| item.split(':').next());
            shown = format!("[{}]", items.join(" "));
        }
        all.insert(entry.key, shown);
    }
    all
}

/// A change of some key, of any type.
pub fn line(random: &mut Random) -> String {
    let (key, n, m) = (random.below(12), random.below(1_000), random.below(20));
    match random.below(16) {
        0 => format!("SET v{key} {n}"),
        1 => format!("SET v{key} {n} PX {}", 20 + m * 30),
        2 => format!("INCRBY n{key} {m}"),
        3 => format!("DEL v{key} n{key} h{key}"),
        4 => format!("HSET h{key} f{m} {n}"),
        5 => format!("HPEXPIRE h{key} {} FIELDS 1 f{m}", 20 + n),
        6 => format!("HDEL h{key} f{m}"),
        7 => format!("SADD s{key} m{m} m{n}"),
        8 => format!("SREM s{key} m{m}"),
        9 => format!("ZADD z{key} {n} m{m}"),
        10 => format!("ZREM z{key} m{m}"),
        11 => format!("RPUSH l{key} {n} {m}"),
        12 => format!("LPOP l{key} 1"),
        13 => format!("LTRIM l{key} 0 {m}"),
        14 => format!("RENAME {{t}}r{key} {{t}}r{}", m % 12),
        _ => format!("RPUSH {{t}}r{key} {n}"),
    }
}

/// Writes until it is told to stop, or the server is gone. What is refused, for a key that is not there, changes nothing.
async fn write(mut client: Client, mut random: Random, stop: Arc<AtomicBool>) -> u64 {
    let mut count = 0;
    while !stop.load(Relaxed) {
        let request = command(&line(&mut random));
        if client.operate(STORE, request.operations, request.atomic).await.is_err() {
            break;
        }
        count += 1;
    }
    count
}

/// Lets some write, until the watcher has seen so many changes.
async fn write_and_watch(
    server: &Server,
    random: &mut Random,
    messages: &mut Streaming<v1::WatchResponse>,
    copy: &mut Copy,
    resume: &mut Bytes,
    changes: usize,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push(tokio::spawn(write(server.client().await, random.fork(), Arc::clone(&stop))));
    }
    let (mut seen, mut is_between) = (0, true);
    while seen < changes || is_between {
        let message = next(messages).await;
        seen += message.events.len();
        copy.apply_all(&message);
        // What comes in several messages has the place where to go on in the last.
        is_between = message.resume.is_empty();
        if !is_between {
            *resume = message.resume;
        }
    }
    stop.store(true, Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn whoever_watches_from_a_snapshot_on_ends_with_what_the_store_has_through_kills_and_ends() {
    let home = Home::new().shards(2);
    let mut server = home.start();
    let mut client = server.client().await;
    client.create(STORE, feed(FEED, 0, Some(true))).await.unwrap();
    let mut random = Random::new("kv_feed");
    let request = command("RPUSH large a b c");
    client.operate(STORE, request.operations, request.atomic).await.unwrap();
    for n in 0..400 {
        let request = command(&format!("SADD many member-{n:04}-{}", "x".repeat(2_000)));
        client.operate(STORE, request.operations, request.atomic).await.unwrap();
    }
    let mut copy = Copy::default();
    let mut resume = Bytes::new();
    for round in 0..4 {
        let start = if round == 0 { Start::Snapshot(true) } else { Start::Resume(resume.clone()) };
        let mut client = server.client().await;
        let mut messages = watch(&mut client, None, Some(start)).await.unwrap();
        let changes = if round == 0 { 2_000 } else { 600 };
        write_and_watch(&server, &mut random, &mut messages, &mut copy, &mut resume, changes).await;
        if round % 2 == 0 {
            server.kill9();
        } else {
            server.stop();
        }
        server = home.start();
    }
    // Nobody writes any more; what ends, ends.
    let mut client = server.client().await;
    let mut messages = watch(&mut client, None, Some(Start::Resume(resume))).await.unwrap();
    let mut other = server.client().await;
    // What chance may not have brought.
    for line in [
        "SET short 1 PX 1",
        "HSET hash f 1 g 2",
        "HPEXPIRE hash 1 FIELDS 1 f",
        "RPUSH {t}from a",
        "RENAME {t}from {t}to",
    ] {
        let request = command(line);
        other.operate(STORE, request.operations, request.atomic).await.unwrap();
    }
    let started = Instant::now();
    loop {
        while let Ok(message) = tokio::time::timeout(Duration::from_millis(50), messages.message()).await {
            copy.apply_all(&message.unwrap().unwrap());
        }
        let stored = stored(&mut other).await;
        if copy.texts() == stored && stored.len() > 10 {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{:?} is not {stored:?}", copy.texts());
    }
    for kind in
        [Change::Present, Change::Set, Change::Expire, Change::FieldSet, Change::FieldExpire, Change::Rename]
    {
        assert!(copy.kinds.contains(&kind.into()), "{kind:?} was never seen");
    }
    // A snapshot by itself says the same.
    let mut messages = watch(&mut other, None, Some(Start::Snapshot(true))).await.unwrap();
    let mut again = Copy::default();
    loop {
        let message = next(&mut messages).await;
        again.apply_all(&message);
        if message.snapshot_done {
            break;
        }
        assert!(message.resume.is_empty(), "nobody goes on in the middle of a snapshot");
    }
    assert_eq!(again.texts(), stored(&mut other).await);
}

#[tokio::test]
async fn whoever_goes_on_right_behind_a_snapshot_misses_nothing_and_is_told_nothing_twice() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create(STORE, feed(FEED, 0, None)).await.unwrap();
    let mut random = Random::new("kv_feed_resume");
    // Lists show what is told twice.
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push(tokio::spawn(write(server.client().await, random.fork(), Arc::clone(&stop))));
    }
    let mut copies = Vec::new();
    for _ in 0..8 {
        let (mut copy, mut resume) = (Copy::default(), Bytes::new());
        let mut messages = watch(&mut client, None, Some(Start::Snapshot(true))).await.unwrap();
        while resume.is_empty() {
            let message = next(&mut messages).await;
            copy.apply_all(&message);
            assert_eq!(message.snapshot_done, !message.resume.is_empty(), "it ends where one can go on");
            resume = message.resume;
        }
        copies.push((copy, watch(&mut client, None, Some(Start::Resume(resume))).await.unwrap()));
    }
    stop.store(true, Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
    for (mut copy, mut messages) in copies {
        let started = Instant::now();
        while copy.texts() != stored(&mut client).await {
            while let Ok(message) = tokio::time::timeout(Duration::from_millis(50), messages.message()).await
            {
                copy.apply_all(&message.unwrap().unwrap());
            }
            assert!(started.elapsed() < DEADLINE, "{:?}", copy.texts());
        }
    }
}

#[tokio::test]
async fn a_key_is_watched_and_resumed_by_its_version() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create(STORE, feed(FEED, 4, None)).await.unwrap();
    let key = || Some(Keys::Key(Bytes::from_static(b"k")));
    let mut other = server.client().await;
    let mut messages = watch(&mut other, key(), None).await.unwrap();
    assert!(!next(&mut messages).await.resume.is_empty(), "from here on it misses nothing");
    let mut versions = Vec::new();
    for value in ["a", "b", "c"] {
        versions.push(client.set(STORE, "k", value).await.unwrap());
        client.set(STORE, "other", value).await.unwrap();
    }
    let seen = changes(&mut messages, 3).await;
    let said: Vec<_> =
        seen.iter().map(|(key, change)| (&key[..], change.version, &change.value[..])).collect();
    assert_eq!(
        said,
        [(&b"k"[..], versions[0], &b"a"[..]), (b"k", versions[1], b"b"), (b"k", versions[2], b"c")]
    );
    for (version, values) in [(0, 3), (versions[0], 2), (versions[1], 1)] {
        let mut messages = watch(&mut other, key(), Some(Start::FromVersion(version))).await.unwrap();
        let seen = changes(&mut messages, values).await;
        assert!(seen.iter().all(|(_, change)| change.version > version && change.old.is_none()));
    }
    let mut prefix =
        watch(&mut other, Some(Keys::Prefix(Bytes::from_static(b"ot"))), Some(Start::Earliest(true)))
            .await
            .unwrap();
    assert!(changes(&mut prefix, 3).await.iter().all(|(key, _)| key == "other"));
}

#[tokio::test]
async fn what_a_watch_cannot_do_is_refused_by_name() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.set("plain", "k", "v").await.unwrap();
    let request = v1::WatchRequest { store: "plain".to_owned(), ..v1::WatchRequest::default() };
    refused(client.kv.watch(request).await.map(|_| ()), Code::FailedPrecondition, "NO_FEED");
    let request = v1::WatchRequest { store: "none".to_owned(), ..v1::WatchRequest::default() };
    refused(client.kv.watch(request).await.map(|_| ()), Code::NotFound, "RESOURCE_NOT_FOUND");
    client.create(STORE, feed(FEED, 2, None)).await.unwrap();
    let token = |bytes: &'static [u8]| Some(Start::Resume(Bytes::from_static(bytes)));
    for (keys, start, field) in [
        (None, Some(Start::FromVersion(1)), "from_version"),
        (None, token(b"x"), "resume"),
        (None, token(&[1, 99, 0]), "resume"),
        (Some(Keys::Key(Bytes::new())), None, "key"),
    ] {
        let outcome = watch(&mut client, keys, start).await.map(|_| ());
        names_field(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT"), field);
    }
    let long = Some(Keys::Prefix(Bytes::from(vec![b'x'; 2_000])));
    refused(watch(&mut client, long, None).await.map(|_| ()), Code::InvalidArgument, "TOO_LARGE");
    // What was trimmed cannot be gone back to.
    let key = || Some(Keys::Key(Bytes::from_static(b"k")));
    let mut versions = Vec::new();
    for value in ["a", "b", "c"] {
        versions.push(client.set(STORE, "k", value).await.unwrap());
    }
    for partition in 0..2 {
        let status = v1::StreamStatusRequest { stream: FEED.to_owned(), partitions: vec![partition] };
        let status = client.stream.status(status).await.unwrap().into_inner();
        let upto = status.partitions[0].next_offset.min(2);
        let trim = v1::TrimRequest { stream: FEED.to_owned(), partition, before_offset: upto };
        client.stream.trim(trim).await.unwrap();
    }
    let outcome = watch(&mut client, key(), Some(Start::FromVersion(versions[0]))).await.map(|_| ());
    let status = refused(outcome, Code::OutOfRange, "VERSION_NOT_KEPT");
    assert!(status.message().contains(&versions[2].to_string()), "{status:?}");
    let mut kept = watch(&mut client, key(), Some(Start::FromVersion(versions[2]))).await.unwrap();
    assert!(next(&mut kept).await.events.is_empty());
    // A store that got its feed later may have changed before.
    let settings = feed("late", 0, None);
    update(&mut client, "plain", settings).await.unwrap();
    client.set("plain", "k", "w").await.unwrap();
    let request =
        v1::WatchRequest { store: "plain".to_owned(), keys: key(), start: Some(Start::FromVersion(0)) };
    refused(client.kv.watch(request).await.map(|_| ()), Code::OutOfRange, "VERSION_NOT_KEPT");
}

#[tokio::test]
async fn a_feed_is_refused_by_name_where_it_cannot_be() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("there", 1).await;
    refused(client.create(STORE, feed("there", 0, None)).await, Code::AlreadyExists, "RESOURCE_EXISTS");
    for (kind, field) in [(feed(FEED, 3, None), "feed.partitions"), (feed("", 0, None), "feed.stream")] {
        let refusal = client.create(STORE, kind).await;
        names_field(&refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT"), field);
    }
    let made = client.create(STORE, feed(FEED, 0, None)).await.unwrap().resource.unwrap();
    let Some(Kind::Kv(kv)) = made.settings.unwrap().kind else { panic!("no store") };
    assert_eq!(
        kv.feed.unwrap(),
        v1::FeedSettings {
            stream: format!("default/default/stream/{FEED}"),
            partitions: 4,
            old_values: Some(false),
        }
    );
    for kind in [feed("other", 0, None), feed("", 8, None)] {
        refused(update(&mut client, STORE, kind).await, Code::FailedPrecondition, "FEED_FIXED");
    }
    update(&mut client, STORE, feed("", 0, Some(true))).await.unwrap();
    refused(client.append(FEED, ["x"]).await, Code::FailedPrecondition, "FEED_STREAM");
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Stream.into(), name: FEED.to_owned() };
    refused(client.admin.delete_resource(delete).await, Code::FailedPrecondition, "FEED_STREAM");
    let wider = Kind::Stream(v1::StreamSettings { partitions: Some(8), ..Default::default() });
    refused(update(&mut client, FEED, wider).await, Code::FailedPrecondition, "FEED_STREAM");
    let kept = Kind::Stream(v1::StreamSettings { retention_ms: Some(60_000), ..Default::default() });
    update(&mut client, FEED, kept).await.unwrap();
    let delete = v1::DeleteResourceRequest { kind: v1::Kind::Kv.into(), name: STORE.to_owned() };
    client.admin.delete_resource(delete).await.unwrap();
    client.create_stream(FEED, 1).await;
}

#[test]
fn a_group_reads_a_feed_and_a_shell_watches() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh resources create kv shop --set feed=shop-changes --set feed_old_values=true",
    );
    ok(
        &server,
        &home,
        "flowmesh kv set shop a 1
         flowmesh kv set shop a 2
         flowmesh kv do shop SADD tags x
         flowmesh kv delete shop a",
    );
    // Two of a group, one after the other, get each record once.
    let first = ok(&server, &home, "flowmesh stream consume shop-changes --group g --max 3 -o json");
    let rest = ok(&server, &home, "flowmesh stream consume shop-changes --group g --max 1 -o json");
    let mut kinds: Vec<String> = first
        .lines()
        .chain(rest.lines())
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| {
            format!("{} {}", record["key"].as_str().unwrap(), record["headers"]["change"].as_str().unwrap())
        })
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["a delete", "a set", "a set", "tags member_add"]);
    let filtered =
        ok(&server, &home, "flowmesh stream read shop-changes --filter header:change=delete -o json");
    assert_eq!(filtered.lines().count(), 1, "{filtered}");
    let watched = ok(&server, &home, "flowmesh kv watch shop --earliest --key a -n 3");
    let versions: Vec<u64> = watched
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["version"].as_u64().unwrap())
        .collect();
    let expected = format!(
        "{{\"key\":\"a\",\"change\":\"set\",\"version\":{},\"type\":\"bytes\",\"value\":\"1\"}}\n\
         {{\"key\":\"a\",\"change\":\"set\",\"version\":{},\"type\":\"bytes\",\"value\":\"2\",\"old\":{{\"type\":\"bytes\",\"value\":\"1\"}}}}\n\
         {{\"key\":\"a\",\"change\":\"delete\",\"version\":{},\"old\":{{\"type\":\"bytes\",\"value\":\"2\"}}}}\n",
        versions[0], versions[1], versions[2]
    );
    assert_eq!(watched, expected);
    let snapshot = ok(&server, &home, "flowmesh kv watch shop --snapshot -n 1");
    assert!(snapshot.starts_with("{\"key\":\"tags\",\"change\":\"present\""), "{snapshot}");
    let behind = ok(
        &server,
        &home,
        &format!("flowmesh kv watch shop --from-version {} --show-resume -n 2", versions[1]),
    );
    let token: serde_json::Value = serde_json::from_str(behind.lines().next().unwrap()).unwrap();
    let resumed = ok(
        &server,
        &home,
        &format!("flowmesh kv watch shop --resume {} -n 2", token["resume"].as_str().unwrap()),
    );
    let changes: Vec<&str> = behind.lines().filter(|line| !line.contains("resume")).collect();
    assert_eq!(resumed.lines().collect::<Vec<_>>(), changes);
    let without = run(&server, &home, "flowmesh kv set plain k v > /dev/null; flowmesh kv watch plain");
    let said = String::from_utf8(without.stderr).unwrap();
    assert!(!without.status.success() && said.contains("NO_FEED"), "{said}");
}
