//! Precedence, every refusal's words, and that the documentation is in step with the table.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;

fn machine() -> Machine {
    Machine { cpus: vec![0, 1, 2, 3], parallelism: 4, memory_bytes: 8 << 30 }
}

fn with_flags(flags: &[(&'static str, &str)]) -> Result<Config, ConfigErrors> {
    let flags = flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    Config::load(&Sources { flags, ..Sources::default() }, &machine())
}

fn from_file(text: &str) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(sources::FILE), text).unwrap();
    Config::load(&Sources { working_dir: Some(dir.path().to_owned()), ..Sources::default() }, &machine())
}

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn defaults_are_legal_and_as_documented() {
    let config = Config::defaults(Mode::Serve, &machine()).unwrap();
    assert_eq!(config.grpc_addr.to_string(), "127.0.0.1:50051");
    assert_eq!(config.http_addr.to_string(), "127.0.0.1:8080");
    assert_eq!(config.core_ports, Some(50052));
    assert_eq!((config.shards, config.shards_default), (None, 4));
    assert_eq!(config.cpus, [0, 1, 2, 3]);
    assert_eq!(config.memory_bytes, 8 * (1 << 30) / 100 * 50);
    assert!(!config.auto_create);
    assert!(Config::defaults(Mode::Dev, &machine()).unwrap().auto_create);
}

#[test]
fn file_then_environment_then_flag_the_later_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    std::fs::write(&path, "shards = 1\nspin_us = 10\npreempt_us = 200\n").unwrap();
    let sources = Sources {
        file: Some(path),
        environment: environment(&[
            ("FLOWMESH_SHARDS", "2"),
            ("FLOWMESH_SPIN_US", "20"),
            ("FLOWMESH_PREEMPT_US", ""),
        ]),
        flags: BTreeMap::from([("shards", "3".to_owned())]),
        ..Sources::default()
    };
    let config = Config::load(&sources, &machine()).unwrap();
    assert_eq!(config.shards, Some(3), "the flag wins over both");
    assert_eq!(config.spin_us, 20, "the environment wins over the file");
    assert_eq!(config.preempt_us, 200, "an empty variable is an unset one");
    assert_eq!(config.shutdown_timeout_ms, 10_000, "what nobody sets is the default");
}

#[test]
fn a_file_may_use_toml_types_where_they_say_the_same() {
    let config = from_file(
        "# comment\nshards = 2\ncpus = [0, 2]\nauto_create = true\nmemory_bytes = \"1GiB\"\nsync_interval_ms = 250\nlog_level = 'debug'\n",
    )
    .unwrap();
    assert_eq!((config.shards, config.cpus), (Some(2), vec![0, 2]));
    assert!(config.auto_create);
    assert_eq!((config.memory_bytes, config.sync_interval_ms), (1 << 30, 250));
    assert_eq!(config.log_level, "warn,flowmesh=debug");
}

#[test]
fn every_bad_value_is_refused_with_its_setting_and_what_is_allowed() {
    let cases = [
        ("grpc_addr", "50051", "HOST:PORT"),
        ("grpc_addr", "example.org:50051", "HOST:PORT"),
        ("http_addr", "127.0.0.1:0", "1 to 65535"),
        ("core_ports", "70000", "a port (1 to 65535), auto or off"),
        ("data_dir", " ", "the path of a directory"),
        ("log_level", "loud", "error, warn, info, debug, trace"),
        ("log_level", "info,=debug", "error, warn, info, debug, trace"),
        ("log_format", "xml", "auto, human or json"),
        ("shards", "0", "1 to 256, or auto"),
        ("shards", "257", "1 to 256, or auto"),
        ("shards", "two", "1 to 256, or auto"),
        ("cpus", "0-9", "CPUs this process may use (0-3); 4 is not one"),
        ("cpus", "x", "like 0-3,6"),
        ("durability", "sometimes", "always, interval, never or memory"),
        ("sync_interval_ms", "0", "1ms to 1m"),
        ("sync_interval_ms", "10x", "1ms to 1m"),
        ("auto_create", "maybe", "true or false"),
        ("memory_bytes", "1MiB", "64MiB to 8GiB"),
        ("memory_bytes", "101%", "64MiB to 8GiB"),
        ("memory_bytes", "a lot", "64MiB to 8GiB"),
        ("log_segment_bytes", "1MiB", "16MiB to 4GiB"),
        ("log_segment_bytes", "16777217", "a multiple of 4KiB"),
        ("log_bytes_max", "1KiB", "64MiB to 16TiB"),
        ("checkpoint_interval_ms", "1ms", "100ms to 1d"),
        ("compaction_bytes_per_second", "1KiB", "1MiB to 16TiB"),
        ("connections_max", "0", "1 to 1000000"),
        ("connection_streams_max", "0", "1 to 65536"),
        ("handshake_timeout_ms", "1", "100ms to 10m"),
        ("keepalive_ms", "0", "1s to 1d"),
        ("keepalive_timeout_ms", "2h", "100ms to 1h"),
        ("idle_timeout_ms", "10ms", "1s to 1d"),
        ("idle_timeout_ms", "never", "or off"),
        ("spin_us", "-1", "0 to 10000 microseconds"),
        ("preempt_us", "0", "20 to 100000 microseconds"),
        ("shutdown_timeout_ms", "2h", "0ms to 1h"),
    ];
    for (setting, text, allowed) in cases {
        let message = with_flags(&[(setting, text)]).unwrap_err().to_string();
        let flag = format!("flag --{}", setting.replace('_', "-"));
        for part in [setting, text, &flag, allowed] {
            assert!(message.contains(part), "`{part}` is missing from: {message}");
        }
    }
    let covered: Vec<_> = cases.iter().map(|(setting, ..)| *setting).collect();
    assert!(
        SETTINGS.iter().all(|setting| covered.contains(&setting.name)),
        "a setting has no bad value here"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("http_addr", "127.0.0.1:50051")], "another port than grpc_addr"),
        (&[("http_addr", ":50051")], "another port than grpc_addr"),
        (
            &[("core_ports", "8079"), ("shards", "2")],
            "must not hold the ports of grpc_addr (50051) and http_addr (8080)",
        ),
        (&[("core_ports", "65535"), ("shards", "2")], "room for 2 ports"),
        (&[("cpus", "0-2"), ("shards", "2")], "at most one CPU for each of the 2 shards"),
        (
            &[("log_segment_bytes", "64MiB"), ("log_bytes_max", "128MiB")],
            "at least four segments (log_segment_bytes): 256MiB",
        ),
    ];
    for (flags, allowed) in cases {
        let flags: Vec<(&'static str, &str)> = flags
            .iter()
            .map(|(name, text)| (SETTINGS.iter().find(|s| s.name == *name).unwrap().name, *text))
            .collect();
        let message = with_flags(&flags).unwrap_err().to_string();
        assert!(message.contains(allowed), "`{allowed}` is missing from: {message}");
    }
}

#[test]
fn one_port_for_both_is_fine_on_different_addresses() {
    with_flags(&[("grpc_addr", "127.0.0.1:9000"), ("http_addr", "127.0.0.2:9000")]).unwrap();
    assert_eq!(with_flags(&[("core_ports", "off")]).unwrap().core_ports, None);
}

#[test]
fn an_idle_timeout_can_be_set_and_turned_off() {
    assert_eq!(with_flags(&[]).unwrap().idle_timeout_ms, Some(30 * 60_000));
    assert_eq!(with_flags(&[("idle_timeout_ms", "5m")]).unwrap().idle_timeout_ms, Some(300_000));
    assert_eq!(with_flags(&[("idle_timeout_ms", "off")]).unwrap().idle_timeout_ms, None);
}

#[test]
fn shards_take_cpus_in_turn() {
    let config = with_flags(&[("shards", "3"), ("cpus", "2,3")]).unwrap();
    let cpus: Vec<_> = (0..3).map(|n| config.cpu_of(ShardId(n))).collect();
    assert_eq!(cpus, [2, 3, 2]);
    assert_eq!(with_flags(&[("cpus", "1,3")]).unwrap().shards_default, 2);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
    let message = from_file("shards = 1\n\ngrpc_adr = ':1'\nwhatever = 3\n").unwrap_err().to_string();
    assert!(message.contains("unknown setting `grpc_adr` (from"), "{message}");
    assert!(message.contains("flowmesh.toml line 3); did you mean `grpc_addr`?"), "{message}");
    assert!(message.contains("line 4); `flowmesh serve --help` lists them"), "{message}");
}

#[test]
fn a_bad_value_in_a_file_is_refused_with_its_line() {
    let message = from_file("\nshards = [1]\nspin_us = 1.5\n[cpus]\na = 1\n").unwrap_err().to_string();
    assert!(message.contains("setting spin_us: `1.5` (from"), "{message}");
    assert!(message.contains("flowmesh.toml line 3) is not allowed; allowed: 0 to 10000"), "{message}");
    assert!(message.contains("setting cpus: `a table`"), "{message}");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let missing = Sources { file: Some(PathBuf::from("/nonexistent/x.toml")), ..Sources::default() };
    let message = Config::load(&missing, &machine()).unwrap_err().to_string();
    assert!(message.starts_with("settings file /nonexistent/x.toml: No such file"), "{message}");
    let message = from_file("shards = \n").unwrap_err().to_string();
    assert!(message.contains("is not valid TOML"), "{message}");
    assert!(message.contains("line 1"), "{message}");
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let errors = with_flags(&[("shards", "0"), ("spin_us", "x"), ("durability", "y")]).unwrap_err();
    assert_eq!(errors.0.len(), 3);
}

#[test]
fn a_misspelt_variable_is_noticed() {
    let found = sources::suspicious_variables(&environment(&[
        ("FLOWMESH_GRPC_ADR", "x"),
        ("FLOWMESH_SERVICE_HOST", "x"),
        ("FLOWMESH_SHARDS", "1"),
    ]));
    assert_eq!(found, [("FLOWMESH_GRPC_ADR".to_owned(), "FLOWMESH_GRPC_ADDR".to_owned())]);
}

/// The table of settings as it stands in `docs/cli.md`.
fn settings_table() -> String {
    let row = |setting: &Setting| {
        let default = match setting.default_dev {
            Some(dev) => format!("`{}`; `dev`: `{dev}`", setting.default),
            None => format!("`{}`", setting.default),
        };
        let value = setting.value.replace('|', "\\|");
        format!("| `{}` | `{value}` | {default} | {} |\n", setting.name, setting.help)
    };
    let head = "| setting | value | default | meaning |\n|---|---|---|---|\n";
    SETTINGS.iter().fold(head.to_owned(), |table, setting| table + &row(setting))
}

/// `UPDATE_DOCS=1 cargo test -p flowmesh --lib config` rewrites it.
#[test]
fn the_settings_table_of_the_documentation_is_in_step() {
    const BEGIN: &str = "<!-- settings: begin -->\n";
    const END: &str = "<!-- settings: end -->";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let wanted = settings_table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(found, wanted, "docs/cli.md is out of step; UPDATE_DOCS=1 rewrites its table");
    }
}
