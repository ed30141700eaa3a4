//! One call at a time: to set a run up, and to look at the server before and after.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::connection::{Event, ProtocolError};
use super::grpc::{Deframer, frame_message};
use super::request::Methods;
use super::socket::{Peer, Poll};

/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered with a status other than OK.
    #[error("gRPC status {status}: {message}")]
    Status {
        /// The status.
        status: u32,
        /// Its message, percent-encoded.
        message: String,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection failed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server answered with something else than a message.
    #[error("the answer is not a message")]
    BadAnswer,
    /// The call took too long.
    #[error("no answer in {}", humantime(CALL_DEADLINE))]
    TimedOut,
    /// The server gave the stream up.
    #[error("stream reset with code {0}")]
    Reset(u32),
}

fn humantime(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

/// A connection for one call at a time.
#[derive(Debug)]
pub struct UnaryClient {
    peer: Peer,
    poll: Poll,
    methods: Methods,
    address: SocketAddr,
    buffer: Vec<u8>,
}

impl UnaryClient {
    /// Connects. `paths` are the methods that will be called.
    pub fn connect(address: SocketAddr, paths: &[&'static str]) -> anyhow::Result<Self> {
        let mut methods = Methods::default();
        for path in paths {
            methods.id(path);
        }
        let peer = Peer::connect(address, &methods, 1)?;
        let poll = Poll::new()?;
        poll.add(&peer, 0)?;
        Ok(Self { peer, poll, methods, address, buffer: Vec::new() })
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls one of the methods named at [`UnaryClient::connect`].
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<R: prost::Message + Default>(
        &mut self,
        path: &'static str,
        request: &impl prost::Message,
    ) -> Result<R, CallError> {
        let body = self.call_bytes(path, &frame_message(request))?;
        R::decode(&body[..]).map_err(|_| CallError::BadAnswer)
    }

    /// As [`UnaryClient::call`], with a message already framed; returns the answer's message.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call_bytes(&mut self, path: &'static str, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let method = self.methods.id(path);
        let stream = self.peer.connection.open(method, 0);
        self.peer.connection.send(stream, body, true);
        let deadline = Instant::now() + CALL_DEADLINE;
        let (mut deframer, mut answer, mut ready) = (Deframer::default(), None, Vec::new());
        loop {
            self.peer.flush(&self.poll, 0)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::TimedOut);
            }
            self.poll.wait(left, &mut ready)?;
            let bytes = self.peer.receive(&mut self.buffer)?;
            let (mut input, mut status) = (bytes, None);
            while let Some(event) = self.peer.connection.next_event(&mut input)? {
                match event {
                    Event::Data { bytes, .. } => deframer
                        .push(bytes, |message| answer = Some(message.to_vec()))
                        .map_err(|_| CallError::BadAnswer)?,
                    Event::Headers { answer, end: true, .. } => {
                        status = Some(answer.grpc_status.unwrap_or(2));
                    }
                    Event::Headers { .. } => {}
                    Event::Reset { code, .. } => return Err(CallError::Reset(code)),
                }
            }
            self.peer.keep(input);
            match status {
                None => {}
                Some(0) => return answer.ok_or(CallError::BadAnswer),
                Some(status) => {
                    let message = self.peer.connection.last_message().to_owned();
                    return Err(CallError::Status { status, message });
                }
            }
        }
    }
}
