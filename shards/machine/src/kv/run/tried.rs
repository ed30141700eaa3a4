//! What keys would hold: operations of one command see what those before them did, and nothing has happened yet.

use std::cell::Cell;

use bytes::Bytes;
use flowmesh_model::kv::KvOp;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Fact, Lsn, Millis, SlotId};

use super::found::{Found, Seen};
use super::later::{Later, is_of_members};
use crate::kv::change::{self, collection_of};
use crate::kv::cold::Wanted;
use crate::kv::decide::Asked;
use crate::kv::entry::{Entry, View};
use crate::kv::pages::Look;
use crate::kv::past::Was;
use crate::kv::tree::Scratch;
use crate::kv::value::{Collection, Value};
use crate::kv::{is_live, memory_bytes_of};
use crate::siphash::SipKey;

/// By key. Never iterated.
type ByKey<'a> = hashbrown::HashMap<Bytes, Tried<'a>, SipKey>;

/// Keys that operations of the command changed.
pub(super) struct Tries<'a> {
    asked: &'a Asked<'a>,
    /// `None`: no key comes twice or nothing can change, so that nobody could notice.
    keys: Option<ByKey<'a>>,
    /// What was shown became true in this entry or before.
    seen: Cell<Lsn>,
    /// Whether what is found now is asked for, by what changes nothing: what changes something counts by doing so.
    counts: bool,
}

/// A key as it would be.
#[derive(Clone)]
struct Tried<'a> {
    value: Option<Value>,
    version: Lsn,
    expires_at: Millis,
    pages: Scratch<Look<'a>>,
    /// What is not in `value` and `pages`.
    later: Later,
}

impl Tried<'_> {
    fn found<'t>(&'t self, wanted: &'t Wanted, key: &[u8], now: Millis) -> Option<Found<'t>> {
        let value = self.value.as_ref().map(View::from);
        let value = value.filter(|value| is_live(*value, self.expires_at, now))?;
        Some(Found {
            value,
            version: self.version,
            expires_at: some_end(self.expires_at),
            memory_bytes: memory_bytes_of(key, value),
            pages: Seen::Tried(&self.pages),
            later: Some(&self.later),
            now,
            wanted,
        })
    }

    /// Puts what was noted where it belongs.
    fn settle(&mut self) {
        let Some(Value::Collection(collection)) = &mut self.value else {
            assert!(self.later.is_empty(), "members were noted of a key that holds none");
            return;
        };
        for fact in self.later.take() {
            // What it needs was found in memory when it was decided.
            let applied = change::apply(collection, &mut self.pages, &fact);
            debug_assert!(applied.is_ok(), "a page went while it was used");
        }
    }

    /// The key holds something else from now on, or nothing.
    fn hold(&mut self, value: Option<Value>) {
        self.later.take();
        self.value = value;
    }
}

impl<'a> Tries<'a> {
    pub fn new(asked: &'a Asked<'a>, ops: &[KvOp]) -> Self {
        let sip = asked.store.sip;
        let mut named = hashbrown::HashSet::with_hasher(sip);
        let mut keys = ops.iter().flat_map(|op| std::iter::once(&op.key).chain(op.action.other_keys()));
        let writes = ops.len() > 1 && ops.iter().any(|op| op.action.is_write());
        let again = writes && keys.any(|key| !named.insert(key));
        Self { asked, keys: again.then(|| ByKey::with_hasher(sip)), seen: Cell::new(Lsn(0)), counts: false }
    }

    /// For facts of one entry that come one after the other.
    pub fn of_facts(asked: &'a Asked<'a>, facts: &[Fact]) -> Self {
        let sip = asked.store.sip;
        let mut named = hashbrown::HashSet::with_hasher(sip);
        let again = facts.len() > 1 && facts.iter().flat_map(keys_of).any(|key| !named.insert(key));
        Self { asked, keys: again.then(|| ByKey::with_hasher(sip)), seen: Cell::new(Lsn(0)), counts: false }
    }

    /// Keys as they were.
    pub fn of_past(asked: &'a Asked<'a>, keys: Vec<(Bytes, Was<'a>)>) -> Self {
        let mut tried = ByKey::with_hasher(asked.store.sip);
        tried.extend(keys.into_iter().map(|(key, Was { value, version, end, pages })| {
            let later = Later::new(asked.store.sip);
            (key, Tried { value, version, expires_at: end, pages, later })
        }));
        Self { asked, keys: Some(tried), seen: Cell::new(Lsn(0)), counts: false }
    }

    pub fn seen(&self) -> Lsn {
        self.seen.get()
    }

    /// An operation comes next: it must find what it asks for.
    pub fn prepare(&mut self, op: &KvOp) {
        self.counts = !op.action.is_write();
        let Some(keys) = &mut self.keys else { return };
        if is_of_members(&op.action) {
            return;
        }
        for key in std::iter::once(&op.key).chain(op.action.other_keys()) {
            if let Some(tried) = keys.get_mut(key) {
                tried.settle();
            }
        }
    }

    /// What a fact changes is looked at next: all of it must be found, unless it is one field or member.
    pub fn prepare_fact(&mut self, fact: &Fact) {
        let is_of_member = matches!(
            fact,
            Fact::Kv(_, KvFact::FieldSet { .. } | KvFact::MemberAdded { .. } | KvFact::ScoreSet { .. })
        );
        let Some(keys) = self.keys.as_mut().filter(|_| !is_of_member) else { return };
        for key in keys_of(fact) {
            if let Some(tried) = keys.get_mut(key) {
                tried.settle();
            }
        }
    }

    fn tried(&self, key: &[u8]) -> Option<&Tried<'a>> {
        self.keys.as_ref()?.get(key)
    }

    /// What a key holds, if it is there now.
    pub fn find(&self, asked: &'a Asked<'a>, key: &[u8]) -> Option<Found<'_>> {
        if let Some(tried) = self.tried(key) {
            return tried.found(&asked.wanted, key, asked.now);
        }
        let mut seen = self.seen.get();
        let entry = asked.look(key, &mut seen);
        self.seen.set(seen);
        if let Some(entry) = entry.filter(|_| self.counts) {
            entry.heat.count();
        }
        entry.map(|entry| stored(asked, entry, asked.now))
    }

    /// What a key holds, be it that it has ended.
    pub fn held(&self, asked: &'a Asked<'a>, key: &[u8]) -> Option<Found<'_>> {
        match self.tried(key) {
            Some(tried) => tried.found(&asked.wanted, key, Millis(0)),
            None => asked.store.entry(key).map(|entry| stored(asked, entry, Millis(0))),
        }
    }

    /// Whether the key is held, but what it held has ended.
    pub fn has_ended(&self, asked: &'a Asked<'a>, key: &[u8]) -> bool {
        match self.tried(key) {
            Some(tried) => {
                let value = tried.value.as_ref();
                value.is_some_and(|value| !is_live(value.into(), tried.expires_at, asked.now))
            }
            None => asked.store.entry(key).is_some_and(|entry| !entry.is_live(asked.now)),
        }
    }

    /// Tries facts.
    pub fn apply(&mut self, facts: &[Fact]) {
        self.counts = false;
        let (asked, Some(keys)) = (self.asked, &mut self.keys) else { return };
        for fact in facts {
            match fact {
                Fact::KeySet { key, value, expires_at, .. } => {
                    let tried = change_key(asked, keys, key);
                    tried.hold(Some(Value::Bytes(value.clone())));
                    tried.expires_at = expires_at.unwrap_or_default();
                }
                Fact::KeyDeleted { key, .. } | Fact::KeyExpired { key, .. } => {
                    change_key(asked, keys, key).hold(None);
                }
                Fact::Kv(_, fact) => apply_one(asked, keys, fact),
                other => panic!("an operation on a key makes nothing else true: {other:?}"),
            }
        }
    }
}

fn apply_one<'a>(asked: &'a Asked<'a>, keys: &mut ByKey<'a>, fact: &KvFact) {
    match fact {
        KvFact::Counted { key, number, expires_at } => {
            let tried = change_key(asked, keys, key);
            tried.hold(Some(Value::Counter(*number)));
            tried.expires_at = expires_at.unwrap_or_default();
        }
        KvFact::EndSet { key, expires_at } => {
            change_key(asked, keys, key).expires_at = expires_at.unwrap_or_default();
        }
        KvFact::Renamed { key, to } | KvFact::Copied { key, to } => {
            let from = change_key(asked, keys, key);
            let there = Tried { version: asked.lsn, ..from.clone() };
            if matches!(fact, KvFact::Renamed { .. }) {
                from.hold(None);
            }
            keys.insert(to.clone(), there);
        }
        KvFact::PagesFreed { .. } | KvFact::HistoryKept { .. } | KvFact::HistoryTrimmed { .. } => {}
        KvFact::Evicted { key } => change_key(asked, keys, key).hold(None),
        _ => {
            let (Some(key), Some(holds)) = (fact.key(), collection_of(fact)) else { return };
            let tried = change_key(asked, keys, key);
            if tried.value.is_none() {
                tried.hold(Some(Value::Collection(Box::new(Collection::new(holds, 0, SlotId(0))))));
                tried.pages = Scratch::new(Look::NOTHING);
                tried.expires_at = Millis(0);
            }
            if !tried.later.note(fact) {
                tried.settle();
                // What it needs was found in memory when it was decided.
                if let Some(Value::Collection(collection)) = &mut tried.value {
                    let applied = change::apply(collection, &mut tried.pages, fact);
                    debug_assert!(applied.is_ok(), "a page went while it was used");
                }
            }
        }
    }
}

/// A key as it would be, which is about to change.
fn change_key<'k, 'a>(asked: &'a Asked<'a>, keys: &'k mut ByKey<'a>, key: &Bytes) -> &'k mut Tried<'a> {
    let tried = keys.entry(key.clone()).or_insert_with(|| {
        let entry = asked.store.entry(key);
        Tried {
            // One that is cold gets another value or goes: for all else it would be in memory.
            value: entry.and_then(|entry| entry.view().to_value().ok()),
            version: Lsn(0),
            expires_at: entry.map_or(Millis(0), Entry::end),
            pages: Scratch::new(entry.map_or(Look::NOTHING, |entry| look(asked, entry.view()))),
            later: Later::new(asked.store.sip),
        }
    });
    tried.version = asked.lsn;
    tried
}

/// An entry of the store as it is.
pub(super) fn stored<'a>(asked: &'a Asked<'a>, entry: &'a Entry, now: Millis) -> Found<'a> {
    Found {
        value: entry.view(),
        version: entry.version(),
        expires_at: entry.expires_at(),
        memory_bytes: memory_bytes_of(entry.key(), entry.view()),
        pages: Seen::Stored(look(asked, entry.view())),
        later: None,
        now,
        wanted: &asked.wanted,
    }
}

/// The keys that a fact changes, or whose content it copies.
fn keys_of(fact: &Fact) -> impl Iterator<Item = &Bytes> {
    let (key, to) = match fact {
        Fact::KeySet { key, .. } | Fact::KeyDeleted { key, .. } | Fact::KeyExpired { key, .. } => {
            (Some(key), None)
        }
        Fact::Kv(_, fact) => match fact {
            KvFact::Renamed { to, .. } | KvFact::Copied { to, .. } => (fact.key(), Some(to)),
            _ => (fact.key(), None),
        },
        _ => (None, None),
    };
    key.into_iter().chain(to)
}

fn look<'a>(asked: &'a Asked<'a>, value: View<'_>) -> Look<'a> {
    value.collection().map_or(Look::NOTHING, |collection| asked.store.pages.look(collection))
}

fn some_end(end: Millis) -> Option<Millis> {
    (end.0 != 0).then_some(end)
}
