//! Numbers that must not be mixed up, each a type of its own.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Log sequence number: the position of an entry in one shard's commit log. Dense, starts at 1; 0 is "before
    /// everything". Also the version of what the entry changed.
    Lsn(u64)
);
number!(
    /// The position of a record in one partition of a stream. Dense, starts at 0, never reused.
    Offset(u64)
);
number!(
    /// A job's number within its queue. Starts at 1, never reused.
    JobId(u64)
);
number!(
    /// A lease's fencing token. Within a queue each lease gets a larger one than every lease before it, across
    /// restarts too.
    LeaseToken(u64)
);
number!(
    /// Milliseconds since the Unix epoch, or a span of them where a name ends in `_ms`.
    Millis(u64)
);
number!(
    /// A resource's number, given by the catalog at creation and never reused.
    ResourceId(u64)
);
number!(
    /// An idempotent producer's number, given by the server and never given to another. 0 is none.
    ProducerId(u64)
);
number!(
    /// A shard: one core, one log, one state machine. Dense from 0.
    ShardId(u16)
);
number!(
    /// One of the fixed number of places that resources are hashed to; the slot map says which shard holds it.
    SlotId(u16)
);
number!(
    /// Counts how often a consumer group was assigned anew; a member's follows its group's. 0 is before the first time.
    GroupEpoch(u64)
);
number!(
    /// A member's number within its consumer group. Starts at 1, never given out again.
    MemberNumber(u32)
);
number!(
    /// Counts the changes of the catalog. 0 is the empty catalog.
    CatalogVersion(u64)
);

impl Lsn {
    /// The entry after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl ProducerId {
    /// The number of a producer that the entry `lsn` of `shard` initialises. A shard gives an LSN once and there are at
    /// most 2^16 shards, so no other producer of the server has it.
    #[must_use]
    pub const fn of_entry(lsn: Lsn, shard: ShardId) -> Self {
        Self(lsn.0 << 16 | shard.0 as u64)
    }
}

impl Offset {
    /// The offset `count` records further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Millis {
    /// The moment `span_ms` later; saturates at the end of time.
    #[must_use]
    pub const fn plus(self, span_ms: u64) -> Self {
        Self(self.0.saturating_add(span_ms))
    }

    /// Milliseconds from `earlier` until this moment, 0 if it lies before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One partition of a stream or queue: the unit that has an order, and that one shard owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionRef {
    /// The stream or queue.
    pub resource: ResourceId,
    /// The partition's number, dense from 0.
    pub partition: u32,
}

impl fmt::Display for PartitionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource, self.partition)
    }
}
