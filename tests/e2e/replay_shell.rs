//! Replay sessions from a shell: `flowmesh replay`.

use super::shell::{ok, run};
use crate::common::{Home, Server};

fn prepared(home: &Home) -> Server {
    let server = home.start();
    ok(
        &server,
        home,
        r#"flowmesh resources create stream logs --partitions 2
         for i in 0 1; do for v in a b c; do flowmesh stream append logs -p $i --key $v $v$i; done; done"#,
    );
    server
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_stream_is_replayed_from_a_shell() {
    let home = Home::new();
    let server = prepared(&home);
    let created = ok(&server, &home, "flowmesh replay create again logs");
    assert_eq!(created, "again is created, speed max, 6 records left\n");
    let values = ok(&server, &home, "flowmesh replay run again");
    let mut values: Vec<&str> = values.lines().collect();
    values.sort_unstable();
    assert_eq!(values, ["a0", "a1", "b0", "b1", "c0", "c1"]);
    let session = json(&ok(&server, &home, "flowmesh replay describe again -o json"));
    assert_eq!((&session["state"], &session["left"]), (&"completed".into(), &0.into()));
    assert_eq!(session["partitions"][1]["position"], 3);
    // Once more, as JSON, of one partition, with the headers of a replay.
    ok(&server, &home, "flowmesh replay create twice logs -p 1 --from 1 --filter key=c --speed 1000");
    let line = json(&ok(&server, &home, "flowmesh replay run twice -o json"));
    assert_eq!((&line["value"], &line["offset"]), (&"c1".into(), &2.into()));
    assert_eq!(line["headers"]["x-flowmesh-replay"], "true");
    assert_eq!(line["headers"]["x-flowmesh-replay-session"], "twice");
    let list = ok(&server, &home, "flowmesh replay list");
    assert!(list.contains("again") && list.contains("twice") && list.contains("1000x"), "{list}");
    ok(&server, &home, "flowmesh replay delete again --yes");
    assert_eq!(run(&server, &home, "flowmesh replay describe again").status.code(), Some(3));
    let resources = ok(&server, &home, "flowmesh resources list -o json");
    assert!(resources.contains("replay/twice") && !resources.contains("again"), "{resources}");
}

#[test]
fn a_session_is_stepped_moved_and_stopped_from_a_shell() {
    let home = Home::new();
    let server = prepared(&home);
    ok(&server, &home, "flowmesh replay create look logs");
    assert_eq!(ok(&server, &home, "flowmesh replay step look -o value"), "a0\n");
    assert_eq!(ok(&server, &home, "flowmesh replay step look 3 -o value"), "b0\nc0\na1\n");
    let sought = ok(&server, &home, "flowmesh replay seek look --to start --offset 1:2");
    assert!(sought.contains("4 records left") && sought.contains("POSITION"), "{sought}");
    ok(
        &server,
        &home,
        "flowmesh replay speed look 2.5; flowmesh replay start look; flowmesh replay pause look",
    );
    let refused = run(&server, &home, "flowmesh replay start look");
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("REPLAY_STATE") && why.contains("resume"), "{why}");
    ok(&server, &home, "flowmesh replay resume look");
    let stopped = json(&ok(&server, &home, "flowmesh replay stop look -o json"));
    assert_eq!((&stopped["state"], &stopped["speed"]), (&"stopped".into(), &2.5.into()));
    let production = "flowmesh resources create group orders; flowmesh replay create bad logs --group orders";
    let refused = run(&server, &home, production);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("GROUP_NOT_SANDBOX"));
    for wrong in
        ["create x", "create x logs --speed fast", "create x logs --from latest", "seek look", "step look 0"]
    {
        assert_eq!(
            run(&server, &home, &format!("flowmesh replay {wrong}")).status.code(),
            Some(2),
            "{wrong}"
        );
    }
}

#[test]
fn a_command_that_fails_leaves_the_session_in_error_and_it_goes_on_there() {
    let home = Home::new();
    let server = prepared(&home);
    ok(&server, &home, "flowmesh replay create again logs -p 0");
    let script = r#"flowmesh replay run again --exec '
        echo "$FLOWMESH_OFFSET $(cat) $FLOWMESH_HEADER_X_FLOWMESH_REPLAY" >> out.txt
        test "$FLOWMESH_OFFSET" != 1 -o -e go'"#;
    let failed = run(&server, &home, script);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let session = json(&ok(&server, &home, "flowmesh replay describe again -o json"));
    assert_eq!((&session["state"], &session["partitions"][0]["position"]), (&"error".into(), &1.into()));
    assert!(session["error"].as_str().unwrap().contains("offset 1"), "{session}");
    ok(&server, &home, &format!("touch go; flowmesh replay resume again; {script}"));
    let out = std::fs::read_to_string(home.scratch().join("out.txt")).unwrap();
    assert_eq!(out, "0 a0 true\n1 b0 true\n1 b0 true\n2 c0 true\n");
    let session = json(&ok(&server, &home, "flowmesh replay describe again -o json"));
    assert_eq!(session["state"], "completed");
}
