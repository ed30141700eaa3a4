//! The `flowmesh` program: the server, and everything one does with it from a shell. See [`cli`].

use std::process::ExitCode;

mod cli;

/// The server and its clients allocate many short-lived buffers on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`: how long freed memory is kept before it goes back to the system, in ms (ten times that for
/// whole arenas). The default of 10 ms makes buffers of a busy server new memory again and again, which took two thirds
/// of a core under batched appends (`perf/results`).
const PURGE_DELAY_OPTION: libmimalloc_sys::mi_option_t = 15;
const PURGE_DELAY_MS: std::ffi::c_long = 1_000;

fn main() -> ExitCode {
    // SAFETY: sets a number of the allocator's; no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY_OPTION, PURGE_DELAY_MS) };
    cli::main()
}
