//! The order against the paper in its plainest form, and what it is good for.

use std::collections::{BTreeMap, VecDeque};

use flowmesh_model::{Lsn, Millis};
use proptest::prelude::*;

use super::super::value::Value;
use super::*;
use crate::changes::Mark;
use crate::siphash::SipKey;

fn entry(key: u32) -> Entry {
    Entry::new(&key.to_be_bytes(), Value::Bytes(bytes::Bytes::new()), Lsn(1), Millis(0), Mark::NEW)
}

fn key_of(entry: &Entry) -> u32 {
    u32::from_be_bytes(entry.key().try_into().unwrap())
}

fn hash(key: &[u8]) -> u64 {
    SipKey::new(3).hash(key)
}

/// Entries in an order, as a store has them.
#[derive(Default)]
struct Kept {
    slab: Slab,
    places: BTreeMap<u32, Place>,
    order: Eviction,
}

impl Kept {
    fn count(&self, key: u32) -> bool {
        let place = self.places.get(&key);
        place.map(|place| self.slab.get(*place).unwrap().heat.count()).is_some()
    }

    fn put(&mut self, key: u32) {
        let place = self.slab.insert(entry(key));
        self.order.came(place, self.slab.get(place).unwrap(), hash(&key.to_be_bytes()));
        self.places.insert(key, place);
    }

    fn remove(&mut self, key: u32) {
        if let Some(place) = self.places.remove(&key) {
            self.order.left(place, self.slab.get(place).unwrap());
            self.slab.remove(place);
        }
    }

    /// The entry that goes next; gone, if it may.
    fn evict(&mut self, looks_max: usize, may_go: impl Fn(u32) -> bool) -> Option<u32> {
        let place = self.order.next(&self.slab, hash, looks_max, |entry| may_go(key_of(entry)))?;
        let key = key_of(&self.slab.remove(place).unwrap());
        assert_eq!(self.places.remove(&key), Some(place));
        Some(key)
    }
}

/// The paper: keys in two queues, the oldest first, and how often each was asked for.
#[derive(Default)]
struct Paper {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    counts: BTreeMap<u32, u8>,
    ghosts: Ghosts,
}

impl Paper {
    fn count(&mut self, key: u32) {
        self.counts.entry(key).and_modify(|count| *count = (*count + 1).min(3));
    }

    fn put(&mut self, key: u32) {
        let back = self.ghosts.take(hash(&key.to_be_bytes()));
        if back {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
        self.counts.insert(key, 0);
    }

    fn remove(&mut self, key: u32) {
        self.small.retain(|other| *other != key);
        self.main.retain(|other| *other != key);
        self.counts.remove(&key);
    }

    /// Beyond the paper: behind one that may not go the other queue has its turn.
    fn evict(&mut self, looks_max: usize, may_go: impl Fn(u32) -> bool) -> Option<u32> {
        let mut refused = "";
        for _ in 0..looks_max {
            let all = self.small.len() + self.main.len();
            let is_turn = match refused {
                "small" => false,
                "main" => true,
                _ => !self.small.is_empty() && (self.small.len() - 1) * 10 >= all - 1,
            };
            if self.main.is_empty() || !self.small.is_empty() && is_turn {
                let key = self.small.pop_front()?;
                if self.counts[&key] <= 1 && !may_go(key) {
                    refused = "small";
                }
                if self.counts[&key] > 1 || !may_go(key) {
                    self.main.push_back(key);
                    self.counts.insert(key, 0);
                } else {
                    self.counts.remove(&key);
                    self.ghosts.remember(hash(&key.to_be_bytes()), all);
                    return Some(key);
                }
            } else {
                let key = self.main.pop_front()?;
                if self.counts[&key] == 0 && !may_go(key) {
                    refused = "main";
                }
                if self.counts[&key] > 0 || !may_go(key) {
                    self.main.push_back(key);
                    self.counts.entry(key).and_modify(|count| *count = count.saturating_sub(1));
                } else {
                    self.counts.remove(&key);
                    return Some(key);
                }
            }
        }
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Asks for a key; puts it if it is not there.
    Ask(u32),
    Remove(u32),
    Evict {
        looks_max: usize,
        stubborn: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60_u32).prop_map(Step::Ask),
        1 => (0..60_u32).prop_map(Step::Remove),
        4 => (0..30_usize, 2..9_u32)
            .prop_map(|(looks_max, stubborn)| Step::Evict { looks_max, stubborn }),
    ]
}

proptest! {
    #[test]
    fn it_goes_as_the_paper_says(steps in prop::collection::vec(step(), 0..400)) {
        let (mut kept, mut paper) = (Kept::default(), Paper::default());
        for step in steps {
            match step {
                Step::Ask(key) if kept.count(key) => paper.count(key),
                Step::Ask(key) => {
                    kept.put(key);
                    paper.put(key);
                }
                Step::Remove(key) => {
                    kept.remove(key);
                    paper.remove(key);
                }
                Step::Evict { looks_max, stubborn } => {
                    let may_go = |key: u32| !key.is_multiple_of(stubborn);
                    prop_assert_eq!(kept.evict(looks_max, may_go), paper.evict(looks_max, may_go));
                }
            }
            kept.order.check(&kept.slab);
            prop_assert_eq!(kept.order.len(), kept.places.len());
            let queue = |list: &List| -> Vec<u32> {
                list.iter(&kept.order.links).map(|place| key_of(kept.slab.get(place).unwrap())).collect()
            };
            prop_assert_eq!(queue(&kept.order.small), Vec::from(paper.small.clone()));
            prop_assert_eq!(queue(&kept.order.main), Vec::from(paper.main.clone()));
        }
    }
}

#[test]
fn what_was_there_before_the_order_goes_too() {
    let mut kept = Kept::default();
    for key in 0..3_000 {
        let place = kept.slab.insert(entry(key));
        kept.places.insert(key, place);
    }
    kept.order = Eviction::of(&kept.slab);
    (3_000..4_000).for_each(|key| kept.put(key));
    let mut gone: Vec<u32> = (0..4_000).map(|_| kept.evict(10, |_| true).unwrap()).collect();
    gone.sort_unstable();
    assert!(gone.into_iter().eq(0..4_000));
    assert_eq!(kept.evict(10, |_| true), None);
    kept.order.links.check(0);
}

#[test]
fn an_order_takes_about_ten_bytes_an_entry() {
    let mut kept = Kept::default();
    for key in 0..100_000 {
        kept.put(key);
    }
    for key in 100_000..300_000 {
        kept.evict(1_000, |_| true).unwrap();
        kept.put(key);
    }
    let bytes = kept.order.memory_bytes() / 100_000;
    assert!((8..=10).contains(&bytes), "{bytes} bytes an entry");
    assert_eq!(size_of::<Entry>(), 24, "an entry takes no more for it");
}

/// What a cache of `room` entries answers of these keys, in thousandths, with what `Cache` lets go.
fn hits(cache: &mut impl Cache, keys: &[u32]) -> usize {
    let hits = keys.iter().filter(|key| cache.ask(**key)).count();
    hits * 1_000 / keys.len()
}

trait Cache {
    /// Whether a key is there; it is afterwards.
    fn ask(&mut self, key: u32) -> bool;
}

struct Ours(Kept, usize);

impl Cache for Ours {
    fn ask(&mut self, key: u32) -> bool {
        if self.0.count(key) {
            return true;
        }
        if self.0.places.len() == self.1 {
            assert!(self.0.evict(usize::MAX, |_| true).is_some());
        }
        self.0.put(key);
        false
    }
}

/// The one that came, or with `renews` was asked for, longest ago goes first.
struct Oldest {
    renews: bool,
    room: usize,
    turn: u64,
    turns: BTreeMap<u32, u64>,
    order: BTreeMap<u64, u32>,
}

impl Oldest {
    fn new(renews: bool, room: usize) -> Self {
        Self { renews, room, turn: 0, turns: BTreeMap::new(), order: BTreeMap::new() }
    }
}

impl Cache for Oldest {
    fn ask(&mut self, key: u32) -> bool {
        self.turn += 1;
        let there = self.turns.get(&key).copied();
        if let Some(turn) = there {
            if !self.renews {
                return true;
            }
            self.order.remove(&turn);
        } else if self.turns.len() == self.room
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.turns.remove(&oldest);
        }
        self.turns.insert(key, self.turn);
        self.order.insert(self.turn, key);
        there.is_some()
    }
}

/// Keys by Zipf's law with exponent 1, out of so many; one of ten thousand after the other in between, if `scans`.
fn requests(keys: u32, scans: bool) -> Vec<u32> {
    let mut state = 42_u64;
    let mut random = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let mut sums = Vec::new();
    (1..=keys).fold(0.0, |sum, rank| {
        sums.push(sum + 1.0 / f64::from(rank));
        sums[sums.len() - 1]
    });
    let all = sums[sums.len() - 1];
    let mut out = Vec::new();
    for round in 0..20_u32 {
        for _ in 0..10_000 {
            let at = (random() >> 11) as f64 / (1_u64 << 53) as f64 * all;
            let rank = sums.partition_point(|sum| *sum < at) as u32;
            // Keys that are near each other have nothing to do with each other.
            out.push(rank.wrapping_mul(2_654_435_761) % 1_000_003);
        }
        if scans {
            out.extend((0..5_000).map(|key| 2_000_000 + round % 4 * 5_000 + key));
        }
    }
    out
}

/// Seeds and rules are fixed: these are the same figures every time.
#[test]
fn it_keeps_more_of_what_is_asked_for_than_the_oldest_first() {
    for scans in [false, true] {
        let requests = requests(50_000, scans);
        for room in [500, 2_500] {
            let ours = hits(&mut Ours(Kept::default(), room), &requests);
            let lru = hits(&mut Oldest::new(true, room), &requests);
            let fifo = hits(&mut Oldest::new(false, room), &requests);
            println!("scans {scans}, room {room}: S3-FIFO {ours}, LRU {lru}, FIFO {fifo} of 1000");
            assert!(ours >= lru + 20, "S3-FIFO {ours}, LRU {lru} of 1000");
            assert!(ours >= fifo + 50, "S3-FIFO {ours}, FIFO {fifo} of 1000");
        }
    }
}
