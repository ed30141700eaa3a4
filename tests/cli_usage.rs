//! The program as a process, without a server: what wrong usage gets, that pipes are quiet, that settings are checked.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use assert_cmd::assert::Assert;

/// The program in an empty directory, with none of this process's own settings.
fn flowmesh(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowmesh"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOWMESH_")) {
        command.env_remove(name);
    }
    command.current_dir(std::env::temp_dir()).args(arguments.split_whitespace());
    command
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

#[test]
fn wrong_usage_exits_with_2_and_names_what_is_wrong() {
    for (arguments, part) in [
        ("", "Usage: flowmesh"),
        ("steam append x", "unrecognized subcommand 'steam'"),
        ("stream append", "<STREAM>"),
        ("stream read logs --from first", "allowed: earliest, latest, an offset"),
        ("queue enqueue mail x --delay tomorrow", "as milliseconds or with a unit"),
        ("queue ack mail 17", "allowed: JOB:TOKEN"),
        ("queue enqueue mail x --backoff slow:1s", "allowed: KIND:FIRST"),
        ("queue change mail 7 --run-at tomorrow", "allowed: a time"),
        ("queue redrive mail", "which jobs? allowed: JOB…, --all"),
        ("resources create queue mail --set when_full=drop", "allowed: refuse, wait, drop_oldest"),
        ("kv set s k v --if-absent --if-present", "cannot be used with"),
        ("kv delete s a b --if-version 3", "--if-version takes exactly one key"),
        ("kv set s k v --ttl 1s --expires-at +1s", "cannot be used with"),
        ("kv do s", "<COMMAND>"),
        ("kv do s FROB k", "FROB: is no command here; docs/redis.md lists those there are"),
        ("kv do s SCAN 0", "SCAN: has no equivalent. `kv scan` walks over a store in byte order"),
        (
            "kv do s SET k v EX ten",
            "SET: seconds is `ten`; allowed: a 64-bit integer; allowed: SET key value [NX | XX]",
        ),
        ("kv do s - GET k", "- reads commands from standard input; options stand before it"),
        ("resources describe logs", "does not say of which kind"),
        (
            "resources create stream logs --set partition=3",
            "a stream has no setting `partition`; allowed: partitions",
        ),
        ("stream status logs -a https://localhost:1", "does not speak TLS yet"),
        (
            "serve --shards 0",
            "setting shards: `0` (from flag --shards) is not allowed; allowed: 1 to 256, or auto",
        ),
        ("serve --config /nonexistent.toml", "settings file /nonexistent.toml: No such file"),
    ] {
        let assert = flowmesh(arguments).assert().code(2);
        assert!(
            stderr(&assert).contains(part),
            "{arguments}: `{part}` is missing from:\n{}",
            stderr(&assert)
        );
        assert!(stdout(&assert).is_empty(), "{arguments}: standard output is for results");
    }
}

#[test]
fn nobody_at_the_address_exits_with_4_and_says_what_to_do() {
    // Port 1 is privileged and unused: refused at once.
    let assert = flowmesh("kv get sessions user:1 --addr :1").assert().code(4);
    assert!(stderr(&assert).contains("cannot reach http://127.0.0.1:1"), "{}", stderr(&assert));
    assert!(stderr(&assert).contains("flowmesh serve, --addr, FLOWMESH_ADDR"), "{}", stderr(&assert));
}

#[test]
fn a_file_that_is_not_there_exits_with_1_and_is_named() {
    let assert = flowmesh("stream append logs --file /nonexistent/log --addr :1").assert().code(1);
    assert!(stderr(&assert).contains("cannot open /nonexistent/log"), "{}", stderr(&assert));
}

#[test]
fn settings_come_from_file_then_environment_then_flag() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("flowmesh.toml"), "shards = 1\nspin_us = 11\nkeepalive_ms = '3m'\n")
        .unwrap();
    let assert = flowmesh("serve --check --shards 1 --core-ports off")
        .current_dir(dir.path())
        .env("FLOWMESH_SPIN_US", "22")
        .env("FLOWMESH_CORE_PORTS", "7000")
        .assert()
        .success();
    let shown = stdout(&assert);
    for part in ["spin_us: 22", "keepalive_ms: 180000", "core_ports: None", "auto_create: false"] {
        assert!(shown.contains(part), "`{part}` is missing from:\n{shown}");
    }
    assert!(stdout(&flowmesh("dev --check").assert().success()).contains("auto_create: true"));
}

#[test]
fn all_wrong_settings_are_named_at_once_with_their_origin() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("flowmesh.toml"), "\ngrpc_adr = ':1'\ndurability = 'perhaps'\n").unwrap();
    let assert = flowmesh("serve --preempt-us 1")
        .current_dir(dir.path())
        .env("FLOWMESH_MEMORY_BYTES", "1KiB")
        .env("FLOWMESH_GRPC_ADR", "x")
        .assert()
        .code(2);
    let said = stderr(&assert);
    for part in [
        "unknown setting `grpc_adr` (from flowmesh.toml line 2); did you mean `grpc_addr`?",
        "setting durability: `perhaps` (from flowmesh.toml line 3)",
        "setting memory_bytes: `1KiB` (from environment variable FLOWMESH_MEMORY_BYTES)",
        "setting preempt_us: `1` (from flag --preempt-us)",
        "environment variable FLOWMESH_GRPC_ADR is no setting; did you mean FLOWMESH_GRPC_ADDR?",
    ] {
        assert!(said.contains(part), "`{part}` is missing from:\n{said}");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let assert = flowmesh(&format!("completions {shell}")).assert().success();
        assert!(stdout(&assert).contains("enqueue"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_quiet() {
    let mut child = Process::new(env!("CARGO_BIN_EXE_flowmesh"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}
