//! Replay sessions from a shell.
