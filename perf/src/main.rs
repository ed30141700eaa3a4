//! `flowmesh-perf`: the same as `flowmesh bench`, as a program of its own.

use std::process::ExitCode;

use clap::Parser;

// The server's allocator, so that the bare echo is measured under the same conditions.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a FlowMesh server, this machine, or one against the other.
#[derive(Parser)]
#[command(name = "flowmesh-perf", version)]
struct Program {
    #[command(flatten)]
    args: flowmesh_perf::cli::Args,
}

fn main() -> ExitCode {
    match flowmesh_perf::run(Program::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
