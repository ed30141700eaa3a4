//! Members of a set or sorted set that operations of a command put in, noted and not yet put into a copy of its trees. While
//! operations ask for single members, nothing is copied: the members noted are looked at first, then what the store has.

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KvAction, SetOp, SortedOp};
use smallvec::SmallVec;

use crate::siphash::SipKey;

/// The item of a member: nothing in a set, its score in a sorted set.
type Item = SmallVec<[u8; 8]>;

/// What was put in.
#[derive(Clone)]
pub(super) struct Later {
    /// In order.
    facts: Vec<KvFact>,
    /// What members have now. Never iterated.
    items: hashbrown::HashMap<Bytes, Item, SipKey>,
}

/// Whether an operation asks its key for single members alone, and puts in some at most.
pub(super) fn is_of_members(action: &KvAction) -> bool {
    matches!(
        action,
        KvAction::Set(SetOp::Add(_) | SetOp::Contains(_))
            | KvAction::Sorted(SortedOp::Add { .. } | SortedOp::Increment { .. } | SortedOp::Scores(_))
    )
}

impl Later {
    pub fn new(sip: SipKey) -> Self {
        Self { facts: Vec::new(), items: hashbrown::HashMap::with_hasher(sip) }
    }

    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// What a member has that was put in.
    pub fn get(&self, member: &[u8]) -> Option<&[u8]> {
        self.items.get(member).map(SmallVec::as_slice)
    }

    /// Notes what became true, if it can be noted.
    pub fn note(&mut self, fact: &KvFact) -> bool {
        let (member, item) = match fact {
            KvFact::MemberAdded { member, .. } => (member, Item::new()),
            KvFact::ScoreSet { member, score, .. } => (member, Item::from(score.to_ordered())),
            _ => return false,
        };
        self.items.insert(member.clone(), item);
        self.facts.push(fact.clone());
        true
    }

    /// Forgets all and returns it.
    pub fn take(&mut self) -> Vec<KvFact> {
        self.items.clear();
        std::mem::take(&mut self.facts)
    }
}
