//! What went lately: sixteen bits of the hash of each, in buckets of eight where the oldest goes first.
//!
//! There is room for half as many as there are entries to as many, one to two bytes an entry. One in some thousands that
//! never was there is taken for one that was.

/// Hashes of a bucket, the oldest first; 0: none.
type Bucket = [u16; 8];

const BUCKET: usize = size_of::<Bucket>() / size_of::<u16>();

/// Buckets at least.
const BUCKETS_MIN: usize = 4;

/// Hashes of keys that went.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// Empty until the first one, then a power of two.
    buckets: Vec<Bucket>,
}

/// What is kept of a hash. Which bucket it is in is not taken from these bits.
fn mark(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl Ghosts {
    /// Remembers one that went, of so many entries.
    pub fn remember(&mut self, hash: u64, entries: usize) {
        self.fit(entries);
        if let Some(bucket) = self.bucket(hash) {
            bucket.rotate_left(1);
            if let Some(last) = bucket.last_mut() {
                *last = mark(hash);
            }
        }
    }

    /// Whether it went lately; forgets that.
    pub fn take(&mut self, hash: u64) -> bool {
        let Some(bucket) = self.bucket(hash) else { return false };
        let Some(at) = bucket.iter().position(|other| *other == mark(hash)) else { return false };
        // Those before it are as old as they were.
        if let Some(upto) = bucket.get_mut(..=at) {
            upto.rotate_right(1);
        }
        if let Some(first) = bucket.first_mut() {
            *first = 0;
        }
        true
    }

    /// What it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (self.buckets.capacity() * size_of::<Bucket>()) as u64
    }

    fn bucket(&mut self, hash: u64) -> Option<&mut Bucket> {
        let mask = self.buckets.len().wrapping_sub(1);
        self.buckets.get_mut(hash as usize & mask)
    }

    /// Has as much room as so many entries need: twice as much keeps all, half as much those of one half.
    fn fit(&mut self, entries: usize) {
        let wanted = ((entries / BUCKET + 1).next_power_of_two() / 2).max(BUCKETS_MIN);
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::default(); wanted];
        } else if self.buckets.len() < wanted {
            // A hash is in one of two buckets now; which, nobody knows any more.
            self.buckets.extend_from_within(..);
        } else if self.buckets.len() > 4 * wanted {
            self.buckets.truncate(self.buckets.len() / 2);
            self.buckets.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::siphash::SipKey;

    #[test]
    fn what_went_lately_is_remembered_and_nothing_else() {
        let (sip, entries) = (SipKey::new(7), 8_000);
        let hash = |key: u32| sip.hash(&key.to_be_bytes());
        let mut ghosts = Ghosts::default();
        assert!(!ghosts.take(hash(1)));
        (0..20_000).for_each(|key| ghosts.remember(hash(key), entries));
        // Room for 4096; buckets fill unevenly.
        let remembered = |ghosts: &mut Ghosts, keys: std::ops::Range<u32>| {
            keys.filter(|key| ghosts.take(hash(*key))).count()
        };
        assert!(remembered(&mut ghosts.clone_for_test(), 30_000..40_000) < 20, "never there");
        assert!(remembered(&mut ghosts.clone_for_test(), 0..10_000) < 30, "long gone");
        assert!(remembered(&mut ghosts, 18_000..20_000) > 1_850, "lately gone");
        assert!(remembered(&mut ghosts, 18_000..20_000) < 20, "forgotten once it is back");
    }

    #[test]
    fn more_room_forgets_nothing() {
        let sip = SipKey::new(7);
        let hash = |key: u32| sip.hash(&key.to_be_bytes());
        let mut ghosts = Ghosts::default();
        (0..100).for_each(|key| ghosts.remember(hash(key), 400));
        let before = ghosts.buckets.len();
        for _ in 0..6 {
            ghosts.remember(hash(100), 100_000);
        }
        assert!(ghosts.buckets.len() >= 32 * before);
        let left = (50..100).filter(|key| ghosts.take(hash(*key))).count();
        assert!(left >= 45, "{left} of 50 were remembered");
    }

    impl Ghosts {
        fn clone_for_test(&self) -> Self {
            Self { buckets: self.buckets.clone() }
        }
    }
}
