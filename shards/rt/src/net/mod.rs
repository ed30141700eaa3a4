//! Sockets: [`Listener`] accepts, [`TcpStream`] carries bytes with tokio's `AsyncRead` and `AsyncWrite` (the traits
//! only; no tokio runtime), so that h2 and hyper run on it.

mod listener;
mod stream;

pub use listener::{BindError, Listener, ensure_unused};
pub use stream::TcpStream;
