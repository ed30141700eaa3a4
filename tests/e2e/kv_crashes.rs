//! Whatever a key holds is there after `kill -9`, with versions and ends.

use flowmesh_proto::v1;
use v1::operation::Action;
use v1::operation_outcome::Result as Came;

use crate::common::kv::on;
use crate::common::{Client, Home};

const KEYS: [&str; 7] = ["bytes", "count", "float", "hash", "set", "sorted", "list"];

const FILL: &str = "
    SET bytes v EX 100000 => OK
    INCRBY count 42 => 42
    INCRBYFLOAT float 0.5 => 0.5
    HSET hash a 1 b 2 c 3 => 3
    HPEXPIREAT hash 4102444800000 FIELDS 1 b => [1]
    HDEL hash c => 1
    SADD set x y z => 3
    SREM set y => 1
    ZADD sorted 1.5 a inf b => 2
    ZINCRBY sorted 1 a => 2.5
    RPUSH list a b c d => 4
    LPUSH list z => 5
    LSET list 1 A => OK
    LREM list 1 c => 1
    SADD gone a => 1
    SREM gone a => 1
    RPUSH {t}moved a => 1
    RENAME {t}moved {t}here => OK
    COPY {t}here {t}copy => 1
";

const THERE: &str = "
    GET bytes => v
    GET count => 42
    GET float => 0.5
    HGETALL hash => [a:1 b:2]
    HPEXPIRETIME hash FIELDS 2 a b => [-1 4102444800000]
    SMEMBERS set => [x z]
    ZRANGE sorted 0 -1 WITHSCORES => [a:2.5 b:inf]
    LRANGE list 0 -1 => [z A b d]
    EXISTS gone {t}moved => 0
    LRANGE {t}here 0 -1 => [a]
    LRANGE {t}copy 0 -1 => [a]
";

async fn infos(client: &mut Client) -> Vec<v1::KeyInfo> {
    let inspect = |key: &&'static str| on(*key, Action::Inspect(v1::KeyInspect {}));
    let outcomes = client.operate("s", KEYS.iter().map(inspect).collect(), false).await.unwrap();
    let info = |outcome: v1::OperationOutcome| match outcome.result {
        // What something takes in memory may differ after a restart.
        Some(Came::Info(info)) if info.found => v1::KeyInfo { memory_bytes: 0, ..info },
        other => panic!("{other:?}"),
    };
    outcomes.into_iter().map(info).collect()
}

#[tokio::test]
async fn what_keys_hold_survives_kills_with_versions_and_ends() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.transcript("s", FILL).await;
    client.transcript("s", THERE).await;
    let before = infos(&mut client).await;
    server.kill9();
    for round in 0..2 {
        let server = home.start();
        let mut client = server.client().await;
        client.transcript("s", THERE).await;
        assert_eq!(infos(&mut client).await, before, "round {round}");
        if round == 0 {
            // The second time from a checkpoint.
            server.stop();
        }
    }
    let server = home.start();
    let mut client = server.client().await;
    client.transcript("s", "SADD set q => 1\nINCR count => 43\nRPUSH list e => 5").await;
    let after = infos(&mut client).await;
    assert!(after[4].version > before[4].version, "versions go on growing");
}

#[tokio::test]
async fn a_large_collection_survives_kills_while_it_changes() {
    let home = Home::new();
    let mut counts = (0i64, 0i64);
    for round in 0..3 {
        let server = home.start();
        let mut client = server.client().await;
        let members = |first: usize| {
            let one = |i: usize| v1::ScoredMember { member: format!("m{i:06}").into(), score: i as f64 };
            (first..first + 500).map(one).collect()
        };
        for part in 0..4 {
            let first = (round * 4 + part) * 500;
            let add = v1::SortedAdd { members: members(first), ..Default::default() };
            let values = (first..first + 500).map(|i| format!("v{i}").into()).collect();
            let push = v1::ListPush { side: v1::Side::Back.into(), values, if_present: false };
            let batch = vec![on("{t}z", Action::SortedAdd(add)), on("{t}l", Action::ListPush(push))];
            client.operate("s", batch, true).await.unwrap();
            counts = (counts.0 + 500, counts.1 + 500);
        }
        server.kill9();
    }
    let server = home.start();
    let mut client = server.client().await;
    let (members, values) = counts;
    client.transcript("s", &format!("ZCARD {{t}}z => {members}\nLLEN {{t}}l => {values}")).await;
    let last = members - 1;
    let lines = format!(
        "ZRANK {{t}}z m{last:06} => {last}\nLINDEX {{t}}l {last} => v{last}\nZRANGE {{t}}z 2000 2001 => [m002000 m002001]\n\
         ZCOUNT {{t}}z 100 199 => 100\nLRANGE {{t}}l 1999 2000 => [v1999 v2000]"
    );
    client.transcript("s", &lines).await;
}
