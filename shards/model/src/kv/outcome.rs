//! What operations on keys are answered with.

use bytes::Bytes;

use super::{KvType, Real};
use crate::ids::{Lsn, Millis};

/// What is known of a key besides what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// What it holds.
    pub holds: KvType,
    /// The entry that changed it last.
    pub version: Lsn,
    /// When it ends, if it does.
    pub expires_at: Option<Millis>,
    /// Bytes of a value, members of a collection.
    pub len: u64,
    /// An estimate of what it takes in memory.
    pub memory_bytes: u64,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvOutcome {
    /// The version of the operation's key once it was done; 0 if there is no such key then.
    pub version: Lsn,
    /// What [`super::KvAction`] says.
    pub result: KvResult,
}

/// The shapes of results. Which operation has which: see there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvResult {
    /// It is done.
    Done,
    /// Yes or no.
    Flag(bool),
    /// One for each that was named.
    Flags(Vec<bool>),
    /// A count, a length, a counter.
    Integer(i64),
    /// One for each that was named, or all there are.
    Integers(Vec<Option<i64>>),
    /// A counter.
    Float(Real),
    /// A score, if there is one.
    MaybeFloat(Option<Real>),
    /// One for each that was named.
    Floats(Vec<Option<Real>>),
    /// A value, if there is one.
    Value(Option<Bytes>),
    /// One for each that was named.
    Values(Vec<Option<Bytes>>),
    /// Members or values.
    Members(Vec<Bytes>),
    /// Fields and values.
    Pairs(Vec<(Bytes, Bytes)>),
    /// Members and scores.
    Scored(Vec<(Bytes, Real)>),
    /// A place and a score, if the member is there.
    Rank(Option<(u64, Real)>),
    /// What is known of a key, if it is there.
    Info(Option<KeyInfo>),
    /// Of each field: was its end changed? `None`: there is no such field.
    Changes(Vec<Option<bool>>),
    /// Of each field when it ends, if it does; `None`: there is no such field.
    Ends(Vec<Option<Option<Millis>>>),
    /// A part of what there is.
    Page {
        /// Which.
        items: Box<KvResult>,
        /// What was looked at last, if there is more behind it.
        next: Option<Bytes>,
    },
}

impl KvResult {
    /// Bytes of what it shows: keys, members, values and numbers, a few more for each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const EACH: usize = 8;
        match self {
            Self::Done | Self::Flag(_) | Self::Integer(_) | Self::Float(_) | Self::MaybeFloat(_) => EACH,
            Self::Flags(flags) => flags.len(),
            Self::Integers(all) => EACH * all.len(),
            Self::Floats(all) => EACH * all.len(),
            Self::Changes(all) => EACH * all.len(),
            Self::Ends(all) => EACH * all.len(),
            Self::Value(value) => EACH + value.as_ref().map_or(0, Bytes::len),
            Self::Values(all) => all.iter().map(|value| EACH + value.as_ref().map_or(0, Bytes::len)).sum(),
            Self::Members(all) => all.iter().map(|member| EACH + member.len()).sum(),
            Self::Pairs(all) => all.iter().map(|(field, value)| EACH + field.len() + value.len()).sum(),
            Self::Scored(all) => all.iter().map(|(member, _)| 2 * EACH + member.len()).sum(),
            Self::Rank(_) => 2 * EACH,
            Self::Info(_) => 5 * EACH,
            Self::Page { items, next } => items.bytes() + next.as_ref().map_or(0, Bytes::len),
        }
    }
}
