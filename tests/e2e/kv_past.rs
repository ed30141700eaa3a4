//! Stores with a history: what is read as of a time or a version is what reads said then, over gRPC and in a shell.

use bytes::Bytes;
use flowmesh_proto::v1::settings::Kind;
use flowmesh_proto::v1::{self, get_request, run_request, scan_request};
use tonic::{Code, Status};

use super::shell::{fails, ok};
use crate::common::client::{entry, names_field};
use crate::common::kv::{command, text};
use crate::common::{Client, Home, Random, eventually, refused};

const STORE: &str = "ledger";

const KEYS: [&str; 5] = ["a{t}", "b{t}", "c{t}", "d{t}", "e"];

async fn keep(client: &mut Client, store: &str, history_ms: u64) {
    let kv = v1::KvSettings { history_ms: Some(history_ms), ..v1::KvSettings::default() };
    client.create(store, Kind::Kv(kv)).await.unwrap();
}

/// The server's clock, once it has gone on: what is written from now on is later.
async fn moment(client: &mut Client) -> u64 {
    let first = now(client).await;
    loop {
        if now(client).await > first {
            return first;
        }
    }
}

async fn now(client: &mut Client) -> u64 {
    let operations = command("EXISTS none").operations;
    let request = v1::RunRequest { store: STORE.into(), operations, ..v1::RunRequest::default() };
    client.kv.run(request).await.unwrap().into_inner().now_ms
}

/// All that can be read of the keys, each with its version.
async fn content(client: &mut Client, at: Option<run_request::AsOf>) -> Result<Vec<String>, Status> {
    let mut all = Vec::new();
    for key in KEYS {
        for line in ["GET k", "HGETALL k", "SMEMBERS k", "ZRANGE k 0 -1 WITHSCORES", "LRANGE k 0 -1"] {
            let request = command(&line.replace('k', key));
            let run = v1::RunRequest {
                store: STORE.into(),
                operations: request.operations.clone(),
                as_of: at,
                ..v1::RunRequest::default()
            };
            let response = client.kv.run(run).await?.into_inner();
            let versions: Vec<u64> = response.outcomes.iter().map(|outcome| outcome.version).collect();
            let shown = match request.answer(response.outcomes, response.now_ms) {
                Ok(shown) => text(&shown),
                Err(error) => error.reason,
            };
            all.push(format!("{line} of {key}: {shown} {versions:?}"));
        }
    }
    Ok(all)
}

/// All keys, page by page.
async fn scan(client: &mut Client, at: Option<u64>) -> Vec<v1::ScanEntry> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let request = v1::ScanRequest {
            store: STORE.into(),
            after,
            limit: 7,
            as_of: at.map(scan_request::AsOf::AsOfMs),
            ..v1::ScanRequest::default()
        };
        let page = client.kv.scan(request).await.unwrap().into_inner();
        all.extend(page.entries);
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

fn write(random: &mut Random, round: u64) -> String {
    let key = KEYS[random.below(4) as usize];
    let other = KEYS[random.below(4) as usize];
    let (n, m) = (random.below(40), random.below(8));
    match random.below(22) {
        0 | 1 => format!("SET {key} {round}.{n}"),
        2 => format!("SET {key} {n} PX {}", 1 + random.below(30)),
        3 => format!("INCRBY {key} {n}"),
        4 | 5 => format!("HSET {key} f{m} {n} g{m} {}", "x".repeat(400)),
        6 => format!("HDEL {key} f{m}"),
        7 => format!("HPEXPIRE {key} {} FIELDS 1 f{m}", 1 + random.below(30)),
        8 | 9 => format!("SADD {key} m{n} m{m}"),
        10 => format!("SREM {key} m{m}"),
        11 | 12 => format!("ZADD {key} {n} m{m} {m} n{n}"),
        13 => format!("ZREM {key} m{m}"),
        14 | 15 => format!("RPUSH {key} v{n} v{m} {}", "y".repeat(600)),
        16 => format!("LPOP {key} 2"),
        17 => format!("LSET {key} 0 w{n}"),
        18 if key != other => format!("RENAME {key} {other}"),
        19 if key != other => format!("COPY {key} {other} REPLACE"),
        20 => format!("PEXPIRE {key} {}", 1 + random.below(40)),
        _ => format!("DEL {key}"),
    }
}

#[tokio::test]
async fn what_was_is_read_as_it_was_through_kills_and_checkpoints() {
    let home = Home::new().shards(2).set("checkpoint_interval_ms", "100");
    let mut random = Random::new("what_was_is_read_as_it_was_through_kills_and_checkpoints");
    let mut server = home.start();
    let mut client = server.client().await;
    keep(&mut client, STORE, 3_600_000).await;
    let mut then = Vec::new();
    for round in 0..24 {
        for _ in 0..12 {
            // Some are refused: the key holds another type, or nothing.
            let _ = client.redis(STORE, &write(&mut random, round)).await;
        }
        // Keys that are no others: pages, and both shards.
        let entries =
            (0..10).map(|n| entry(format!("k{:03}", (round * 7 + n * 5) % 150), format!("{round}")));
        let set = v1::SetRequest { store: STORE.into(), entries: entries.collect() };
        client.kv.set(set).await.unwrap();
        if round % 3 == 0 {
            let keys = (0..4).map(|n| Bytes::from(format!("k{:03}", (round * 3 + n * 11) % 150))).collect();
            client
                .kv
                .delete(v1::DeleteRequest { store: STORE.into(), keys, if_version: None })
                .await
                .unwrap();
        }
        // What ends meanwhile would be there for one read and not for another.
        let at = loop {
            let seen = (content(&mut client, None).await.unwrap(), scan(&mut client, None).await);
            let between = now(&mut client).await;
            let again = (content(&mut client, None).await.unwrap(), scan(&mut client, None).await);
            if seen == again {
                then.push((between, seen));
                break moment(&mut client).await;
            }
        };
        assert!(at >= then.last().unwrap().0);
        if round % 8 == 5 {
            server.kill9();
            server = home.start();
            client = server.client().await;
        }
    }
    for (at, (keys, entries)) in &then {
        let said = content(&mut client, Some(run_request::AsOf::AsOfMs(*at))).await.unwrap();
        assert_eq!(said, *keys, "as of {at}");
        assert_eq!(scan(&mut client, Some(*at)).await, *entries, "as of {at}");
    }
    for pair in then.windows(2) {
        let [(from, (_, before)), (to, (_, after))] = pair else { panic!() };
        compare_diff(&mut client, (*from, before), (*to, after)).await;
    }
    server.stop();
    let server = home.start();
    let mut client = server.client().await;
    let (at, (keys, entries)) = &then[0];
    let said = content(&mut client, Some(run_request::AsOf::AsOfMs(*at))).await.unwrap();
    assert_eq!(said, *keys, "after a clean restart");
    assert_eq!(scan(&mut client, Some(*at)).await, *entries);
    assert!(server.metric("flowmesh_kv_history_records", r#"store="ledger""#).unwrap() > 100.0);
}

/// Keys with plain values that are in a difference are those that differ.
async fn compare_diff(
    client: &mut Client,
    (from, before): (u64, &[v1::ScanEntry]),
    (to, after): (u64, &[v1::ScanEntry]),
) {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let request = v1::DiffRequest {
            store: STORE.into(),
            prefix: "k".into(),
            from: Some(v1::diff_request::From::FromMs(from)),
            to: Some(v1::diff_request::To::ToMs(to)),
            after: cursor,
            limit: 3,
            ..v1::DiffRequest::default()
        };
        let page = client.kv.diff(request).await.unwrap().into_inner();
        let value = |entry: Option<v1::GetEntry>| entry.map(|entry| entry.value);
        found.extend(page.keys.into_iter().map(|key| (key.key, value(key.before), value(key.after))));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let of = |entries: &[v1::ScanEntry], key: &Bytes| {
        entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.clone())
    };
    let mut keys: Vec<Bytes> = before.iter().chain(after).map(|entry| entry.key.clone()).collect();
    keys.retain(|key| key.starts_with(b"k"));
    keys.sort();
    keys.dedup();
    let expected: Vec<_> = keys
        .into_iter()
        .map(|key| (key.clone(), of(before, &key), of(after, &key)))
        .filter(|(_, before, after)| before != after)
        .collect();
    assert_eq!(found, expected, "from {from} to {to}");
}

#[tokio::test]
async fn what_is_older_than_kept_is_refused_and_given_back() {
    let home = Home::new().shards(1).set("checkpoint_interval_ms", "100");
    let server = home.start();
    let mut client = server.client().await;
    keep(&mut client, STORE, 1_000).await;
    let first = client.set(STORE, "k", "one").await.unwrap();
    let at = moment(&mut client).await;
    client.set(STORE, "k", "two").await.unwrap();
    let get = |as_of| v1::GetRequest { store: STORE.into(), keys: vec!["k".into()], as_of: Some(as_of) };
    let as_of = |at| get(get_request::AsOf::AsOfMs(at));
    let read = client.kv.get(as_of(at)).await.unwrap().into_inner();
    assert_eq!(read.entries[0].value, "one");
    let reader = client.kv.clone();
    let refused_now = || {
        let (mut reader, request) = (reader.clone(), as_of(at));
        async move { reader.get(request).await.err() }
    };
    eventually("what was is no longer kept", refused_now).await;
    let status = refused(client.kv.get(as_of(at)).await, Code::OutOfRange, "HISTORY_NOT_KEPT");
    assert!(status.message().contains("the oldest is time"), "{status:?}");
    let version = get(get_request::AsOf::AtVersion(first));
    refused(client.kv.get(version).await, Code::OutOfRange, "HISTORY_NOT_KEPT");
    let records = || server.metric("flowmesh_kv_history_records", r#"store="ledger""#);
    assert_eq!(records(), Some(0.0));
    assert_eq!(client.get(STORE, "k").await.unwrap(), "two");
}

#[tokio::test]
async fn what_cannot_be_read_of_the_past_is_refused_by_name() {
    let home = Home::new().shards(2);
    let server = home.start();
    let mut client = server.client().await;
    keep(&mut client, STORE, 60_000).await;
    client.set(STORE, "k", "v").await.unwrap();
    client.set("plain", "k", "v").await.unwrap();
    let at = now(&mut client).await;
    let get = |store: &str, as_of| v1::GetRequest {
        store: store.into(),
        keys: vec!["k".into()],
        as_of: Some(as_of),
    };
    let time = get_request::AsOf::AsOfMs;
    refused(client.kv.get(get("plain", time(at))).await, Code::FailedPrecondition, "NO_HISTORY");
    let status = refused(
        client.kv.get(get(STORE, time(at + 3_600_000))).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    names_field(&status, "as_of_ms");
    let version = get_request::AsOf::AtVersion(1 << 40);
    let status = refused(client.kv.get(get(STORE, version)).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    names_field(&status, "at_version");
    // Versions of two shards cannot be compared.
    let request = v1::ScanRequest {
        store: STORE.into(),
        as_of: Some(scan_request::AsOf::AtVersion(1)),
        ..v1::ScanRequest::default()
    };
    let status = refused(client.kv.scan(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    names_field(&status, "at_version");
    let reverse = v1::ScanRequest {
        store: STORE.into(),
        reverse: true,
        as_of: Some(scan_request::AsOf::AsOfMs(at)),
        ..v1::ScanRequest::default()
    };
    let status = refused(client.kv.scan(reverse).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    names_field(&status, "reverse");
    let run = v1::RunRequest {
        store: STORE.into(),
        operations: command("INCR k").operations,
        as_of: Some(run_request::AsOf::AsOfMs(at)),
        ..v1::RunRequest::default()
    };
    refused(client.kv.run(run).await, Code::InvalidArgument, "PAST_CHANGE");
    let diff = v1::DiffRequest { store: STORE.into(), ..v1::DiffRequest::default() };
    names_field(&refused(client.kv.diff(diff).await, Code::InvalidArgument, "INVALID_ARGUMENT"), "from");
    let versions = v1::VersionsRequest { store: "plain".into(), key: "k".into(), ..Default::default() };
    refused(client.kv.versions(versions).await, Code::FailedPrecondition, "NO_HISTORY");
    for history_ms in [1, 999, 367 * 24 * 3_600_000] {
        let kv = v1::KvSettings { history_ms: Some(history_ms), ..v1::KvSettings::default() };
        let status =
            refused(client.create("wrong", Kind::Kv(kv)).await, Code::InvalidArgument, "INVALID_ARGUMENT");
        names_field(&status, "history_ms");
    }
}

#[test]
fn a_shell_reads_what_was() {
    let home = Home::new().shards(1);
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh resources create kv ledger --set history_ms=24h
         flowmesh kv set ledger alice 10
         flowmesh kv do ledger SADD members alice bob",
    );
    let described = ok(&server, &home, "flowmesh resources describe kv ledger -o json");
    assert!(described.contains(r#""history_ms":86400000"#), "{described}");
    let version: u64 = ok(
        &server,
        &home,
        "flowmesh kv do ledger -o json EXISTS alice; flowmesh kv get ledger alice -o json",
    )
    .lines()
    .last()
    .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["version"].as_u64().unwrap())
    .unwrap();
    ok(
        &server,
        &home,
        "flowmesh kv set ledger alice 7
         flowmesh kv do ledger SREM members bob
         flowmesh kv do ledger SADD members carol
         flowmesh kv set ledger new 1
         flowmesh kv delete ledger alice",
    );
    assert_eq!(ok(&server, &home, &format!("flowmesh kv get ledger alice --at-version {version}")), "10");
    let script = format!("flowmesh kv do ledger --at-version {} SMEMBERS members", version + 1);
    assert_eq!(ok(&server, &home, &script), "alice\nbob\n");
    let script = format!("flowmesh kv scan ledger --at-version {}", version + 2);
    assert_eq!(ok(&server, &home, &script), "alice\t7\nmembers\t\n");
    let script = format!("flowmesh kv type ledger members --at-version {}", version + 1);
    assert_eq!(ok(&server, &home, &script), "set\n");
    fails(&server, &home, "flowmesh kv get ledger alice --as-of -1m", 3);
    fails(&server, &home, "flowmesh kv get ledger alice", 3);

    let history = ok(&server, &home, "flowmesh kv history ledger alice -o json");
    let lines: Vec<serde_json::Value> =
        history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = lines
        .iter()
        .map(|line| {
            (line["version"].as_u64().unwrap() - version, line["value"].as_str(), line["gone"].as_bool())
        })
        .collect();
    assert_eq!(shown, [(0, Some("10"), None), (2, Some("7"), None), (6, None, Some(true))]);
    assert!(lines.iter().all(|line| line["at_ms"].as_u64().is_some()));
    let table = ok(&server, &home, "flowmesh kv history ledger alice");
    assert!(table.lines().count() == 4 && table.contains("gone"), "{table}");
    let rest =
        ok(&server, &home, &format!("flowmesh kv history ledger alice --after {version} -n 1 -o json"));
    assert!(rest.lines().count() == 1 && rest.contains(r#""value":"7""#), "{rest}");

    let last = version + 6;
    let script =
        format!("flowmesh kv diff ledger --from-version {} --to-version {last} -o json", version + 1);
    let diff = ok(&server, &home, &script);
    let expected = format!(
        concat!(
            r#"{{"key":"alice","change":"removed","before":{{"version":{v},"type":"bytes","value":"10"}}}}"#,
            "\n",
            r#"{{"key":"members","change":"changed","before":{{"version":{b},"type":"set"}},"after":{{"version":{a},"type":"set"}},"#,
            r#""items":[{{"member":"bob","before":{{"value":""}}}},{{"member":"carol","after":{{"value":""}}}}]}}"#,
            "\n",
            r#"{{"key":"new","change":"added","after":{{"version":{n},"type":"bytes","value":"1"}}}}"#,
            "\n",
        ),
        v = version,
        b = version + 1,
        a = version + 4,
        n = version + 5,
    );
    assert_eq!(diff, expected);
    let table = ok(&server, &home, "flowmesh kv diff ledger --from -1m --prefix n");
    assert!(table.contains("added") && !table.contains("members"), "{table}");

    let wrong = fails(&server, &home, "flowmesh kv do ledger --as-of -1s SADD members x", 1);
    assert!(wrong.contains("PAST_CHANGE"), "{wrong}");
    fails(&server, &home, "flowmesh kv set plain k v && flowmesh kv get plain k --as-of -1s", 5);
    fails(&server, &home, "flowmesh kv diff ledger", 2);
    fails(&server, &home, "flowmesh kv diff ledger --from -1m --to-version 3", 2);
    fails(&server, &home, "flowmesh kv get ledger alice --as-of -1m --at-version 3", 2);
}
