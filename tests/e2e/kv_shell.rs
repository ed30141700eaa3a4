//! Keys from a shell: Redis' commands, whole stores, export and import.

use super::shell::{fails, ok, run};
use crate::common::Home;

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn commands_of_redis_are_carried_out_and_answered_in_lines_or_json() {
    let home = Home::new();
    let server = home.start();
    let printed = ok(
        &server,
        &home,
        "flowmesh kv do shop SET stock:42 7 EX 3600
         flowmesh kv do shop incrby stock:42 -1
         flowmesh kv do shop HSET user:1 name Ada city London
         flowmesh kv do shop HGETALL user:1
         flowmesh kv do shop ZADD scores 7 ada 3 bob
         flowmesh kv do shop -o json ZRANGE scores 0 -1 REV WITHSCORES
         flowmesh kv do shop RPUSH tasks a b c
         flowmesh kv do shop LRANGE tasks 0 -1
         flowmesh kv do shop LRANGE none 0 -1
         flowmesh kv do shop GET none
         flowmesh kv do shop -o json GET none
         flowmesh kv do shop MGET stock:42 none",
    );
    assert_eq!(
        printed,
        "OK\n6\n2\nname\nAda\ncity\nLondon\n2\n[[\"ada\",7.0],[\"bob\",3.0]]\n3\na\nb\nc\n\nnull\n6\n\n"
            .replace("name\nAda\ncity\nLondon", &sorted_fields(&printed)),
    );
    let wrong = fails(&server, &home, "flowmesh kv do shop GET user:1", 5);
    assert!(wrong.contains("WRONG_TYPE: the key is of type hash"), "{wrong}");
    let usage = fails(&server, &home, "flowmesh kv do shop ZADD scores ten ada", 2);
    assert!(
        usage.contains("ZADD: score is `ten`; allowed: a number, inf, -inf; allowed: ZADD key"),
        "{usage}"
    );
    let none = fails(&server, &home, "flowmesh kv do shop BLPOP tasks 0", 2);
    assert!(none.contains("BLPOP: has no equivalent. Nothing waits for a list"), "{none}");
    assert!(fails(&server, &home, "flowmesh kv do shop RENAME a b", 1).contains("KEYS_APART"));
    assert!(ok(&server, &home, "flowmesh kv do shop RANDOMKEY").lines().count() == 1);
}

/// The order of a hash's fields is the server's.
fn sorted_fields(printed: &str) -> String {
    let lines: Vec<&str> = printed.lines().skip(3).take(4).collect();
    lines.join("\n")
}

#[test]
fn many_commands_come_from_standard_input_each_for_itself_or_all_or_none() {
    let home = Home::new();
    let server = home.start();
    let printed = ok(
        &server,
        &home,
        r#"printf 'INCR visits\n\nHSET "user 1" name "Ada\\x21"\nHGET "user 1" name\n' | flowmesh kv do shop -"#,
    );
    assert_eq!(printed, "1\n1\nAda!\n");
    let both = run(
        &server,
        &home,
        "printf 'INCR visits\\nLPUSH visits a\\nRENAME a b\\nINCR visits\\n' | flowmesh kv do shop -",
    );
    assert_eq!(both.status.code(), Some(5), "{both:?}");
    assert_eq!(String::from_utf8_lossy(&both.stdout), "2\n3\n");
    let said = String::from_utf8_lossy(&both.stderr);
    assert!(said.contains("standard input line 2: WRONG_TYPE"), "{said}");
    assert!(said.contains("standard input line 3: KEYS_APART"), "{said}");
    assert!(said.contains("2 commands were refused"), "{said}");
    let broken = fails(&server, &home, "printf 'INCR visits\\nFROB\\n' | flowmesh kv do shop -", 1);
    assert!(broken.contains("standard input line 2: FROB: is no command here"), "{broken}");
    assert_eq!(ok(&server, &home, "flowmesh kv do shop GET visits"), "4\n", "the line before it is done");

    let printed = ok(
        &server,
        &home,
        "printf 'DECR {42}stock\\nSADD {42}cart item\\n' | flowmesh kv do --atomic shop -",
    );
    assert_eq!(printed, "-1\n1\n");
    let refused = fails(
        &server,
        &home,
        "printf 'DECR {42}stock\\n\\nLPUSH {42}cart x\\n' | flowmesh kv do --atomic shop -",
        5,
    );
    assert!(refused.contains("BATCH_REFUSED: standard input line 3: operation 1"), "{refused}");
    assert_eq!(ok(&server, &home, "flowmesh kv do shop GET {42}stock"), "-1\n");
}

#[test]
fn what_a_key_holds_is_said_and_a_collection_is_no_value() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh kv set s b v --expires-at 2100-01-01T00:00:00Z
         flowmesh kv do s INCR c
         flowmesh kv do s SADD set x y",
    );
    for (key, word) in [("b", "bytes"), ("c", "counter"), ("set", "set")] {
        assert_eq!(ok(&server, &home, &format!("flowmesh kv type s {key}")), format!("{word}\n"));
    }
    fails(&server, &home, "flowmesh kv type s none", 3);
    let all = json(&ok(&server, &home, "flowmesh kv type s set -o json"));
    assert_eq!((&all["type"], &all["len"]), (&"set".into(), &2.into()));
    let bytes = json(&ok(&server, &home, "flowmesh kv get s b -o json"));
    assert_eq!((&bytes["type"], &bytes["expires_at_ms"]), (&"bytes".into(), &4_102_444_800_000_u64.into()));
    assert_eq!(ok(&server, &home, "flowmesh kv get s c"), "1");
    let set = fails(&server, &home, "flowmesh kv get s set", 5);
    assert!(
        set.contains(
            "WRONG_TYPE: set holds a set, not a value; read it with `flowmesh kv do s SMEMBERS set`"
        ),
        "{set}"
    );
    ok(&server, &home, "flowmesh kv set s b w --if-value v");
    assert!(fails(&server, &home, "flowmesh kv set s b x --if-value v", 5).contains("CONDITION_FAILED"));
    let scanned = ok(&server, &home, "flowmesh kv scan s -o json");
    let types: Vec<_> = scanned.lines().map(|line| json(line)["type"].clone()).collect();
    assert_eq!(types, ["bytes", "counter", "set"]);

    assert_eq!(ok(&server, &home, "flowmesh kv count s"), "3\n");
    let counted = json(&ok(&server, &home, "flowmesh kv count s -o json"));
    assert_eq!((&counted["keys"], &counted["expiring"]), (&3.into(), &0.into()));
    assert!(["b\n", "c\n", "set\n"].contains(&ok(&server, &home, "flowmesh kv random s").as_str()));
    assert_eq!(ok(&server, &home, "flowmesh kv clear s --yes"), "s is empty, 3 keys are deleted\n");
    fails(&server, &home, "flowmesh kv random s", 3);
    assert_eq!(ok(&server, &home, "flowmesh kv count s"), "0\n");
}

#[test]
fn an_export_that_is_imported_gives_an_equal_store() {
    let home = Home::new().shards(2);
    let server = home.start();
    let many: String = (0..2_500).fold(String::new(), |text, i| {
        text + &format!(
            "SADD big-set member{i}\nZADD big-sorted {i}.5 member{i}\nHSET big-hash f{i} v{i}\nRPUSH big-list v{}\n",
            i % 7
        )
    });
    let small = r#"SET bytes "v\n\x00\xff" PXAT 4102444800000
SET "key\xff" plain
SET empty ""
SET number 17
INCRBY count -5
INCRBYFLOAT float 0.1
HSET hash a 1 "\xfe" "\xff" c 3
HPEXPIREAT hash 4102444800000 FIELDS 2 a c
PEXPIREAT hash 4102444900000
SADD set a "\xff"
ZADD sorted 0.1 a inf b -inf c 1e300 d
RPUSH list a a "\x00" b
HPEXPIREAT big-hash 4102444800000 FIELDS 1 f2000
"#;
    std::fs::write(home.scratch().join("fill"), many + small).unwrap();
    ok(&server, &home, "flowmesh kv do from - < fill > /dev/null");
    ok(&server, &home, "flowmesh kv export from from.jsonl && flowmesh kv import to from.jsonl");
    ok(&server, &home, "flowmesh kv export to - > to.jsonl");
    let read = |name: &str| std::fs::read_to_string(home.scratch().join(name)).unwrap();
    let (from, to) = (read("from.jsonl"), read("to.jsonl"));
    assert!(from == to, "the two exports differ");
    let lines: Vec<serde_json::Value> = from.lines().map(json).collect();
    let of =
        |key: &str| -> Vec<&serde_json::Value> { lines.iter().filter(|line| line["key"] == key).collect() };
    assert!(of("big-set").len() > 1 && of("big-list").len() > 1 && of("big-hash").len() > 1);
    let values = |key: &str, name: &str| -> usize {
        of(key).iter().map(|line| line[name].as_array().unwrap().len()).sum()
    };
    assert_eq!(values("big-set", "members"), 2_500);
    assert_eq!(values("big-sorted", "scores"), 2_500);
    assert_eq!(values("big-hash", "fields"), 2_500);
    assert_eq!(values("big-list", "values"), 2_500);
    assert_eq!(of("count")[0]["type"], "counter");
    assert_eq!(of("number")[0]["type"], "bytes");
    assert_eq!(of("hash")[0]["expires_at_ms"], 4_102_444_900_000_u64);
    assert_eq!(of("hash")[0]["fields"][0], serde_json::json!(["a", "1", 4_102_444_800_000_u64]));
    let same = ok(&server, &home, "flowmesh kv do from LRANGE big-list 1200 1210");
    assert_eq!(ok(&server, &home, "flowmesh kv do to LRANGE big-list 1200 1210"), same);

    // What a key held before is gone; other keys stay.
    ok(&server, &home, "flowmesh kv do to RPUSH list more && flowmesh kv do to SET other 1");
    ok(&server, &home, "flowmesh kv import to - < from.jsonl");
    assert_eq!(ok(&server, &home, "flowmesh kv do to LLEN list"), "4\n");
    assert_eq!(ok(&server, &home, "flowmesh kv get to other"), "1");
    let prefix = ok(&server, &home, "flowmesh kv export from --prefix big-s - | wc -l");
    assert!(prefix.trim().parse::<u32>().unwrap() >= 6, "{prefix}");
}

#[test]
fn an_import_says_which_line_is_wrong_and_what_is_done() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh resources create kv s --set default_ttl_ms=1h");
    std::fs::write(
        home.scratch().join("in.jsonl"),
        "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"type\":\"set\",\"members\":[7]}\n",
    )
    .unwrap();
    let said = fails(&server, &home, "flowmesh kv import s in.jsonl", 1);
    assert!(said.contains("in.jsonl line 3: members[0] is no string"), "{said}");
    assert!(said.contains("1 keys imported before that"), "{said}");
    assert_eq!(ok(&server, &home, "flowmesh kv do s TTL a"), "-1\n", "not as the store would have it");
    let large = format!("{{\"key\":\"{}\",\"value\":\"1\"}}\n", "k".repeat(1025));
    std::fs::write(home.scratch().join("large.jsonl"), large).unwrap();
    assert!(fails(&server, &home, "flowmesh kv import s large.jsonl", 1).contains("TOO_LARGE"));
    let missing = fails(&server, &home, "flowmesh kv export none -", 3);
    assert!(missing.contains("RESOURCE_NOT_FOUND"), "{missing}");
}
