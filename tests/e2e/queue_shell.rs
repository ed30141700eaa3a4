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
