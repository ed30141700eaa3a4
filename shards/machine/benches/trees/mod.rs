//! Trees of packed pages alone: ten million members of sixteen bytes in random order.
//!
//! They are no part of what the crate offers, so they are built into this program a second time.

#[path = "../../src/kv/tree/mod.rs"]
#[allow(dead_code, unused_imports)] // most of it is for others
mod tree;

use std::hint::black_box;

use tree::{Page, PageNo, Pages, PagesMut, SizedTree};

use super::measure;

const MEMBERS: u64 = 10_000_000;

/// Operations a round.
const COUNT: u64 = 1_000_000;

/// All pages in memory, by number.
#[derive(Default)]
struct Shelf(Vec<Option<Page>>);

impl Pages for Shelf {
    #[inline]
    fn page(&self, no: PageNo) -> Option<&Page> {
        self.0.get(no.0 as usize)?.as_ref()
    }

    fn next_no(&self) -> PageNo {
        PageNo(self.0.len() as u32)
    }
}

impl PagesMut for Shelf {
    #[inline]
    fn change<R>(&mut self, no: PageNo, change: impl FnOnce(&mut Page) -> R) -> R {
        change(self.0[no.0 as usize].as_mut().unwrap())
    }

    fn add(&mut self, page: Page) -> PageNo {
        let no = self.next_no();
        self.0.push(Some(page));
        no
    }

    fn remove(&mut self, no: PageNo) {
        self.0[no.0 as usize] = None;
    }
}

/// Numbers in no order, each once.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}

fn member(number: u64) -> [u8; 16] {
    let mut member = *b"member:0........";
    member[8..].copy_from_slice(&mixed(number).to_be_bytes());
    member
}

pub fn trees() {
    pages_of::<2048>();
    pages_of::<4096>();
}

fn pages_of<const BYTES_MAX: usize>() {
    println!("\ntree of {MEMBERS} members of 16 bytes, pages of {BYTES_MAX} bytes");
    let (mut tree, mut shelf) = (SizedTree::<BYTES_MAX>::default(), Shelf::default());
    let start = std::time::Instant::now();
    for number in 0..MEMBERS {
        tree.insert(&mut shelf, &member(number), &[]).unwrap();
    }
    let each = start.elapsed().as_nanos() as u64 / MEMBERS;
    println!("insert, from none: {each} ns each on average");
    let pages = shelf.0.len() as u64;
    let bytes = shelf.0.iter().flatten().map(Page::memory_bytes).sum::<u64>() + tree.root().memory_bytes();
    println!(
        "memory: {:.2} bytes a member beyond key and value, {pages} pages",
        bytes as f64 / MEMBERS as f64 - 16.0
    );
    let mut next = MEMBERS;
    measure("insert, new members", COUNT, || {
        for number in next..next + COUNT {
            tree.insert(&mut shelf, &member(number), &[]).unwrap();
        }
        next += COUNT;
    });
    measure("remove", COUNT, || {
        next -= COUNT;
        for number in next..next + COUNT {
            tree.remove(&mut shelf, &member(number)).unwrap();
        }
    });
    let any = |seed: u64, number: u64| mixed(number ^ (seed << 40)) % MEMBERS;
    measure("get", COUNT, || {
        for number in 0..COUNT {
            black_box(tree.get(&shelf, &member(any(1, number))).unwrap());
        }
    });
    measure("rank", COUNT, || {
        for number in 0..COUNT {
            let _ = black_box(tree.rank(&shelf, &member(any(2, number))).unwrap());
        }
    });
    measure("at", COUNT, || {
        for number in 0..COUNT {
            black_box(tree.at(&shelf, any(3, number)).unwrap());
        }
    });
    measure("range of 10 by rank", COUNT, || {
        for number in 0..COUNT {
            let mut cursor = tree.before_rank(&shelf, any(4, number)).unwrap();
            for _ in 0..10 {
                black_box(cursor.forward().unwrap());
            }
        }
    });
    let mut cursor = tree.before_rank(&shelf, 0).unwrap();
    measure("all in order", tree.len(), || {
        while let Some(item) = cursor.forward().unwrap() {
            black_box(item);
        }
        while let Some(item) = cursor.backward().unwrap() {
            black_box(item);
        }
    });
}
