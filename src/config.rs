//! The server's settings: gathered, checked once at start, and from then on a plain struct.
//!
//! [`table`] lists every setting once: its name (the key in `flowmesh.toml`), its default, how its text becomes a value
//! and what is allowed. File keys, environment variables (`FLOWMESH_` + upper case), flags (`--` + kebab case), their
//! help and the table in `docs/cli.md` all come from it. [`sources`] finds the text: default, then file, then environment,
//! then flag; the later wins. [`value`] turns text into values. [`machine`] is what the defaults that depend on this
//! machine are made from. [`error`] says what is wrong, naming the setting, where it came from, its value and what is allowed.

pub mod error;
pub mod machine;
pub mod sources;
pub mod table;
pub mod value;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

use flowmesh_model::limits::SHARDS_MAX;
use flowmesh_model::{Durability, ShardId};

pub use error::{ConfigError, ConfigErrors, Origin};
pub use machine::Machine;
pub use sources::{Mode, Sources};
pub use table::{SETTINGS, Setting};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people if standard error is a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What a server runs with. Every value has been checked against its range and against the others.
///
/// Fields are named and documented by [`table::SETTINGS`]; a unit stands last in the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where gRPC listens, on every core (SO_REUSEPORT).
    pub grpc_addr: SocketAddr,
    /// Where health, readiness and metrics listen.
    pub http_addr: SocketAddr,
    /// The data directory. Unused with [`Durability::Memory`].
    pub data_dir: PathBuf,
    /// Directives of `tracing-subscriber`'s filter: `warn,flowmesh=info`.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How many shards, 1 to [`flowmesh_model::limits::SHARDS_MAX`], if that was set. `None`: as many as the data
    /// directory was made with, or `shards_default` for a new one.
    pub shards: Option<u16>,
    /// How many shards a new data directory gets where `shards` is not set: one a CPU.
    pub shards_default: u16,
    /// The CPUs to use, in order, at least one; see [`Config::cpu_of`].
    pub cpus: Vec<usize>,
    /// When a write is acknowledged, where a resource does not say otherwise.
    pub durability: Durability,
    /// The longest time between syncs under [`Durability::Interval`].
    pub sync_interval_ms: u64,
    /// Whether the first write to a name creates the resource.
    pub auto_create: bool,
    /// The port of shard 0's own listener; shard `n` listens on this plus `n`, on the address of `grpc_addr`. `None`: no
    /// such listeners.
    pub core_ports: Option<u16>,
    /// The memory the whole server may use for what it keeps.
    pub memory_bytes: u64,
    /// The size of one commit log segment.
    pub log_segment_bytes: u64,
    /// The most one shard's commit log may hold before writes wait for a checkpoint. At least four segments.
    pub log_bytes_max: u64,
    /// The longest time between two checkpoints of a shard that changed.
    pub checkpoint_interval_ms: u64,
    /// How much the compaction of streams may read and write in a second, over all shards.
    pub compaction_bytes_per_second: u64,
    /// Open connections of the whole server; one more is closed at once.
    pub connections_max: u32,
    /// Calls and streams one connection may have open at a time.
    pub connection_streams_max: u32,
    /// A connection without traffic for this long is asked for a sign of life.
    pub keepalive_ms: u64,
    /// A connection that gives no sign of life for this long after being asked is closed.
    pub keepalive_timeout_ms: u64,
    /// A connection without a call for this long is told to go away. `None`: never.
    pub idle_timeout_ms: Option<u64>,
    /// A connection that has not finished its handshake by then is closed.
    pub handshake_timeout_ms: u64,
    /// How long an idle core looks for work before it sleeps. 0: not at all.
    pub spin_us: u64,
    /// How long a busy core works before it looks for completed I/O and messages.
    pub preempt_us: u64,
    /// How long a graceful stop waits for open calls.
    pub shutdown_timeout_ms: u64,
}

impl Config {
    /// Gathers the settings from `sources` and checks them, for this machine.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing.
    pub fn load(sources: &Sources, machine: &Machine) -> Result<Self, ConfigErrors> {
        let (given, mut errors) = sources.gather();
        let mut config = Self::unset();
        for (setting, (text, origin)) in SETTINGS.iter().zip(&given) {
            if let Err(allowed) = (setting.set)(&mut config, text, machine) {
                errors.push(ConfigError::Value {
                    setting: setting.name,
                    origin: origin.clone(),
                    value: text.clone(),
                    allowed,
                });
            }
        }
        if errors.is_empty() {
            let origin_of = |name: &str| {
                SETTINGS.iter().zip(&given).find(|(s, _)| s.name == name).map(|(_, g)| g.clone())
            };
            config.settle(machine, &|name| origin_of(name).unwrap_or_default(), &mut errors);
        }
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// The defaults of `mode` on this machine, as if there were no file, no environment and no flags.
    ///
    /// # Errors
    /// None: that the defaults are legal is tested; the type is that of [`Config::load`].
    pub fn defaults(mode: Mode, machine: &Machine) -> Result<Self, ConfigErrors> {
        Self::load(&Sources { mode, ..Sources::default() }, machine)
    }

    /// The CPU of a shard: one each, in order, and in turn where there are fewer CPUs than shards.
    #[must_use]
    pub fn cpu_of(&self, shard: ShardId) -> usize {
        self.cpus.iter().copied().cycle().nth(usize::from(shard.0)).unwrap_or(0)
    }

    /// A struct to be filled by the table.
    fn unset() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            grpc_addr: nowhere,
            http_addr: nowhere,
            data_dir: PathBuf::new(),
            log_level: String::new(),
            log_format: LogFormat::Auto,
            shards: None,
            shards_default: 1,
            cpus: Vec::new(),
            durability: Durability::Always,
            sync_interval_ms: 0,
            auto_create: false,
            core_ports: None,
            memory_bytes: 0,
            log_segment_bytes: 0,
            log_bytes_max: 0,
            checkpoint_interval_ms: 0,
            compaction_bytes_per_second: 0,
            connections_max: 0,
            connection_streams_max: 0,
            keepalive_ms: 0,
            keepalive_timeout_ms: 0,
            idle_timeout_ms: None,
            handshake_timeout_ms: 0,
            spin_us: 0,
            preempt_us: 0,
            shutdown_timeout_ms: 0,
        }
    }

    /// Fills in what `auto` left open and checks what only makes sense together.
    fn settle(
        &mut self,
        machine: &Machine,
        given: &dyn Fn(&str) -> (String, Origin),
        errors: &mut Vec<ConfigError>,
    ) {
        let refuse = |setting: &'static str, allowed: String| {
            let (value, origin) = given(setting);
            ConfigError::Value { setting, origin, value, allowed }
        };
        if let Err(allowed) = self.settle_cpus(machine) {
            errors.push(refuse("cpus", allowed));
        }
        if let Err((setting, allowed)) = self.settle_ports() {
            errors.push(refuse(setting, allowed));
        }
        if self.log_bytes_max < 4 * self.log_segment_bytes {
            let least = value::bytes_text(4 * self.log_segment_bytes);
            errors.push(refuse(
                "log_bytes_max",
                format!("at least four segments (log_segment_bytes): {least}"),
            ));
        }
    }

    /// The CPUs this process may use, where none are given, and as many shards as that makes.
    fn settle_cpus(&mut self, machine: &Machine) -> Result<(), String> {
        let explicit = !self.cpus.is_empty();
        if let (true, Some(shards)) = (explicit, self.shards)
            && self.cpus.len() > usize::from(shards)
        {
            return Err(format!("at most one CPU for each of the {shards} shards (setting shards)"));
        }
        let mut count = self.cpus.len();
        if !explicit {
            self.cpus.clone_from(&machine.cpus);
            count = machine.parallelism.min(machine.cpus.len());
        }
        self.shards_default = u16::try_from(count.clamp(1, usize::from(SHARDS_MAX))).unwrap_or(SHARDS_MAX);
        Ok(())
    }

    /// Every core's own port, and none of them in use twice.
    fn settle_ports(&mut self) -> Result<(), (&'static str, String)> {
        let grpc = self.grpc_addr.port();
        if self.core_ports == Some(0) {
            self.core_ports = Some(grpc.saturating_add(1));
        }
        let overlap = self.grpc_addr.ip() == self.http_addr.ip()
            || self.grpc_addr.ip().is_unspecified()
            || self.http_addr.ip().is_unspecified();
        let http = self.http_addr.port();
        if overlap && http == grpc {
            return Err(("http_addr", format!("another port than grpc_addr, which is {}", self.grpc_addr)));
        }
        let Some(base) = self.core_ports else { return Ok(()) };
        let shards = self.shards.unwrap_or(self.shards_default);
        let Some(last) = base.checked_add(shards - 1) else {
            return Err(("core_ports", format!("room for {shards} ports, one a shard, up to 65535; or off")));
        };
        let own = base..=last;
        if own.contains(&grpc) || (overlap && own.contains(&http)) {
            return Err((
                "core_ports",
                format!(
                    "{base} to {last} (one port a shard) must not hold the ports of grpc_addr ({grpc}) and http_addr ({http})"
                ),
            ));
        }
        Ok(())
    }
}
