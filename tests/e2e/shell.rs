//! What a person can do from a shell: the commands of the README, as they stand there.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use crate::common::server::{binary, signal, wait_exit};
use crate::common::wait::eventually_blocking;
use crate::common::{Home, Server};

/// A shell that finds `flowmesh` and talks to this server.
pub fn shell(server: &Server, home: &Home, script: &str) -> Command {
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", path)
        .env("FLOWMESH_ADDR", format!("http://127.0.0.1:{}", server.grpc_port()))
        .current_dir(home.scratch())
        .stdin(Stdio::null());
    // Whoever runs the tests in the background may have it ignored, and whatever is started then ignores it, too.
    let default_interrupt = || {
        // SAFETY: no memory is involved.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: it is a single call that is allowed between fork and exec.
    unsafe { command.pre_exec(default_interrupt) };
    command
}

pub fn run(server: &Server, home: &Home, script: &str) -> Output {
    shell(server, home, script).output().unwrap()
}

/// Standard output of a script that must succeed.
#[track_caller]
pub fn ok(server: &Server, home: &Home, script: &str) -> String {
    let output = run(server, home, script);
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A script that must fail with this exit code; what it said.
#[track_caller]
pub fn fails(server: &Server, home: &Home, script: &str, code: i32) -> String {
    let output = run(server, home, script);
    assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn streams_from_files_pipes_and_json_lines() {
    let home = Home::new();
    let server = home.start();
    std::fs::write(home.scratch().join("in.log"), "one\ntwo\n\nthree").unwrap();
    ok(&server, &home, "flowmesh stream append logs --file in.log");
    ok(&server, &home, "printf 'four\\nfive\\n' | flowmesh stream append logs");
    let read = ok(&server, &home, "flowmesh stream read logs --from earliest");
    for line in ["one", "two", "three", "four", "five"] {
        assert!(read.lines().any(|got| got.contains(line)), "{line} is in {read}");
    }
    let json = ok(&server, &home, "flowmesh stream read logs --from earliest --output json");
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{json}");
    // A reader that has seen enough is no error.
    ok(&server, &home, "set +o pipefail; flowmesh stream read logs --from earliest | head -n 1");
}

#[test]
fn a_follower_sees_what_comes() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "echo first | flowmesh stream append logs");
    let mut follower = shell(&server, &home, "exec flowmesh stream read logs --from earliest --follow")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("first"));
    ok(&server, &home, "echo second | flowmesh stream append logs");
    assert!(lines.next().unwrap().unwrap().contains("second"));
    signal(follower.id(), libc::SIGINT);
    wait_exit(&mut follower);
}

#[test]
fn jobs_are_worked_by_a_script_and_given_back_when_it_fails() {
    let home = Home::new();
    let server = home.start();
    let handler = home.scratch().join("handler.sh");
    std::fs::write(&handler, "#!/bin/sh\ncat >> done.txt\necho >> done.txt\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&handler, std::fs::Permissions::from_mode(0o755)).unwrap();
    ok(&server, &home, r#"flowmesh queue enqueue mail '{"to":"ada@example.org"}' --priority 5"#);
    ok(&server, &home, r#"flowmesh queue enqueue mail '{"to":"bob@example.org"}' --delay 100ms"#);
    let mut worker =
        shell(&server, &home, "exec flowmesh queue work mail --exec ./handler.sh").spawn().unwrap();
    eventually_blocking("both are done", || {
        let done = std::fs::read_to_string(home.scratch().join("done.txt")).unwrap_or_default();
        (done.contains("ada@") && done.contains("bob@")).then_some(())
    });
    signal(worker.id(), libc::SIGINT);
    wait_exit(&mut worker);

    ok(&server, &home, "flowmesh queue enqueue fragile x");
    let mut worker = shell(&server, &home, "exec flowmesh queue work fragile --exec false").spawn().unwrap();
    eventually_blocking("the job was given back", || {
        let status = ok(&server, &home, "flowmesh queue status fragile --output json");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        (status["delayed"].as_u64()? == 1).then_some(())
    });
    signal(worker.id(), libc::SIGINT);
    wait_exit(&mut worker);
}

#[test]
fn keys_are_set_and_got() {
    let home = Home::new();
    let server = home.start();
    let got = ok(
        &server,
        &home,
        r#"flowmesh kv set sessions user:1 '{"name":"Ada"}' --ttl 60s >/dev/null && flowmesh kv get sessions user:1"#,
    );
    assert_eq!(got.trim_end(), r#"{"name":"Ada"}"#);
    let missing = run(&server, &home, "flowmesh kv get sessions user:2");
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
}

#[test]
fn resources_are_listed_described_and_deleted() {
    let home = Home::new();
    let server = home.start();
    ok(&server, &home, "flowmesh resources create stream logs --partitions 4");
    assert!(ok(&server, &home, "flowmesh resources list").contains("logs"));
    assert!(ok(&server, &home, "flowmesh resources describe stream logs").contains('4'));
    assert!(ok(&server, &home, "flowmesh topology").contains(&server.grpc_port().to_string()));
    let twice = run(&server, &home, "flowmesh resources create stream logs");
    assert_eq!(twice.status.code(), Some(5), "{twice:?}");
    ok(
        &server,
        &home,
        "flowmesh resources delete stream logs --yes </dev/null || flowmesh resources delete stream logs",
    );
    assert!(!ok(&server, &home, "flowmesh resources list").contains("logs"));
}

#[test]
fn mistakes_are_said_on_standard_error_with_an_exit_code() {
    let home = Home::new();
    let server = home.start();
    let wrong = run(
        &server,
        &home,
        "flowmesh stream append 'a b' --file /dev/null </dev/null; echo x | flowmesh stream append 'a b'",
    );
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("name"), "{wrong:?}");
    assert_eq!(run(&server, &home, "flowmesh nonsense").status.code(), Some(2));
    let port = server.grpc_port();
    server.stop();
    let away =
        Command::new(binary()).args(["kv", "get", "s", "k", "-a", &format!(":{port}")]).output().unwrap();
    assert_eq!(away.status.code(), Some(4), "{away:?}");
}

#[test]
fn load_goes_to_the_server_that_the_environment_names_unless_an_address_is_given() {
    const LOAD: &str = "flowmesh bench load --mix set -k 10 -c 1 -s 1 -d 0.2 --warmup 0 -o json";
    let home = Home::new();
    let server = home.start();
    let sets = || server.metric("flowmesh_operations_total", "operation=\"kv_set\"").unwrap();
    ok(&server, &home, LOAD);
    let after = sets();
    assert!(after > 0.0, "the load went elsewhere");
    let elsewhere = run(&server, &home, &format!("{LOAD} --addr :1"));
    assert!(!elsewhere.status.success(), "{elsewhere:?}");
    assert_eq!(sets(), after);
}

#[test]
fn a_large_file_goes_through_a_pipe_unchanged() {
    let home = Home::new();
    let server = home.start();
    let mut child =
        shell(&server, &home, "exec flowmesh stream append big").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = String::new();
    for i in 0..50_000 {
        input.push_str(&format!("line {i} of a file with many lines\n"));
    }
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(wait_exit(&mut child).success());
    let mut reader = shell(&server, &home, "exec flowmesh stream read big --from earliest --limit 50000")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    reader.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(wait_exit(&mut reader).success());
    assert_eq!(output.lines().count(), 50_000);
    assert!(output.lines().zip(input.lines()).all(|(got, sent)| got.ends_with(sent)));
}
