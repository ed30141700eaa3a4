//! May this machine run us? Asked once, before anything is opened, so that what is missing is named instead of
//! surfacing as a panic deep in the runtime.
//!
//! [`Facts`] are gathered from the system; [`check`] is a pure function of them, one row of the table a test:
//!
//! | fact | verdict |
//! |---|---|
//! | kernel below 5.8 | [`StartupError::KernelTooOld`] |
//! | io_uring_setup fails | [`StartupError::IoUringForbidden`], naming the sysctl or the container's profile |
//! | memlock below what a ring needs | [`StartupError::MemlockTooSmall`] |
//! | memlock below what registered buffers need | [`StartupWarning::BuffersNotRegistered`] |
//! | file descriptors below [`NOFILE_MIN`] | [`StartupError::TooFewDescriptors`] |
//! | file descriptors below [`NOFILE_GOOD`] | [`StartupWarning::FewDescriptors`] |
//! | a CPU that is not there, not allowed, or named twice | [`StartupError::NoSuchCpu`], [`StartupError::CpuTwice`] |

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use thiserror::Error;

use crate::affinity::CpuSet;
use crate::core::CoreConfig;

/// The first kernel whose io_uring has all that the runtime uses.
pub const KERNEL_MIN: (u32, u32) = (5, 8);

/// Locked memory the runtime refuses to start without, whoever runs it.
pub const MEMLOCK_MIN: u64 = 512 * 1024;

/// File descriptors below which a server is of no use: rings, logs, index files, listeners, and some connections.
pub const NOFILE_MIN: u64 = 256;

/// File descriptors a server wants: a thousand connections.
pub const NOFILE_GOOD: u64 = 1024;

/// A limit of the process, soft and hard; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// What the system says of itself and of this process.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Version of the running kernel, if it can be read.
    pub kernel: Option<(u32, u32)>,
    /// The error number of making a small ring, if that failed.
    pub io_uring_errno: Option<i32>,
    /// `kernel.io_uring_disabled`, where the kernel has it: 0 allowed, 1 for a group, 2 for nobody.
    pub io_uring_disabled: Option<u32>,
    /// Locked memory, in bytes.
    pub memlock: Limit,
    /// Whether locked memory is counted at all (it is not for root).
    pub memlock_counted: bool,
    /// Open file descriptors.
    pub nofile: Limit,
    /// CPUs the process may use.
    pub cpus: Vec<usize>,
}

/// What keeps a server from starting, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartupError {
    /// The kernel lacks what the runtime needs.
    #[error(
        "kernel {major}.{minor} is too old: FlowMesh needs Linux {}.{} or newer for io_uring",
        KERNEL_MIN.0, KERNEL_MIN.1
    )]
    KernelTooOld {
        /// The running kernel.
        major: u32,
        /// The running kernel.
        minor: u32,
    },
    /// io_uring is forbidden or missing.
    #[error("io_uring cannot be used ({errno_name}): {advice}")]
    IoUringForbidden {
        /// The error's name.
        errno_name: String,
        /// Whom to ask.
        advice: String,
    },
    /// Too little memory may be locked.
    #[error(
        "only {current} bytes of memory may be locked (RLIMIT_MEMLOCK), {needed} are needed: raise it with `ulimit -l`, \
         LimitMEMLOCK= in the systemd unit, or --ulimit memlock= of the container"
    )]
    MemlockTooSmall {
        /// What is needed.
        needed: u64,
        /// What may be locked.
        current: u64,
    },
    /// Too few files may be open.
    #[error(
        "only {current} file descriptors may be open (RLIMIT_NOFILE), at least {NOFILE_MIN} are needed: raise it with \
         `ulimit -n`, LimitNOFILE= in the systemd unit, or --ulimit nofile= of the container"
    )]
    TooFewDescriptors {
        /// How many may be open.
        current: u64,
    },
    /// A CPU in the list cannot be used.
    #[error("cpu {cpu} cannot be used: this process may run on {allowed}")]
    NoSuchCpu {
        /// The CPU.
        cpu: usize,
        /// The CPUs it may use.
        allowed: String,
    },
    /// A CPU is in the list twice.
    #[error("cpu {cpu} is listed twice: two cores on one CPU slow each other down")]
    CpuTwice {
        /// The CPU.
        cpu: usize,
    },
    /// The system did not even answer.
    #[error("cannot {action}: {reason}")]
    System {
        /// What was asked.
        action: &'static str,
        /// What it said.
        reason: String,
    },
}

/// What a server can live with, slower or with less.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartupWarning {
    /// Disk buffers cannot be registered.
    #[error(
        "{current} bytes of memory may be locked (RLIMIT_MEMLOCK), {wanted} are wanted: direct I/O is a little slower. \
         Raise LimitMEMLOCK"
    )]
    BuffersNotRegistered {
        /// What is wanted.
        wanted: u64,
        /// What may be locked.
        current: u64,
    },
    /// Few files may be open.
    #[error("only {current} file descriptors may be open (RLIMIT_NOFILE): connections are limited by it")]
    FewDescriptors {
        /// How many may be open.
        current: u64,
    },
}

/// Looks at the system, raises the limits as far as this process may, and checks the rest.
pub fn prepare(cores: &[CoreConfig]) -> Result<Vec<StartupWarning>, StartupError> {
    raise(libc::RLIMIT_NOFILE);
    raise(libc::RLIMIT_MEMLOCK);
    check(&Facts::gather()?, cores)
}

/// The table above.
pub fn check(facts: &Facts, cores: &[CoreConfig]) -> Result<Vec<StartupWarning>, StartupError> {
    check_kernel(facts)?;
    check_io_uring(facts)?;
    check_cpus(facts, cores)?;
    let memlock = check_memlock(facts, cores)?;
    let descriptors = check_descriptors(facts)?;
    Ok(memlock.into_iter().chain(descriptors).collect())
}

fn check_kernel(facts: &Facts) -> Result<(), StartupError> {
    match facts.kernel {
        Some((major, minor)) if (major, minor) < KERNEL_MIN => {
            Err(StartupError::KernelTooOld { major, minor })
        }
        _ => Ok(()),
    }
}

fn check_io_uring(facts: &Facts) -> Result<(), StartupError> {
    let Some(errno) = facts.io_uring_errno else { return Ok(()) };
    let advice = match (errno, facts.io_uring_disabled) {
        (libc::EPERM, Some(disabled @ 1..)) => format!(
            "the sysctl kernel.io_uring_disabled is {disabled}; set it to 0 (sysctl -w kernel.io_uring_disabled=0)"
        ),
        (libc::EPERM | libc::EACCES | libc::ENOSYS, _) => {
            "a container runtime's seccomp profile most likely forbids it: allow io_uring_setup, io_uring_enter and \
             io_uring_register, or run with --security-opt seccomp=unconfined; else see the sysctl \
             kernel.io_uring_disabled, and whether the kernel was built with CONFIG_IO_URING"
                .to_owned()
        }
        (libc::ENOMEM, _) => format!(
            "too little memory may be locked (RLIMIT_MEMLOCK is {} bytes): raise LimitMEMLOCK",
            facts.memlock.soft
        ),
        _ => io::Error::from_raw_os_error(errno).to_string(),
    };
    Err(StartupError::IoUringForbidden { errno_name: errno_name(errno), advice })
}

fn errno_name(errno: i32) -> String {
    match errno {
        libc::EPERM => "EPERM".to_owned(),
        libc::EACCES => "EACCES".to_owned(),
        libc::ENOSYS => "ENOSYS".to_owned(),
        libc::ENOMEM => "ENOMEM".to_owned(),
        other => format!("error {other}"),
    }
}

fn check_cpus(facts: &Facts, cores: &[CoreConfig]) -> Result<(), StartupError> {
    let mut seen = Vec::new();
    for cpu in cores.iter().filter_map(|core| core.cpu) {
        if !facts.cpus.contains(&cpu) {
            return Err(StartupError::NoSuchCpu { cpu, allowed: ranges(&facts.cpus) });
        }
        if seen.contains(&cpu) {
            return Err(StartupError::CpuTwice { cpu });
        }
        seen.push(cpu);
    }
    Ok(())
}

/// `0-3,8`, from ascending numbers.
fn ranges(cpus: &[usize]) -> String {
    let same_run = |a: &usize, b: &usize| a + 1 == *b;
    let run = |run: &[usize]| match run {
        [only] => format!("{only}"),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    let runs: Vec<String> = cpus.chunk_by(same_run).map(run).collect();
    if runs.is_empty() { "no cpu".to_owned() } else { format!("cpus {}", runs.join(",")) }
}

fn check_memlock(facts: &Facts, cores: &[CoreConfig]) -> Result<Option<StartupWarning>, StartupError> {
    let current = facts.memlock.soft;
    if current < MEMLOCK_MIN {
        return Err(StartupError::MemlockTooSmall { needed: MEMLOCK_MIN, current });
    }
    // Each core registers its memory with three rings, and each counts.
    let wanted = cores.iter().map(|core| 3 * core.io_memory_bytes as u64).sum();
    let short = facts.memlock_counted && current < wanted;
    Ok(short.then_some(StartupWarning::BuffersNotRegistered { wanted, current }))
}

fn check_descriptors(facts: &Facts) -> Result<Option<StartupWarning>, StartupError> {
    match facts.nofile.soft {
        current if current < NOFILE_MIN => Err(StartupError::TooFewDescriptors { current }),
        current if current < NOFILE_GOOD => Ok(Some(StartupWarning::FewDescriptors { current })),
        _ => Ok(None),
    }
}

impl Facts {
    /// Asks the system.
    pub fn gather() -> Result<Self, StartupError> {
        Ok(Self {
            kernel: kernel_version(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
            io_uring_errno: probe_io_uring(),
            io_uring_disabled: fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            memlock: limit(libc::RLIMIT_MEMLOCK, "read RLIMIT_MEMLOCK")?,
            memlock_counted: !may_lock_without_limit(),
            nofile: limit(libc::RLIMIT_NOFILE, "read RLIMIT_NOFILE")?,
            cpus: CpuSet::of_process().map_err(system("read the process's CPUs"))?.cpus(),
        })
    }
}

/// The CPUs this process may use, ascending: what to pin cores to when nothing is set.
pub fn usable_cpus() -> Result<Vec<usize>, StartupError> {
    Ok(CpuSet::of_process().map_err(system("read the process's CPUs"))?.cpus())
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartupError {
    move |error| StartupError::System { action, reason: error.to_string() }
}

/// `6.18.44-generic` → (6, 18).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Makes and closes a ring of two entries; the error number if it cannot be made.
fn probe_io_uring() -> Option<i32> {
    /// `struct io_uring_params` of the kernel is this long; all zero asks for nothing special.
    const PARAMS_BYTES: usize = 120;
    let mut params = [0u8; PARAMS_BYTES];
    // SAFETY: the kernel reads and fills `params`; a descriptor that it returns is ours to close.
    unsafe {
        let ring = libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr());
        if ring < 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        drop(OwnedFd::from_raw_fd(ring as i32));
    }
    None
}

/// Whether the process has CAP_IPC_LOCK, which frees it from RLIMIT_MEMLOCK.
fn may_lock_without_limit() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    capabilities.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

#[allow(clippy::useless_conversion, reason = "the type of resources differs between C libraries")]
fn get_limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: getrlimit fills `limit` if it succeeds.
    unsafe {
        match libc::getrlimit(resource, limit.as_mut_ptr()) {
            0 => Ok(limit.assume_init()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t, action: &'static str) -> Result<Limit, StartupError> {
    let limit = get_limit(resource).map_err(system(action))?;
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises a soft limit to its hard one. What cannot be raised is judged as it is.
fn raise(resource: libc::__rlimit_resource_t) {
    if let Ok(mut limit) = get_limit(resource)
        && limit.rlim_cur < limit.rlim_max
    {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit reads `limit`.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let unlimited = Limit { soft: u64::MAX, hard: u64::MAX };
        Facts {
            kernel: Some((6, 1)),
            io_uring_errno: None,
            io_uring_disabled: Some(0),
            memlock: unlimited,
            memlock_counted: true,
            nofile: unlimited,
            cpus: vec![0, 1, 2, 5],
        }
    }

    fn on(cpus: &[usize]) -> Vec<CoreConfig> {
        cpus.iter().map(|&cpu| CoreConfig { cpu: Some(cpu), ..CoreConfig::default() }).collect()
    }

    fn refusal(facts: &Facts, cores: &[CoreConfig]) -> String {
        check(facts, cores).unwrap_err().to_string()
    }

    #[test]
    fn a_good_machine_passes_without_a_word() {
        assert_eq!(check(&good(), &on(&[0, 5])), Ok(vec![]));
        assert_eq!(check(&good(), &[CoreConfig::default(), CoreConfig::default()]), Ok(vec![]));
    }

    #[test]
    fn an_old_kernel_is_named() {
        let facts = Facts { kernel: Some((5, 7)), ..good() };
        assert_eq!(
            refusal(&facts, &[]),
            "kernel 5.7 is too old: FlowMesh needs Linux 5.8 or newer for io_uring"
        );
        assert!(check(&Facts { kernel: Some((5, 8)), ..good() }, &[]).is_ok());
        assert!(check(&Facts { kernel: None, ..good() }, &[]).is_ok());
    }

    #[test]
    fn a_forbidden_io_uring_names_the_sysctl_or_the_profile() {
        let sysctl = Facts { io_uring_errno: Some(libc::EPERM), io_uring_disabled: Some(2), ..good() };
        let refused = refusal(&sysctl, &[]);
        assert!(refused.contains("EPERM") && refused.contains("kernel.io_uring_disabled is 2"), "{refused}");
        for errno in [libc::EPERM, libc::ENOSYS] {
            let refused = refusal(&Facts { io_uring_errno: Some(errno), ..good() }, &[]);
            assert!(refused.contains("seccomp") && refused.contains("kernel.io_uring_disabled"), "{refused}");
        }
        let memory = refusal(&Facts { io_uring_errno: Some(libc::ENOMEM), ..good() }, &[]);
        assert!(memory.contains("RLIMIT_MEMLOCK"), "{memory}");
    }

    #[test]
    fn too_little_locked_memory_is_refused_or_warned_of() {
        let limit = |soft| Facts { memlock: Limit { soft, hard: soft }, ..good() };
        let refused = refusal(&limit(64 * 1024), &on(&[0]));
        assert!(refused.contains("65536 bytes") && refused.contains("524288 are needed"), "{refused}");

        let mebibyte = 1024 * 1024;
        assert_eq!(
            check(&limit(5 * mebibyte), &on(&[0, 1])),
            Ok(vec![StartupWarning::BuffersNotRegistered { wanted: 6 * mebibyte, current: 5 * mebibyte }])
        );
        assert_eq!(check(&limit(6 * mebibyte), &on(&[0, 1])), Ok(vec![]));
        assert_eq!(check(&Facts { memlock_counted: false, ..limit(mebibyte) }, &on(&[0, 1])), Ok(vec![]));
    }

    #[test]
    fn too_few_descriptors_are_refused_or_warned_of() {
        let limit = |soft| Facts { nofile: Limit { soft, hard: soft }, ..good() };
        assert_eq!(check(&limit(255), &[]), Err(StartupError::TooFewDescriptors { current: 255 }));
        assert_eq!(check(&limit(1000), &[]), Ok(vec![StartupWarning::FewDescriptors { current: 1000 }]));
        assert_eq!(check(&limit(1024), &[]), Ok(vec![]));
    }

    #[test]
    fn cpus_must_be_there_and_different() {
        assert_eq!(
            refusal(&good(), &on(&[0, 3])),
            "cpu 3 cannot be used: this process may run on cpus 0-2,5"
        );
        assert_eq!(check(&good(), &on(&[1, 1])), Err(StartupError::CpuTwice { cpu: 1 }));
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(kernel_version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(kernel_version("garbage"), None);
        assert_eq!(kernel_version(""), None);
    }

    #[test]
    fn the_machine_that_runs_the_tests_can_be_asked() {
        let facts = Facts::gather().unwrap();
        assert!(!facts.cpus.is_empty());
        assert!(facts.kernel.is_some());
    }
}
