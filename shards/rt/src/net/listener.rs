//! Listening sockets, made with socket2 because glommio's own lack SO_REUSEADDR and panic on bad addresses.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};

use glommio::net as glommio_net;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;

use super::TcpStream;

/// Connections that wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// An address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {}", describe(.source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

fn describe(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "not permitted (ports below 1024 need CAP_NET_BIND_SERVICE)".to_owned()
        }
        _ => source.to_string(),
    }
}

/// Whether nobody listens on an address. [`Listener::bind`] alone would not notice: several sockets may share an
/// address (SO_REUSEPORT), and two servers of one user would then get half of the connections each. To be called once
/// before the cores listen.
pub fn ensure_unused(address: SocketAddr) -> Result<(), BindError> {
    bound(address, false).map(drop).map_err(|source| BindError { address, source })
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a server that has just ended must not keep the next one from starting.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A listening socket of one core.
#[derive(Debug)]
pub struct Listener {
    listener: glommio_net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address; other cores may listen on the same one, and the kernel spreads the connections. Port 0
    /// takes any free port (see [`Listener::local_addr`]). To be called on a core.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let socket = bound(address, true)?;
            let address = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok((socket, address))
        };
        let (socket, address) = bind().map_err(|source| BindError { address, source })?;
        // SAFETY: the descriptor is a listening socket, and ours alone to give away.
        let listener = unsafe { glommio_net::TcpListener::from_raw_fd(socket.into_raw_fd()) };
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, with TCP_NODELAY. If this is dropped while it waits, the connection that arrives next may
    /// be lost: keep one accept loop running until the end.
    ///
    /// # Errors
    /// Those of accept(2). Most pass: of the connection (it was reset), or of the process (too many open files), which
    /// asks for a pause before the next try.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let stream = self.listener.accept().await.map_err(io::Error::from)?;
        TcpStream::from_glommio(stream)
    }
}
