//! What happened, in order: the same seed gives the same trace, byte for byte.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::rc::Rc;

#[derive(Default)]
struct Inner {
    sum: u32,
    lines: u64,
    kept: Option<String>,
}

/// A trace. Clones are the same.
#[derive(Clone, Default)]
pub struct Trace {
    inner: Rc<RefCell<Inner>>,
}

impl Trace {
    /// One that keeps all lines, not only their sum.
    pub fn kept() -> Self {
        let inner = Inner { kept: Some(String::new()), ..Inner::default() };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Whether it keeps lines: if not, what they would say need not be known.
    pub fn is_kept(&self) -> bool {
        self.inner.borrow().kept.is_some()
    }

    /// Adds a line. One that is not kept is only counted: to write them all down takes as long as all else.
    pub fn line(&self, at_ns: u64, what: fmt::Arguments<'_>) {
        if !self.is_kept() {
            self.inner.borrow_mut().lines += 1;
            return;
        }
        let mut text = String::new();
        let _ = writeln!(text, "{at_ns} {what}");
        let inner = &mut *self.inner.borrow_mut();
        inner.sum = crc32c::crc32c_append(inner.sum, text.as_bytes());
        inner.lines += 1;
        if let Some(kept) = &mut inner.kept {
            kept.push_str(&text);
        }
    }

    /// CRC-32C of all lines that were kept, and how many there were.
    pub fn sum(&self) -> (u32, u64) {
        let inner = self.inner.borrow();
        (inner.sum, inner.lines)
    }

    /// All lines, if they were kept.
    pub fn text(&self) -> String {
        self.inner.borrow().kept.clone().unwrap_or_default()
    }
}
