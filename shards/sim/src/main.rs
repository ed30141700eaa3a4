//! Runs simulations by seed, and makes those that fail smaller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use flowmesh_sim::happened::Counts;
use flowmesh_sim::world::plan::Plan;
use flowmesh_sim::world::trace::Trace;
use flowmesh_sim::world::{Summary, run};

/// Simulates whole servers, one for each seed, and looks for broken promises.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Write the trace of the first seed to standard output
    #[arg(long)]
    trace: bool,
    /// Say what came of every seed
    #[arg(long)]
    each: bool,
}

type Said = Arc<Mutex<String>>;

/// Runs a plan; the words of the panic if it fails.
fn outcome(plan: &Plan, trace: &Trace, said: &Said) -> Result<Summary, String> {
    catch_unwind(AssertUnwindSafe(|| run(plan, trace)))
        .map_err(|_| std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// A smaller plan that fails, if there is one.
fn shrunk(mut plan: Plan, said: &Said) -> Plan {
    'again: loop {
        for smaller in plan.smaller() {
            if outcome(&smaller, &Trace::default(), said).is_err() {
                plan = smaller;
                continue 'again;
            }
        }
        return plan;
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let said = Said::default();
    let heard = Arc::clone(&said);
    std::panic::set_hook(Box::new(move |panic| {
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
    if args.trace {
        let trace = Trace::kept();
        let outcome = outcome(&Plan::of(args.from), &trace, &said);
        print!("{}", trace.text());
        println!("{outcome:?}");
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    let (mut failed, mut steps, mut events, mut operations) = (0, 0, 0, 0);
    let mut happened = Counts::default();
    for seed in args.from..args.from + args.seeds {
        let plan = Plan::of(seed);
        match outcome(&plan, &Trace::default(), &said) {
            Ok(summary) => {
                steps += summary.steps;
                events += summary.events;
                operations += summary.operations;
                happened.add(&summary.happened);
                if args.each {
                    println!("seed {seed}: {summary:?}");
                }
            }
            Err(words) => {
                failed += 1;
                println!("seed {seed} FAILED: {words}");
                println!("  {plan:?}");
                println!("  smaller: {:?}", shrunk(plan, &said));
            }
        }
    }
    println!("{happened:?}");
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    println!(
        "{} seeds from {}, {failed} failed; {events} events, {operations} operations of disks, {steps} steps; {:.0} seeds a minute",
        args.seeds,
        args.from,
        args.seeds as f64 / minutes,
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
