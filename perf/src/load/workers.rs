//! Clients that work on jobs as the server pushes them, each through one long call; and those that enqueue jobs that say
//! since when they are waited for.
//!
//! The first bytes of a payload are a moment, in nanoseconds since the Unix epoch by this machine's clock: when the job was
//! sent, or when it is due. A delivery counts from then.

use std::time::{SystemTime, UNIX_EPOCH};

use flowmesh_proto::v1;
use prost::Message;

use super::keys::FILLER;
use super::ops::{check_enqueued, paths, put_bytes_field, put_number_field};
use super::stats::OpId;
use super::wire::{Fields, Value};
use super::workload::{Io, Progress, Workload, describe};
use crate::http2::grpc::{frame_message, set_length};
use crate::http2::hpack::Answer;
use crate::http2::{Deframer, GRPC_HEAD_BYTES, MethodId, Methods, StreamRef};

/// Bytes of the moment that a payload begins with.
pub const MOMENT_BYTES: usize = 8;

/// Nanoseconds since the Unix epoch.
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A payload that says since when it is waited for.
pub fn payload(moment_ns: u64, bytes: usize) -> Vec<u8> {
    let mut payload = moment_ns.to_le_bytes().to_vec();
    payload.resize(bytes.max(MOMENT_BYTES), FILLER);
    payload
}

/// The queue of a client: `#` in a name stands for the client's number.
pub fn queue_of(name: &str, client: usize) -> String {
    name.replace('#', &client.to_string())
}

#[derive(Debug, Default)]
struct Client {
    stream: Option<StreamRef>,
    /// Jobs acknowledged whose outcomes are still to come.
    unanswered: u64,
    closing: bool,
    deframer: Deframer,
    hello: Vec<u8>,
}

/// Where workers count.
#[derive(Clone, Copy, Debug)]
pub struct WorkOps {
    /// Jobs acknowledged, by the server's answer.
    pub acked: OpId,
    /// Deliveries, with how long each job was waited for.
    pub delivery: OpId,
}

/// Workers: each job is acknowledged as it comes, all that came together in one message.
#[derive(Debug)]
pub struct Workers {
    ops: WorkOps,
    value_bytes: u32,
    method: MethodId,
    clients: Vec<Client>,
    /// The next message.
    message: Vec<u8>,
}

impl Workers {
    /// So many workers of a queue (see [`queue_of`]), each with this much credit.
    pub fn new(
        queue: &str,
        credit: u32,
        value_bytes: u32,
        ops: WorkOps,
        methods: &mut Methods,
        clients: usize,
    ) -> Self {
        let client = |number: usize| {
            let hello = v1::WorkHello { queue: queue_of(queue, number), ..Default::default() };
            let first = v1::WorkRequest { hello: Some(hello), credit, ..Default::default() };
            Client { hello: frame_message(&first), ..Client::default() }
        };
        Self {
            ops,
            value_bytes,
            method: methods.id(paths::WORK),
            clients: (0..clients).map(client).collect(),
            message: Vec::new(),
        }
    }

    fn fail(&mut self, io: &mut Io<'_>, what: String) -> Progress {
        if let Some(client) = self.clients.get_mut(io.client as usize) {
            client.stream = None;
        }
        io.recorder.failed(self.ops.acked, what);
        Progress::Idle
    }
}

/// What a WorkResponse brought.
#[derive(Debug, Default, PartialEq, Eq)]
struct Brought {
    jobs: u64,
    outcomes: u64,
}

/// Reads a WorkResponse; appends an AckItem for each of its jobs to `acks` and calls `delivered` with its moment.
fn take_work(
    message: &[u8],
    value_bytes: u32,
    acks: &mut Vec<u8>,
    mut delivered: impl FnMut(u64),
) -> Result<Brought, &'static str> {
    const BROKEN: &str = "the answer is no protobuf";
    let mut brought = Brought::default();
    for field in Fields(message) {
        match field.map_err(|_| BROKEN)? {
            (1, Value::Bytes(job)) => {
                let (mut id, mut token, mut payload) = (0, 0, &[][..]);
                for field in Fields(job) {
                    match field.map_err(|_| BROKEN)? {
                        (1, value) => id = value.number(),
                        (2, value) => token = value.number(),
                        (4, value) => payload = value.bytes(),
                        _ => {}
                    }
                }
                let moment = payload.first_chunk::<MOMENT_BYTES>();
                let Some(moment) = moment.filter(|_| payload.len() == value_bytes as usize) else {
                    return Err("a job holds something else");
                };
                delivered(u64::from_le_bytes(*moment));
                let mut item = Vec::with_capacity(24);
                put_number_field(&mut item, 1, id);
                put_number_field(&mut item, 2, token);
                put_bytes_field(acks, 3, &item);
                brought.jobs += 1;
            }
            (2, Value::Bytes(outcome)) => {
                for field in Fields(outcome) {
                    if field.map_err(|_| BROKEN)?.0 == 4 {
                        return Err("an acknowledgement was refused");
                    }
                }
                brought.outcomes += 1;
            }
            _ => {}
        }
    }
    Ok(brought)
}

impl Workload for Workers {
    fn begin(&mut self, io: &mut Io<'_>, _due: u64) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        let stream = io.connection.open(self.method, io.client);
        (client.stream, client.unanswered, client.closing) = (Some(stream), 0, false);
        client.deframer.clear();
        io.connection.send(stream, &client.hello, false);
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        let (ops, value_bytes, now_ns) = (self.ops, self.value_bytes, unix_ns());
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let Some(stream) = client.stream else { return Progress::Idle };
        let out = &mut self.message;
        out.clear();
        out.resize(GRPC_HEAD_BYTES, 0);
        let (mut brought, mut wrong) = (Brought::default(), None);
        let framed = client.deframer.push(bytes, |message| {
            let bytes = u64::from(value_bytes);
            let delivered = |moment| {
                io.recorder.done(ops.delivery, now_ns.saturating_sub(moment), 1, bytes);
            };
            match take_work(message, value_bytes, out, delivered) {
                Ok(more) => {
                    brought.jobs += more.jobs;
                    brought.outcomes += more.outcomes;
                }
                Err(why) => wrong = Some(why),
            }
        });
        if framed.is_err() {
            wrong = Some("the answer is no gRPC message");
        }
        if brought.outcomes > client.unanswered {
            wrong = Some("more outcomes than acknowledgements");
        }
        if let Some(wrong) = wrong {
            return self.fail(io, wrong.to_owned());
        }
        client.unanswered -= brought.outcomes;
        if brought.outcomes > 0 {
            io.recorder.received(ops.acked, brought.outcomes, brought.outcomes * u64::from(value_bytes));
        }
        // What comes after the end is not acknowledged any more: nothing can be sent.
        if brought.jobs > 0 && !client.closing {
            client.unanswered += brought.jobs;
            put_number_field(out, 2, brought.jobs);
            set_length(out, 0);
            io.connection.send(stream, out, false);
        }
        if io.stopping { self.stop(io) } else { Progress::Working }
    }

    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress {
        if !end {
            return Progress::Working;
        }
        if answer.grpc_status != Some(0) {
            let what = describe(answer, io.connection.last_message());
            return self.fail(io, what);
        }
        match self.clients.get_mut(io.client as usize) {
            Some(client) if client.closing && client.unanswered == 0 => {
                client.stream = None;
                Progress::Idle
            }
            _ => self.fail(io, "the call ended before everything was answered".to_owned()),
        }
    }

    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress {
        self.fail(io, format!("stream reset with code {code}"))
    }

    fn stop(&mut self, io: &mut Io<'_>) -> Progress {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let Some(stream) = client.stream else { return Progress::Idle };
        if !client.closing {
            client.closing = true;
            io.connection.send(stream, &[], true);
        }
        Progress::Working
    }
}

/// Clients that enqueue jobs which say when they were sent.
#[derive(Debug)]
pub struct Stamped {
    op: OpId,
    value_bytes: u32,
    method: MethodId,
    batch: u32,
    request: Vec<u8>,
    /// Bytes of one job in the request; the payload is what it ends with.
    job_bytes: usize,
    clients: Vec<Sender>,
}

#[derive(Debug, Default)]
struct Sender {
    due: u64,
    deframer: Deframer,
    answer: Option<Result<(), &'static str>>,
}

impl Stamped {
    /// So many clients on a queue, with `batch` jobs a call.
    pub fn new(
        queue: &str,
        (batch, value_bytes): (u32, u32),
        op: OpId,
        methods: &mut Methods,
        clients: usize,
    ) -> Self {
        let payload = payload(0, value_bytes as usize);
        let value_bytes = payload.len() as u32;
        let job = v1::NewJob { payload: payload.into(), ..Default::default() };
        let mut request = v1::EnqueueRequest { queue: queue.to_owned(), ..Default::default() };
        let head_bytes = request.encoded_len();
        request.jobs = vec![job; batch as usize];
        let request = frame_message(&request);
        Self {
            op,
            value_bytes,
            method: methods.id(paths::ENQUEUE),
            batch,
            job_bytes: (request.len() - GRPC_HEAD_BYTES - head_bytes) / batch.max(1) as usize,
            request,
            clients: std::iter::repeat_with(Sender::default).take(clients).collect(),
        }
    }

    fn put_moment(&mut self, moment_ns: u64) {
        for job in 0..self.batch as usize {
            let at = self.request.len() - job * self.job_bytes - self.value_bytes as usize;
            if let Some(place) = self.request.get_mut(at..at + MOMENT_BYTES) {
                place.copy_from_slice(&moment_ns.to_le_bytes());
            }
        }
    }

    fn fail(&mut self, io: &mut Io<'_>, what: String) -> Progress {
        io.recorder.failed(self.op, what);
        Progress::Idle
    }
}

impl Workload for Stamped {
    fn begin(&mut self, io: &mut Io<'_>, due: u64) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        *client = Sender { due, ..Sender::default() };
        self.put_moment(unix_ns());
        let stream = io.connection.open(self.method, io.client);
        io.connection.send(stream, &self.request, true);
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Working };
        let (Sender { deframer, answer, .. }, batch) = (client, u64::from(self.batch));
        if deframer.push(bytes, |message| *answer = Some(check_enqueued(message, batch))).is_err() {
            *answer = Some(Err("the answer is no gRPC message"));
        }
        Progress::Working
    }

    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress {
        match (end, answer.grpc_status) {
            (false, _) => Progress::Working,
            (true, Some(0)) => {
                let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
                match client.answer.take().unwrap_or(Err("an answer without a message")) {
                    Ok(()) => {
                        let took = io.now.saturating_sub(client.due);
                        let (jobs, bytes) = (u64::from(self.batch), u64::from(self.value_bytes));
                        io.recorder.done(self.op, took, jobs, jobs * bytes);
                        Progress::Idle
                    }
                    Err(wrong) => self.fail(io, wrong.to_owned()),
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_what_the_api_says() {
        let mut methods = Methods::default();
        for bytes in [8, 100, 200] {
            let mut stamped = Stamped::new("mail", (3, bytes), OpId(0), &mut methods, 1);
            stamped.put_moment(77);
            let request = v1::EnqueueRequest::decode(&stamped.request[GRPC_HEAD_BYTES..]).unwrap();
            assert_eq!((request.queue.as_str(), request.jobs.len()), ("mail", 3));
            assert!(request.jobs.iter().all(|job| job.payload == payload(77, bytes as usize)));
        }
        let ops = WorkOps { acked: OpId(0), delivery: OpId(1) };
        let workers = Workers::new("q#", 9, 100, ops, &mut methods, 3);
        let first = v1::WorkRequest::decode(&workers.clients[2].hello[GRPC_HEAD_BYTES..]).unwrap();
        assert_eq!((first.hello.unwrap().queue.as_str(), first.credit), ("q2", 9));
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_acknowledged(jobs in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..80), outcomes in 0usize..9) {
            let pushed = jobs.iter().map(|(job_id, token, moment)| v1::LeasedJob {
                job_id: *job_id, token: *token, payload: payload(*moment, 20).into(), attempt: 1, ..Default::default()
            }).collect();
            let fine = v1::WorkOutcome { job_id: 1, token: 2, ..Default::default() };
            let answer = v1::WorkResponse { jobs: pushed, outcomes: vec![fine; outcomes] }.encode_to_vec();
            let (mut acks, mut moments) = (Vec::new(), Vec::new());
            let brought = take_work(&answer, 20, &mut acks, |moment| moments.push(moment));
            prop_assert_eq!(brought, Ok(Brought { jobs: jobs.len() as u64, outcomes: outcomes as u64 }));
            prop_assert_eq!(moments, jobs.iter().map(|(_, _, moment)| *moment).collect::<Vec<_>>());
            let request = v1::WorkRequest::decode(&acks[..]).unwrap();
            let seen: Vec<_> = request.acks.iter().map(|ack| (ack.job_id, ack.token)).collect();
            prop_assert_eq!(seen, jobs.iter().map(|(id, token, _)| (*id, *token)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_not_as_it_should_be_is_an_error() {
        let job = v1::LeasedJob { job_id: 1, token: 1, payload: payload(1, 20).into(), ..Default::default() };
        let answer = v1::WorkResponse { jobs: vec![job], outcomes: Vec::new() }.encode_to_vec();
        assert!(take_work(&answer, 21, &mut Vec::new(), |_| ()).is_err());
        let refused = v1::WorkOutcome { error: Some(v1::Error::default()), ..Default::default() };
        let answer = v1::WorkResponse { jobs: Vec::new(), outcomes: vec![refused] }.encode_to_vec();
        assert!(take_work(&answer, 20, &mut Vec::new(), |_| ()).is_err());
    }
}
