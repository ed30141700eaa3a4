//! What a key can hold, and that operations on it do as Redis 7 does: transcripts, one a type, edges included.

use bytes::Bytes;
use flowmesh_proto::v1;
use tonic::Code;
use v1::operation::Action;
use v1::operation_outcome::Result as Came;

use crate::common::client::names_field;
use crate::common::kv::on;
use crate::common::{Home, eventually, now_ms, refused};

async fn transcript(lines: &str) {
    let home = Home::new();
    let server = home.start();
    server.client().await.transcript("s", lines).await;
}

#[tokio::test]
async fn bytes_and_counters_do_as_in_redis() {
    transcript(
        r#"
        SET k v => OK
        GET k => v
        GET none => (nil)
        SET k w NX => (nil)
        SET k w XX GET => v
        SET n v NX GET => (nil)
        GET n => v
        SETNX n w => 0
        SETNX m w => 1
        GETSET m x => w
        GETDEL m => x
        GETDEL m => (nil)
        EXISTS m n n none => 2
        APPEND a ab => 2
        APPEND a cde => 5
        STRLEN a => 5
        STRLEN none => 0
        GETRANGE a 0 -1 => abcde
        GETRANGE a -2 -1 => de
        GETRANGE a 3 1 =>
        GETRANGE a 2 99 => cde
        GETRANGE none 0 -1 =>
        SUBSTR a 1 1 => b
        SETRANGE a 2 XY => 5
        GET a => abXYe
        SETRANGE z 3 q => 4
        GET z => \x00\x00\x00q
        SETRANGE none 5 "" => 0
        EXISTS none => 0
        MSET a 1 b 2 c 3 => OK
        MGET a b none c => [1 2 (nil) 3]
        MSETNX {t}a 1 {t}b 2 => 1
        MSETNX {t}b 3 {t}c 4 => 0
        EXISTS {t}c => 0
        DEL a b none => 2

        INCR count => 1
        INCRBY count 41 => 42
        DECR count => 41
        DECRBY count 50 => -9
        GET count => -9
        STRLEN count => 2
        APPEND count 1 => 3
        INCR count => -90
        SET text 10 => OK
        INCR text => 11
        TYPE text => string
        SET word abc => OK
        INCR word => ! NOT_A_NUMBER
        INCRBYFLOAT word 1 => ! NOT_A_NUMBER
        SET big 9223372036854775807 => OK
        INCR big => ! COUNTER_OVERFLOW
        GET big => 9223372036854775807
        SET small -9223372036854775808 => OK
        DECR small => ! COUNTER_OVERFLOW
        INCRBYFLOAT f 10.5 => 10.5
        INCRBYFLOAT f 0.25 => 10.75
        GET f => 10.75
        INCRBYFLOAT f -10.75 => 0
        SET space " 1" => OK
        INCR space => ! NOT_A_NUMBER
        "#,
    )
    .await;
}

#[tokio::test]
async fn keys_are_renamed_copied_and_typed() {
    transcript(
        r#"
        SET {t}a 1 EX 1000 => OK
        RENAME {t}a {t}b => OK
        EXISTS {t}a {t}b => 1
        TTL {t}b => 1000
        SET {t}c 2 => OK
        RENAMENX {t}b {t}c => 0
        RENAMENX {t}b {t}d => 1
        RENAME {t}none {t}x => ! NO_SUCH_KEY
        RENAME a b => ! KEYS_APART
        COPY {t}d {t}c => 0
        COPY {t}d {t}c REPLACE => 1
        GET {t}c => 1
        TTL {t}c => 1000
        COPY {t}none {t}e => 0
        PERSIST {t}c => 1
        PERSIST {t}c => 0
        TTL {t}c => -1
        TTL {t}none => -2
        EXPIRETIME {t}none => -2
        PEXPIREAT {t}c 4102444800000 => 1
        PEXPIRETIME {t}c => 4102444800000
        EXPIRETIME {t}c => 4102444800
        EXPIRE {t}c 100 NX => 0
        EXPIRE {t}c 100 GT => 0
        EXPIRE {t}c 100 LT => 1
        EXPIRE {t}c 200 XX => 1
        EXPIRE {t}none 100 => 0
        GETEX {t}c PERSIST => 1
        TTL {t}c => -1
        GETEX {t}c EX 50 => 1
        TTL {t}c => 50
        EXPIRE {t}c -1 => 1
        EXISTS {t}c => 0
        SET k v PXAT 1 => OK
        EXISTS k => 0
        HSET h f v => 1
        SADD s m => 1
        ZADD z 1 m => 1
        RPUSH l v => 1
        TYPE h => hash
        TYPE s => set
        TYPE z => zset
        TYPE l => list
        TYPE {t}d => string
        TYPE none => none
        COPY h h2 => ! KEYS_APART
        RPUSH {t}l a b => 2
        COPY {t}l {t}m => 1
        RPUSH {t}m c => 3
        LRANGE {t}l 0 -1 => [a b]
        LRANGE {t}m 0 -1 => [a b c]
        RENAME {t}m {t}l => OK
        LRANGE {t}l 0 -1 => [a b c]
        TOUCH h s none => 2
        UNLINK h s none => 2
        "#,
    )
    .await;
}

#[tokio::test]
async fn hashes_do_as_in_redis() {
    transcript(
        r#"
        HSET h a 1 b 2 => 2
        HSET h b 3 c 4 => 1
        HGET h b => 3
        HGET h none => (nil)
        HGET none a => (nil)
        HMGET h a none c => [1 (nil) 4]
        HGETALL h => [a:1 b:3 c:4]
        HGETALL none => []
        HKEYS h => [a b c]
        HVALS h => [1 3 4]
        HLEN h => 3
        HLEN none => 0
        HEXISTS h a => 1
        HEXISTS h none => 0
        HSTRLEN h a => 1
        HSTRLEN h none => 0
        HSETNX h a 9 => 0
        HSETNX h d 9 => 1
        HINCRBY h a 41 => 42
        HINCRBY h n -5 => -5
        HINCRBYFLOAT h n 0.5 => -4.5
        HINCRBY h n 1 => ! NOT_A_NUMBER
        HSET h big 9223372036854775807 => 1
        HINCRBY h big 1 => ! COUNTER_OVERFLOW
        HDEL h a none big => 2
        HSCAN h 0 COUNT 2 => [>c [b:3 c:4]]
        HSCAN h >c => [0 [d:9 n:-4.5]]
        HSCAN h 0 MATCH [bd] NOVALUES => [0 [b d]]
        HMSET h b 5 => OK
        HEXPIRE h 100 FIELDS 2 b none => [1 -2]
        HTTL h FIELDS 3 b c none => [100 -1 -2]
        HEXPIRE h 200 NX FIELDS 2 b c => [0 1]
        HEXPIRE h 300 GT FIELDS 1 b => [1]
        HPEXPIREAT h 4102444800000 FIELDS 1 d => [1]
        HPEXPIRETIME h FIELDS 1 d => [4102444800000]
        HEXPIRETIME h FIELDS 1 d => [4102444800]
        HPERSIST h FIELDS 3 d n none => [1 -1 -2]
        HSET h b 6 => 0
        HTTL h FIELDS 1 b => [-1]
        HEXPIRE h 0 FIELDS 2 b none => [2 -2]
        HEXISTS h b => 0
        HTTL none FIELDS 1 a => [-2]
        HRANDFIELD none => (nil)
        HRANDFIELD none 5 => []
        HDEL h c d n => 3
        EXISTS h => 0
        SET k v => OK
        HGET k a => ! WRONG_TYPE
        HSET k a 1 => ! WRONG_TYPE
        HGETALL k => ! WRONG_TYPE
        GET k => v
        "#,
    )
    .await;
}

#[tokio::test]
async fn sets_do_as_in_redis() {
    transcript(
        r#"
        SADD {t}a x y z x => 3
        SADD {t}a x w => 1
        SCARD {t}a => 4
        SCARD none => 0
        SMEMBERS {t}a => [w x y z]
        SMEMBERS none => []
        SISMEMBER {t}a x => 1
        SISMEMBER {t}a q => 0
        SMISMEMBER {t}a x q y => [1 0 1]
        SREM {t}a w q => 1
        SADD {t}b y z q => 3
        SINTER {t}a {t}b => [y z]
        SUNION {t}a {t}b => [q x y z]
        SDIFF {t}a {t}b => [x]
        SINTER {t}a {t}none => []
        SUNION {t}none => []
        SDIFF {t}none {t}a => []
        SINTERCARD 2 {t}a {t}b => 2
        SINTERCARD 2 {t}a {t}b LIMIT 1 => 1
        SINTERSTORE {t}c {t}a {t}b => 2
        SMEMBERS {t}c => [y z]
        SUNIONSTORE {t}c {t}a {t}b => 4
        SDIFFSTORE {t}c {t}a {t}none => 3
        SINTERSTORE {t}c {t}a {t}none => 0
        EXISTS {t}c => 0
        SMOVE {t}a {t}b x => 1
        SMOVE {t}a {t}b none => 0
        SMEMBERS {t}b => [q x y z]
        SINTER {t}a b => ! KEYS_APART
        SSCAN {t}b 0 COUNT 3 => [>y [q x y]]
        SSCAN {t}b >y => [0 [z]]
        SSCAN {t}b 0 MATCH [xy] => [0 [x y]]
        SPOP none => (nil)
        SPOP none 3 => []
        SRANDMEMBER none => (nil)
        SRANDMEMBER none -3 => []
        SRANDMEMBER {t}b 10 => [q x y z]
        SPOP {t}b 10 => [q x y z]
        EXISTS {t}b => 0
        SREM {t}a y z => 2
        EXISTS {t}a => 0
        RPUSH l v => 1
        SADD l m => ! WRONG_TYPE
        SMEMBERS l => ! WRONG_TYPE
        SADD {t}s m => 1
        RPUSH {t}l v => 1
        SINTER {t}s {t}l => ! WRONG_TYPE
        SMOVE {t}s {t}l m => ! WRONG_TYPE
        SMEMBERS {t}s => [m]
        "#,
    )
    .await;
}

#[tokio::test]
async fn sorted_sets_do_as_in_redis() {
    transcript(
        r#"
        ZADD {t}z 1 a 2 b 3 c => 3
        ZADD {t}z 4 c 1 d => 1
        ZADD {t}z CH 5 c 6 e => 2
        ZADD {t}z NX 9 a 9 f => 1
        ZADD {t}z XX 8 f 8 g => 0
        ZADD {t}z GT CH 1 f 7 e => 1
        ZADD {t}z LT CH 9 f 6 e => 1
        ZADD {t}z INCR 1 a => 2
        ZADD {t}z NX INCR 1 a => (nil)
        ZADD {t}z XX INCR 1 none => (nil)
        ZSCORE {t}z a => 2
        ZSCORE {t}z none => (nil)
        ZMSCORE {t}z a none b => [2 (nil) 2]
        ZINCRBY {t}z -1 a => 1
        ZINCRBY {t}z 2.5 new => 2.5
        ZREM {t}z new none => 1
        ZCARD {t}z => 6
        ZCARD none => 0
        ZRANGE {t}z 0 -1 WITHSCORES => [a:1 d:1 b:2 c:5 e:6 f:8]
        ZRANGE {t}z 0 1 => [a d]
        ZRANGE {t}z -2 -1 REV => [d a]
        ZREVRANGE {t}z 0 1 => [f e]
        ZRANGE {t}z 4 2 => []
        ZRANGE none 0 -1 => []
        ZRANGE {t}z (1 5 BYSCORE => [b c]
        ZRANGE {t}z 5 (1 BYSCORE REV => [c b]
        ZRANGE {t}z -inf +inf BYSCORE LIMIT 1 2 => [d b]
        ZRANGEBYSCORE {t}z 2 +inf WITHSCORES LIMIT 1 -1 => [c:5 e:6 f:8]
        ZREVRANGEBYSCORE {t}z +inf 5 => [f e c]
        ZRANGEBYSCORE {t}z -inf +inf LIMIT -1 5 => []
        ZCOUNT {t}z 2 6 => 3
        ZCOUNT {t}z (2 (6 => 1
        ZRANK {t}z b => 2
        ZRANK {t}z b WITHSCORE => [2 2]
        ZREVRANK {t}z b => 3
        ZRANK {t}z none => (nil)
        ZADD lex 0 a 0 b 0 c 0 d => 4
        ZRANGEBYLEX lex [b (d => [b c]
        ZRANGEBYLEX lex - + LIMIT 1 2 => [b c]
        ZREVRANGEBYLEX lex + (b => [d c]
        ZRANGEBYLEX lex + - => []
        ZLEXCOUNT lex - [b => 2
        ZREMRANGEBYLEX lex (a [c => 2
        ZRANGE lex 0 -1 => [a d]
        ZRANGESTORE {t}r {t}z 0 1 => 2
        ZRANGE {t}r 0 -1 WITHSCORES => [a:1 d:1]
        ZRANGESTORE {t}r {t}z 100 200 BYSCORE => 0
        EXISTS {t}r => 0
        ZADD {t}y 10 a 20 x => 2
        ZUNION 2 {t}z {t}y WITHSCORES => [d:1 b:2 c:5 e:6 f:8 a:11 x:20]
        ZINTER 2 {t}z {t}y WITHSCORES => [a:11]
        ZINTER 2 {t}z {t}y WEIGHTS 2 0.5 WITHSCORES => [a:7]
        ZINTER 2 {t}z {t}y AGGREGATE MAX WITHSCORES => [a:10]
        ZDIFF 2 {t}y {t}z WITHSCORES => [x:20]
        ZUNIONSTORE {t}u 2 {t}z {t}y AGGREGATE MIN => 7
        ZSCORE {t}u a => 1
        ZINTERSTORE {t}u 2 {t}y {t}none => 0
        ZDIFFSTORE {t}u 1 {t}y => 2
        ZINTERCARD 2 {t}z {t}y => 1
        SADD {t}s a b => 2
        ZINTER 2 {t}z {t}s WITHSCORES => [a:2 b:3]
        ZPOPMIN {t}z => [a:1]
        ZPOPMAX {t}z 2 => [f:8 e:6]
        ZPOPMIN none => []
        ZMPOP 1 {t}z MIN COUNT 2 => [{t}z [d:1 b:2]]
        ZMPOP 1 none MIN => (nil)
        ZRANDMEMBER {t}z => c
        ZRANDMEMBER {t}z -2 WITHSCORES => [c:5 c:5]
        ZRANDMEMBER none => (nil)
        ZADD {t}z inf i -inf j => 2
        ZRANGE {t}z 0 -1 WITHSCORES => [j:-inf c:5 i:inf]
        ZINCRBY {t}z -inf i => ! COUNTER_OVERFLOW
        ZSCORE {t}z i => inf
        ZSCAN {t}z 0 COUNT 2 => [>i [c:5 i:inf]]
        ZREMRANGEBYSCORE {t}z -inf (inf => 2
        ZREMRANGEBYRANK {t}z 0 -1 => 1
        EXISTS {t}z => 0
        ZADD {t}s 1 m => ! WRONG_TYPE
        ZRANGE {t}s 0 -1 => ! WRONG_TYPE
        "#,
    )
    .await;
}

#[tokio::test]
async fn lists_do_as_in_redis() {
    transcript(
        r#"
        RPUSH {t}l a b c => 3
        LPUSH {t}l y x => 5
        LRANGE {t}l 0 -1 => [x y a b c]
        LRANGE {t}l -2 99 => [b c]
        LRANGE {t}l 3 1 => []
        LRANGE none 0 -1 => []
        LLEN {t}l => 5
        LLEN none => 0
        LINDEX {t}l 0 => x
        LINDEX {t}l -1 => c
        LINDEX {t}l 9 => (nil)
        LSET {t}l 1 Y => OK
        LSET {t}l 9 q => ! INDEX_OUT_OF_RANGE
        LSET none 0 q => ! NO_SUCH_KEY
        LINSERT {t}l BEFORE a A => 6
        LINSERT {t}l AFTER c d => 7
        LINSERT {t}l AFTER none d => -1
        LINSERT none AFTER a b => 0
        LRANGE {t}l 0 -1 => [x Y A a b c d]
        LPUSHX none a => 0
        RPUSHX {t}l e => 8
        LPOP {t}l => x
        RPOP {t}l 2 => [e d]
        LPOP none => (nil)
        LPOP none 2 => (nil)
        LTRIM {t}l 1 -2 => OK
        LRANGE {t}l 0 -1 => [A a b]
        RPUSH {t}l a c a => 6
        LPOS {t}l a => 1
        LPOS {t}l a RANK -1 => 5
        LPOS {t}l a COUNT 0 => [1 3 5]
        LPOS {t}l a RANK 2 COUNT 2 => [3 5]
        LPOS {t}l a RANK 2 MAXLEN 3 => (nil)
        LPOS {t}l none => (nil)
        LPOS {t}l none COUNT 0 => []
        LREM {t}l -1 a => 1
        LREM {t}l 0 a => 2
        LREM {t}l 1 none => 0
        LRANGE {t}l 0 -1 => [A b c]
        LMOVE {t}l {t}m LEFT RIGHT => A
        RPOPLPUSH {t}l {t}m => c
        LRANGE {t}m 0 -1 => [c A]
        LMOVE {t}m {t}m LEFT RIGHT => c
        LRANGE {t}m 0 -1 => [A c]
        LMOVE {t}none {t}m LEFT LEFT => (nil)
        LMPOP 1 {t}m RIGHT COUNT 5 => [{t}m [c A]]
        EXISTS {t}m => 0
        LMPOP 1 {t}m LEFT => (nil)
        LTRIM {t}l 5 9 => OK
        EXISTS {t}l => 0
        SET k v => OK
        LPUSH k a => ! WRONG_TYPE
        LRANGE k 0 -1 => ! WRONG_TYPE
        "#,
    )
    .await;
}

#[tokio::test]
async fn plain_reads_say_what_a_key_holds() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.transcript("s", "SET b v => OK\nINCR c => 1\nHSET h f v => 1\nZADD z 1 m => 1").await;
    for (key, holds, value) in [
        ("b", v1::KeyType::Bytes, "v"),
        ("c", v1::KeyType::Counter, "1"),
        ("h", v1::KeyType::Hash, ""),
        ("z", v1::KeyType::SortedSet, ""),
    ] {
        let entry = client.entry("s", key).await.unwrap().unwrap();
        assert_eq!((entry.r#type(), &entry.value[..]), (holds, value.as_bytes()), "{key}");
        assert!(entry.version > 0);
    }
    assert!(client.entry("s", "none").await.unwrap().is_none());
    let scanned = client.scan("s", b"", 0).await;
    let types: Vec<v1::KeyType> = scanned.iter().map(v1::ScanEntry::r#type).collect();
    use v1::KeyType::{Bytes as Plain, Counter, Hash, SortedSet};
    assert_eq!(types, [Plain, Counter, Hash, SortedSet]);
    // A plain set takes any key, and a plain delete too.
    client.set("s", "h", "now bytes").await.unwrap();
    assert_eq!(client.get("s", "h").await.unwrap(), "now bytes");
}

#[tokio::test]
async fn what_ends_is_gone_in_time_keys_and_fields() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let before = now_ms();
    client
        .transcript(
            "s",
            "HSET h short 1 long 2 => 2\nHPEXPIRE h 300 FIELDS 1 short => [1]\nSADD s a => 1\nPEXPIRE s 300 => 1",
        )
        .await;
    eventually("field and key are gone", || {
        let mut client = client.clone();
        async move {
            let field = client.redis("s", "HEXISTS h short").await.unwrap();
            let key = client.redis("s", "EXISTS s").await.unwrap();
            let gone = flowmesh::redis_syntax::show::Shown::Integer(0);
            (field == gone && key == gone).then_some(())
        }
    })
    .await;
    assert!(now_ms() >= before + 300, "and not sooner");
    client.transcript("s", "HGETALL h => [long:2]\nHLEN h => 1\nSADD s b => 1\nSMEMBERS s => [b]").await;
}

#[tokio::test]
async fn versions_grow_with_every_change_and_reads_show_them() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let add = |member: &'static str| {
        on("s", Action::SetAdd(v1::SetAdd { members: vec![Bytes::from_static(member.as_bytes())] }))
    };
    let first = client.operate("s", vec![add("a")], false).await.unwrap()[0].version;
    let again = client.operate("s", vec![add("a")], false).await.unwrap()[0].version;
    assert_eq!(first, again, "what changes nothing makes no version");
    let second = client.operate("s", vec![add("b")], false).await.unwrap()[0].version;
    assert!(first > 0 && second > first);
    let inspect = on("s", Action::Inspect(v1::KeyInspect {}));
    let Some(Came::Info(info)) = client.operate("s", vec![inspect], false).await.unwrap()[0].result else {
        panic!("no info");
    };
    assert_eq!((info.found, info.version, info.len), (true, second, 2));
    let stale = v1::Operation { condition: Some(v1::operation::Condition::IfVersion(first)), ..add("c") };
    let outcome = client.operate("s", vec![stale.clone()], false).await.unwrap().remove(0);
    let error = outcome.error.unwrap();
    assert_eq!((error.reason.as_str(), &error.details["version"]), ("CONDITION_FAILED", &second.to_string()));
    let fresh = v1::Operation { condition: Some(v1::operation::Condition::IfVersion(second)), ..stale };
    assert!(client.operate("s", vec![fresh], false).await.unwrap()[0].error.is_none());
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.set("s", "k", "v").await.unwrap();
    let members = |count: usize| vec![Bytes::from_static(b"m"); count];
    let rows: Vec<(v1::Operation, &str, &str)> = vec![
        (v1::Operation { key: "k".into(), ..Default::default() }, "INVALID_ARGUMENT", "action"),
        (on("k", Action::SetAdd(v1::SetAdd::default())), "INVALID_ARGUMENT", "members"),
        (on("k", Action::HashGet(v1::HashGet::default())), "INVALID_ARGUMENT", "fields"),
        (
            on("k", Action::SortedIncrement(v1::SortedIncrement { by: f64::NAN, ..Default::default() })),
            "INVALID_ARGUMENT",
            "by",
        ),
        (
            on("k", Action::IncrementFloat(v1::BytesIncrementFloat { by: f64::INFINITY })),
            "INVALID_ARGUMENT",
            "by",
        ),
        (on("k", Action::ListPop(v1::ListPop { side: 7, count: 1 })), "INVALID_ARGUMENT", "side"),
        (on("k", Action::Expire(v1::KeyExpire::default())), "INVALID_ARGUMENT", "end"),
        (on("k", Action::SetRandom(v1::SetRandom { count: i64::MIN })), "INVALID_ARGUMENT", "count"),
        (
            on("k", Action::SetAdd(v1::SetAdd { members: members(10_001) })),
            "TOO_LARGE",
            "items of operations",
        ),
    ];
    for (operation, reason, field) in rows {
        let outcome = client.operate("s", vec![operation], false).await;
        names_field(&refused(outcome, Code::InvalidArgument, reason), field);
    }
    let large = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
    let rows = [
        (on("", Action::Get(v1::BytesGet {})), "INVALID_ARGUMENT", "key: is empty"),
        (on(large(1025), Action::Get(v1::BytesGet {})), "TOO_LARGE", "key has 1025"),
        (on("k", Action::Append(v1::BytesAppend { value: large((16 << 20) + 1) })), "TOO_LARGE", "value has"),
        (on("h", Action::SetAdd(v1::SetAdd { members: vec![large(65_537)] })), "TOO_LARGE", "member has"),
        (on("h", Action::SetPop(v1::SetPop { count: 10_001 })), "INVALID_ARGUMENT", "allowed: 0 to 10000"),
    ];
    for (operation, reason, part) in rows {
        let get = on("k", Action::Get(v1::BytesGet {}));
        let outcomes = client.operate("s", vec![operation, get], false).await.unwrap();
        let error = outcomes[0].error.as_ref().unwrap();
        assert!(error.reason == reason && error.message.contains(part), "{error:?}");
        assert!(outcomes[1].error.is_none(), "the others are carried out");
    }
    let none = client.operate("s", vec![], false).await;
    names_field(&refused(none, Code::InvalidArgument, "INVALID_ARGUMENT"), "operations");
    let get = on("k", Action::Get(v1::BytesGet {}));
    let missing = client.operate("none", vec![get.clone()], false).await;
    refused(missing, Code::NotFound, "RESOURCE_NOT_FOUND");
    let many = vec![get; 10_001];
    names_field(
        &refused(client.operate("s", many, false).await, Code::InvalidArgument, "TOO_LARGE"),
        "operations",
    );
    assert_eq!(client.get("s", "k").await.unwrap(), "v");
    server.assert_healthy();
}
