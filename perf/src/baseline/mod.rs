//! What this machine can do at all, measured beside every scenario, since only a ratio means something on a machine
//! that is shared and noisy: [`echo`] (HTTP/2 without a server behind it) and [`disk`] (writes without a log).

pub mod disk;
pub mod echo;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::load::{GroupSpec, KeySpace, LoadResult, LoadSpec, OpKind, OpSpec, Work};
use crate::scenario::process::Echo;
use disk::DiskLimits;

/// All limits together.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// The echo, by load.
    pub echo: Vec<LoadResult>,
    /// The disk.
    pub disk: DiskLimits,
}

/// Load on the bare echo: calls with the bytes of `op`.
pub fn echo_spec(echo: &Echo, op: OpSpec, (connections, streams): (usize, usize), cpu: usize) -> LoadSpec {
    let op = OpSpec { kind: op.kind.echo(), ..op };
    LoadSpec {
        name: format!("{op}, {connections} connections × {streams}"),
        groups: vec![calls(vec![op], echo.address, (connections, streams))],
        warmup: Duration::from_millis(300),
        duration: Duration::from_secs(1),
        cpus: vec![cpu],
        spin: false,
        server: Some(echo.pid()),
        seed: 1,
    }
}

/// A closed loop of unary calls to one address.
pub fn calls(ops: Vec<OpSpec>, target: SocketAddr, (connections, streams): (usize, usize)) -> GroupSpec {
    GroupSpec {
        work: Work::Calls(ops),
        resource: "bench".to_owned(),
        targets: vec![target],
        connections,
        streams,
        rate: None,
        keys: KeySpace::new(100_000, None),
        filled: true,
    }
}

/// Measures all limits, each for about `each`.
///
/// # Errors
/// As its parts.
pub fn measure(dir: &Path, server_cpu: usize, client_cpu: usize, each: Duration) -> anyhow::Result<Limits> {
    let echo = Echo::start(server_cpu)?;
    let mut results = Vec::new();
    for (kind, shape) in [
        (OpKind::EchoGet, (1, 1)),
        (OpKind::EchoGet, (8, 1)),
        (OpKind::EchoGet, (16, 32)),
        (OpKind::EchoSet, (16, 32)),
        (OpKind::EchoAppend, (16, 32)),
    ] {
        let spec = echo_spec(&echo, OpSpec::new(kind), shape, client_cpu);
        results.push(LoadSpec { duration: each, ..spec }.run()?);
    }
    for batch in [100, 500] {
        let spec = echo_spec(&echo, OpSpec::new(OpKind::EchoAppend).batch(batch), (8, 8), client_cpu);
        results.push(LoadSpec { duration: each, ..spec }.run()?);
    }
    drop(echo);
    Ok(Limits { echo: results, disk: disk::measure(dir, Some(server_cpu), each)? })
}
