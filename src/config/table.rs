//! Every setting, once. The order is that of the documentation.

use std::path::PathBuf;

use flowmesh_model::Durability;
use flowmesh_model::limits::{MESSAGE_BYTES_MAX, SHARDS_MAX};

use super::value::{self, Refusal};
use super::{Config, LogFormat, Machine};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Below this a server has no room for its logs' buffers.
const MEMORY_BYTES_MIN: u64 = 64 * MIB;
/// A segment holds at least a few of the largest entries ([`flowmesh_model::limits::ENTRY_BYTES_MAX`]).
const SEGMENT_BYTES_MIN: u64 = 4 * MESSAGE_BYTES_MAX as u64;

/// One setting. Its name is its key in the file; [`Setting::env`] and [`Setting::flag`] follow from it.
#[derive(Debug)]
pub struct Setting {
    /// The name, with the unit last.
    pub name: &'static str,
    /// What a value looks like, in the help.
    pub value: &'static str,
    /// The text that counts when nobody sets it.
    pub default: &'static str,
    /// The same for `flowmesh dev`, where that differs.
    pub default_dev: Option<&'static str>,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// Checks the text and puts its value into the struct, or says what is allowed.
    pub set: fn(&mut Config, &str, &Machine) -> Result<(), Refusal>,
}

impl Setting {
    /// The environment variable: `FLOWMESH_GRPC_ADDR`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("FLOWMESH_{}", self.name.to_ascii_uppercase())
    }

    /// The flag without its dashes: `grpc-addr`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

fn put<T>(place: &mut T, value: Result<T, Refusal>) -> Result<(), Refusal> {
    *place = value?;
    Ok(())
}

/// Every setting of the server.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "grpc_addr",
        value: "HOST:PORT",
        default: "127.0.0.1:50051",
        default_dev: None,
        help: "Where gRPC listens. `:50051` means every interface; there is no authentication yet, so the default is this machine only.",
        set: |c, text, _| put(&mut c.grpc_addr, value::address(text)),
    },
    Setting {
        name: "http_addr",
        value: "HOST:PORT",
        default: "127.0.0.1:8080",
        default_dev: None,
        help: "Where health, readiness and metrics listen.",
        set: |c, text, _| put(&mut c.http_addr, value::address(text)),
    },
    Setting {
        name: "core_ports",
        value: "PORT|auto|off",
        default: "auto",
        default_dev: None,
        help: "The port of shard 0's own listener; shard N listens on this plus N. `auto`: the port after grpc_addr's.",
        set: |c, text, _| put(&mut c.core_ports, core_ports(text)),
    },
    Setting {
        name: "data_dir",
        value: "DIR",
        default: "./data",
        default_dev: None,
        help: "The data directory; made if absent. One server at a time.",
        set: |c, text, _| put(&mut c.data_dir, directory(text)),
    },
    Setting {
        name: "log_level",
        value: "LEVEL",
        default: "info",
        default_dev: None,
        help: "error, warn, info, debug, trace or off, for the server's own modules (libraries: warnings); or directives by module, like `info,flowmesh::edge=debug`.",
        set: |c, text, _| put(&mut c.log_level, log_level(text)),
    },
    Setting {
        name: "log_format",
        value: "auto|human|json",
        default: "auto",
        default_dev: None,
        help: "How log lines look. `auto`: human on a terminal, JSON otherwise.",
        set: |c, text, _| put(&mut c.log_format, log_format(text)),
    },
    Setting {
        name: "shards",
        value: "N|auto",
        default: "auto",
        default_dev: None,
        help: "How many shards, each a core of its own. `auto`: as many as the data directory was made with; a new one gets one a CPU.",
        set: |c, text, _| put(&mut c.shards, shards(text)),
    },
    Setting {
        name: "cpus",
        value: "LIST|auto",
        default: "auto",
        default_dev: None,
        help: "The CPUs of shard 0, 1, …, like `0-3,6`; used in turn where there are fewer than shards. `auto`: those this process may use.",
        set: |c, text, machine| put(&mut c.cpus, cpus(text, machine)),
    },
    Setting {
        name: "durability",
        value: "always|interval|never|memory",
        default: "always",
        default_dev: None,
        help: "What an acknowledgement means: on disk; written, synced every sync_interval_ms; written; in memory only (no files at all). A resource may override the first three.",
        set: |c, text, _| put(&mut c.durability, durability(text)),
    },
    Setting {
        name: "sync_interval_ms",
        value: "TIME",
        default: "100ms",
        default_dev: None,
        help: "The longest time between syncs under `interval`.",
        set: |c, text, _| put(&mut c.sync_interval_ms, value::millis(text, 1, MINUTE_MS)),
    },
    Setting {
        name: "auto_create",
        value: "true|false",
        default: "false",
        default_dev: Some("true"),
        help: "Whether the first write to a name creates the resource, with default settings.",
        set: |c, text, _| put(&mut c.auto_create, value::boolean(text)),
    },
    Setting {
        name: "memory_bytes",
        value: "SIZE|PERCENT|auto",
        default: "auto",
        default_dev: None,
        help: "The memory the server may use for what it keeps, like `2GiB` or `25%`. `auto`: 50 % of the machine's, or of the container's limit.",
        set: |c, text, machine| put(&mut c.memory_bytes, memory(text, machine)),
    },
    Setting {
        name: "log_segment_bytes",
        value: "SIZE",
        default: "64MiB",
        default_dev: None,
        help: "The size of one commit log segment; a multiple of 4KiB.",
        set: |c, text, _| put(&mut c.log_segment_bytes, segment(text)),
    },
    Setting {
        name: "log_bytes_max",
        value: "SIZE",
        default: "384MiB",
        default_dev: None,
        help: "The most commit log a shard keeps; beyond it writes wait until a checkpoint has trimmed it. At least four segments.",
        set: |c, text, _| put(&mut c.log_bytes_max, value::bytes(text, 4 * SEGMENT_BYTES_MIN, 1 << 44)),
    },
    Setting {
        name: "checkpoint_interval_ms",
        value: "TIME",
        default: "30s",
        default_dev: None,
        help: "The longest time between two checkpoints of a shard that changed.",
        set: |c, text, _| put(&mut c.checkpoint_interval_ms, value::millis(text, 100, 24 * HOUR_MS)),
    },
    Setting {
        name: "compaction_bytes_per_second",
        value: "SIZE",
        default: "256MiB",
        default_dev: None,
        help: "How much the compaction of streams may read and write in a second, over all shards.",
        set: |c, text, _| put(&mut c.compaction_bytes_per_second, value::bytes(text, MIB, 1 << 44)),
    },
    Setting {
        name: "connections_max",
        value: "N",
        default: "10000",
        default_dev: None,
        help: "Open connections of the whole server; one more is closed at once.",
        set: |c, text, _| put(&mut c.connections_max, number_u32(text, 1, 1_000_000)),
    },
    Setting {
        name: "connection_streams_max",
        value: "N",
        default: "1024",
        default_dev: None,
        help: "Calls and streams one connection may have open at a time.",
        set: |c, text, _| put(&mut c.connection_streams_max, number_u32(text, 1, 65_536)),
    },
    Setting {
        name: "handshake_timeout_ms",
        value: "TIME",
        default: "10s",
        default_dev: None,
        help: "A connection that has not finished its handshake by then is closed.",
        set: |c, text, _| put(&mut c.handshake_timeout_ms, value::millis(text, 100, 10 * MINUTE_MS)),
    },
    Setting {
        name: "keepalive_ms",
        value: "TIME",
        default: "60s",
        default_dev: None,
        help: "A connection without traffic for this long is asked for a sign of life.",
        set: |c, text, _| put(&mut c.keepalive_ms, value::millis(text, 1_000, 24 * HOUR_MS)),
    },
    Setting {
        name: "keepalive_timeout_ms",
        value: "TIME",
        default: "20s",
        default_dev: None,
        help: "A connection that gives no sign of life for this long after being asked is closed.",
        set: |c, text, _| put(&mut c.keepalive_timeout_ms, value::millis(text, 100, HOUR_MS)),
    },
    Setting {
        name: "idle_timeout_ms",
        value: "TIME|off",
        default: "30m",
        default_dev: None,
        help: "A connection without a call for this long is told to go away (GOAWAY) and closed; a call in progress keeps it.",
        set: |c, text, _| put(&mut c.idle_timeout_ms, idle_timeout(text)),
    },
    Setting {
        name: "spin_us",
        value: "TIME",
        default: "0",
        default_dev: None,
        help: "How long an idle core looks for work before it sleeps: cross-core calls take 11 instead of 50-97 µs with 50, and the core is never idle.",
        set: |c, text, _| put(&mut c.spin_us, value::micros(text, 0, 10_000)),
    },
    Setting {
        name: "preempt_us",
        value: "TIME",
        default: "100us",
        default_dev: None,
        help: "How long a busy core works before it looks for completed I/O and messages.",
        set: |c, text, _| put(&mut c.preempt_us, value::micros(text, 20, 100_000)),
    },
    Setting {
        name: "shutdown_timeout_ms",
        value: "TIME",
        default: "10s",
        default_dev: None,
        help: "How long a graceful stop waits for open calls.",
        set: |c, text, _| put(&mut c.shutdown_timeout_ms, value::millis(text, 0, HOUR_MS)),
    },
];

fn number_u32(text: &str, min: u32, max: u32) -> Result<u32, Refusal> {
    value::number(text, u64::from(min), u64::from(max)).map(|n| u32::try_from(n).unwrap_or(max))
}

/// `Some(0)` stands for `auto` until the other settings are known.
fn core_ports(text: &str) -> Result<Option<u16>, Refusal> {
    match text {
        "auto" => Ok(Some(0)),
        "off" => Ok(None),
        _ => number_u32(text, 1, 65_535)
            .map(|port| u16::try_from(port).ok())
            .map_err(|range| format!("a port ({range}), auto or off")),
    }
}

fn idle_timeout(text: &str) -> Result<Option<u64>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    value::millis(text, 1_000, 24 * HOUR_MS).map(Some).map_err(|span| format!("{span}, or off"))
}

fn directory(text: &str) -> Result<PathBuf, Refusal> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err("the path of a directory, like ./data".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn log_level(text: &str) -> Result<String, Refusal> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let legal = |directive: &str| {
        let (target, level) = directive.split_once('=').unwrap_or(("flowmesh", directive));
        let target_legal = !target.is_empty()
            && target.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b':'));
        target_legal && LEVELS.contains(&level.to_ascii_lowercase().as_str())
    };
    if !text.split(',').map(str::trim).all(legal) {
        return Err(
            "error, warn, info, debug, trace or off; or directives like info,flowmesh::edge=debug".to_owned()
        );
    }
    let word = text.trim().to_ascii_lowercase();
    match word.as_str() {
        // glommio calls it an error that a file system has no polled I/O; what matters is checked at start.
        "error" | "warn" => Ok(format!("{word},glommio=off")),
        "info" => Ok("warn,glommio=off,flowmesh=info".to_owned()),
        "debug" | "trace" => Ok(format!("warn,flowmesh={word}")),
        _ => Ok(word),
    }
}

fn log_format(text: &str) -> Result<LogFormat, Refusal> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("auto, human or json".to_owned()),
    }
}

fn shards(text: &str) -> Result<Option<u16>, Refusal> {
    if text == "auto" {
        return Ok(None);
    }
    number_u32(text, 1, u32::from(SHARDS_MAX))
        .map(|n| u16::try_from(n).ok())
        .map_err(|range| format!("{range}, or auto"))
}

/// Empty stands for `auto` until the other settings are known.
fn cpus(text: &str, machine: &Machine) -> Result<Vec<usize>, Refusal> {
    if text == "auto" {
        return Ok(Vec::new());
    }
    let cpus = value::cpu_list(text)?;
    match cpus.iter().find(|cpu| !machine.cpus.contains(cpu)) {
        Some(cpu) => {
            Err(format!("CPUs this process may use ({}); {cpu} is not one", list_text(&machine.cpus)))
        }
        None => Ok(cpus),
    }
}

/// CPU numbers as ranges.
fn list_text(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

fn durability(text: &str) -> Result<Durability, Refusal> {
    [Durability::Always, Durability::Interval, Durability::Never, Durability::Memory]
        .into_iter()
        .find(|d| d.as_str() == text)
        .ok_or_else(|| "always, interval, never or memory".to_owned())
}

fn memory(text: &str, machine: &Machine) -> Result<u64, Refusal> {
    let total = machine.memory_bytes;
    let share = |percent: u64| total / 100 * percent;
    let allowed = || {
        format!(
            "{} to {} (what there is here), as 2GiB or 25%; or auto",
            value::bytes_text(MEMORY_BYTES_MIN),
            value::bytes_text(total)
        )
    };
    let bytes = match text.strip_suffix('%') {
        _ if text == "auto" => return Ok(share(50).max(MEMORY_BYTES_MIN)),
        Some(percent) => value::number(percent.trim(), 1, 100).ok().map(share),
        None => value::size(text),
    };
    bytes.filter(|n| (MEMORY_BYTES_MIN..=total.max(MEMORY_BYTES_MIN)).contains(n)).ok_or_else(allowed)
}

fn segment(text: &str) -> Result<u64, Refusal> {
    let bytes = value::bytes(text, SEGMENT_BYTES_MIN, 4 * GIB)?;
    if bytes.is_multiple_of(4096) { Ok(bytes) } else { Err("a multiple of 4KiB, like 64MiB".to_owned()) }
}
