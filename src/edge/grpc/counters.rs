//! What the edge counts: plain numbers of one core, read by whoever asks.

use std::cell::{Cell, RefCell};

use super::method::Method;
use crate::edge::error_map::GrpcCode;

/// Counters of one core's gRPC edge.
#[derive(Debug)]
pub struct Counters {
    connections_total: Cell<u64>,
    connections_open: Cell<u64>,
    calls: RefCell<[[u64; GrpcCode::COUNT]; Method::COUNT + 1]>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections_total: Cell::default(),
            connections_open: Cell::default(),
            calls: RefCell::new([[0; GrpcCode::COUNT]; Method::COUNT + 1]),
        }
    }
}

/// A copy of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Connections accepted since the start.
    pub connections_total: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Calls that ended, by method (`flowmesh.v1.Kv/Get`; `unknown` for all others) and status (`OK`), zeros left out.
    pub calls: Vec<(&'static str, &'static str, u64)>,
}

impl Counters {
    /// A connection was accepted.
    pub fn opened(&self) {
        self.connections_total.set(self.connections_total.get() + 1);
        self.connections_open.set(self.connections_open.get() + 1);
    }

    /// A connection is gone.
    pub fn closed(&self) {
        self.connections_open.set(self.connections_open.get().saturating_sub(1));
    }

    /// A call ended. `None`: it called a method there is not.
    pub fn call(&self, method: Option<Method>, code: GrpcCode) {
        let row = method.map_or(Method::COUNT, |method| method as usize);
        let mut calls = self.calls.borrow_mut();
        if let Some(count) = calls.get_mut(row).and_then(|row| row.get_mut(code as usize)) {
            *count += 1;
        }
    }

    /// A copy of all counters.
    pub fn snapshot(&self) -> CounterSnapshot {
        let names = Method::ALL.iter().map(|method| method.name()).chain(["unknown"]);
        let calls = self.calls.borrow();
        let calls = names.zip(calls.iter()).flat_map(|(name, row)| {
            GrpcCode::ALL.iter().zip(row).map(move |(code, &count)| (name, code.as_str(), count))
        });
        CounterSnapshot {
            connections_total: self.connections_total.get(),
            connections_open: self.connections_open.get(),
            calls: calls.filter(|&(_, _, count)| count > 0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_status() {
        let counters = Counters::default();
        counters.call(Some(Method::KvGet), GrpcCode::Ok);
        counters.call(Some(Method::KvGet), GrpcCode::Ok);
        counters.call(None, GrpcCode::Unimplemented);
        assert_eq!(
            counters.snapshot().calls,
            [("flowmesh.v1.Kv/Get", "OK", 2), ("unknown", "UNIMPLEMENTED", 1)]
        );
    }
}
