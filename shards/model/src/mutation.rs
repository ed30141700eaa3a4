//! Mistakes made on purpose, one at a time, so that a test shows that simulations would find them.
//!
//! Only builds with debug assertions can make any: in a release there is nothing to look at.

use std::cell::Cell;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The log says that it is on disk, and was not synced.
    SkipSync,
    /// A reply goes out before what it shows is on disk.
    ReleaseEarly,
    /// The last entry of the log is not read at a start.
    CutLogTooFar,
    /// A checkpoint leaves out a change.
    ForgetInCheckpoint,
    /// A lease gets the token of the one before.
    ReuseToken,
    /// An entry of the log that does not match its checksum is taken for what it says.
    TrustLog,
    /// So are records of segment files.
    TrustSegments,
    /// Damage in the middle of the log is cut off like a torn tail.
    CutDamage,
    /// A job is given out although its time to live is over.
    IgnoreTimeToLive,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SkipSync,
        Self::ReleaseEarly,
        Self::CutLogTooFar,
        Self::ForgetInCheckpoint,
        Self::ReuseToken,
        Self::TrustLog,
        Self::TrustSegments,
        Self::CutDamage,
        Self::IgnoreTimeToLive,
    ];

    /// Whether this thread makes it.
    #[inline]
    #[must_use]
    pub fn is_made(self) -> bool {
        cfg!(debug_assertions) && MADE.get() == Some(self)
    }
}

thread_local! {
    static MADE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// From now on this thread makes a mistake, or none.
pub fn make(mutation: Option<Mutation>) {
    MADE.set(mutation);
}
