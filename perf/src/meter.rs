//! Processor time and memory of processes and threads, from /proc.

use std::fs;
use std::io;

use serde::Serialize;

/// Ticks of utime and stime a second; 100 on every Linux (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// One thread's time so far.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ThreadTime {
    thread: u32,
    name: String,
    run_ns: u64,
}

/// A process's time so far.
#[derive(Clone, Debug)]
pub struct CpuSample {
    user_ticks: u64,
    system_ticks: u64,
    threads: Vec<ThreadTime>,
}

/// What a process used between two samples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CpuUse {
    /// All threads, user and kernel time, in seconds. From utime and stime: in steps of 10 ms.
    pub process_s: f64,
    /// The kernel's part of it.
    pub system_s: f64,
    /// Each thread that ran, busiest first, in seconds; exact.
    pub threads: Vec<ThreadUse>,
}

/// What a thread used.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadUse {
    /// The thread's name.
    pub name: String,
    /// Seconds on a core.
    pub run_s: f64,
}

impl CpuSample {
    /// The process's time now.
    ///
    /// # Errors
    /// There is no such process, or it may not be looked at.
    pub fn of(process: u32) -> io::Result<Self> {
        let (user_ticks, system_ticks) = ticks(&fs::read_to_string(format!("/proc/{process}/stat"))?);
        let threads = fs::read_dir(format!("/proc/{process}/task"))?
            .filter_map(|entry| thread_time(process, entry.ok()?.file_name().to_str()?.parse().ok()?))
            .collect();
        Ok(Self { user_ticks, system_ticks, threads })
    }

    /// What was used from `self` to `later`.
    pub fn until(&self, later: &Self) -> CpuUse {
        let ran = |thread: &ThreadTime| {
            let before = self.threads.iter().find(|known| known.thread == thread.thread);
            thread.run_ns.saturating_sub(before.map_or(0, |known| known.run_ns))
        };
        let mut threads: Vec<ThreadUse> = later
            .threads
            .iter()
            .map(|thread| ThreadUse { name: thread.name.clone(), run_s: ran(thread) as f64 / 1e9 })
            .filter(|used| used.run_s > 0.0)
            .collect();
        threads.sort_by(|a, b| b.run_s.total_cmp(&a.run_s));
        let seconds = |before: u64, after: u64| after.saturating_sub(before) as f64 / TICKS_PER_SECOND;
        let system_s = seconds(self.system_ticks, later.system_ticks);
        CpuUse { process_s: seconds(self.user_ticks, later.user_ticks) + system_s, system_s, threads }
    }
}

impl CpuUse {
    /// Seconds of the busiest thread: on one shard that is its core's.
    pub fn busiest_s(&self) -> f64 {
        self.threads.first().map_or(0.0, |thread| thread.run_s)
    }

    /// Seconds of all threads, exact where the kernel says so.
    pub fn total_s(&self) -> f64 {
        let exact: f64 = self.threads.iter().map(|thread| thread.run_s).sum();
        // A thread that ended in between is only in the coarse sum.
        exact.max(self.process_s - 0.02)
    }
}

fn ticks(stat: &str) -> (u64, u64) {
    // The second field, the name, can hold anything but ends with the last bracket; utime is the 14th field.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = fields.split_ascii_whitespace().skip(11).map(|field| field.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

fn thread_time(process: u32, thread: u32) -> Option<ThreadTime> {
    let dir = format!("/proc/{process}/task/{thread}");
    let name = fs::read_to_string(format!("{dir}/comm")).ok()?.trim().to_owned();
    let run = fs::read_to_string(format!("{dir}/schedstat")).ok();
    let exact = run.as_deref().and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
    let run_ns = if let Some(ns) = exact {
        ns
    } else {
        let (user, system) = ticks(&fs::read_to_string(format!("{dir}/stat")).ok()?);
        (user + system) * 10_000_000
    };
    Some(ThreadTime { thread, name, run_ns })
}

/// Processor time of the calling thread so far, in nanoseconds.
pub fn own_thread_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills `time`, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Pins the calling thread to a core.
///
/// # Errors
/// There is no such core, or it is not allowed.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set; CPU_SET checks its bound; the kernel only reads the set.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu.min(libc::CPU_SETSIZE as usize - 1), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cores this machine has for us.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory a process has in RAM, in bytes; with what of it is its own and not of files.
///
/// # Errors
/// There is no such process.
pub fn memory_of(process: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Ok(Memory {
        resident_bytes: field("VmRSS:").unwrap_or(0) * 1024,
        anonymous_bytes: field("RssAnon:").unwrap_or(0) * 1024,
    })
}

/// Memory in RAM.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// All of it.
    pub resident_bytes: u64,
    /// Without pages of files, such as the program's own code.
    pub anonymous_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_done_here_shows_up() {
        let own = std::process::id();
        let before = CpuSample::of(own).unwrap();
        let thread_before = own_thread_ns();
        let mut sum = 0u64;
        while own_thread_ns() < thread_before + 60_000_000 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(sum > 0);
        let used = before.until(&CpuSample::of(own).unwrap());
        assert!(used.total_s() >= 0.05, "{used:?}");
        assert!(used.busiest_s() > 0.0);
        assert!(memory_of(own).unwrap().resident_bytes > 1 << 20);
    }

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 12 34 0 0 20";
        assert_eq!(ticks(stat), (12, 34));
    }
}
