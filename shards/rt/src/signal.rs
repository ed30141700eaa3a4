//! SIGTERM and SIGINT as a future.
//!
//! The signals are blocked in every thread and taken by one thread that does nothing else (`sigwait`), so no code
//! runs in a signal handler. Children inherit blocked signals: a program that starts others must unblock them.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread;

use futures::StreamExt;
use futures::channel::mpsc;

/// Someone wants the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: an init system, a container.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

/// The signals that arrive. `Send`: install in `main`, use on a core.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    /// Takes over SIGTERM and SIGINT. To be called in `main` before any other thread is made, and once: the threads
    /// made later inherit that the signals are blocked.
    pub fn install() -> io::Result<Self> {
        let set = blocked_set()?;
        // Unbounded, but only people and init systems send signals.
        let (sender, receiver) = mpsc::unbounded();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Some(signal) = wait(&set) {
                if sender.unbounded_send(signal).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self(receiver))
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Some(signal) => signal,
            // The thread is gone: no signal will come.
            None => futures::future::pending().await,
        }
    }
}

fn blocked_set() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it; the old mask is not asked for.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        let set = set.assume_init();
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) {
            0 => Ok(set),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

fn wait(set: &libc::sigset_t) -> Option<Signal> {
    loop {
        let mut number = 0;
        // SAFETY: both pointers are valid for the call.
        match unsafe { libc::sigwait(set, &raw mut number) } {
            0 if number == libc::SIGTERM => return Some(Signal::Terminate),
            0 if number == libc::SIGINT => return Some(Signal::Interrupt),
            0 | libc::EINTR => {}
            _ => return None,
        }
    }
}
