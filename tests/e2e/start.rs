//! A server that cannot start says why, names what is wrong, and touches nothing.

use std::fs;
use std::net::TcpListener;

use crate::common::Home;

/// Starts, expects a refusal, and returns what was said.
fn refused(home: &Home) -> String {
    home.start_refused().1
}

#[tokio::test]
async fn every_setting_that_is_wrong_is_named_with_what_is_allowed() {
    let cases = [
        ("grpc_addr", "nowhere"),
        ("http_addr", "127.0.0.1:99999"),
        ("shards", "0"),
        ("shards", "257"),
        ("cpus", "999"),
        ("durability", "maybe"),
        ("sync_interval_ms", "soon"),
        ("memory_bytes", "1KiB"),
        ("log_segment_bytes", "1MiB"),
        ("log_bytes_max", "1MiB"),
        ("checkpoint_interval_ms", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("core_ports", "70000"),
        ("connections_max", "0"),
        ("keepalive_ms", "-1"),
        ("preempt_us", "1s"),
        ("data_dir", ""),
    ];
    for (name, value) in cases {
        let home = Home::new().set(name, value);
        let said = refused(&home);
        assert!(said.contains(name) || said.contains(&name.replace('_', "-")), "{name}={value}: {said}");
        assert!(!home.data_dir().exists(), "{name}={value}: nothing was made");
    }
}

#[tokio::test]
async fn settings_come_from_file_environment_and_flag_in_that_order() {
    let home = Home::new();
    fs::write(home.scratch().join("flowmesh.toml"), "shutdown_timeout_ms = \"bad\"\nnonsense = 1\n").unwrap();
    let said = refused(&home);
    assert!(said.contains("flowmesh.toml") && said.contains("nonsense"), "{said}");
    fs::write(home.scratch().join("flowmesh.toml"), "durability = \"memory\"\nsync_interval_ms = \"50ms\"\n")
        .unwrap();
    let check = |home: &Home, env: &[(&str, &str)]| {
        let output = home
            .command()
            .arg("--check")
            .envs(env.iter().copied())
            .stdout(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check(&home, &[]);
    assert!(said.contains("Memory") && said.contains("50"), "{said}");
    let said = check(&home, &[("FLOWMESH_DURABILITY", "never")]);
    assert!(said.contains("Never"), "{said}");
    let said = check(&home.set("durability", "always"), &[("FLOWMESH_DURABILITY", "never")]);
    assert!(said.contains("Always"), "{said}");
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let home = Home::new();
    let server = home.start();
    let second = Home::new().in_dir(home.data_dir());
    let said = refused(&second);
    assert!(said.contains("in use") && said.contains(&server.pid().to_string()), "{said}");
    server.client().await.append("logs", ["x"]).await.unwrap();
    server.assert_healthy();
    // A killed server's lock does not stay.
    server.kill9();
    assert_eq!(second.start().client().await.values("logs").await, ["x"]);
}

#[tokio::test]
async fn a_directory_of_a_newer_format_is_refused_and_left_as_it_is() {
    let home = Home::new();
    home.start().stop();
    let path = home.data_dir().join("flowmesh.json");
    let text = fs::read_to_string(&path).unwrap();
    let newer = text.replacen("\"format\":1", "\"format\":2", 1);
    assert_ne!(newer, text);
    fs::write(&path, &newer).unwrap();
    let said = refused(&home);
    assert!(said.contains("format 2") && said.contains("newer"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    fs::write(&path, &text).unwrap();
    home.start().stop();
    fs::write(&path, "{").unwrap();
    let said = refused(&home);
    assert!(said.contains("flowmesh.json") && said.contains("damaged"), "{said}");
}

#[tokio::test]
async fn another_number_of_shards_is_refused() {
    let home = Home::new().shards(2);
    home.start().stop();
    let said = refused(&home.shards(1));
    assert!(said.contains("2 shards") && said.contains("shards = 2"), "{said}");
}

#[tokio::test]
async fn a_directory_that_is_no_data_directory_is_refused() {
    let home = Home::new();
    fs::write(home.data_dir(), "a file").unwrap();
    let said = refused(&home);
    assert!(said.contains(home.data_dir().to_str().unwrap()), "{said}");
    fs::remove_file(home.data_dir()).unwrap();
    fs::create_dir_all(home.shard_dir(0)).unwrap();
    let said = refused(&home);
    assert!(said.contains("flowmesh.json"), "{said}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let home = Home::new();
    let server = home.start();
    let (grpc, http) = (server.grpc_port(), server.http_port());
    server.stop();
    for port in [grpc, http] {
        let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let said = refused(&home);
        assert!(said.contains(&port.to_string()), "{said}");
    }
    home.start().assert_healthy();
}

#[tokio::test]
async fn an_empty_directory_is_ready_and_says_where() {
    let home = Home::new().strict();
    let server = home.start();
    let log = server.log();
    assert!(log.contains(&server.grpc_port().to_string()), "{log}");
    assert!(home.data_dir().join("flowmesh.json").exists());
}
