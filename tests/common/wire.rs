//! Raw HTTP/2 with the h2 crate, and raw sockets: for what a proper gRPC client would never send.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

/// A message in a gRPC frame, gzip'd.
pub fn gzip_frame(bytes: &[u8]) -> Bytes {
    frame(1, &gzip(bytes))
}

/// These bytes, gzip'd.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Types of HTTP/2 frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const GOAWAY: u8 = 7;

const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

/// A frame of HTTP/2, as it came.
#[derive(Debug)]
pub struct Frame {
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A socket on which a client has begun to speak HTTP/2; it answers nothing that the test does not answer.
pub async fn connect_raw(port: u16) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    socket
}

/// The next frame of that type; others are passed over. Panics at the end of the connection.
pub async fn next_frame(socket: &mut TcpStream, kind: u8) -> Frame {
    loop {
        let mut head = [0u8; 9];
        socket.read_exact(&mut head).await.unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; len];
        socket.read_exact(&mut payload).await.unwrap();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == kind {
            return Frame { stream, payload };
        }
    }
}

/// The frames of a whole gRPC call, made by hand: HEADERS, without any compression, and DATA.
pub fn raw_call(stream: u32, path: &str, body: &[u8]) -> Vec<u8> {
    // Of HPACK's static table: 3 is `:method: POST`, 6 is `:scheme: http`, 4 is the name `:path`.
    let mut headers = vec![0x83, 0x86, 0x04];
    let text = |bytes: &str, headers: &mut Vec<u8>| {
        headers.push(u8::try_from(bytes.len()).ok().filter(|len| *len < 127).unwrap());
        headers.extend(bytes.as_bytes());
    };
    text(path, &mut headers);
    for (name, value) in GRPC {
        headers.push(0);
        text(name, &mut headers);
        text(value, &mut headers);
    }
    let mut out = raw_frame(HEADERS, END_HEADERS, stream, &headers);
    out.extend(raw_frame(DATA, END_STREAM, stream, body));
    out
}

fn raw_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}
