//! Simulations find mistakes: each of these, made on purpose, is found within so many seeds.

#![allow(missing_docs, reason = "a test")]

use std::panic::catch_unwind;

use flowmesh_model::mutation::{Mutation, make};
use flowmesh_sim::world::plan::Plan;
use flowmesh_sim::world::run;
use flowmesh_sim::world::trace::Trace;

/// The first seed that fails.
fn found_by(mutation: Mutation) -> Option<u64> {
    make(Some(mutation));
    let fails = |seed: &u64| catch_unwind(|| run(&Plan::of(*seed), &Trace::default())).is_err();
    let found = (0..seeds_for(mutation)).find(fails);
    make(None);
    found
}

/// Within so many seeds each is found, with some room: what takes a decayed bit in the right place takes more of them.
fn seeds_for(mutation: Mutation) -> u64 {
    match mutation {
        Mutation::TrustLog | Mutation::TrustSegments | Mutation::CutDamage => 400,
        _ => 20,
    }
}

#[test]
fn every_mistake_is_found() {
    for mutation in Mutation::ALL {
        let found = found_by(mutation);
        eprintln!("{mutation:?} is found by seed {found:?}");
        assert!(found.is_some(), "{mutation:?} is not found by {} seeds", seeds_for(mutation));
    }
}
