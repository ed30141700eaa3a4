//! What this machine has, as far as defaults depend on it.

use std::fs;
use std::num::NonZero;

use super::value;

/// What this process may use of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The CPUs this process may run on, in order; at least one.
    pub cpus: Vec<usize>,
    /// How many of them it may use at a time (a container's quota may be smaller than its CPU set); at least one.
    pub parallelism: usize,
    /// Bytes of memory: the machine's, or the control group's limit if that is less.
    pub memory_bytes: u64,
}

/// Assumed where the kernel does not say how much memory there is.
const MEMORY_BYTES_FALLBACK: u64 = 1 << 30;

impl Machine {
    /// Asks the kernel.
    #[must_use]
    pub fn detect() -> Self {
        let parallelism = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| {
                field(&status, "Cpus_allowed_list:").and_then(|list| value::cpu_list(list).ok())
            })
            .filter(|cpus| !cpus.is_empty())
            .unwrap_or_else(|| (0..parallelism).collect());
        Self { cpus, parallelism, memory_bytes: memory_bytes() }
    }
}

/// The rest of the line that starts with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn memory_bytes() -> u64 {
    let total = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemTotal:")?.strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(MEMORY_BYTES_FALLBACK, |kib| kib * 1024);
    control_group_limit().map_or(total, |limit| limit.min(total))
}

/// The limit of this process's control group: version 2, then version 1. "max" and absent files are no limit.
fn control_group_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    [
        format!("/sys/fs/cgroup{}/memory.max", group.trim_end_matches('/')),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ]
    .iter()
    .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
    .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_cpu_and_memory() {
        let machine = Machine::detect();
        assert!(!machine.cpus.is_empty());
        assert!(machine.parallelism >= 1);
        assert!(machine.memory_bytes > 1 << 20);
    }

    #[test]
    fn a_field_is_found_by_its_name() {
        let status = "Name:\tx\nCpus_allowed_list:\t0-3,8\n";
        assert_eq!(field(status, "Cpus_allowed_list:"), Some("0-3,8"));
        assert_eq!(field(status, "Mems:"), None);
    }
}
