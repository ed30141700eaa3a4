//! Which writes a crash leaves that were not synced. Whatever the manner, the choice is legal: a disk promises nothing of
//! them. By chance alone a large write would hardly ever be lost or left as a whole, or torn at one place; so crashes have
//! manners.

use std::collections::BTreeMap;

use crate::file::SECTOR;
use crate::happened::{Happened, Happening};
use crate::random::Random;

/// Sectors of a page, which some disks write whole.
const PAGE_SECTORS: usize = 8;

/// What decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Each sector of each write for itself.
    Sectors,
    /// Each page of each write for itself.
    Pages,
    /// Each write as a whole, in any order.
    Writes,
    /// Writes in order, up to this one; of this one any sectors.
    OrderSectors(u64),
    /// Writes in order, up to this one; of this one any pages.
    OrderPages(u64),
}

/// The choice of one crash.
pub(crate) struct Survival {
    manner: Manner,
    seed: u64,
}

impl Survival {
    /// Of writes numbered up to `stamp`, those from `pending` on may be lost.
    pub fn new(random: &mut Random, pending: u64, stamp: u64) -> Self {
        let mut cut = || pending + random.below(stamp.saturating_sub(pending) + 1);
        let (by_sector, by_page) = (cut(), cut());
        let manner = match random.below(5) {
            0 => Manner::Sectors,
            1 => Manner::Pages,
            2 => Manner::Writes,
            3 => Manner::OrderSectors(by_sector),
            _ => Manner::OrderPages(by_page),
        };
        Self { manner, seed: random.next_u64() }
    }

    /// Whether the write `stamp` is left in a sector.
    pub fn is_left(&self, stamp: u64, sector: usize) -> bool {
        let chance = |unit: usize| {
            let seed = self.seed ^ stamp.wrapping_mul(0x9E37_79B9) ^ (unit as u64).wrapping_mul(0xC2B2_AE3D);
            Random::new(seed).coin()
        };
        match self.manner {
            Manner::Sectors => chance(sector),
            Manner::Pages => chance(sector / PAGE_SECTORS),
            Manner::Writes => chance(0),
            Manner::OrderSectors(cut) => stamp < cut || stamp == cut && chance(sector),
            Manner::OrderPages(cut) => stamp < cut || stamp == cut && chance(sector / PAGE_SECTORS),
        }
    }
}

/// What became of writes.
#[derive(Default)]
pub(crate) struct Remains {
    /// By write and page: how many sectors were left, and how many were not.
    pages: BTreeMap<(u64, usize), (u64, u64)>,
}

impl Remains {
    /// A sector of a write was left, or not. A later write over it says nothing.
    pub fn note(&mut self, stamp: u64, sector: usize, is_left: bool) {
        let (left, lost) = self.pages.entry((stamp, sector * SECTOR / (PAGE_SECTORS * SECTOR))).or_default();
        *(if is_left { left } else { lost }) += 1;
    }

    /// Counts what was torn, and what came in another order.
    pub fn count(&self, happened: &Happened) {
        let mut writes: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut torn_pages = 0;
        for (&(stamp, _), &(left, lost)) in &self.pages {
            torn_pages += u64::from(left > 0 && lost > 0);
            let (pages_left, pages_lost) = writes.entry(stamp).or_default();
            *pages_left += u64::from(lost == 0);
            *pages_lost += u64::from(left == 0);
        }
        let torn_writes = writes.values().filter(|(left, lost)| *left > 0 && *lost > 0).count();
        let first_lost = writes.iter().find(|(_, (left, _))| *left == 0).map(|(stamp, _)| *stamp);
        let reordered = first_lost.map_or(0, |first| {
            writes.range(first..).filter(|(_, (left, lost))| *left > 0 && *lost == 0).count()
        });
        happened.note_times(Happening::TornPage, torn_pages);
        happened.note_times(Happening::TornWrite, torn_writes as u64);
        happened.note_times(Happening::Reordered, reordered as u64);
    }
}
