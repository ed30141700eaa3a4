//! The socket below h2, with fewer system calls: one read takes all there is, one write sends all that a pass of the
//! connection produced.
//!
//! h2 reads in pieces of 8 KiB and writes in pieces of 16 KiB, and asks the socket again for every request it hands
//! out. Between the two stand buffers of [`BUFFER_BYTES`] that are borrowed from a pool while they hold something, so
//! an idle connection owns none. The connection calls [`IoHandle::begin_pass`] before and [`IoHandle::poll_flush`]
//! after it let h2 work; h2's own flushes in between do nothing.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of each buffer: what a loopback or 10 Gbit/s socket has ready at once.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Writes from here on go to the socket without a copy, together with what waits before them.
const DIRECT_WRITE_BYTES: usize = 32 * 1024;

/// Pieces of one such write: what waits, the frame's head, its payload, and one to spare.
const DIRECT_PIECES: usize = 4;

/// Reads of one pass: at most a quarter of a megabyte in small frames.
const READS_MAX: u32 = 4;

/// Buffers a core keeps for reuse.
const POOL_MAX: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes in a borrowed buffer: `buffer[start..end]`.
#[derive(Default)]
struct Pending {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn filled(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.start..self.end)).unwrap_or_default()
    }

    /// The free space behind what is there, in a buffer that is borrowed if there is none.
    fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(|| {
            POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
        });
        buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Takes `bytes` off the front; an empty buffer goes back to the pool.
    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.end, "consumed what is not there");
        if self.is_empty() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(buffer) = self.buffer.take() {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOL_MAX {
                    pool.push(buffer);
                }
            });
        }
    }

    fn append(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let taken = space.len().min(bytes.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..taken), bytes.get(..taken)) {
            space.copy_from_slice(bytes);
        }
        self.end += taken;
        taken
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.give_back();
    }
}

struct State<IO> {
    socket: IO,
    input: Pending,
    output: Pending,
    /// The socket is not asked again in this pass.
    read_blocked: bool,
    /// Reads left in this pass, so that one client cannot keep the core.
    reads_left: u32,
}

/// The side that h2 owns.
pub struct PassIo<IO> {
    state: Rc<RefCell<State<IO>>>,
    received: Rc<Cell<u64>>,
}

/// The side that the connection owns.
pub struct IoHandle<IO> {
    state: Rc<RefCell<State<IO>>>,
    received: Rc<Cell<u64>>,
}

/// Puts the buffers around a socket.
pub fn pass_io<IO>(socket: IO) -> (PassIo<IO>, IoHandle<IO>) {
    let (input, output) = (Pending::default(), Pending::default());
    let state = State { socket, input, output, read_blocked: false, reads_left: READS_MAX };
    let state = Rc::new(RefCell::new(state));
    let received = Rc::new(Cell::new(0));
    (PassIo { state: Rc::clone(&state), received: Rc::clone(&received) }, IoHandle { state, received })
}

impl<IO: AsyncWrite + Unpin> State<IO> {
    /// Sends what waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, self.output.filled()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.consume(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> State<IO> {
    /// Sends what waits and, behind it, of `slices` as much as the socket takes.
    fn poll_write_through(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let waiting = self.output.filled();
            let mut pieces = [IoSlice::new(&[]); DIRECT_PIECES];
            let given = std::iter::once(waiting).chain(slices.iter().map(|slice| &**slice));
            for (piece, bytes) in pieces.iter_mut().zip(given) {
                *piece = IoSlice::new(bytes);
            }
            let waiting = waiting.len();
            let sent = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &pieces))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.consume(sent.min(waiting));
            if sent > waiting {
                return Poll::Ready(Ok(sent - waiting));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> IoHandle<IO> {
    /// A new pass: the socket may be asked again.
    pub fn begin_pass(&self) {
        let mut state = self.state.borrow_mut();
        state.read_blocked = false;
        state.reads_left = READS_MAX;
    }

    /// Whether the pass ended with the socket's patience, not its data: the next pass must follow by itself.
    pub fn has_more(&self) -> bool {
        let state = self.state.borrow();
        state.reads_left == 0 && !state.read_blocked
    }

    /// Sends what h2 wrote; Pending: the rest waits for the socket, which will wake the connection.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        if state.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(state.poll_drain(cx))?;
        Pin::new(&mut state.socket).poll_flush(cx)
    }

    /// Bytes received so far: a sign of life.
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for PassIo<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.input.is_empty() {
            if state.read_blocked || state.reads_left == 0 {
                return Poll::Pending;
            }
            state.reads_left -= 1;
            if target.remaining() >= BUFFER_BYTES {
                let before = target.filled().len();
                let outcome = Pin::new(&mut state.socket).poll_read(cx, target);
                state.read_blocked = outcome.is_pending();
                self.received.set(self.received.get() + (target.filled().len() - before) as u64);
                return outcome;
            }
            let mut buffer = ReadBuf::new(state.input.space());
            let outcome = Pin::new(&mut state.socket).poll_read(cx, &mut buffer);
            let taken = buffer.filled().len();
            state.input.end += taken;
            self.received.set(self.received.get() + taken as u64);
            if taken == 0 {
                state.read_blocked = outcome.is_pending();
                state.input.give_back();
                return outcome;
            }
        }
        let filled = state.input.filled();
        let taken = filled.len().min(target.remaining());
        target.put_slice(filled.get(..taken).unwrap_or_default());
        state.input.consume(taken);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for PassIo<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state.borrow_mut();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if bytes >= DIRECT_WRITE_BYTES {
            return state.poll_write_through(cx, slices);
        }
        if state.output.space().is_empty() {
            ready!(state.poll_drain(cx))?;
        }
        Poll::Ready(Ok(slices.iter().map(|slice| state.output.append(slice)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        ready!(state.poll_drain(cx))?;
        Pin::new(&mut state.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::task::Waker;

    /// A socket that takes and gives what it is told to, and counts how often it is asked.
    #[derive(Default)]
    struct Socket {
        incoming: VecDeque<Vec<u8>>,
        sent: Vec<u8>,
        reads: usize,
        writes: usize,
        write_max: usize,
        blocked: bool,
    }

    impl AsyncRead for Socket {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            target: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            let Some(mut bytes) = self.incoming.pop_front() else { return Poll::Pending };
            let rest = bytes.split_off(bytes.len().min(target.remaining()));
            target.put_slice(&bytes);
            if !rest.is_empty() {
                self.incoming.push_front(rest);
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            if self.blocked {
                return Poll::Pending;
            }
            let taken = bytes.len().min(self.write_max);
            self.sent.extend(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn read(io: &mut PassIo<Socket>, bytes_max: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; bytes_max];
        let mut target = ReadBuf::new(&mut bytes);
        match Pin::new(io).poll_read(&mut Context::from_waker(Waker::noop()), &mut target) {
            Poll::Ready(done) => {
                done.unwrap();
                Some(target.filled().to_vec())
            }
            Poll::Pending => None,
        }
    }

    fn write(io: &mut PassIo<Socket>, bytes: &[u8]) -> Option<usize> {
        let (head, tail) = bytes.split_at(bytes.len().min(9));
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        match Pin::new(io).poll_write_vectored(&mut Context::from_waker(Waker::noop()), &slices) {
            Poll::Ready(taken) => Some(taken.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_read_feeds_many_small_ones_and_a_dry_socket_is_asked_once_a_pass() {
        let incoming = VecDeque::from([vec![1; 10_000]]);
        let (mut io, handle) = pass_io(Socket { incoming, ..Default::default() });
        handle.begin_pass();
        let taken: usize = std::iter::from_fn(|| read(&mut io, 1000)).map(|bytes| bytes.len()).sum();
        assert_eq!(taken, 10_000);
        for _ in 0..5 {
            assert_eq!(read(&mut io, 1000), None);
        }
        assert_eq!(handle.state.borrow().socket.reads, 2);
        assert_eq!(handle.received(), 10_000);
        assert!(!handle.has_more());
    }

    #[test]
    fn a_client_that_never_stops_gets_no_more_than_its_share_of_a_pass() {
        let incoming = VecDeque::from(vec![vec![1; BUFFER_BYTES]; 100]);
        let (mut io, handle) = pass_io(Socket { incoming, ..Default::default() });
        handle.begin_pass();
        while read(&mut io, 8192).is_some() {}
        assert_eq!(handle.state.borrow().socket.reads, READS_MAX as usize);
        assert!(handle.has_more());
        handle.begin_pass();
        assert!(read(&mut io, 8192).is_some());
    }

    #[test]
    fn small_writes_become_one() {
        let (mut io, handle) = pass_io(Socket { write_max: usize::MAX, ..Default::default() });
        for _ in 0..100 {
            assert_eq!(write(&mut io, &[7; 50]), Some(50));
        }
        assert!(handle.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
        let state = handle.state.borrow();
        assert_eq!((state.socket.writes, state.socket.sent.len()), (1, 5000));
        assert!(state.output.buffer.is_none(), "an idle connection owns no buffer");
    }

    #[test]
    fn large_writes_go_with_what_waits_before_them() {
        let (mut io, handle) = pass_io(Socket { write_max: usize::MAX, ..Default::default() });
        write(&mut io, &[1; 100]);
        assert_eq!(write(&mut io, &vec![2; DIRECT_WRITE_BYTES]), Some(DIRECT_WRITE_BYTES));
        let state = handle.state.borrow();
        assert_eq!((state.socket.writes, state.socket.sent.len()), (1, 100 + DIRECT_WRITE_BYTES));
    }

    #[test]
    fn a_socket_that_takes_nothing_pushes_back() {
        let (mut io, handle) = pass_io(Socket { write_max: usize::MAX, blocked: true, ..Default::default() });
        let taken: usize = std::iter::from_fn(|| write(&mut io, &[7; 1000])).sum();
        assert_eq!(taken, BUFFER_BYTES);
        assert_eq!(write(&mut io, &vec![7; 2 * DIRECT_WRITE_BYTES]), None);
        handle.state.borrow_mut().socket.blocked = false;
        assert!(handle.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(handle.state.borrow().socket.sent.len(), BUFFER_BYTES);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever the sizes, and however little the socket takes at once: the bytes arrive in order, all of them.
        #[test]
        fn what_is_written_arrives(sizes in proptest::collection::vec(1usize..100_000, 1..20), write_max in 1usize..90_000) {
            let (mut io, handle) = pass_io(Socket { write_max, ..Default::default() });
            let mut wanted = Vec::new();
            for (index, &size) in sizes.iter().enumerate() {
                let bytes: Vec<u8> = (0..size).map(|at| (at + index) as u8).collect();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    rest = &rest[write(&mut io, rest).unwrap()..];
                }
                wanted.extend(bytes);
                if index % 3 == 0 {
                    let _ = handle.poll_flush(&mut Context::from_waker(Waker::noop()));
                }
            }
            let _ = handle.poll_flush(&mut Context::from_waker(Waker::noop()));
            prop_assert!(handle.state.borrow().socket.sent == wanted);
        }
    }
}
