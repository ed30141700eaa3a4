//! The `flowmesh` program: the server, and everything one does with it from a shell. See [`cli`].

use std::process::ExitCode;

mod cli;

/// The server and its clients allocate many short-lived buffers on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
