//! Trees against plain vectors, with pages so small that some hundred items make four levels and more.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Pages of one collection; those that are cold exist as bytes only.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shelf {
    next: u32,
    warm: BTreeMap<PageNo, Page>,
    cold: BTreeMap<PageNo, Bytes>,
    /// Pages fetched.
    fetched: Vec<PageNo>,
}

impl Shelf {
    fn evict(&mut self, no: PageNo) {
        if let Some(page) = self.warm.remove(&no) {
            self.cold.insert(no, page.encode());
        }
    }

    fn fetch(&mut self, no: PageNo, order: Order) {
        let bytes = self.cold.remove(&no).expect("what is asked for is there and cold");
        let page = Page::decode(&bytes, order).unwrap();
        assert_eq!(page.encode(), bytes);
        self.warm.insert(no, page);
        self.fetched.push(no);
    }

    /// All pages as bytes.
    fn image(&self) -> BTreeMap<PageNo, Bytes> {
        let warm = self.warm.iter().map(|(no, page)| (*no, page.encode()));
        warm.chain(self.cold.iter().map(|(no, bytes)| (*no, bytes.clone()))).collect()
    }

    /// Fetches what is missing until `ask` has an answer.
    fn answer<T>(&mut self, order: Order, ask: impl Fn(&Self) -> Result<T, Cold>) -> T {
        loop {
            match ask(self) {
                Ok(answer) => return answer,
                Err(Cold(no)) => self.fetch(no, order),
            }
        }
    }
}

impl Pages for Shelf {
    fn page(&self, no: PageNo) -> Option<&Page> {
        assert!(self.warm.contains_key(&no) || self.cold.contains_key(&no), "there is no page {no:?}");
        self.warm.get(&no)
    }

    fn next_no(&self) -> PageNo {
        PageNo(self.next)
    }
}

impl PagesMut for Shelf {
    fn change<R>(&mut self, no: PageNo, change: impl FnOnce(&mut Page) -> R) -> R {
        change(self.warm.get_mut(&no).unwrap())
    }

    fn add(&mut self, page: Page) -> PageNo {
        let no = self.next_no();
        self.next += 1;
        self.warm.insert(no, page);
        no
    }

    fn remove(&mut self, no: PageNo) {
        assert!(self.warm.remove(&no).is_some() || self.cold.remove(&no).is_some());
    }
}

/// A rank, whatever the length is then.
#[derive(Clone, Copy, Debug)]
enum Rank {
    First,
    End,
    Beyond,
    Some(u64),
}

impl Rank {
    fn of(self, len: u64) -> u64 {
        match self {
            Self::First => 0,
            Self::End => len,
            Self::Beyond => len + 1,
            Self::Some(rank) => rank % (len + 1),
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Insert(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    InsertAt(Rank, Vec<u8>),
    ReplaceAt(Rank, Vec<u8>),
    RemoveAt(Rank),
    RemoveRange(Rank, u64),
}

type Model = Vec<(Vec<u8>, Vec<u8>)>;

impl Change {
    /// Changes a tree. What it says is one number for all.
    fn make<const MAX: usize>(
        &self,
        tree: &mut SizedTree<MAX>,
        pages: &mut impl PagesMut,
    ) -> Result<Option<u64>, Cold> {
        let len = tree.len();
        let bytes = |bytes: Option<usize>| bytes.map(|bytes| bytes as u64);
        match self {
            Self::Insert(key, value) => tree.insert(pages, key, value).map(bytes),
            Self::Remove(key) => tree.remove(pages, key).map(bytes),
            Self::InsertAt(rank, value) => {
                tree.insert_at(pages, rank.of(len), value).map(|done| done.then_some(0))
            }
            Self::ReplaceAt(rank, value) => tree.replace_at(pages, rank.of(len), value).map(bytes),
            Self::RemoveAt(rank) => tree.remove_at(pages, rank.of(len)).map(bytes),
            Self::RemoveRange(rank, count) => tree.remove_range(pages, rank.of(len), *count).map(Some),
        }
    }

    fn model(&self, model: &mut Model) -> Option<u64> {
        let rank = |rank: &Rank| rank.of(model.len() as u64) as usize;
        let find = |key: &Vec<u8>| model.binary_search_by(|(other, _)| other.cmp(key));
        match self {
            Self::Insert(key, value) => match find(key) {
                Ok(at) => Some(std::mem::replace(&mut model[at].1, value.clone()).len() as u64),
                Err(at) => {
                    model.insert(at, (key.clone(), value.clone()));
                    None
                }
            },
            Self::Remove(key) => find(key).ok().map(|at| model.remove(at).1.len() as u64),
            Self::InsertAt(at, value) => {
                let at = rank(at);
                (at <= model.len()).then(|| {
                    model.insert(at, (Vec::new(), value.clone()));
                    0
                })
            }
            Self::ReplaceAt(at, value) => {
                let at = rank(at);
                let item = model.get_mut(at)?;
                Some(std::mem::replace(&mut item.1, value.clone()).len() as u64)
            }
            Self::RemoveAt(at) => {
                let at = rank(at);
                (at < model.len()).then(|| model.remove(at).1.len() as u64)
            }
            Self::RemoveRange(at, count) => {
                let at = rank(at).min(model.len());
                let end = (at as u64).saturating_add(*count).min(model.len() as u64) as usize;
                Some(model.drain(at..end).count() as u64)
            }
        }
    }
}

fn rank() -> impl Strategy<Value = Rank> {
    prop_oneof![
        2 => Just(Rank::First),
        2 => Just(Rank::End),
        1 => Just(Rank::Beyond),
        8 => any::<u64>().prop_map(Rank::Some),
    ]
}

/// Short and long ones with much in common; the empty one, too.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (0u16..500).prop_map(|number| number.to_string().into_bytes()),
        2 => vec(0u8..3, 0..5),
        1 => (0usize..150, 0u8..3).prop_map(|(len, last)| [vec![b'5'; len], vec![last]].concat()),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![12 => vec(any::<u8>(), 0..6), 1 => vec(any::<u8>(), 0..300)]
}

fn some() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..6, 2 => 0u64..60, 1 => Just(u64::MAX)]
}

fn change(order: Order) -> BoxedStrategy<Change> {
    let put = match order {
        Order::ByKey => (key(), value()).prop_map(|(key, value)| Change::Insert(key, value)).boxed(),
        Order::ByPlace => (rank(), value()).prop_map(|(rank, value)| Change::InsertAt(rank, value)).boxed(),
    };
    let take = match order {
        Order::ByKey => key().prop_map(Change::Remove).boxed(),
        Order::ByPlace => rank().prop_map(Change::RemoveAt).boxed(),
    };
    prop_oneof![
        24 => put,
        6 => take,
        3 => rank().prop_map(Change::RemoveAt),
        3 => (rank(), value()).prop_map(|(rank, value)| Change::ReplaceAt(rank, value)),
        1 => (rank(), some()).prop_map(|(rank, count)| Change::RemoveRange(rank, count)),
    ]
    .boxed()
}

/// Some changes that are decided on together, pages that go cold before, and what is asked afterwards.
#[derive(Clone, Debug)]
struct Round {
    changes: Vec<Change>,
    cold: Vec<prop::sample::Index>,
    key: Vec<u8>,
    rank: Rank,
    walk: Vec<bool>,
}

fn rounds(order: Order) -> impl Strategy<Value = Vec<Round>> {
    let round = (vec(change(order), 1..5), vec(any::<prop::sample::Index>(), 0..6), key(), rank());
    let round = (round, vec(prop::bool::weighted(0.6), 0..20))
        .prop_map(|((changes, cold, key, rank), walk)| Round { changes, cold, key, rank, walk });
    vec(round, 1..150)
}

struct World<const MAX: usize> {
    order: Order,
    tree: SizedTree<MAX>,
    shelf: Shelf,
    /// The same tree, all of it always in memory.
    warm: (SizedTree<MAX>, Shelf),
    model: Model,
}

impl<const MAX: usize> World<MAX> {
    fn new(order: Order) -> Self {
        let (tree, shelf) = (SizedTree::default(), Shelf::default());
        Self { order, warm: (tree.clone(), shelf.clone()), tree, shelf, model: Model::new() }
    }

    fn run(&mut self, round: &Round) {
        for cold in &round.cold {
            let warm: Vec<PageNo> = self.shelf.warm.keys().copied().collect();
            if !warm.is_empty() {
                self.shelf.evict(*cold.get(&warm));
            }
        }
        self.refuse(&round.changes[0]);
        self.change(&round.changes);
        let (tree, order, model) = (&self.tree, self.order, &self.model);
        let len = model.len() as u64;
        let at = round.rank.of(len);
        let item = self.shelf.answer(order, |pages| Ok(tree.at(pages, at)?.map(owned)));
        assert_eq!(item.as_ref(), model.get(at as usize));
        if order == Order::ByKey {
            let place = model.binary_search_by(|(other, _)| other.cmp(&round.key));
            let value =
                self.shelf.answer(order, |pages| Ok(tree.get(pages, &round.key)?.map(<[u8]>::to_vec)));
            assert_eq!(value, place.ok().map(|at| model[at].1.clone()));
            let rank = self.shelf.answer(order, |pages| tree.rank(pages, &round.key));
            assert_eq!(rank, place.map(|at| at as u64).map_err(|at| at as u64));
            let (before, behind) = match place {
                Ok(at) => (at, at + 1),
                Err(at) => (at, at),
            };
            let walk = |pages: &Shelf, cursor: Cursor<'_, Shelf>, from| {
                walk(pages, cursor, &round.walk, model, from)
            };
            self.shelf.answer(order, |pages| walk(pages, tree.before_key(pages, &round.key)?, before));
            self.shelf.answer(order, |pages| walk(pages, tree.behind_key(pages, &round.key)?, behind));
        }
        let from = at.min(len) as usize;
        self.shelf.answer(order, |pages| walk(pages, tree.before_rank(pages, at)?, &round.walk, model, from));
    }

    /// A change that misses a page changes nothing.
    fn refuse(&self, change: &Change) {
        let (mut tree, mut shelf) = (self.tree.clone(), self.shelf.clone());
        if let Err(Cold(no)) = change.make(&mut tree, &mut shelf) {
            assert!(shelf.cold.contains_key(&no));
            assert_eq!((&tree, &shelf), (&self.tree, &self.shelf));
        }
    }

    /// Tries changes until all they need is in memory, then makes them.
    fn change(&mut self, changes: &[Change]) {
        let (tree, order) = (&self.tree, self.order);
        let (tried, answers, results) = self.shelf.answer(order, |shelf| {
            let (mut tree, mut scratch) = (tree.clone(), Scratch::new(shelf));
            let answers: Result<Vec<_>, Cold> =
                changes.iter().map(|change| change.make(&mut tree, &mut scratch)).collect();
            let (answers, next) = (answers?, scratch.next_no());
            tree.check(&scratch, order);
            let mut image = shelf.image();
            for (no, page) in scratch.into_changes() {
                match page {
                    Some(page) => image.insert(no, page.encode()),
                    None => image.remove(&no),
                };
            }
            Ok((tree, answers, (image, next)))
        });
        for (change, answer) in changes.iter().zip(answers) {
            assert_eq!(change.make(&mut self.tree, &mut self.shelf), Ok(answer));
            assert_eq!(change.make(&mut self.warm.0, &mut self.warm.1), Ok(answer));
            assert_eq!(change.model(&mut self.model), answer);
            let pages = self.tree.check(&self.shelf, order);
            assert!(
                pages.iter().all(|no| self.shelf.warm.contains_key(no) || self.shelf.cold.contains_key(no))
            );
            let all: Vec<PageNo> = self.warm.1.warm.keys().copied().collect();
            assert_eq!(self.warm.0.check(&self.warm.1, order), all, "no page is lost");
        }
        assert_eq!((&self.tree, &self.tree), (&tried, &self.warm.0));
        let image = self.shelf.image();
        assert_eq!((&image, self.shelf.next_no()), (&results.0, results.1));
        assert_eq!(image, self.warm.1.image());
    }

    /// Compares all items, there and back.
    fn compare(&mut self) {
        let tree = &self.tree;
        let all = vec![true; self.model.len() + 1];
        self.shelf.answer(self.order, |pages| walk(pages, tree.before_rank(pages, 0)?, &all, &self.model, 0));
        let back = vec![false; self.model.len() + 1];
        let len = self.model.len();
        self.shelf.answer(self.order, |pages| {
            walk(pages, tree.before_rank(pages, u64::MAX)?, &back, &self.model, len)
        });
    }
}

fn owned((key, value): (&[u8], &[u8])) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), value.to_vec())
}

/// Walks forward and backward and compares each step with the model.
fn walk(
    pages: &Shelf,
    mut cursor: Cursor<'_, Shelf>,
    steps: &[bool],
    model: &Model,
    from: usize,
) -> Result<(), Cold> {
    let mut at = from;
    for forward in steps {
        assert_eq!(cursor.rank(), at as u64);
        let step = if *forward { cursor.forward() } else { cursor.backward() };
        if let Err(Cold(no)) = step {
            assert!(pages.cold.contains_key(&no));
            assert_eq!(cursor.rank(), at as u64);
            return Err(Cold(no));
        }
        let expected = if *forward { model.get(at) } else { at.checked_sub(1).and_then(|at| model.get(at)) };
        assert_eq!(step.unwrap().map(owned).as_ref(), expected);
        if expected.is_some() {
            at = if *forward { at + 1 } else { at - 1 };
        }
    }
    Ok(())
}

fn run<const MAX: usize>(order: Order, rounds: &[Round]) {
    let mut world = World::<MAX>::new(order);
    for round in rounds {
        world.run(round);
    }
    world.compare();
}

proptest! {
    #[test]
    fn by_key_a_tree_is_a_map_with_ranks(rounds in rounds(Order::ByKey)) {
        run::<72>(Order::ByKey, &rounds);
    }

    #[test]
    fn by_key_with_larger_pages(rounds in rounds(Order::ByKey)) {
        run::<250>(Order::ByKey, &rounds);
    }

    #[test]
    fn by_place_a_tree_is_a_list(rounds in rounds(Order::ByPlace)) {
        run::<72>(Order::ByPlace, &rounds);
    }

    #[test]
    fn by_place_with_larger_pages(rounds in rounds(Order::ByPlace)) {
        run::<250>(Order::ByPlace, &rounds);
    }

    #[test]
    fn damaged_pages_are_refused_or_whole(
        rounds in rounds(Order::ByKey),
        place in any::<prop::sample::Index>(),
        page in any::<prop::sample::Index>(),
        byte: u8,
        cut: bool,
    ) {
        let (mut tree, mut shelf) = (SizedTree::<72>::default(), Shelf::default());
        for change in rounds.iter().flat_map(|round| &round.changes) {
            change.make(&mut tree, &mut shelf).unwrap();
        }
        let mut images: Vec<Bytes> = shelf.image().into_values().collect();
        images.push(tree.root().encode());
        let mut bytes = page.get(&images).to_vec();
        let at = place.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        for order in [Order::ByKey, Order::ByPlace] {
            if let Ok(page) = Page::decode(&bytes, order) {
                page.check(usize::MAX, order);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_whole(mut bytes in vec(0u8..12, 0..40), level in 0u8..3) {
        for byte in [level, 1] {
            bytes.insert(0, byte);
        }
        for order in [Order::ByKey, Order::ByPlace] {
            if let Ok(page) = Page::decode(&bytes, order) {
                page.check(usize::MAX, order);
            }
        }
    }
}

#[test]
fn what_a_page_cannot_be_is_refused_by_name() {
    let refused = |bytes: &[u8], order| Page::decode(bytes, order).unwrap_err().0;
    for (bytes, why) in [
        (&[1][..], "a page ends early"),
        (&[2, 0, 0], "a page of an unknown format"),
        (&[1, 64, 0], "a page above the highest level"),
        (&[1, 0, 9, 0, 0], "a page of more items than bytes"),
        (&[1, 1, 0], "an inner page without items"),
        (&[1, 0, 0, 0], "a page is longer than its items"),
        (&[1, 0, 1, 9, 0], "length beyond the end"),
        (&[1, 1, 1, 7, 0, 0], "a link to a page without items"),
        (&[1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0], "a page's number is above 32 bits"),
        (&[1, 0, 2, 1, 5, 0, 1, 5, 0], "keys of a page are not in order"),
        (&[1, 1, 1, 7, 1, 1, 5], "keys of a page are not in order"),
    ] {
        assert_eq!(refused(bytes, Order::ByKey), why);
    }
    assert_eq!(refused(&[1, 0, 1, 1, 5, 0], Order::ByPlace), "keys of a page are not in order");
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let counts = [&[1, 1, 2, 7][..], &most, &[0, 8], &most, &[0]].concat();
    assert_eq!(refused(&counts, Order::ByPlace), "a page counts too many items");
    assert_eq!(Page::decode(&[1, 0, 0], Order::ByKey).unwrap(), Page::leaf());
}

fn memory(tree: &Tree, shelf: &Shelf) -> u64 {
    tree.root().memory_bytes() + shelf.warm.values().map(Page::memory_bytes).sum::<u64>()
}

#[test]
fn what_comes_in_order_fills_its_pages() {
    type Put = fn(&mut Tree, &mut Shelf, u32) -> Result<(), Cold>;
    let puts: [Put; 4] = [
        |tree, pages, number| tree.insert(pages, &number.to_be_bytes(), b"12345678").map(drop),
        |tree, pages, number| tree.insert(pages, &(!number).to_be_bytes(), b"12345678").map(drop),
        |tree, pages, number| tree.insert_at(pages, u64::from(number), b"123456781234").map(drop),
        |tree, pages, _| tree.insert_at(pages, 0, b"123456781234").map(drop),
    ];
    for put in puts {
        let (mut tree, mut shelf) = (Tree::default(), Shelf::default());
        for number in 0..50_000 {
            put(&mut tree, &mut shelf, number).unwrap();
        }
        // Twelve bytes, five beside them, and what allocators give more than was asked for.
        let each = memory(&tree, &shelf) as f64 / 50_000.0;
        assert!((17.0..20.0).contains(&each), "{each} bytes an item");
        assert!(shelf.warm.len() <= 50_000 * 18 / PAGE_BYTES);
    }
}

/// A tree of three levels and more, all of whose pages are in memory.
fn tall() -> (SizedTree<256>, Shelf) {
    let (mut tree, mut shelf) = (SizedTree::default(), Shelf::default());
    for number in 0..5_000u32 {
        tree.insert(&mut shelf, &number.wrapping_mul(0x9E37_79B1).to_be_bytes(), b"value").unwrap();
    }
    assert!(tree.root().level() >= 3);
    (tree, shelf)
}

#[test]
fn a_change_touches_its_way_and_nothing_else() {
    let (mut tree, shelf) = tall();
    let levels = usize::from(tree.root().level());
    let key = 0x9E37_79B1u32.wrapping_mul(2_500).to_be_bytes();
    let mut scratch = Scratch::new(&shelf);
    assert_eq!(tree.insert(&mut scratch, &key, b"other"), Ok(Some(5)));
    assert_eq!(scratch.into_changes().len(), 1, "a value of the same length is no matter of its parents");
    let mut scratch = Scratch::new(&shelf);
    assert_eq!(tree.remove(&mut scratch, b"absent"), Ok(None));
    assert!(scratch.into_changes().is_empty());
    let mut scratch = Scratch::new(&shelf);
    assert_eq!(tree.remove(&mut scratch, &key), Ok(Some(5)));
    assert_eq!(scratch.into_changes().len(), levels);
}

#[test]
fn pages_that_go_as_a_whole_are_not_fetched() {
    let (mut tree, mut shelf) = tall();
    let leaves: BTreeSet<PageNo> =
        shelf.warm.iter().filter(|(_, page)| page.level() == 0).map(|(no, _)| *no).collect();
    let pages: Vec<PageNo> = shelf.warm.keys().copied().collect();
    for no in pages {
        shelf.evict(no);
    }
    let removed = loop {
        match tree.remove_range(&mut shelf, 100, 4_800) {
            Ok(removed) => break removed,
            Err(Cold(no)) => shelf.fetch(no, Order::ByKey),
        }
    };
    assert_eq!((removed, tree.len()), (4_800, 200));
    assert!(shelf.fetched.iter().filter(|no| leaves.contains(no)).count() <= 2);
    assert!(shelf.image().len() < leaves.len() / 10);
    tree.check(&shelf, Order::ByKey);
}

#[test]
fn a_tree_that_is_emptied_is_an_empty_leaf() {
    let (mut tree, mut shelf) = tall();
    while tree.len() > 0 {
        tree.remove_at(&mut shelf, tree.len() / 3).unwrap();
    }
    assert!(shelf.warm.is_empty());
    assert_eq!(tree, SizedTree::default());
    let (mut tree, mut shelf) = tall();
    assert_eq!(tree.remove_range(&mut shelf, 0, u64::MAX), Ok(5_000));
    assert!(shelf.warm.is_empty());
    assert_eq!(tree, SizedTree::default());
}

#[test]
fn a_root_with_one_link_gives_its_place_to_the_page_below() {
    let (mut tree, mut shelf) = tall();
    tree.remove_range(&mut shelf, 0, 4_997).unwrap();
    tree.remove_at(&mut shelf, 0).unwrap();
    tree.remove_at(&mut shelf, 0).unwrap();
    tree.remove_at(&mut shelf, 0).unwrap();
    assert!(tree.is_one_page() && shelf.warm.is_empty());
}

#[test]
fn keys_larger_than_pages_make_no_tall_tree() {
    let (mut tree, mut shelf) = (SizedTree::<256>::default(), Shelf::default());
    for number in 0..2_000u32 {
        let key = [&[7; 600][..], &number.wrapping_mul(0x9E37_79B1).to_be_bytes()].concat();
        tree.insert(&mut shelf, &key, b"").unwrap();
    }
    tree.check(&shelf, Order::ByKey);
    assert!(tree.root().level() <= 11, "{} levels", tree.root().level());
}
