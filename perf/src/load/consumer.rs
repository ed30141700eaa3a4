//! Clients that subscribe to a stream: from its end, as long as the run lasts; or from its start to its end, again and
//! again.

use std::time::{SystemTime, UNIX_EPOCH};

use super::ops::{check_batch, paths, put_bytes_field, put_number_field};
use super::stats::OpId;
use super::workload::{Io, Progress, Workload, describe};
use crate::http2::grpc::set_length;
use crate::http2::hpack::Answer;
use crate::http2::{Deframer, GRPC_HEAD_BYTES, MethodId, Methods, StreamRef};

/// Every so many batches one is checked byte for byte.
const WHOLE_CHECK_EVERY: u64 = 64;

/// Which records a subscription gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Those appended from now on.
    Tail,
    /// All there are, again and again.
    All,
}

#[derive(Debug, Default)]
struct Client {
    stream: Option<StreamRef>,
    deframer: Deframer,
    next_offset: Option<u64>,
    items: u64,
    batches: u64,
}

/// Clients that subscribe.
#[derive(Debug)]
pub struct Consumers {
    follow: Follow,
    value_bytes: u32,
    op: OpId,
    method: MethodId,
    request: Vec<u8>,
    clients: Vec<Client>,
}

impl Consumers {
    /// So many subscriptions to a stream of one partition, whose records hold `value_bytes`.
    pub fn new(
        stream: &str,
        value_bytes: u32,
        follow: Follow,
        op: OpId,
        methods: &mut Methods,
        clients: usize,
    ) -> Self {
        let mut request = vec![0; GRPC_HEAD_BYTES];
        put_bytes_field(&mut request, 1, stream.as_bytes());
        match follow {
            Follow::Tail => put_number_field(&mut request, 4, 1),
            Follow::All => {
                put_number_field(&mut request, 3, 1);
                put_number_field(&mut request, 8, 1);
            }
        }
        set_length(&mut request, 0);
        Self {
            follow,
            value_bytes,
            op,
            method: methods.id(paths::SUBSCRIBE),
            request,
            clients: std::iter::repeat_with(Client::default).take(clients).collect(),
        }
    }

    fn fail(&mut self, io: &mut Io<'_>, what: String) -> Progress {
        if let Some(client) = self.clients.get_mut(io.client as usize) {
            client.stream = None;
        }
        io.recorder.failed(self.op, what);
        Progress::Idle
    }
}

impl Workload for Consumers {
    fn begin(&mut self, io: &mut Io<'_>, _due: u64) {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return };
        let stream = io.connection.open(self.method, io.client);
        io.connection.send(stream, &self.request, true);
        *client = Client { stream: Some(stream), ..Client::default() };
    }

    fn on_data(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Progress {
        let Some(client) = self.clients.get_mut(io.client as usize) else { return Progress::Idle };
        let Client { deframer, next_offset, items, batches, .. } = client;
        let mut wrong = None;
        let framed = deframer.push(bytes, |message| {
            *batches += 1;
            let whole = batches.is_multiple_of(WHOLE_CHECK_EVERY);
            let view = match check_batch(message, self.value_bytes, whole) {
                Ok(view) => view,
                Err(why) => return wrong = Some(why),
            };
            if next_offset.is_some_and(|next| next != view.base) {
                wrong = Some("a batch does not follow the one before");
            }
            *next_offset = Some(view.base + view.count);
            *items += view.count;
            match self.follow {
                Follow::All => io.recorder.received(self.op, view.count, view.value_bytes),
                Follow::Tail => {
                    // Millisecond steps: what the server says of the append's time. Both clocks are this machine's.
                    let delay_ms = unix_ms().saturating_sub(view.appended_at_ms);
                    io.recorder.done(self.op, delay_ms * 1_000_000, view.count, view.value_bytes);
                }
            }
        });
        if framed.is_err() {
            wrong = Some("the answer is no gRPC message");
        }
        if let Some(wrong) = wrong {
            io.recorder.failed(self.op, wrong.to_owned());
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
        let Some(client) = self.clients.get(io.client as usize) else { return Progress::Idle };
        match self.follow {
            Follow::All if client.items > 0 => Progress::Idle,
            Follow::All => self.fail(io, "the stream is empty".to_owned()),
            Follow::Tail => self.fail(io, "the subscription ended".to_owned()),
        }
    }

    fn on_reset(&mut self, io: &mut Io<'_>, code: u32) -> Progress {
        self.fail(io, format!("stream reset with code {code}"))
    }

    fn stop(&mut self, io: &mut Io<'_>) -> Progress {
        let stream = self.clients.get_mut(io.client as usize).and_then(|client| client.stream.take());
        if let Some(stream) = stream {
            io.connection.reset(stream);
        }
        Progress::Idle
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_proto::v1;
    use prost::Message;

    #[test]
    fn requests_are_what_the_api_says() {
        let request = |follow| {
            let consumers = Consumers::new("logs", 100, follow, OpId(0), &mut Methods::default(), 1);
            v1::SubscribeRequest::decode(&consumers.request[GRPC_HEAD_BYTES..]).unwrap()
        };
        let tail = request(Follow::Tail);
        assert_eq!(tail.start, Some(v1::subscribe_request::Start::Latest(true)));
        assert!(!tail.stop_at_end);
        let all = request(Follow::All);
        assert_eq!(
            (all.stream.as_str(), all.start),
            ("logs", Some(v1::subscribe_request::Start::Earliest(true)))
        );
        assert!(all.stop_at_end);
    }
}
