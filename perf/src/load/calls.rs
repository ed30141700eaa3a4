//! Clients that call unary methods, chosen by chance from a mix.

use super::keys::KeySpace;
use super::ops::{OpKind, Operation, Wrong};
use super::stats::OpId;
use super::workload::{Io, Progress, Workload, describe};
use crate::http2::Deframer;
use crate::http2::hpack::Answer;

/// Every so many answers one is checked byte for byte; the others by length, first bytes and count.
const WHOLE_CHECK_EVERY: u64 = 64;

/// One client.
#[derive(Debug, Default)]
struct Call {
    op: usize,
    keys: Vec<u64>,
    due: u64,
    deframer: Deframer,
    verdict: Option<Result<(u64, u64), Wrong>>,
}

/// Clients that call unary methods.
#[derive(Debug)]
pub struct Calls {
    operations: Vec<Operation>,
    /// The first operation's place in the recorder; the others follow.
    first: usize,
    weights: u64,
    keys: KeySpace,
    /// Keys may be missing: they are deleted in the same mix, or were never written.
    may_miss: bool,
    clients: Vec<Call>,
    answers: u64,
}

impl Calls {
    /// So many clients that call these operations. `first` is the first operation's place in the recorder.
    pub fn new(
        operations: Vec<Operation>,
        first: OpId,
        keys: KeySpace,
        filled: bool,
        clients: usize,
    ) -> Self {
        let may_miss = !filled || operations.iter().any(|op| op.spec.kind == OpKind::Delete);
        Self {
            weights: operations.iter().map(|op| u64::from(op.spec.weight)).sum(),
            operations,
            first: first.0,
            keys,
            may_miss,
            clients: std::iter::repeat_with(Call::default).take(clients).collect(),
            answers: 0,
        }
    }

    #[inline]
    fn choose(&self, io: &mut Io<'_>) -> usize {
        if self.operations.len() == 1 {
            return 0;
        }
        let mut at = io.random.below(self.weights);
        for (index, op) in self.operations.iter().enumerate() {
            match at.checked_sub(u64::from(op.spec.weight)) {
                Some(rest) => at = rest,
                None => return index,
            }
        }
        0
    }

    fn finish(&mut self, io: &mut Io<'_>, failure: Option<String>) -> Progress {
        let Some(call) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let op = OpId(self.first + call.op);
        match (failure, call.verdict.take()) {
            (Some(failure), _) => io.recorder.failed(op, failure),
            (None, None) => io.recorder.failed(op, "an answer without a message".to_owned()),
            (None, Some(Err(wrong))) => io.recorder.failed(op, wrong.to_owned()),
            (None, Some(Ok((items, bytes)))) => {
                io.recorder.done(op, io.now.saturating_sub(call.due), items, bytes);
            }
        }
        Progress::Idle
    }
}

impl Workload for Calls {
    fn begin(&mut self, io: &mut Io<'_>, due: u64) {
        let op = self.choose(io);
        let (Some(operation), Some(call)) =
            (self.operations.get_mut(op), self.clients.get_mut(io.client as usize))
        else {
            return;
        };
        (call.op, call.due, call.verdict) = (op, due, None);
        call.deframer.clear();
        call.keys.clear();
        operation.turn();
        for place in 0..operation.keys() {
            let key = self.keys.pick(io.random);
            operation.set_key(place, key);
            call.keys.push(key);
        }
        let stream = io.connection.open(operation.method, io.client);
        io.connection.send(stream, operation.bytes(), true);
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        self.answers += 1;
        let whole = self.answers.is_multiple_of(WHOLE_CHECK_EVERY);
        let Some(call) = self.clients.get_mut(io.client as usize) else { return Progress::Working };
        let Some(operation) = self.operations.get(call.op) else { return Progress::Working };
        let Call { keys, deframer, verdict, .. } = call;
        let framed = deframer.push(bytes, |message| {
            let checked = operation.check(keys, message, whole, self.may_miss);
            *verdict = Some(if verdict.is_some() { Err("two answers to one call") } else { checked });
        });
        if framed.is_err() {
            *verdict = Some(Err("the answer is no gRPC message"));
        }
        Progress::Working
    }

    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress {
        if !end {
            return Progress::Working;
        }
        let failure = (answer.grpc_status != Some(0)).then(|| describe(answer, io.connection.last_message()));
        self.finish(io, failure)
    }

    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress {
        self.finish(io, Some(format!("stream reset with code {code}")))
    }
}
