//! What the edge counts: plain numbers of one core, read by whoever asks.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use flowmesh_engine::metrics::Spans;

use super::method::Method;
use crate::edge::error_map::GrpcCode;

/// Counters of one core's gRPC edge.
#[derive(Debug)]
pub struct Counters {
    connections_total: Cell<u64>,
    connections_open: Cell<u64>,
    calls: RefCell<[[u64; GrpcCode::COUNT]; Method::COUNT + 1]>,
    durations: RefCell<[Spans; Method::COUNT]>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections_total: Cell::default(),
            connections_open: Cell::default(),
            calls: RefCell::new([[0; GrpcCode::COUNT]; Method::COUNT + 1]),
            durations: RefCell::new(std::array::from_fn(|_| Spans::default())),
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
    /// How long calls took, from the pass that read them to the hand-over of the answer, by method; those without calls
    /// are left out.
    pub durations: Vec<(&'static str, Spans)>,
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

    /// A call that was accepted at `began` ended.
    pub fn ended(&self, method: Method, code: GrpcCode, began: Instant) {
        self.call(Some(method), code);
        if let Some(spans) = self.durations.borrow_mut().get_mut(method as usize) {
            spans.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
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
            durations: self.durations(),
        }
    }

    fn durations(&self) -> Vec<(&'static str, Spans)> {
        let durations = self.durations.borrow();
        let all = Method::ALL.iter().zip(durations.iter()).filter(|(_, spans)| spans.count() > 0);
        all.map(|(method, spans)| (method.name(), spans.clone())).collect()
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
        assert!(counters.snapshot().durations.is_empty());
        counters.ended(Method::KvSet, GrpcCode::Ok, Instant::now());
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.calls.len(), 3);
        assert_eq!(snapshot.durations.len(), 1);
        assert_eq!((snapshot.durations[0].0, snapshot.durations[0].1.count()), ("flowmesh.v1.Kv/Set", 1));
    }
}
