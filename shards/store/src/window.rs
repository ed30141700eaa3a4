//! A part of a file in memory, read in large aligned pieces: several of them are under way at once where that much is wanted,
//! or where a reader goes on and on.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::{LocalBoxFuture, MaybeDone, maybe_done};

use crate::disk::DiskFile;
use crate::pages::round_up;

/// How much is read at once by those who read everything.
pub(crate) const READ_BYTES: usize = 1024 * 1024;

/// What is wanted at once comes in pieces of at least so much.
pub(crate) const PIECE_BYTES: usize = 512 * 1024;

/// A window that moves over a file, mostly forwards.
pub(crate) struct Window<F: DiskFile> {
    file: Rc<F>,
    /// Nothing is read from here on.
    end: u64,
    read_bytes: usize,
    ahead_bytes: usize,
    one_by_one: bool,
    bytes: BytesMut,
    /// The position of the first byte.
    start: u64,
    /// What follows, in order and without a gap.
    pieces: VecDeque<Piece<F::Buf>>,
}

/// A piece of the file, on its way or here. Dropped, it is no longer waited for.
struct Piece<B> {
    position: u64,
    bytes: usize,
    /// How much of it was taken.
    used: usize,
    read: MaybeDone<LocalBoxFuture<'static, io::Result<B>>>,
}

impl<B: AsRef<[u8]>> Piece<B> {
    fn end(&self) -> u64 {
        self.position + self.bytes as u64
    }

    /// Waits until it is here.
    async fn arrive(&mut self) -> io::Result<()> {
        (&mut self.read).await;
        let mut read = Pin::new(&mut self.read);
        match read.as_mut().output_mut() {
            Some(Err(_)) => read.take_output().map_or(Ok(()), |failed| failed.map(drop)),
            _ => Ok(()),
        }
    }

    /// What was not taken yet of a piece that is here, and whether the file ends with it.
    fn rest(&mut self) -> (&[u8], bool) {
        let bytes = match Pin::new(&mut self.read).output_mut() {
            Some(Ok(read)) => (*read).as_ref(),
            _ => &[],
        };
        (bytes.get(self.used..).unwrap_or_default(), bytes.len() < self.bytes)
    }
}

impl<F: DiskFile> Window<F> {
    pub fn new(file: Rc<F>, end: u64) -> Self {
        let (bytes, pieces) = (BytesMut::new(), VecDeque::new());
        Self { file, end, read_bytes: READ_BYTES, ahead_bytes: 0, one_by_one: false, bytes, start: 0, pieces }
    }

    /// Reads at least so much at once, a multiple of 4 KiB.
    pub fn with_reads_of(mut self, read_bytes: usize) -> Self {
        self.read_bytes = read_bytes;
        self
    }

    /// Has so many bytes of what follows on their way while what is there is used.
    pub fn with_ahead(mut self, ahead_bytes: usize) -> Self {
        self.ahead_bytes = ahead_bytes;
        self
    }

    /// Reads what is wanted at once piece by piece, so that others who use the disk wait for one only.
    pub fn one_by_one(mut self, one_by_one: bool) -> Self {
        self.one_by_one = one_by_one;
        self
    }

    /// Makes the window start at `position` (a multiple of 4 KiB) and hold `bytes`; `false` if the file ends before.
    pub async fn fill(&mut self, position: u64, bytes: usize) -> io::Result<bool> {
        self.go_to(position);
        let left = usize::try_from(self.end.saturating_sub(position)).unwrap_or(usize::MAX);
        let wanted = round_up(bytes.min(left));
        // Once: what is there is moved if it must grow.
        self.bytes.reserve(wanted.saturating_sub(self.bytes.len()));
        loop {
            let missing = wanted.saturating_sub(self.bytes.len());
            self.start_pieces(missing).await;
            let Some(piece) = self.pieces.front_mut().filter(|_| missing > 0) else {
                return Ok(self.bytes.len() >= bytes);
            };
            if let Err(error) = piece.arrive().await {
                self.pieces.clear();
                return Err(error);
            }
            let (rest, at_end) = piece.rest();
            let taken = missing.min(rest.len());
            self.bytes.extend_from_slice(rest.get(..taken).unwrap_or_default());
            if taken < rest.len() {
                piece.used += taken;
            } else if at_end {
                self.end = self.start + self.bytes.len() as u64;
                self.pieces.clear();
            } else {
                self.pieces.pop_front();
            }
        }
    }

    /// Makes the window start at `position`, with what is there of it.
    fn go_to(&mut self, position: u64) {
        let skip = position.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        self.start = position;
        if let Some(skip) = skip.filter(|&skip| skip <= self.bytes.len()) {
            return self.bytes.advance(skip);
        }
        self.bytes = BytesMut::new();
        while self.pieces.front().is_some_and(|piece| piece.end() <= position) {
            self.pieces.pop_front();
        }
        match self.pieces.front_mut() {
            Some(piece) if piece.position <= position => piece.used = (position - piece.position) as usize,
            _ => self.pieces.clear(),
        }
    }

    /// Has on their way what is missing, and what is to be read ahead.
    async fn start_pieces(&mut self, missing: usize) {
        let behind = self.start + self.bytes.len() as u64;
        let bytes = self.read_bytes.max(round_up(missing).min(PIECE_BYTES));
        loop {
            let position = self.pieces.back().map_or(behind, Piece::end);
            let coming = (position - behind) as usize;
            let left = usize::try_from(self.end.saturating_sub(position)).unwrap_or(usize::MAX);
            let wanted = if self.one_by_one { missing.min(1) } else { missing };
            if left == 0 || (coming >= wanted && coming + bytes > self.ahead_bytes) {
                return;
            }
            let (file, bytes) = (Rc::clone(&self.file), bytes.min(round_up(left)));
            let read: LocalBoxFuture<'static, _> =
                Box::pin(async move { file.read_at(position, bytes).await });
            let mut piece = Piece { position, bytes, used: 0, read: maybe_done(read) };
            // A read begins when it is first polled.
            let _ = futures::poll!(&mut piece.read);
            self.pieces.push_back(piece);
        }
    }

    /// What the window holds: at least what was asked for last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes `bytes` off the front; the window then starts behind them.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        self.start += bytes as u64;
        self.bytes.split_to(bytes).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{ALIGN, IoBuf};
    use futures::executor::block_on;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};

    struct Memory(Vec<u8>);

    impl AsRef<[u8]> for Memory {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl AsMut<[u8]> for Memory {
        fn as_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }

    impl IoBuf for Memory {}

    /// A file whose reads take some polls, and which says what it was asked for.
    #[derive(Default)]
    struct File {
        bytes: Vec<u8>,
        polls: usize,
        reads: RefCell<Vec<(u64, usize)>>,
        fails: Cell<bool>,
        done: Cell<usize>,
    }

    impl File {
        fn of(bytes: usize) -> Self {
            let bytes = (0..bytes).map(|at| (at / 8 * 7 + at) as u8).collect();
            Self { bytes, ..Self::default() }
        }
    }

    impl DiskFile for File {
        type Buf = Memory;

        async fn read_at(&self, position: u64, bytes: usize) -> io::Result<Memory> {
            assert!(position.is_multiple_of(ALIGN as u64) && bytes.is_multiple_of(ALIGN) && bytes > 0);
            self.reads.borrow_mut().push((position, bytes));
            for _ in 0..self.polls {
                futures::pending!();
            }
            if self.fails.take() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.done.set(self.done.get() + 1);
            let rest = self.bytes.get(position as usize..).unwrap_or_default();
            Ok(Memory(rest.get(..bytes).unwrap_or(rest).to_vec()))
        }

        async fn write_at(&self, _: Memory, _: usize, _: u64) -> io::Result<Memory> {
            unreachable!("a window only reads")
        }

        async fn sync(&self) -> io::Result<()> {
            unreachable!("a window only reads")
        }

        async fn allocate(&self, _: u64) -> io::Result<()> {
            unreachable!("a window only reads")
        }

        async fn truncate(&self, _: u64) -> io::Result<()> {
            unreachable!("a window only reads")
        }

        async fn size(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }
    }

    fn window(file: &Rc<File>, pages: usize, ahead: usize) -> Window<File> {
        let window = Window::new(Rc::clone(file), file.bytes.len() as u64);
        window.with_reads_of(pages * ALIGN).with_ahead(ahead * ALIGN)
    }

    /// Polls until it is done, as an executor that looks all the time.
    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut cx) {
                return done;
            }
        }
    }

    #[test]
    fn what_follows_is_on_its_way_while_what_is_there_is_used() {
        let file = Rc::new(File { polls: 1, ..File::of(64 * ALIGN) });
        let mut window = window(&file, 2, 4);
        for page in 0..64 {
            assert!(run(window.fill(page * ALIGN as u64, ALIGN)).unwrap());
            let asked: usize = file.reads.borrow().iter().map(|(_, bytes)| bytes / ALIGN).sum();
            let ahead = asked - page as usize - 1;
            let left = 63 - page as usize;
            assert!(ahead >= left.min(3) && ahead <= 5, "{ahead} pages ahead of page {page}");
            assert_eq!(window.take(ALIGN), file.bytes[page as usize * ALIGN..][..ALIGN]);
        }
        assert!(!run(window.fill(64 * ALIGN as u64, ALIGN)).unwrap());
        let reads: Vec<_> = (0..32).map(|read| (read * 2 * ALIGN as u64, 2 * ALIGN)).collect();
        assert_eq!(*file.reads.borrow(), reads, "everything is read once");
    }

    #[test]
    fn what_is_wanted_at_once_is_read_at_once() {
        let file = Rc::new(File { polls: 2, ..File::of(8 * PIECE_BYTES) });
        let mut window = window(&file, 1, 0);
        let mut fill = std::pin::pin!(window.fill(0, 4 * PIECE_BYTES));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(fill.as_mut().poll(&mut cx).is_pending());
        let asked: Vec<_> = file.reads.borrow().iter().map(|(position, _)| *position).collect();
        assert_eq!(asked, [0, 1, 2, 3].map(|piece| piece * PIECE_BYTES as u64));
    }

    #[test]
    fn what_is_wanted_beside_others_is_read_piece_by_piece() {
        let file = Rc::new(File { polls: 2, ..File::of(8 * PIECE_BYTES) });
        let mut window = window(&file, PIECE_BYTES / ALIGN, PIECE_BYTES / ALIGN).one_by_one(true);
        let mut fill = std::pin::pin!(window.fill(0, 4 * PIECE_BYTES));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        while fill.as_mut().poll(&mut cx).is_pending() {
            let begun = file.reads.borrow().len();
            assert!(begun <= file.done.get() + 1, "{begun} reads begun, {} done", file.done.get());
        }
        let asked: usize = file.reads.borrow().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(asked, 5 * PIECE_BYTES, "and one ahead");
    }

    #[test]
    fn a_read_that_failed_is_made_again_by_who_asks_again() {
        let file = Rc::new(File { fails: Cell::new(true), ..File::of(8 * ALIGN) });
        let mut window = window(&file, 1, 3);
        let failed = block_on(window.fill(0, 2 * ALIGN)).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::InvalidData);
        assert!(block_on(window.fill(0, 2 * ALIGN)).unwrap());
        assert_eq!(window.bytes(), &file.bytes[..2 * ALIGN]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Wherever it is moved, however much it reads, and wherever the file ends: what it holds is what the file holds.
        #[test]
        fn a_window_holds_what_the_file_holds(
            bytes in 0..40 * ALIGN,
            polls in 0..3usize,
            pages in 1..5usize,
            ahead in 0..12usize,
            moves in proptest::collection::vec((0..48usize, 1..9 * ALIGN, any::<bool>(), any::<bool>()), 1..24),
        ) {
            let file = Rc::new(File { polls, ..File::of(bytes) });
            let mut window = window(&file, pages, ahead);
            let mut behind = 0;
            for (page, wanted, goes_on, takes) in moves {
                let position = if goes_on { behind } else { page * ALIGN };
                let held = run(window.fill(position as u64, wanted)).unwrap();
                prop_assert_eq!(held, position + wanted <= bytes);
                let found = file.bytes.get(position..).unwrap_or_default();
                prop_assert!(found.starts_with(window.bytes()));
                prop_assert!(window.bytes().len() >= wanted.min(found.len()));
                if held && takes {
                    let whole = wanted / ALIGN * ALIGN;
                    prop_assert_eq!(&window.take(whole)[..], &found[..whole]);
                    behind = position + whole;
                }
            }
        }
    }
}
