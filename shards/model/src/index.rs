//! What a checkpoint writes to the shard's index: key-value pairs in seven spaces.
//!
//! The machine encodes and decodes its own entries; the store only keeps them. Every key starts with the slot (two
//! bytes, big-endian) and the resource (eight bytes, big-endian), so that a slot can be moved as one range.

use bytes::Bytes;

/// A part of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The catalog, and a small entry for each stream partition, queue and store: counters, first offsets.
    Meta,
    /// Jobs, and what queues keep beside them.
    Jobs,
    /// Entries of key-value stores.
    Keys,
    /// Members of consumer groups, and partitions as the groups see them.
    Groups,
    /// What jobs are about: headers and payloads. Not needed to start.
    Bodies,
    /// Pages of collections of key-value stores.
    Pages,
    /// What was before changes of key-value stores. Not needed to start.
    History,
}

impl Space {
    /// All spaces, by their byte on disk.
    pub const ALL: [Self; 7] =
        [Self::Meta, Self::Jobs, Self::Keys, Self::Groups, Self::Bodies, Self::Pages, Self::History];

    /// Those that a start reads.
    pub const STATE: [Self; 5] = [Self::Meta, Self::Jobs, Self::Keys, Self::Groups, Self::Pages];

    /// The name of the space on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Jobs => "jobs",
            Self::Keys => "keys",
            Self::Groups => "groups",
            Self::Bodies => "bodies",
            Self::Pages => "pages",
            Self::History => "history",
        }
    }
}

/// One change of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexWrite {
    /// Where.
    pub space: Space,
    /// The full key, slot and resource included.
    pub key: Bytes,
    /// The new value, or `None` to remove the key.
    pub value: Option<Bytes>,
}
