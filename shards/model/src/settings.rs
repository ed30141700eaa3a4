//! What can be set for a resource. On disk and in the API: JSON with these names; an absent name is the default.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::path::Kind;
use crate::reject::Reject;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Acknowledged means on disk (write + fdatasync), shared by all that gathered meanwhile.
    #[default]
    Always,
    /// Acknowledged means written; synced at least every `sync_interval_ms` of the server.
    Interval,
    /// Acknowledged means written; synced when the kernel likes.
    Never,
    /// No files at all. Only for a whole server.
    Memory,
}

impl Durability {
    /// The word in settings and flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval",
            Self::Never => "never",
            Self::Memory => "memory",
        }
    }
}

/// Settings of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSettings {
    /// Partitions, 1 to [`limits::PARTITIONS_MAX`]; fixed at creation.
    pub partitions: u32,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { partitions: 1, durability: None }
    }
}

/// Settings of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// How long a lease lasts when the call does not say.
    pub visibility_timeout_ms: u64,
    /// Deliveries before a job is dead; a job may set its own.
    pub max_attempts: u32,
    /// The wait before the second attempt; doubles with each further one.
    pub backoff_initial_ms: u64,
    /// The longest wait between attempts.
    pub backoff_max_ms: u64,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            visibility_timeout_ms: 30_000,
            max_attempts: 3,
            backoff_initial_ms: 1_000,
            backoff_max_ms: 60_000,
            durability: None,
        }
    }
}

impl QueueSettings {
    /// The wait after the `attempts`-th failed delivery: initial × 2^(attempts - 1), capped.
    #[must_use]
    pub fn backoff_ms(&self, attempts: u32) -> u64 {
        let doublings = attempts.saturating_sub(1).min(63);
        self.backoff_initial_ms.saturating_mul(1 << doublings).min(self.backoff_max_ms)
    }
}

/// Settings of a key-value store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvSettings {
    /// Time to live of entries that are set without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_ttl_ms: Option<u64>,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

/// Settings of a resource, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Settings {
    /// Of a stream.
    Stream(StreamSettings),
    /// Of a queue.
    Queue(QueueSettings),
    /// Of a key-value store.
    Kv(KvSettings),
}

impl Settings {
    /// What a resource of that kind gets when nothing is set.
    #[must_use]
    pub fn default_for(kind: Kind) -> Self {
        match kind {
            Kind::Stream => Self::Stream(StreamSettings::default()),
            Kind::Queue => Self::Queue(QueueSettings::default()),
            Kind::Kv => Self::Kv(KvSettings::default()),
        }
    }

    /// The kind these settings are for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Stream(_) => Kind::Stream,
            Self::Queue(_) => Kind::Queue,
            Self::Kv(_) => Kind::Kv,
        }
    }

    /// The resource's own durability, if it has one.
    #[must_use]
    pub fn durability(&self) -> Option<Durability> {
        match self {
            Self::Stream(s) => s.durability,
            Self::Queue(s) => s.durability,
            Self::Kv(s) => s.durability,
        }
    }

    /// Partitions; a queue has one, and so, for placement, has a store (its keys are spread instead).
    #[must_use]
    pub fn partitions(&self) -> u32 {
        match self {
            Self::Stream(s) => s.partitions,
            Self::Queue(_) | Self::Kv(_) => 1,
        }
    }

    /// Checks every value against its limits.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] that names the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Reject> {
        if self.durability() == Some(Durability::Memory) {
            return Err(Reject::invalid(
                "durability",
                "memory is for a whole server; use always, interval or never".to_owned(),
            ));
        }
        match self {
            Self::Stream(s) => {
                within("partitions", u64::from(s.partitions), 1, u64::from(limits::PARTITIONS_MAX))
            }
            Self::Queue(s) => {
                within(
                    "visibility_timeout_ms",
                    s.visibility_timeout_ms,
                    limits::VISIBILITY_MS_MIN,
                    limits::VISIBILITY_MS_MAX,
                )?;
                within("max_attempts", u64::from(s.max_attempts), 1, u64::from(limits::ATTEMPTS_MAX))?;
                within("backoff_max_ms", s.backoff_max_ms, 0, limits::DELAY_MS_MAX)?;
                within("backoff_initial_ms", s.backoff_initial_ms, 0, s.backoff_max_ms)
            }
            Self::Kv(s) => {
                s.default_ttl_ms.map_or(Ok(()), |ttl| within("default_ttl_ms", ttl, 1, limits::DELAY_MS_MAX))
            }
        }
    }
}

/// Refuses a value outside `min..=max`, naming all three.
///
/// # Errors
/// [`Reject::InvalidArgument`].
pub fn within(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), Reject> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(Reject::invalid(field, format!("is {value}; allowed: {min} to {max}")))
    }
}
