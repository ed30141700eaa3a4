//! A client that speaks HTTP/2 by hand, so that it can misbehave, on an in-memory connection to the edge.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flowmesh_proto::rpc;
use futures::channel::oneshot;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::fake::Fake;
use crate::edge::grpc::message::put_message;
use crate::edge::grpc::{Edge, GrpcConfig, serve_connection};

/// Runs a test on one core, but not for ever.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs")
    })
}

/// Lets all tasks run until `done`.
pub async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A server and a connection to it.
pub struct Rig {
    pub fake: Fake,
    pub edge: Rc<Edge<Fake>>,
    pub client: SendRequest<Bytes>,
    pub stop: Option<oneshot::Sender<()>>,
    pub server: JoinHandle<()>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(Fake::new(1), GrpcConfig::default()).await
    }

    pub async fn with(fake: Fake, config: GrpcConfig) -> Self {
        // h2 clients close a connection on which more small frames wait to be read than their window suggests.
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(5 << 20);
        Self::with_client(fake, config, &builder).await
    }

    pub async fn with_client(fake: Fake, config: GrpcConfig, builder: &h2::client::Builder) -> Self {
        let edge = Edge::new(fake.clone(), config, fake.facts());
        let (near, far) = tokio::io::duplex(256 * 1024);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let server = spawn_local(serve_connection(far, Rc::clone(&edge), shutdown));
        let (client, connection) = builder.handshake(near).await.unwrap();
        let connection = spawn_local(connection);
        Self { fake, edge, client, stop: Some(stop), server, connection }
    }

    /// Begins a call.
    pub async fn open(&self, path: &str) -> Call {
        self.open_with(path, |request| request).await
    }

    /// Begins a call with other headers.
    pub async fn open_with(
        &self,
        path: &str,
        change: impl FnOnce(http::request::Builder) -> http::request::Builder,
    ) -> Call {
        let request = Request::post(format!("http://test/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut client = self.client.clone().ready().await.unwrap();
        let (response, send) = client.send_request(change(request).body(()).unwrap(), false).unwrap();
        Call {
            send,
            response: Some(response),
            body: None,
            buffer: BytesMut::new(),
            headers: HeaderMap::new(),
        }
    }

    /// A whole unary call.
    pub async fn call<M: Message + Default>(&self, path: &str, request: &impl Message) -> Result<M, Failure> {
        let mut call = self.open(path).await;
        call.send(request, true);
        call.only().await
    }
}

/// Why a call failed.
#[derive(Debug, PartialEq)]
pub struct Failure {
    pub code: i32,
    pub message: String,
    pub details: Option<rpc::Status>,
}

impl Failure {
    /// The stable reason.
    pub fn reason(&self) -> String {
        let details = &self.details.as_ref().expect("no details").details;
        rpc::ErrorInfo::decode(details[0].value.as_slice()).unwrap().reason
    }

    fn of(trailers: &HeaderMap) -> Self {
        let status = tonic::Status::from_header_map(trailers).expect("no grpc-status");
        let details = (!status.details().is_empty()).then(|| rpc::Status::decode(status.details()).unwrap());
        Self { code: status.code() as i32, message: status.message().to_owned(), details }
    }
}

/// One call.
pub struct Call {
    pub send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    buffer: BytesMut,
    headers: HeaderMap,
}

/// A message with its prefix.
pub fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, |out| message.encode(out).unwrap());
    out.freeze()
}

impl Call {
    pub fn send(&mut self, message: &impl Message, end: bool) {
        self.send.send_data(framed(message), end).unwrap();
    }

    pub fn send_raw(&mut self, bytes: &[u8], end: bool) {
        self.send.send_data(Bytes::copy_from_slice(bytes), end).unwrap();
    }

    /// Waits for the headers of the answer.
    pub async fn headers(&mut self) -> http::StatusCode {
        let response = self.response.take().unwrap().await.unwrap();
        let status = response.status();
        let (parts, body) = response.into_parts();
        self.headers = parts.headers;
        self.body = Some(body);
        status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The next DATA frame, its window given back.
    pub async fn data(&mut self) -> Option<Bytes> {
        if self.response.is_some() {
            self.headers().await;
        }
        let body = self.body.as_mut().unwrap();
        let data = body.data().await?.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        Some(data)
    }

    /// The next message.
    pub async fn next<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<5>() {
                let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if self.buffer.len() >= 5 + len {
                    self.buffer.advance(5);
                    return Some(M::decode(self.buffer.split_to(len)).unwrap());
                }
            }
            let data = self.data().await?;
            self.buffer.extend_from_slice(&data);
        }
    }

    /// How the call ended.
    pub async fn status(&mut self) -> Result<(), Failure> {
        while self.data().await.is_some() {}
        let trailers = self.body.as_mut().unwrap().trailers().await.unwrap();
        let failure = Failure::of(trailers.as_ref().unwrap_or(&self.headers));
        if failure.code == 0 { Ok(()) } else { Err(failure) }
    }

    /// The one message of the answer.
    pub async fn only<M: Message + Default>(&mut self) -> Result<M, Failure> {
        let message = self.next().await;
        self.status().await?;
        Ok(message.expect("no message"))
    }
}
