//! Memory for direct I/O.

use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::rc::Rc;

use flowmesh_store::disk::{ALIGN, IoBuf};
use glommio::io::{DmaBuffer, ReadResult};

/// Aligned memory. What a read returned shares the runtime's memory until it is written to.
#[derive(Debug)]
pub struct RtBuf(Memory);

#[derive(Debug)]
enum Memory {
    Owned(DmaBuffer),
    Read(ReadResult),
}

impl RtBuf {
    pub(super) fn zeroed(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(ALIGN), "{bytes} is not a multiple of {ALIGN}");
        if bytes == 0 {
            return Self(Memory::Read(ReadResult::default()));
        }
        let buffer = allocate(bytes);
        Self(Memory::Owned(buffer))
    }

    pub(super) fn from_read(read: ReadResult) -> Self {
        Self(Memory::Read(read))
    }

    pub(super) fn from_owned(buffer: DmaBuffer) -> Self {
        Self(Memory::Owned(buffer))
    }

    pub(super) fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// The memory itself, copied if it is the runtime's.
    pub(super) fn into_owned(mut self) -> DmaBuffer {
        self.make_owned();
        match self.0 {
            Memory::Owned(buffer) => buffer,
            Memory::Read(_) => allocate(ALIGN),
        }
    }

    fn make_owned(&mut self) {
        if let Memory::Read(read) = &self.0
            && !read.is_empty()
        {
            self.0 = Memory::Owned(copy_of(read));
        }
    }
}

fn allocate(bytes: usize) -> DmaBuffer {
    let mut buffer = glommio::allocate_dma_buffer(bytes);
    // SAFETY: the buffer's memory is `len` bytes long; it comes uninitialised, so no slice is made of it before.
    unsafe { ptr::write_bytes(buffer.as_mut_ptr(), 0, buffer.len()) };
    buffer
}

/// Memory with the same bytes.
pub(super) fn copy_of(bytes: &[u8]) -> DmaBuffer {
    let mut copy = allocate(bytes.len());
    copy.as_bytes_mut().copy_from_slice(bytes);
    copy
}

impl AsRef<[u8]> for RtBuf {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Memory::Owned(buffer) => buffer.as_bytes(),
            Memory::Read(read) => read,
        }
    }
}

impl AsMut<[u8]> for RtBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.make_owned();
        match &mut self.0 {
            Memory::Owned(buffer) => buffer.as_bytes_mut(),
            Memory::Read(_) => &mut [],
        }
    }
}

impl IoBuf for RtBuf {}

/// A buffer on loan: glommio writes the whole of what it is given and keeps it until the kernel is done, so it gets a
/// second handle on the same memory that is cut to the part to be written, and the whole comes back afterwards.
///
/// The memory has one owner at any time: the shared handle. The full one is only kept to be restored.
pub(super) struct Loan {
    full: ManuallyDrop<DmaBuffer>,
    shared: Rc<DmaBuffer>,
}

impl Loan {
    /// Lends the first `bytes`.
    pub(super) fn of_prefix(buffer: DmaBuffer, bytes: usize) -> Self {
        let full = ManuallyDrop::new(buffer);
        // SAFETY: a bitwise copy of an owned value; `full` is never dropped or used while this copy, or a clone of
        // the Rc around it, may be: see `end`.
        let mut prefix = unsafe { ptr::read(&raw const *full) };
        prefix.trim_to_size(bytes);
        Self { full, shared: Rc::new(prefix) }
    }

    /// What glommio is to write.
    pub(super) fn shared(&self) -> Rc<DmaBuffer> {
        Rc::clone(&self.shared)
    }

    /// Takes the whole buffer back. If glommio still holds its handle, which it does not once a write is over, the
    /// memory stays with it and the bytes are copied. A loan that is dropped instead leaves the memory to the last
    /// handle.
    pub(super) fn end(self) -> DmaBuffer {
        let Self { full, shared } = self;
        match Rc::try_unwrap(shared) {
            Ok(prefix) => {
                // The one owner is now `full`.
                mem::forget(prefix);
                ManuallyDrop::into_inner(full)
            }
            Err(shared) => {
                let copy = copy_of(full.as_bytes());
                drop(shared);
                copy
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_gives_back_the_whole_buffer_in_place() {
        let mut buffer = glommio::allocate_dma_buffer_global(4 * ALIGN);
        buffer.as_bytes_mut().fill(7);
        let address = buffer.as_ptr();
        let loan = Loan::of_prefix(buffer, ALIGN);
        let shared = loan.shared();
        assert_eq!((shared.len(), shared.as_ptr()), (ALIGN, address));
        drop(shared);
        let back = loan.end();
        assert_eq!((back.len(), back.as_ptr()), (4 * ALIGN, address));
        assert!(back.as_bytes().iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_dropped_loan_leaves_the_memory_to_the_last_handle() {
        let mut buffer = glommio::allocate_dma_buffer_global(ALIGN);
        buffer.as_bytes_mut().fill(9);
        let loan = Loan::of_prefix(buffer, ALIGN);
        let shared = loan.shared();
        drop(loan);
        assert!(shared.as_bytes().iter().all(|&byte| byte == 9));
    }
}
