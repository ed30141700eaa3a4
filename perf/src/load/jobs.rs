//! Clients that take jobs through their whole life: enqueue a batch, reserve a batch, acknowledge what was reserved.
//!
//! ```text
//! idle ── Enqueue ──► Reserve ── jobs ──► Ack ──► idle
//!                        └── none (another client was faster) ──► idle
//! ```

use super::ops::{
    OpKind, OpSpec, check_enqueued, check_outcomes, paths, put_bytes_field, put_jobs, put_number_field,
};
use super::stats::OpId;
use super::wire::{Fields, Value, take_varint};
use super::workload::{Io, Progress, Workload, describe};
use crate::http2::grpc::set_length;
use crate::http2::hpack::Answer;
use crate::http2::{Deframer, GRPC_HEAD_BYTES, MethodId, Methods};

/// A client's step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Enqueue,
    Reserve,
    Ack,
}

#[derive(Debug, Default)]
struct Client {
    step: Step,
    due: u64,
    step_began: u64,
    deframer: Deframer,
    /// What the last answer brought: leases to acknowledge, jobs, or what is wrong with it.
    answer: Option<Result<u64, &'static str>>,
    /// The next Ack's request.
    ack: Vec<u8>,
}

/// Where each step counts.
#[derive(Clone, Copy, Debug)]
pub struct JobOps {
    /// The whole life; items are jobs acknowledged.
    pub whole: OpId,
    /// The Enqueue calls.
    pub enqueue: OpId,
    /// The Reserve calls.
    pub reserve: OpId,
    /// The Ack calls.
    pub ack: OpId,
}

/// Clients that take jobs through their whole life.
#[derive(Debug)]
pub struct Jobs {
    spec: OpSpec,
    ops: JobOps,
    methods: [MethodId; 3],
    enqueue: Vec<u8>,
    reserve: Vec<u8>,
    ack_head: Vec<u8>,
    clients: Vec<Client>,
}

impl Jobs {
    /// So many clients on a queue, with batches of `batch` jobs.
    pub fn new(
        queue: &str,
        batch: u32,
        value_bytes: u32,
        ops: JobOps,
        methods: &mut Methods,
        clients: usize,
    ) -> Self {
        let spec = OpSpec::new(OpKind::Enqueue).batch(batch).value_bytes(value_bytes);
        let head = || {
            let mut bytes = vec![0; GRPC_HEAD_BYTES];
            put_bytes_field(&mut bytes, 1, queue.as_bytes());
            bytes
        };
        let (mut enqueue, mut reserve) = (head(), head());
        put_jobs(&mut enqueue, spec);
        set_length(&mut enqueue, 0);
        put_number_field(&mut reserve, 2, u64::from(batch));
        set_length(&mut reserve, 0);
        Self {
            spec,
            ops,
            methods: [paths::ENQUEUE, paths::RESERVE, paths::ACK].map(|path| methods.id(path)),
            enqueue,
            reserve,
            ack_head: head(),
            clients: std::iter::repeat_with(Client::default).take(clients).collect(),
        }
    }

    fn send(&mut self, io: &mut Io<'_>, step: Step) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        (client.step, client.step_began, client.answer) = (step, io.now, None);
        client.deframer.clear();
        let [enqueue, reserve, ack] = self.methods;
        let (method, bytes) = match step {
            Step::Enqueue => (enqueue, &self.enqueue),
            Step::Reserve => (reserve, &self.reserve),
            Step::Ack => (ack, &client.ack),
        };
        let stream = io.connection.open(method, io.client);
        io.connection.send(stream, bytes, true);
    }

    fn op(&self, step: Step) -> OpId {
        match step {
            Step::Enqueue => self.ops.enqueue,
            Step::Reserve => self.ops.reserve,
            Step::Ack => self.ops.ack,
        }
    }

    /// The step's answer is complete and its status was OK.
    fn advance(&mut self, io: &mut Io<'_>) -> Progress {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let (step, due) = (client.step, client.due);
        let took = io.now.saturating_sub(client.step_began);
        let items = match client.answer.take().unwrap_or(Err("an answer without a message")) {
            Ok(items) => items,
            Err(wrong) => return self.fail(io, wrong.to_owned()),
        };
        let bytes = items * u64::from(self.spec.value_bytes);
        io.recorder.done(self.op(step), took, items, bytes);
        match step {
            Step::Enqueue => self.send(io, Step::Reserve),
            Step::Reserve if items > 0 => self.send(io, Step::Ack),
            Step::Reserve => return Progress::Idle,
            Step::Ack => {
                io.recorder.done(self.ops.whole, io.now.saturating_sub(due), items, bytes);
                return Progress::Idle;
            }
        }
        Progress::Working
    }

    fn fail(&mut self, io: &mut Io<'_>, what: String) -> Progress {
        let step = self.clients.get(io.client as usize).map_or(Step::Enqueue, |client| client.step);
        io.recorder.failed(self.op(step), what);
        Progress::Idle
    }
}

impl Workload for Jobs {
    fn begin(&mut self, io: &mut Io<'_>, due: u64) {
        if let Some(client) = self.clients.get_mut(io.client as usize) {
            client.due = due;
        }
        self.send(io, Step::Enqueue);
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        let (batch, value_bytes) = (u64::from(self.spec.batch), self.spec.value_bytes);
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Working };
        let Client { step, deframer, answer, ack, .. } = client;
        let framed = deframer.push(bytes, |message| {
            *answer = Some(match step {
                Step::Enqueue => check_enqueued(message, batch).map(|()| batch),
                Step::Reserve => take_leases(message, value_bytes, &self.ack_head, ack),
                Step::Ack => {
                    let leases = count_leases(ack, self.ack_head.len());
                    check_outcomes(message, leases, 1).map(|()| leases)
                }
            });
        });
        if framed.is_err() {
            *answer = Some(Err("the answer is no gRPC message"));
        }
        Progress::Working
    }

    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress {
        match (end, answer.grpc_status) {
            (false, _) => Progress::Working,
            (true, Some(0)) => self.advance(io),
            (true, _) => {
                let what = describe(answer, io.connection.last_message());
                self.fail(io, what)
            }
        }
    }

    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress {
        self.fail(io, format!("stream reset with code {code}"))
    }
}

/// Makes the request that acknowledges all jobs of a ReserveResponse; returns how many they are.
fn take_leases(
    message: &[u8],
    value_bytes: u32,
    head: &[u8],
    ack: &mut Vec<u8>,
) -> Result<u64, &'static str> {
    const BROKEN: &str = "the answer is no protobuf";
    ack.clear();
    ack.extend_from_slice(head);
    let mut jobs = 0;
    for field in Fields(message) {
        let (1, Value::Bytes(job)) = field.map_err(|_| BROKEN)? else { continue };
        let (mut id, mut token, mut payload) = (0, 0, &[][..]);
        for field in Fields(job) {
            match field.map_err(|_| BROKEN)? {
                (1, value) => id = value.number(),
                (2, value) => token = value.number(),
                (4, value) => payload = value.bytes(),
                _ => {}
            }
        }
        if payload.len() != value_bytes as usize {
            return Err("a job holds something else");
        }
        put_lease(ack, id, token);
        jobs += 1;
    }
    set_length(ack, 0);
    Ok(jobs)
}

fn put_lease(ack: &mut Vec<u8>, job: u64, token: u64) {
    let length_at = ack.len() + 1;
    ack.extend_from_slice(&[2 << 3 | 2, 0]);
    put_number_field(ack, 1, job);
    put_number_field(ack, 2, token);
    // Two tags and two varints are at most 22 bytes: the length is one byte.
    let length = (ack.len() - length_at - 1) as u8;
    if let Some(place) = ack.get_mut(length_at) {
        *place = length;
    }
}

fn count_leases(ack: &[u8], head_bytes: usize) -> u64 {
    let mut rest = ack.get(head_bytes..).unwrap_or_default();
    let mut count = 0;
    while let Some((_, after)) = rest.split_first() {
        rest = after;
        let length = take_varint(&mut rest).unwrap_or(0) as usize;
        rest = rest.get(length..).unwrap_or_default();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn what_was_reserved_is_acknowledged(leases in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..80)) {
            let jobs = leases.iter().map(|(job_id, token)| v1::LeasedJob {
                job_id: *job_id, token: *token, payload: vec![1; 20].into(), attempt: 1, ..Default::default()
            }).collect();
            let answer = v1::ReserveResponse { jobs }.encode_to_vec();
            let mut head = vec![0; GRPC_HEAD_BYTES];
            put_bytes_field(&mut head, 1, b"mail");
            let mut ack = Vec::new();
            prop_assert_eq!(take_leases(&answer, 20, &head, &mut ack), Ok(leases.len() as u64));
            prop_assert_eq!(count_leases(&ack, head.len()), leases.len() as u64);
            let request = v1::AckRequest::decode(&ack[GRPC_HEAD_BYTES..]).unwrap();
            prop_assert_eq!(request.queue, "mail");
            let seen: Vec<_> = request.leases.iter().map(|lease| (lease.job_id, lease.token)).collect();
            prop_assert_eq!(seen, leases);
        }
    }
}
