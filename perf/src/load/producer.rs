//! Clients that append through one long call each, a window of appends ahead of their acknowledgements.

use super::ops::{OpKind, OpSpec, paths, put_bytes_field, put_records};
use super::stats::OpId;
use super::wire::{FIXED_VARINT_BYTES, Fields, Value, fixed_varint};
use super::workload::{Io, Progress, Workload, describe};
use crate::http2::grpc::set_length;
use crate::http2::hpack::Answer;
use crate::http2::{Deframer, GRPC_HEAD_BYTES, MethodId, Methods, StreamRef};

/// Small messages are gathered to about so much, so that a DATA frame is worth its head: peers take many small ones
/// for an attack.
const GATHER_BYTES: usize = 32 * 1024;

#[derive(Debug, Default)]
struct Client {
    stream: Option<StreamRef>,
    next: u64,
    acked: u64,
    closing: bool,
    deframer: Deframer,
    /// When the appends under way were sent, by sequence number modulo the window.
    sent: Vec<u64>,
}

/// Clients that append without waiting.
#[derive(Debug)]
pub struct Producers {
    spec: OpSpec,
    op: OpId,
    method: MethodId,
    window: u64,
    message: Vec<u8>,
    gathered: Vec<u8>,
    clients: Vec<Client>,
}

impl Producers {
    /// So many clients, each with at most `window` appends of `batch` records not yet acknowledged.
    pub fn new(
        stream: &str,
        (batch, value_bytes): (u32, u32),
        window: u32,
        op: OpId,
        methods: &mut Methods,
        clients: usize,
    ) -> Self {
        let spec = OpSpec::new(OpKind::Append).batch(batch).value_bytes(value_bytes);
        let mut message = vec![0; GRPC_HEAD_BYTES];
        put_bytes_field(&mut message, 1, stream.as_bytes());
        put_records(&mut message, spec);
        message.push(4 << 3);
        message.extend_from_slice(&fixed_varint(0));
        set_length(&mut message, 0);
        let window = u64::from(window.max(1));
        let client = || Client { sent: vec![0; window as usize], ..Client::default() };
        Self {
            spec,
            op,
            method: methods.id(paths::APPEND_STREAM),
            window,
            message,
            gathered: Vec::new(),
            clients: std::iter::repeat_with(client).take(clients).collect(),
        }
    }

    /// Sends as much as the window allows.
    fn fill(&mut self, io: &mut Io<'_>) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        let Some(stream) = client.stream else { return };
        while client.next - client.acked < self.window && !client.closing {
            self.gathered.clear();
            while client.next - client.acked < self.window
                && self.gathered.len() + self.message.len() <= GATHER_BYTES.max(self.message.len())
            {
                put_sequence(&mut self.message, client.next);
                if let Some(place) = client.sent.get_mut((client.next % self.window) as usize) {
                    *place = io.now;
                }
                client.next += 1;
                self.gathered.extend_from_slice(&self.message);
            }
            io.connection.send(stream, &self.gathered, false);
        }
    }

    fn fail(&mut self, io: &mut Io<'_>, what: String) -> Progress {
        if let Some(client) = self.clients.get_mut(io.client as usize) {
            client.stream = None;
        }
        io.recorder.failed(self.op, what);
        Progress::Idle
    }

    fn close(&mut self, io: &mut Io<'_>) {
        if let Some(client) = self.clients.get_mut(io.client as usize)
            && let Some(stream) = client.stream
            && !client.closing
        {
            client.closing = true;
            io.connection.send(stream, &[], true);
        }
    }
}

fn put_sequence(message: &mut [u8], sequence: u64) {
    let at = message.len() - FIXED_VARINT_BYTES;
    if let Some(place) = message.get_mut(at..) {
        place.copy_from_slice(&fixed_varint(sequence));
    }
}

impl Workload for Producers {
    fn begin(&mut self, io: &mut Io<'_>, _due: u64) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        let stream = io.connection.open(self.method, io.client);
        *client =
            Client { stream: Some(stream), sent: std::mem::take(&mut client.sent), ..Client::default() };
        self.fill(io);
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        let (items, window) = (u64::from(self.spec.batch), self.window);
        let value_bytes = items * u64::from(self.spec.value_bytes);
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let Client { next, acked, deframer, sent, .. } = client;
        let mut wrong = None;
        let framed = deframer.push(bytes, |message| {
            for ack in Fields(message) {
                match ack {
                    Ok((1, Value::Bytes(ack))) => match check_ack(ack, items) {
                        Ok(sequence) if *acked <= sequence && sequence < *next => {
                            let began = sent.get((sequence % window) as usize).copied().unwrap_or(io.now);
                            io.recorder.done(self.op, io.now.saturating_sub(began), items, value_bytes);
                        }
                        Ok(_) => wrong = Some("an acknowledgement of something else"),
                        Err(why) => wrong = Some(why),
                    },
                    Ok(_) => {}
                    Err(_) => wrong = Some("the answer is no protobuf"),
                }
                // One append is answered by one acknowledgement, in order.
                *acked += 1;
            }
        });
        if framed.is_err() {
            wrong = Some("the answer is no gRPC message");
        }
        if let Some(wrong) = wrong {
            io.recorder.failed(self.op, wrong.to_owned());
        }
        if io.stopping {
            self.close(io);
        } else {
            self.fill(io);
        }
        Progress::Working
    }

    fn on_headers(&mut self, io: &mut Io<'_>, answer: Answer, end: bool) -> Progress {
        if !end {
            return Progress::Working;
        }
        if answer.grpc_status != Some(0) {
            let what = describe(answer, io.connection.last_message());
            return self.fail(io, what);
        }
        match self.clients.get(io.client as usize) {
            Some(client) if client.closing && client.acked == client.next => Progress::Idle,
            Some(client) => {
                let missing = client.next - client.acked;
                self.fail(io, format!("the call ended with {missing} appends not acknowledged"))
            }
            None => Progress::Idle,
        }
    }

    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress {
        self.fail(io, format!("stream reset with code {code}"))
    }

    fn stop(&mut self, io: &mut Io<'_>) -> Progress {
        self.close(io);
        Progress::Working
    }
}

/// The sequence number of an AppendAck of `items` records.
fn check_ack(ack: &[u8], items: u64) -> Result<u64, &'static str> {
    let (mut sequence, mut count) = (0, 0);
    for field in Fields(ack) {
        match field.map_err(|_| "the answer is no protobuf")? {
            (1, value) => sequence = value.number(),
            (4, value) => count = value.number(),
            (6, _) => return Err("an append failed"),
            _ => {}
        }
    }
    if count == items { Ok(sequence) } else { Err("another number of records was appended") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_proto::v1;
    use prost::Message;

    #[test]
    fn messages_are_what_the_api_says() {
        let mut producers = Producers::new("logs", (3, 200), 8, OpId(0), &mut Methods::default(), 1);
        for sequence in [0, 1, 127, 128, 70_000, (1 << 35) - 1] {
            put_sequence(&mut producers.message, sequence);
            let request = v1::AppendStreamRequest::decode(&producers.message[GRPC_HEAD_BYTES..]).unwrap();
            assert_eq!((request.stream.as_str(), request.sequence), ("logs", sequence));
            assert_eq!(request.records.len(), 3);
            assert!(request.records.iter().all(|record| record.value.len() == 200));
        }
    }

    #[test]
    fn acknowledgements_are_checked() {
        let fine = v1::AppendAck { sequence: 9, count: 3, base_offset: 5, ..Default::default() };
        assert_eq!(check_ack(&fine.encode_to_vec(), 3), Ok(9));
        assert!(check_ack(&fine.encode_to_vec(), 4).is_err());
        let failed = v1::AppendAck { error: Some(v1::Error::default()), ..fine };
        assert!(check_ack(&failed.encode_to_vec(), 3).is_err());
    }
}
