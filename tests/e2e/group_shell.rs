//! Groups from a shell: `flowmesh stream consume` and `flowmesh group`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use super::shell::{ok, run, shell};
use crate::common::server::{signal, wait_exit};
use crate::common::wait::eventually_blocking;
use crate::common::{Home, Server};

fn prepared(home: &Home) -> Server {
    let server = home.start();
    ok(
        &server,
        home,
        "flowmesh resources create stream logs --partitions 4
         flowmesh resources create group g --set session_timeout_ms=2s
         for i in 0 1 2 3; do for v in a b c; do flowmesh stream append logs -p $i $v$i; done; done",
    );
    server
}

/// A consumer in the background, and its lines.
fn consume(server: &Server, home: &Home, arguments: &str) -> (Child, BufReader<ChildStdout>) {
    let script = format!("exec flowmesh stream consume logs --group g {arguments}");
    let mut child = shell(server, home, &script).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn describe(server: &Server, home: &Home) -> serde_json::Value {
    json(&ok(server, home, "flowmesh group describe g --time-lag -o json"))
}

#[test]
fn a_consumer_reads_to_where_it_was_told_commits_and_the_next_goes_on() {
    let home = Home::new();
    let server = prepared(&home);
    let first = ok(&server, &home, "flowmesh stream consume logs --group g --max 5");
    let rest = ok(&server, &home, "flowmesh stream consume logs --group g --max 7 -o json");
    let mut all: Vec<String> = first.lines().map(str::to_owned).collect();
    for line in rest.lines() {
        let record = json(line);
        assert_eq!(record["stream"], "logs");
        all.push(record["value"].as_str().unwrap().to_owned());
    }
    all.sort();
    let mut expected: Vec<String> =
        ["a", "b", "c"].iter().flat_map(|v| (0..4).map(move |i| format!("{v}{i}"))).collect();
    expected.sort();
    assert_eq!(all, expected);
    let offsets = ok(&server, &home, "flowmesh group offsets g -o json");
    assert!(offsets.lines().all(|line| json(line)["offset"] == 3), "{offsets}");
    assert_eq!(offsets.lines().count(), 4);
    // What was not committed comes again.
    ok(&server, &home, "flowmesh group reset g logs --to-earliest");
    let uncommitted = ok(&server, &home, "flowmesh stream consume logs --group g --max 12 --commit none");
    assert_eq!(uncommitted.lines().count(), 12);
    assert_eq!(describe(&server, &home)["partition_list"][0]["lag"], 3);
}

#[test]
fn two_consumers_share_and_the_group_shows_who_has_what() {
    let home = Home::new();
    let server = prepared(&home);
    let (mut a, mut lines) = consume(&server, &home, "--member-name a");
    let mut line = String::new();
    for _ in 0..12 {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    let (mut b, _) = consume(&server, &home, "--member-name b --instance-id b-1 --commit interval");
    let shared = eventually_blocking("two members have two partitions each", || {
        let group = describe(&server, &home);
        let members = group["member_list"].as_array().unwrap().clone();
        let has_two = |member: &serde_json::Value| {
            member["assigned"][0]["partitions"].as_array().is_some_and(|list| list.len() == 2)
        };
        (members.len() == 2 && members.iter().all(has_two)).then_some(group)
    });
    assert_eq!(shared["state"], "stable");
    assert_eq!(shared["partition_list"][2]["lag"], 0);
    let list = ok(&server, &home, "flowmesh group list");
    assert!(list.contains("stable") && list.contains('g'), "{list}");
    let table = ok(&server, &home, "flowmesh group describe g; flowmesh group watch g -n 1");
    assert!(table.contains("b-1") && table.contains("PARTITION"), "{table}");

    // A member with an instance keeps its place when it is interrupted; one without leaves.
    signal(a.id(), libc::SIGINT);
    assert!(wait_exit(&mut a).success());
    signal(b.id(), libc::SIGTERM);
    assert!(wait_exit(&mut b).success());
    eventually_blocking("one is gone, one is away", || {
        let group = describe(&server, &home);
        let members = group["member_list"].as_array().unwrap();
        (members.len() == 1 && members[0]["away"] == true).then_some(())
    });
    let held = run(&server, &home, "flowmesh group delete g");
    assert_eq!(held.status.code(), Some(5), "{held:?}");
    ok(&server, &home, "flowmesh group remove-member g --instance-id b-1");
    let again = run(&server, &home, "flowmesh group remove-member g --instance-id b-1");
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    ok(&server, &home, "flowmesh group delete g --yes");
    assert_eq!(run(&server, &home, "flowmesh group describe g").status.code(), Some(3));
}

#[test]
fn a_command_is_run_for_each_record_and_a_failure_leaves_it_to_the_next() {
    let home = Home::new();
    let server = prepared(&home);
    let script = r#"flowmesh stream consume logs --group g --max 12 --exec '
        echo "$FLOWMESH_STREAM $FLOWMESH_PARTITION $FLOWMESH_OFFSET $(cat)" >> out.txt
        test "$FLOWMESH_PARTITION:$FLOWMESH_OFFSET" != 2:1 -o -e go'"#;
    let failed = run(&server, &home, script);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("partition 2 offset 1"), "{failed:?}");
    let offsets = ok(&server, &home, "flowmesh group offsets g logs:2 -o json");
    assert!(offsets.is_empty() || json(offsets.trim())["offset"] == 1, "{offsets}");
    ok(&server, &home, "touch go");
    let out = || std::fs::read_to_string(home.scratch().join("out.txt")).unwrap();
    let (mut rest, _) = consume(
        &server,
        &home,
        r#"--exec 'echo "logs $FLOWMESH_PARTITION $FLOWMESH_OFFSET $(cat)" >> out.txt'"#,
    );
    eventually_blocking("every record", || {
        let out = out();
        let all = (0..4).all(|p| (0..3).all(|o| out.contains(&format!("logs {p} {o} "))));
        all.then_some(())
    });
    signal(rest.id(), libc::SIGINT);
    wait_exit(&mut rest);
    assert!(out().contains("logs 2 1 b2"));
}

#[test]
fn offsets_are_reset_and_forgotten_from_a_shell() {
    let home = Home::new();
    let server = prepared(&home);
    ok(&server, &home, "flowmesh stream consume logs --group g --max 12");
    let dry = ok(&server, &home, "flowmesh group reset g logs:0,2-3 --shift -2 --dry-run -o json");
    let offsets: Vec<_> = dry.lines().map(|line| json(line)["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [1, 1, 1]);
    ok(&server, &home, "flowmesh group reset g logs:0 --to-offset 2");
    let refused = run(&server, &home, "flowmesh group reset g logs:0 --to-offset 9 -o json");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(json(String::from_utf8_lossy(&refused.stdout).trim())["reason"], "OFFSET_OUT_OF_RANGE");
    ok(&server, &home, "flowmesh group offsets g logs:1-3 --delete");
    let left = ok(&server, &home, "flowmesh group offsets g -o json");
    assert_eq!((left.lines().count(), json(left.trim())["offset"].as_u64()), (1, Some(2)));
    for wrong in ["group reset g logs", "group reset g --to-earliest --to-latest", "group offsets g --delete"]
    {
        assert_eq!(run(&server, &home, &format!("flowmesh {wrong}")).status.code(), Some(2), "{wrong}");
    }
}
