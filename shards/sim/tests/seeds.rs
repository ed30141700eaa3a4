//! What simulations found, each with what it was. Plans, not only seeds: what a seed decides may change, a plan does not.

#![allow(missing_docs, reason = "a test")]

use flowmesh_sim::world::plan::{End, Plan, Use};
use flowmesh_sim::world::run;
use flowmesh_sim::world::trace::Trace;

/// A plan without faults.
fn plan(seed: u64, uses: &[Use]) -> Plan {
    Plan {
        seed,
        shards: 1,
        clients: 1,
        lives: 1,
        steps: 2_000,
        uses: uses.to_vec(),
        pace: 0,
        disk_polls: 0,
        faults: Vec::new(),
        ends: vec![End::Kill],
    }
}

/// A worker that came between the end of a job's time to live and the tick that removes it got the job.
#[test]
fn a_job_whose_time_to_live_is_over_is_not_given_out_before_the_tick() {
    let many = Plan { clients: 3, pace: 6, disk_polls: 2, ..plan(3, &[Use::LettersToQueue]) };
    let few = Plan { lives: 2, steps: 4_000, disk_polls: 1, ..plan(38, &[Use::LettersToQueue]) };
    for plan in [many, few] {
        assert!(run(&plan, &Trace::default()).events > 100);
    }
}
