//! Sockets that never block, and epoll.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::frame::HEAD_BYTES;
use super::request::{Methods, RequestHeaders};

/// What one read may bring: several frames, and few enough to stay in the core's cache.
const READ_BYTES: usize = 256 * 1024;
/// How long a server may take to accept and to send its settings.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Events taken at once; more come with the next call.
const EVENTS_MAX: usize = 256;

/// A socket that can go on.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// What it was added with.
    pub token: usize,
    /// There are bytes, or the end, or an error, to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
}

/// The kernel's list of sockets that can go on.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// An empty list.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call; the descriptor it returns is ours alone.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { epoll })
    }

    /// Watches a peer's socket for bytes to read.
    pub fn add(&self, peer: &Peer, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, peer, token, libc::EPOLLIN)
    }

    /// Watches for room to write as well, or no longer.
    pub fn watch_room(&self, peer: &Peer, token: usize, on: bool) -> io::Result<()> {
        let interest = if on { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, peer, token, interest)
    }

    fn control(&self, operation: i32, peer: &Peer, token: usize, interest: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: token as u64 };
        // SAFETY: both descriptors are open, and `event` outlives the call.
        let done = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), operation, peer.stream.as_raw_fd(), &raw mut event)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until a socket can go on, at most so long, and replaces `ready` by those that can. Zero looks without
    /// waiting.
    pub fn wait(&self, timeout: Duration, ready: &mut Vec<Readiness>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: the kernel writes at most EVENTS_MAX events into the array; the signal mask is left alone.
        let count = unsafe {
            libc::epoll_pwait2(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS_MAX as i32,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        ready.clear();
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        ready.extend(events.iter().take(count as usize).map(|event| {
            let writable = event.events & libc::EPOLLOUT as u32 != 0;
            let readable = event.events & !(libc::EPOLLOUT as u32) != 0;
            Readiness { token: event.u64 as usize, readable, writable }
        }));
        Ok(())
    }
}

/// A connection with its socket.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub connection: Connection,
    stream: TcpStream,
    /// The start of a frame of which the rest has not come yet.
    partial: Vec<u8>,
    watches_room: bool,
}

impl Peer {
    /// Connects, for up to `streams` streams, and waits for the server's settings.
    pub fn connect(address: SocketAddr, methods: &Methods, streams: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, HANDSHAKE_DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let headers = RequestHeaders::new(methods.clone(), address.to_string());
        let connection = Connection::new(headers, streams);
        let mut peer = Self { connection, stream, partial: Vec::new(), watches_room: false };
        peer.handshake(address)?;
        if let Some(max) = peer.connection.peer_streams_max()
            && (max as usize) < streams
        {
            anyhow::bail!("{address} allows {max} streams a connection, {streams} were asked for");
        }
        Ok(peer)
    }

    fn handshake(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + HANDSHAKE_DEADLINE;
        let (poll, mut ready, mut buffer) = (Poll::new()?, Vec::new(), Vec::new());
        poll.add(self, 0)?;
        while !self.connection.is_settled() {
            self.flush(&poll, 0)?;
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(!left.is_zero(), "{address} sent no HTTP/2 settings in time");
            poll.wait(left, &mut ready)?;
            let bytes = self.receive(&mut buffer)?;
            let mut input = bytes;
            self.connection.next_event(&mut input)?;
            self.keep(input);
        }
        Ok(())
    }

    /// Reads once. Returns all bytes not yet taken, including what [`Peer::keep`] kept; nothing new is no error, the
    /// end of the connection is.
    pub fn receive<'a>(&mut self, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let kept = self.partial.len();
        // A frame larger than one read is read in larger steps, so that it is not copied again and again.
        let size = kept * 2 + READ_BYTES;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let (start, room) = buffer.split_at_mut(kept);
        start.copy_from_slice(&self.partial);
        self.partial.clear();
        let read = match self.stream.read(room) {
            Ok(0) => {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        Ok(buffer.get(..kept + read).unwrap_or_default())
    }

    /// Whether the socket had no room for all output, so that another try makes sense only when it has.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        self.watches_room
    }

    /// Keeps the start of a frame until the next read.
    #[inline]
    pub fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            debug_assert!(rest.len() < HEAD_BYTES + super::connection::FRAME_BYTES_MAX as usize);
            self.partial.extend_from_slice(rest);
        }
    }

    /// Writes what the socket takes; the rest waits for room.
    pub fn flush(&mut self, poll: &Poll, token: usize) -> io::Result<()> {
        loop {
            let output = self.connection.output();
            if output.is_empty() {
                break;
            }
            match self.stream.write(output) {
                Ok(written) => self.connection.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let blocked = !self.connection.output().is_empty();
        if blocked != self.watches_room {
            self.watches_room = blocked;
            poll.watch_room(self, token, blocked)?;
        }
        Ok(())
    }
}
