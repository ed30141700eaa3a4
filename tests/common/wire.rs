//! Raw HTTP/2 with the h2 crate, and raw sockets: for what a proper gRPC client would never send.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

use super::wait::within;

/// What came back for a call.
#[derive(Debug)]
pub struct Answer {
    pub http_status: u16,
    /// The `grpc-status`, wherever it was.
    pub grpc_status: Option<i32>,
    pub message: String,
    /// Whether the status came without a body, in the headers.
    pub trailers_only: bool,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An HTTP/2 connection that sends what it is told.
pub struct Wire {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Wire {
    pub async fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (send, connection) = within("HTTP/2 handshake", h2::client::handshake(socket)).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    /// Calls a method with a body of these bytes, ended by END_STREAM.
    pub async fn call(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, h2::Error> {
        let mut request = Request::post(format!("http://test{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let send = self.send.clone();
        let mut ready = within("a stream may be opened", send.ready()).await?;
        let (response, mut stream) = ready.send_request(request.body(()).unwrap(), false)?;
        // The server may answer before it has all of the body, and reset the rest: that is no failure.
        let _ = stream.send_data(body, true);
        within("an answer", read_answer(response)).await
    }

    /// Calls a method the way gRPC does, with a body of these bytes.
    pub async fn grpc(&mut self, method: &str, body: Bytes) -> Answer {
        self.call(&format!("/flowmesh.v1.{method}"), &GRPC, body).await.unwrap()
    }

    /// Goes away without a word: the socket is closed with whatever is under way.
    pub fn abort(self) {
        self.driver.abort();
    }

    /// Opens a call and leaves it open.
    pub async fn open(&mut self, method: &str) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut request = Request::post(format!("http://test/flowmesh.v1.{method}"));
        for (name, value) in GRPC {
            request = request.header(name, value);
        }
        let mut ready = self.send.clone().ready().await.unwrap();
        ready.send_request(request.body(()).unwrap(), false).unwrap()
    }
}

/// How a client begins, and an empty SETTINGS frame: all the server asks of it.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The headers of every gRPC call.
pub const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

async fn read_answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let response = response.await?;
    let (head, mut stream) = response.into_parts();
    let mut body = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    let trailers_only = trailers.is_none();
    let ending = trailers.unwrap_or_else(|| head.headers.clone());
    let text = |name: &str| ending.get(name).map(|value| value.to_str().unwrap().to_owned());
    Ok(Answer {
        http_status: head.status.as_u16(),
        grpc_status: text("grpc-status").map(|code| code.parse().unwrap()),
        message: text("grpc-message").unwrap_or_default(),
        trailers_only,
        headers: head.headers,
        body: body.freeze(),
    })
}

/// A message in its gRPC frame, not compressed.
pub fn framed(message: &impl Message) -> Bytes {
    frame(0, &message.encode_to_vec())
}

/// Any bytes in a gRPC frame.
pub fn frame(flag: u8, bytes: &[u8]) -> Bytes {
    frame_of_length(flag, u32::try_from(bytes.len()).unwrap(), bytes)
}

/// A gRPC frame whose length says something of its own.
pub fn frame_of_length(flag: u8, length: u32, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + bytes.len());
    out.put_u8(flag);
    out.put_u32(length);
    out.put_slice(bytes);
    out.freeze()
}
