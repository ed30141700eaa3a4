//! The socket below h2, with fewer system calls: one read takes all there is, one write sends all that a pass of the
//! connection produced.
//!
//! h2 reads in pieces of 8 KiB and writes in pieces of 16 KiB, and asks the socket again for every request it hands
//! out. Between the two stand buffers of [`BUFFER_BYTES`] that are borrowed from a pool while they hold something, so
//! an idle connection owns none. The connection calls [`IoHandle::begin_pass`] before and [`IoHandle::poll_flush`]
//! after it let h2 work; h2's own flushes in between do nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of each buffer: what a loopback or 10 Gbit/s socket has ready at once.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Writes from here on go to the socket without a copy.
const DIRECT_WRITE_BYTES: usize = 32 * 1024;

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
        let mut state = self.state.borrow_mut();
        if state.output.is_empty() && bytes.len() >= DIRECT_WRITE_BYTES {
            return Pin::new(&mut state.socket).poll_write(cx, bytes);
        }
        if state.output.space().is_empty() {
            ready!(state.poll_drain(cx))?;
        }
        Poll::Ready(Ok(state.output.append(bytes)))
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
