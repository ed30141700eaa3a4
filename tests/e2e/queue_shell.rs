//! Queues from a shell: what jobs can be given, what can be seen of them, what can be done to them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::shell::{ok, run, shell};
use crate::common::Home;
use crate::common::server::{signal, wait_exit};
use crate::common::wait::eventually_blocking;

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn jobs_are_enqueued_with_all_they_can_have() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh queue enqueue mail first --key k --key-window 1h --group g --ttl 1d --backoff fixed:1s
         flowmesh queue enqueue mail parent --after 1 --after-any-end
         flowmesh queue enqueue mail later --run-at +1h",
    );
    let again = ok(&server, &home, "flowmesh queue enqueue mail first --key k -o json");
    assert_eq!((&json(&again)["existing"], &json(&again)["first_job_id"]), (&1.into(), &1.into()));
    let conflict = run(&server, &home, "flowmesh queue enqueue mail other --key k");
    assert_eq!(conflict.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&conflict.stderr).contains("KEY_CONFLICT"));
    let first = json(&ok(&server, &home, "flowmesh queue job mail 1 -o json"));
    assert_eq!(
        (&first["group"], &first["key"], &first["phase"]),
        (&"g".into(), &"k".into(), &"ready".into())
    );
    assert!(first["expires_at_ms"].as_u64() > first["enqueued_at_ms"].as_u64());
    assert_eq!(json(&ok(&server, &home, "flowmesh queue job mail 2 -o json"))["waits_for"][0], 1);
    let phases = ok(&server, &home, "flowmesh queue list mail -o json");
    let phases: Vec<_> = phases.lines().map(|line| json(line)["phase"].clone()).collect();
    assert_eq!(phases, ["ready", "blocked", "delayed"]);

    let lines = r#"{"payload":"a","group":"g2","ttl":"1h"}
{"payload":"b","after":[0],"backoff":"linear:1s:1m:10%","run_at":"+1h"}
"#;
    std::fs::write(home.scratch().join("jobs.ndjson"), lines).unwrap();
    ok(&server, &home, "flowmesh queue enqueue flow --json-lines --file jobs.ndjson");
    let second = json(&ok(&server, &home, "flowmesh queue job flow 2 -o json"));
    assert_eq!((&second["phase"], &second["waits_for"][0]), (&"blocked".into(), &1.into()));
}

#[test]
fn a_result_is_awaited_and_given_to_whoever_asks() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh queue enqueue mail '6 * 7' && flowmesh queue enqueue mail bad --max-attempts 1",
    );
    let open = run(&server, &home, "flowmesh queue result mail 1");
    assert_eq!(open.status.code(), Some(4), "{open:?}");
    let mut waiting =
        shell(&server, &home, "flowmesh queue result mail 1 --wait 60s > result.txt").spawn().unwrap();
    let lease = |line: &str| json(line)["lease"].as_str().unwrap().to_owned();
    let first = lease(&ok(&server, &home, "flowmesh queue reserve mail -o json"));
    ok(&server, &home, &format!("flowmesh queue progress mail {first} 'half of it'"));
    assert_eq!(json(&ok(&server, &home, "flowmesh queue job mail 1 -o json"))["progress"], "half of it");
    ok(&server, &home, &format!("flowmesh queue ack mail {first} --result 42"));
    assert!(wait_exit(&mut waiting).success());
    assert_eq!(std::fs::read_to_string(home.scratch().join("result.txt")).unwrap(), "42\n");
    let second = lease(&ok(&server, &home, "flowmesh queue reserve mail -o json"));
    ok(&server, &home, &format!("flowmesh queue nack mail {second} --error 'no such address'"));
    let dead = run(&server, &home, "flowmesh queue result mail 2 --wait 60s");
    assert_eq!(dead.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&dead.stderr).contains("job 2 is dead: no such address"), "{dead:?}");
}

#[test]
fn dead_letters_are_found_sent_back_and_purged() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh resources create queue mail --set max_attempts=1
         flowmesh queue enqueue mail one -H to=ada
         flowmesh queue enqueue mail two three four
         flowmesh queue work mail --until-empty --exec 'echo \"$(cat): timeout\" >&2; exit 1'",
    );
    let numbers = |script: &str| -> Vec<u64> {
        ok(&server, &home, script).lines().map(|line| json(line)["job_id"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers("flowmesh queue list mail --phase dead -o json"), [1, 2, 3, 4]);
    assert_eq!(numbers("flowmesh queue list mail --phase dead --error 'two: time' -o json"), [2]);
    assert_eq!(numbers("flowmesh queue list mail --phase dead --header to=ada -o json"), [1]);
    assert_eq!(numbers("flowmesh queue list mail --phase dead --since -1h -n 3 -o json"), [1, 2, 3]);
    assert_eq!(numbers("flowmesh queue list mail --phase dead --before -1h -o json"), [0; 0]);
    let table = ok(&server, &home, "flowmesh queue list mail --phase dead && flowmesh queue job mail 2");
    assert!(table.contains("two: timeout") && table.contains("job 2 is dead"), "{table}");

    let which = run(&server, &home, "flowmesh queue redrive mail");
    assert_eq!(which.status.code(), Some(2));
    assert_eq!(ok(&server, &home, "flowmesh queue redrive mail 1"), "1 jobs of mail wait again\n");
    ok(&server, &home, "flowmesh queue redrive mail --error two --delay 1h --per-second 5");
    let wrong = run(&server, &home, "flowmesh queue redrive mail 1 3");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("WRONG_PHASE"), "{wrong:?}");
    assert_eq!(wrong.status.code(), Some(5));
    assert_eq!(ok(&server, &home, "flowmesh queue purge mail --all -o json"), "{\"jobs\":2}\n");
    let status = json(&ok(&server, &home, "flowmesh queue status mail -o json"));
    let counts =
        ["ready", "delayed", "dead", "died_total", "purged_total"].map(|name| status[name].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 0, 4, 2]);
}

#[test]
fn jobs_go_to_other_queues_and_what_is_on_its_way_is_shown() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh resources create queue mail --set max_attempts=1 --set done_retention_ms=1h
         flowmesh resources create queue later
         flowmesh resources create queue small --set jobs_max=1
         flowmesh resources create queue play --set sandbox=true
         flowmesh queue enqueue mail one two three four -H to=ada
         flowmesh queue work mail --until-empty --exec 'read job || true; [ \"$job\" = four ] || { echo no >&2; exit 1; }'",
    );
    let lines =
        |script: &str| -> Vec<serde_json::Value> { ok(&server, &home, script).lines().map(json).collect() };
    let count = |queue: &str, name: &str| {
        json(&ok(&server, &home, &format!("flowmesh queue status {queue} -o json")))[name].as_u64().unwrap()
    };
    assert_eq!((count("mail", "dead"), count("mail", "done")), (3, 1));

    assert_eq!(lines("flowmesh queue redrive mail 1 --to later -o json"), [json("{\"jobs\":1}")]);
    eventually_blocking("the first has moved", || (count("later", "ready") == 1).then_some(()));
    let moved = json(&ok(&server, &home, "flowmesh queue reserve later -o json"));
    assert_eq!((&moved["payload"], &moved["headers"]["to"]), (&"one".into(), &"ada".into()));

    // One has room in the target; the other is on its way and says why it waits.
    ok(&server, &home, "flowmesh queue redrive mail --all --to small");
    let held = eventually_blocking("the outbox says why", || {
        let lanes = lines("flowmesh queue outbox mail -o json");
        lanes.into_iter().find(|lane| lane["error"].as_str().is_some_and(|why| why.contains("QUEUE_FULL")))
    });
    assert_eq!((&held["to"], &held["jobs"]), (&"default/default/queue/small".into(), &1.into()));
    let table = ok(&server, &home, "flowmesh queue outbox mail");
    assert!(table.contains("default/default/queue/small") && table.contains("QUEUE_FULL"), "{table}");
    let transit = run(&server, &home, "flowmesh queue purge mail --yes 3");
    assert!(String::from_utf8_lossy(&transit.stderr).contains("JOB_IN_TRANSIT"), "{transit:?}");
    let lease = json(&ok(&server, &home, "flowmesh queue reserve small -o json"))["lease"].clone();
    ok(&server, &home, &format!("flowmesh queue ack small {}", lease.as_str().unwrap()));
    eventually_blocking("all have moved", || (count("mail", "moved_total") == 3).then_some(()));
    assert_eq!(ok(&server, &home, "flowmesh queue outbox mail -o json"), "");
    assert_eq!(count("small", "ready"), 1);

    let replayed = ok(&server, &home, "flowmesh queue replay mail --from -1h --to-time +1h --into play");
    assert_eq!(replayed, "1 jobs of mail are on their way to play\n");
    assert_eq!(lines("flowmesh queue replay mail --before -1h --into play -o json"), [json("{\"jobs\":0}")]);
    eventually_blocking("the copy is there", || (count("play", "ready") == 1).then_some(()));
    let copy = json(&ok(&server, &home, "flowmesh queue reserve play -o json"));
    assert_eq!(
        (&copy["payload"], &copy["headers"]["flowmesh-replayed-phase"]),
        (&"four".into(), &"done".into())
    );
    assert_eq!((count("mail", "done"), count("mail", "copied_total")), (1, 1));

    for (script, why) in [
        ("redrive mail --all --to nowhere", "RESOURCE_NOT_FOUND"),
        ("redrive mail --all --to play", "SANDBOX_QUEUE"),
        ("replay mail --all --into later", "QUEUE_NOT_SANDBOX"),
        ("outbox nowhere", "RESOURCE_NOT_FOUND"),
    ] {
        let refused = run(&server, &home, &format!("flowmesh queue {script}"));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(why), "{script}: {refused:?}");
        assert!(!refused.status.success());
    }
}

#[test]
fn waiting_jobs_are_seen_changed_cancelled_and_held_back() {
    let home = Home::new();
    let server = home.start();
    ok(
        &server,
        &home,
        "flowmesh queue enqueue mail one two three
         flowmesh queue change mail 3 --priority 9
         flowmesh queue change mail 1 --run-at +1h
         flowmesh queue pause mail",
    );
    let peeked = ok(&server, &home, "flowmesh queue peek mail -n 5 -o json");
    let peeked: Vec<_> = peeked.lines().map(|line| json(line)["job_id"].clone()).collect();
    assert_eq!(peeked, [3, 2]);
    assert_eq!(run(&server, &home, "flowmesh queue reserve mail").status.code(), Some(3));
    assert!(ok(&server, &home, "flowmesh queue status mail").contains("paused"));
    ok(&server, &home, "flowmesh queue resume mail");
    let held = json(&ok(&server, &home, "flowmesh queue reserve mail -o json"));
    let cancelled = run(&server, &home, "flowmesh queue cancel mail 2 3 99");
    assert_eq!(cancelled.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&cancelled.stdout), "2 is cancelled\n3 is asked to stop\n");
    assert!(String::from_utf8_lossy(&cancelled.stderr).contains("99: JOB_NOT_FOUND"), "{cancelled:?}");
    let lease = held["lease"].as_str().unwrap();
    let extended = ok(&server, &home, &format!("flowmesh queue extend mail {lease} -o json"));
    assert_eq!(json(&extended)["cancel_requested"], true);
    ok(&server, &home, &format!("flowmesh queue nack mail {lease} --release"));
    let watched = ok(&server, &home, "flowmesh queue watch mail -n 2 --every 10ms -o json");
    let rounds: Vec<_> = watched.lines().map(|line| json(line)["cancelled_total"].clone()).collect();
    assert_eq!(rounds, [2, 2]);
}

#[test]
fn what_an_abandoning_worker_had_is_ready_again_at_once() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail x");
    let script = "exec flowmesh queue work mail --exec 'touch began; sleep 600' --visibility 1h";
    let mut worker = shell(&server, &home, script).stderr(Stdio::piped()).spawn().unwrap();
    eventually_blocking("the job runs", || home.scratch().join("began").exists().then_some(()));
    let mut said = BufReader::new(worker.stderr.take().unwrap()).lines();
    signal(worker.id(), libc::SIGINT);
    assert!(said.any(|line| line.unwrap().contains("finishing 1 jobs")));
    signal(worker.id(), libc::SIGINT);
    assert_eq!(wait_exit(&mut worker).code(), Some(130));
    let again = json(&ok(&server, &home, "flowmesh queue reserve mail --wait 60s -o json"));
    assert_eq!((&again["job_id"], &again["attempt"]), (&1.into(), &1.into()), "that was no attempt");
}

#[test]
fn a_worker_stops_a_job_that_is_cancelled() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh queue enqueue mail x");
    let script =
        "exec flowmesh queue work mail --exec 'touch began; sleep 600' --visibility 3s --until-empty";
    let mut worker = shell(&server, &home, script).spawn().unwrap();
    eventually_blocking("the job runs", || home.scratch().join("began").exists().then_some(()));
    assert_eq!(ok(&server, &home, "flowmesh queue cancel mail 1"), "1 is asked to stop\n");
    assert!(wait_exit(&mut worker).success());
    let status = json(&ok(&server, &home, "flowmesh queue status mail -o json"));
    assert_eq!((&status["cancelled_total"], &status["done_total"]), (&1.into(), &0.into()));
}
