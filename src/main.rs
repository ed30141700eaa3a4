//! The flowmesh binary.
fn main() {}
