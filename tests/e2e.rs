//! End-to-end tests: the real binary as a process, real clients, real files, `kill -9`.
//!
//! One binary, so that it links once. `common` starts servers and has the clients. By module: each call and what it
//! promises ([`e2e::streams`] to [`e2e::http`]), what must survive ([`e2e::durability`] to [`e2e::shutdown`]), what bad
//! input gets ([`e2e::bad_input`] to [`e2e::start`]).

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test: a panic is a failure"
)]

mod common;

mod e2e {
    mod admin;
    mod append_stream;
    mod as_of;
    mod bad_input;
    mod bad_wire;
    mod compaction;
    mod compression;
    mod connections;
    mod damage;
    mod disconnects;
    mod disk_full;
    mod docs;
    mod docs_examples;
    mod durability;
    mod filters;
    mod group_consume;
    mod group_crashes;
    mod group_filters;
    mod group_offsets;
    mod group_shell;
    mod groups;
    mod http;
    mod kv;
    mod kv_batches;
    mod kv_cache;
    mod kv_cold;
    mod kv_crashes;
    mod kv_feed;
    mod kv_large;
    mod kv_linear;
    mod kv_metrics;
    mod kv_mirror;
    mod kv_past;
    mod kv_shell;
    mod kv_types;
    mod overload;
    mod package_log;
    mod partitions;
    mod producers;
    mod queue_crashes;
    mod queue_outcomes;
    mod queue_rules;
    mod queue_shell;
    mod queue_views;
    mod queues;
    mod replay_refusals;
    mod replay_shell;
    mod replays;
    mod restart;
    mod schedules;
    mod segments;
    mod shards;
    mod shell;
    mod shutdown;
    mod slow_consumers;
    mod start;
    mod streams;
    mod subscribe;
    mod trace_context;
    mod transfers;
    mod work;
    mod workers;
}
