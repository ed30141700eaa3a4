//! The only crate that talks to the runtime: cores, timers, sockets, files, cross-core channels.
