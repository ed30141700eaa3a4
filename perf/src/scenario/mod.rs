//! The performance targets, one scenario each: start a server, put load on it, measure the machine's own limit in turn
//! with it, compare.
//!
//! [`lab`] is what a scenario works with and [`row`] what it brings back; [`process`] runs servers, [`fill`] writes what
//! is read; [`unary`], [`streams`], [`backlog`], [`compaction`], [`groups`], [`queues`], [`workers`], [`kv`], [`kv_large`], [`cold`], [`expiry`], [`cores`] and [`start`] are the scenarios; [`output`] writes results.

pub mod backlog;
pub mod cold;
pub mod compaction;
pub mod cores;
pub mod expiry;
pub mod fill;
pub mod groups;
pub mod kv;
pub mod kv_large;
pub mod lab;
pub mod output;
pub mod process;
pub mod queues;
pub mod row;
pub mod start;
pub mod streams;
pub mod unary;
pub mod workers;

use crate::cli::{Format, LabArgs};
use lab::Lab;
use row::Row;

/// A scenario.
struct Scenario {
    name: &'static str,
    what: &'static str,
    run: fn(&Lab) -> anyhow::Result<Vec<Row>>,
}

/// All scenarios, in the order of the targets.
const SCENARIOS: [Scenario; 34] = [
    Scenario {
        name: "lone-append",
        what: "one client appends, one record at a time",
        run: unary::lone_append,
    },
    Scenario { name: "get", what: "unary get, 16 connections × 32", run: unary::get },
    Scenario { name: "set", what: "unary set, 16 connections × 32", run: unary::set },
    Scenario { name: "append", what: "unary append, 16 connections × 32", run: unary::append },
    Scenario {
        name: "few-writers",
        what: "unary set and append, 8 connections × 1",
        run: unary::few_writers,
    },
    Scenario {
        name: "append-batches",
        what: "append of 100 and of 500 records a call",
        run: streams::append_batches,
    },
    Scenario {
        name: "append-pipelined",
        what: "4 KiB records through AppendStream",
        run: streams::append_pipelined,
    },
    Scenario {
        name: "subscribe",
        what: "100-byte records from memory, and behind a producer",
        run: streams::subscribe,
    },
    Scenario {
        name: "catch-up",
        what: "1 KiB records from segment files, and from memory",
        run: backlog::catch_up,
    },
    Scenario {
        name: "cold-reader",
        what: "producers beside a consumer that reads segment files",
        run: backlog::cold_reader,
    },
    Scenario {
        name: "compaction",
        what: "10 M records over 100 k keys in the background, and producers beside it",
        run: compaction::compaction,
    },
    Scenario {
        name: "many-streams",
        what: "small appends to 10 000 streams in turn",
        run: backlog::many_streams,
    },
    Scenario {
        name: "opening",
        what: "start with 10 000 streams and 50 GB of segments",
        run: backlog::opening,
    },
    Scenario { name: "rebalance", what: "a consumer group of 100 members loses one", run: groups::rebalance },
    Scenario { name: "idle-streams", what: "memory of 20 000 more streams", run: backlog::idle_streams },
    Scenario { name: "job-calls", what: "enqueue, reserve, ack, one job a call", run: queues::job_calls },
    Scenario { name: "jobs", what: "enqueue, reserve, ack, 64 jobs a call", run: queues::jobs },
    Scenario { name: "workers", what: "enqueue 64 jobs a call, streaming workers", run: workers::streaming },
    Scenario { name: "lone-worker", what: "one worker waits at an empty queue", run: workers::lone },
    Scenario { name: "deep-queue", what: "10 M jobs that wait", run: queues::deep_queue },
    Scenario { name: "delayed-jobs", what: "10 M jobs due over an hour", run: workers::delayed },
    Scenario { name: "idle-workers", what: "10 000 queues with a worker each", run: workers::idle },
    Scenario { name: "kv-multi", what: "get and set of 64 keys a call", run: kv::multi },
    Scenario {
        name: "kv-kept",
        what: "sets in stores with a feed, with a history, in a full cache",
        run: kv::kept,
    },
    Scenario { name: "kv-counter", what: "increments of one hot counter", run: kv::counter },
    Scenario {
        name: "kv-sorted",
        what: "add, rank and range in a sorted set of 10 M members",
        run: kv::sorted,
    },
    Scenario { name: "kv-entries", what: "10 M entries in memory, on disk, at a start", run: kv::entries },
    Scenario {
        name: "kv-large",
        what: "small gets and sets beside clients that set and get 16 MiB",
        run: kv_large::large,
    },
    Scenario { name: "kv-cold", what: "gets of a store four times as large as memory", run: cold::cold },
    Scenario { name: "kv-expiry", what: "100 k of 10 M keys end every second", run: expiry::expiry },
    Scenario {
        name: "wrong-core",
        what: "two shards, every request to the wrong core",
        run: cores::wrong_core,
    },
    Scenario { name: "hop", what: "a hop to a saturated core", run: cores::hop },
    Scenario { name: "replay", what: "replay of the log after kill -9", run: start::replay },
    Scenario { name: "idle", what: "empty directory to ready, and idle memory", run: start::idle },
];

/// Writes the scenarios' names to standard output.
pub fn list() {
    for scenario in &SCENARIOS {
        println!("{:<18}{}", scenario.name, scenario.what);
    }
}

/// Runs the scenarios named, all if none is, and writes the results.
///
/// # Errors
/// There is no such scenario, or results could not be written. A scenario that failed is a row of the results.
pub fn run(names: &[String], args: &LabArgs) -> anyhow::Result<()> {
    for name in names {
        let known = SCENARIOS.iter().any(|scenario| scenario.name == name);
        anyhow::ensure!(known, "no scenario {name:?}; `list` shows them");
    }
    let lab = Lab::new(args)?;
    let chosen = SCENARIOS
        .iter()
        .filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name));
    let mut rows = Vec::new();
    for scenario in chosen {
        eprintln!("{}: {}", scenario.name, scenario.what);
        let outcome = (scenario.run)(&lab);
        let new = outcome.unwrap_or_else(|error| vec![Row::failed(scenario.what, &format!("{error:#}"))]);
        for mut row in new {
            scenario.name.clone_into(&mut row.scenario);
            eprintln!("  {}", row.line());
            rows.push(row);
        }
    }
    let report = output::Report::new(&lab, rows);
    match args.output {
        Format::Table => println!("{}", report.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    if let Some(dir) = &args.results {
        for path in report.write(dir, &args.name)? {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_different_names() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
