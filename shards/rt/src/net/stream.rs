//! A connection. Reading is a non-blocking recv, then a poll through the ring (glommio's, armed early when a read
//! takes all there is); writing is a non-blocking sendmsg, then a poll. Buffers are borrowed, never copied, so both
//! may be dropped at any time. glommio's own timeouts misfire and are not used: see [`crate::time::timeout`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use glommio::net as glommio_net;
use socket2::{MsgHdr, SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An open TCP connection; dropping it closes it.
#[derive(Debug)]
pub struct TcpStream {
    stream: glommio_net::TcpStream,
    peer: SocketAddr,
}

impl TcpStream {
    /// Connects, with TCP_NODELAY.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = glommio_net::TcpStream::connect(address).await.map_err(io::Error::from)?;
        Self::from_glommio(stream)
    }

    pub(super) fn from_glommio(stream: glommio_net::TcpStream) -> io::Result<Self> {
        let peer = on_socket(&stream, |socket| {
            socket.set_tcp_nodelay(true)?;
            socket.set_cloexec(true)?;
            socket.peer_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        })?;
        Ok(Self { stream, peer })
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// This end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = on_socket(&self.stream, Socket::local_addr)?;
        address.as_socket().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn try_send(&self, slices: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let header = MsgHdr::new().with_buffers(slices);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        match on_socket(&self.stream, |socket| socket.sendmsg(&header, flags)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            outcome => Some(outcome),
        }
    }
}

/// glommio hides its socket's options.
fn on_socket<T>(
    stream: &glommio_net::TcpStream,
    call: impl FnOnce(&Socket) -> io::Result<T>,
) -> io::Result<T> {
    // SAFETY: the descriptor is open as long as the stream, which is borrowed during the call.
    let descriptor = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    call(&SockRef::from(&descriptor))
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: glommio hands the slice to recv(2) and never reads from it, so it need not be initialised; what
        // recv says it has written is.
        let taken = unsafe {
            let unfilled = buf.unfilled_mut();
            let unfilled = &mut *(std::ptr::from_mut(unfilled) as *mut [u8]);
            ready!(futures::AsyncRead::poll_read(Pin::new(&mut self.stream), cx, unfilled))?
        };
        // SAFETY: recv(2) has written the first `taken` bytes.
        unsafe { buf.assume_init(taken) };
        buf.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        futures::AsyncWrite::poll_write(Pin::new(&mut self.stream), cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(outcome) = self.try_send(slices) {
            return Poll::Ready(outcome);
        }
        // No room: glommio tries again with the first piece, and else asks the ring to tell.
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        futures::AsyncWrite::poll_write(Pin::new(&mut self.stream), cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures::AsyncWrite::poll_close(Pin::new(&mut self.stream), cx)
    }
}
