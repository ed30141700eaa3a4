//! What the items of one batch know of each other.

use bytes::Bytes;
use flowmesh_model::{Lsn, Millis};

use super::Entry;
use crate::siphash::SipKey;

/// What conditions and times to live ask of a key that is there.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub version: Lsn,
    pub expires_at: Option<Millis>,
    /// `None` of a collection, and where no condition asks.
    pub text: Option<Bytes>,
}

impl Current {
    pub fn of(entry: &Entry, text: Option<Bytes>) -> Self {
        Self { version: entry.version(), expires_at: entry.expires_at(), text }
    }
}

/// By key. Never iterated.
type ByKey<'a> = hashbrown::HashMap<&'a [u8], Current, SipKey>;

/// Keys that earlier items of the batch changed. Remembers nothing where no later item could notice.
pub(super) struct Written<'a>(Option<ByKey<'a>>);

impl<'a> Written<'a> {
    pub fn when(needed: bool, sip: SipKey) -> Self {
        Self(needed.then(|| ByKey::with_hasher(sip)))
    }

    pub fn get(&self, key: &[u8]) -> Option<Current> {
        self.0.as_ref()?.get(key).cloned()
    }

    pub fn put(&mut self, key: &'a [u8], current: impl FnOnce() -> Current) {
        if let Some(keys) = &mut self.0 {
            keys.insert(key, current());
        }
    }
}
