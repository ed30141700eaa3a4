//! Which CPUs a thread may run on. Threads inherit it, so what a pinned core starts would be pinned to that core too.

use std::io;
use std::mem;

/// A set of CPUs, as the kernel keeps it.
#[derive(Clone, Copy)]
pub(crate) struct CpuSet(libc::cpu_set_t);

/// Which thread.
#[derive(Clone, Copy)]
enum Thread {
    /// The one that asks.
    Current,
    /// The process's first, which is never pinned.
    Main,
}

impl CpuSet {
    /// The CPUs this process may use: those of its first thread, as taskset, cgroups or systemd left them.
    pub(crate) fn of_process() -> io::Result<Self> {
        Self::of(Thread::Main)
    }

    /// The CPUs of the calling thread.
    pub(crate) fn of_current_thread() -> io::Result<Self> {
        Self::of(Thread::Current)
    }

    fn of(thread: Thread) -> io::Result<Self> {
        // SAFETY: a plain system call that fills `set`, which is as large as its size argument says.
        unsafe {
            let pid = match thread {
                Thread::Current => 0,
                Thread::Main => libc::getpid(),
            };
            let mut set: libc::cpu_set_t = mem::zeroed();
            if libc::sched_getaffinity(pid, mem::size_of_val(&set), &raw mut set) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(set))
        }
    }

    /// Binds the calling thread to these CPUs.
    pub(crate) fn apply_to_current_thread(&self) -> io::Result<()> {
        // SAFETY: a plain system call that reads `self.0`.
        let done = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&self.0), &raw const self.0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Their numbers, ascending.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        let capacity = libc::CPU_SETSIZE as usize;
        // SAFETY: CPU_ISSET reads one bit below CPU_SETSIZE.
        (0..capacity).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) }).collect()
    }
}
