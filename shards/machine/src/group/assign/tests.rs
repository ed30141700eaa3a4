//! Properties of the assignors.

use proptest::prelude::*;

use super::*;

fn deal(members: usize, all: bool) -> impl Strategy<Value = Deal> {
    let subscribers = prop::collection::btree_set(0..members as u32, 0..=members);
    let current = prop::collection::vec(prop::option::of(0..members as u32 + 2), 0..40);
    (subscribers, current).prop_map(move |(subscribers, current)| Deal {
        subscribers: if all { (0..members as u32).collect() } else { subscribers.into_iter().collect() },
        current,
    })
}

fn deals(all: bool) -> impl Strategy<Value = (usize, Vec<Deal>)> {
    (1usize..9).prop_flat_map(move |members| (Just(members), prop::collection::vec(deal(members, all), 0..5)))
}

fn loads(members: usize, out: &[Vec<Option<u32>>]) -> Vec<usize> {
    let mut loads = vec![0; members];
    out.iter().flatten().flatten().for_each(|member| loads[*member as usize] += 1);
    loads
}

/// How many partitions stay with the member they are meant for.
fn kept(deals: &[Deal], out: &[Vec<Option<u32>>]) -> usize {
    let pairs = deals.iter().zip(out).flat_map(|(deal, out)| deal.current.iter().zip(out));
    pairs.filter(|(before, after)| before.is_some() && before == after).count()
}

proptest! {
    #[test]
    fn every_partition_goes_to_one_of_its_subscribers((members, deals) in deals(false)) {
        for assignor in Assignor::ALL {
            let out = assign(assignor, members, &deals);
            prop_assert_eq!(out.len(), deals.len());
            for (deal, out) in deals.iter().zip(&out) {
                prop_assert_eq!(deal.current.len(), out.len());
                let fits = |to: &Option<u32>| match to {
                    Some(member) => deal.subscribers.contains(member),
                    None => deal.subscribers.is_empty(),
                };
                prop_assert!(out.iter().all(fits));
            }
        }
    }

    #[test]
    fn nothing_can_be_given_to_a_subscriber_with_two_fewer((members, deals) in deals(false)) {
        for assignor in [Assignor::Uniform, Assignor::Sticky] {
            let out = assign(assignor, members, &deals);
            let loads = loads(members, &out);
            for (deal, out) in deals.iter().zip(&out) {
                for owner in out.iter().flatten() {
                    let least = deal.subscribers.iter().map(|s| loads[*s as usize]).min().unwrap_or(usize::MAX);
                    prop_assert!(loads[*owner as usize] < least.saturating_add(2));
                }
            }
        }
    }

    #[test]
    fn range_is_even_by_stream_and_in_order((members, deals) in deals(false)) {
        for (deal, out) in deals.iter().zip(assign(Assignor::Range, members, &deals)) {
            prop_assert!(out.is_sorted());
            let loads = loads(members, &[out]);
            let of = |members: &[u32]| members.iter().map(|s| loads[*s as usize]).collect::<Vec<_>>();
            let of = of(&deal.subscribers);
            prop_assert!(of.iter().max().unwrap_or(&0) - of.iter().min().unwrap_or(&0) <= 1);
        }
    }

    #[test]
    fn uniform_depends_on_nothing_that_was((members, deals) in deals(false)) {
        let blank: Vec<Deal> = deals
            .iter()
            .map(|deal| Deal { current: vec![None; deal.current.len()], ..deal.clone() })
            .collect();
        prop_assert_eq!(assign(Assignor::Uniform, members, &deals), assign(Assignor::Uniform, members, &blank));
    }

    /// Where all subscribe to the same, of all even assignments: each member keeps as much as it may have, and those that
    /// had most may have one more.
    #[test]
    fn sticky_moves_as_few_as_an_even_assignment_can((members, deals) in deals(true)) {
        let out = assign(Assignor::Sticky, members, &deals);
        let before: Vec<Vec<Option<u32>>> = deals
            .iter()
            .map(|deal| deal.current.iter().map(|m| m.filter(|m| (*m as usize) < members)).collect())
            .collect();
        let mut had = loads(members, &before);
        had.sort_unstable_by(|a, b| b.cmp(a));
        let partitions: usize = deals.iter().map(|deal| deal.current.len()).sum();
        let (share, extra) = (partitions / members, partitions % members);
        let most: usize =
            had.iter().enumerate().map(|(n, had)| *had.min(&(share + usize::from(n < extra)))).sum();
        prop_assert_eq!(kept(&deals, &out), most);
    }

    #[test]
    fn sticky_leaves_what_is_even_as_it_is((members, deals) in deals(false)) {
        let out = assign(Assignor::Sticky, members, &deals);
        let settled: Vec<Deal> =
            deals.iter().zip(&out).map(|(deal, out)| Deal { current: out.clone(), ..deal.clone() }).collect();
        prop_assert_eq!(assign(Assignor::Sticky, members, &settled), out);
    }
}

#[test]
fn one_of_a_hundred_leaves_and_only_its_partitions_move() {
    let all = |members: std::ops::Range<u32>| members.collect::<Vec<_>>();
    let blank = [Deal { subscribers: all(0..100), current: vec![None; 1000] }];
    let even = assign(Assignor::Sticky, 100, &blank);
    assert!(loads(100, &even).iter().all(|load| *load == 10));
    let left: Vec<Option<u32>> = even[0].iter().map(|m| m.filter(|m| *m != 99)).collect();
    let after = [Deal { subscribers: all(0..99), current: left }];
    let out = assign(Assignor::Sticky, 99, &after);
    assert_eq!(kept(&after, &out), 990);
    assert!(loads(99, &out).iter().all(|load| (10..=11).contains(load)));
}
