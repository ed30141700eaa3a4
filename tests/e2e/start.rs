//! A server that cannot start says why, names what is wrong, and touches nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

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

/// What a command that must fail said.
fn said(mut command: Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it should have refused: {said}");
    said
}

/// Sets a limit of the process to be, soft and hard.
fn limited(home: &Home, resource: libc::__rlimit_resource_t, most: u64) -> Command {
    let mut command = home.command();
    let set = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` lives through the call.
        match unsafe { libc::setrlimit(resource, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: setrlimit is safe between fork and exec.
    unsafe { command.pre_exec(set) };
    command
}

#[tokio::test]
async fn limits_that_are_too_small_are_named_with_the_way_to_raise_them() {
    let home = Home::new();
    let said_of_files = said(limited(&home, libc::RLIMIT_NOFILE, 100));
    assert!(
        said_of_files.contains("100 file descriptors") && said_of_files.contains("LimitNOFILE"),
        "{said_of_files}"
    );
    let said_of_memory = said(limited(&home, libc::RLIMIT_MEMLOCK, 64 * 1024));
    assert!(
        said_of_memory.contains("RLIMIT_MEMLOCK") && said_of_memory.contains("LimitMEMLOCK"),
        "{said_of_memory}"
    );
}

#[tokio::test]
async fn a_sandbox_that_forbids_io_uring_is_named() {
    const IO_URING_SETUP: u32 = 425;
    let home = Home::new();
    let mut command = home.command();
    // A seccomp filter as container runtimes have it: io_uring_setup is EPERM, all else is allowed.
    let op = |code: u32, jump_true: u8, jump_false: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: jump_false,
        k,
    };
    let filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, IO_URING_SETUP),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let forbid = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program lives through the calls.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: prctl is safe between fork and exec.
    unsafe { command.pre_exec(forbid) };
    let said = said(command);
    assert!(
        said.contains("io_uring") && said.contains("seccomp") && said.contains("kernel.io_uring_disabled"),
        "{said}"
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() {
    // /proc takes no directories, from root neither.
    let home = Home::new().in_dir(std::path::Path::new("/proc/flowmesh-data"));
    let said = refused(&home);
    assert!(said.contains("/proc/flowmesh-data"), "{said}");
}

#[tokio::test]
async fn starting_often_always_comes_to_an_end() {
    let home = Home::new();
    for _ in 0..20 {
        home.start().kill9();
    }
    home.start().stop();
}
