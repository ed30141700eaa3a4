//! Text ⇄ values. A refusal is the text that follows "allowed:".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What is allowed, for a value that is not.
pub type Refusal = String;

/// An address to listen on. `:PORT` means every IPv4 interface, `localhost` the loopback.
///
/// # Errors
/// What is allowed.
pub fn address(text: &str) -> Result<SocketAddr, Refusal> {
    let allowed = || {
        "HOST:PORT with an IP address or localhost as host (127.0.0.1:50051, [::1]:50051), or :PORT for all interfaces; \
         the port from 1 to 65535"
            .to_owned()
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(allowed)?;
    let port = digits(port)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or_else(allowed)?;
    let ip = match host {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().map_err(|_| allowed())?),
            None => IpAddr::V4(host.parse::<Ipv4Addr>().map_err(|_| allowed())?),
        },
    };
    Ok(SocketAddr::new(ip, port))
}

/// `true` or `false`; `on`, `off`, `yes`, `no`, `1` and `0` too.
///
/// # Errors
/// What is allowed.
pub fn boolean(text: &str) -> Result<bool, Refusal> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// A whole number from `min` to `max`; `_` may stand between digits.
///
/// # Errors
/// What is allowed.
pub fn number(text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    digits(text).filter(|n| (min..=max).contains(n)).ok_or_else(|| format!("{min} to {max}"))
}

fn digits(text: &str) -> Option<u64> {
    let plain = text.replace('_', "");
    let all_digits = !plain.is_empty() && plain.bytes().all(|c| c.is_ascii_digit());
    if all_digits && !text.starts_with('_') { plain.parse().ok() } else { None }
}

/// A span of time in a unit of `unit_us` microseconds: a plain number, or parts like `1h30m`, `10s`, `500ms`, `50us`.
fn span(text: &str, unit_us: u64) -> Option<u64> {
    if let Some(plain) = digits(text) {
        return Some(plain);
    }
    let mut total_us = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let part_us = match unit.trim() {
            "us" | "µs" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" | "min" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            _ => return None,
        };
        total_us = total_us.checked_add(scaled(number, part_us)?)?;
        rest = next;
    }
    (!text.is_empty() && total_us.is_multiple_of(unit_us)).then_some(total_us / unit_us)
}

/// A decimal number times `unit`, exactly; `None` if it has a fraction of a unit left.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { digits(whole)? };
    let mut total = u128::from(whole) * u128::from(unit);
    if !fraction.is_empty() {
        let places = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scaled = u128::from(digits(fraction)?).checked_mul(u128::from(unit))?;
        if !scaled.is_multiple_of(places) {
            return None;
        }
        total += scaled / places;
    }
    u64::try_from(total).ok()
}

/// Milliseconds: a plain number is milliseconds, or with units: `500ms`, `10s`, `1h30m`.
///
/// # Errors
/// What is allowed.
pub fn millis(text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    span(text, 1_000).filter(|n| (min..=max).contains(n)).ok_or_else(|| {
        format!(
            "{} to {}, as milliseconds or with a unit (500ms, 10s, 5m, 1h30m, 7d)",
            millis_text(min),
            millis_text(max)
        )
    })
}

/// Microseconds: a plain number is microseconds, or with units.
///
/// # Errors
/// What is allowed.
pub fn micros(text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    span(text, 1)
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| format!("{min} to {max} microseconds, or with a unit (100us, 1ms)"))
}

/// Milliseconds with the largest unit that fits without a rest.
#[must_use]
pub fn millis_text(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(unit, _)| ms != 0 && ms.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// Bytes: `64MiB`, `2GiB`, `1000000`, `1.5GB`. Binary units end in `iB` (or are a bare `K`, `M`, `G`, `T`), decimal ones in `B`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let number_end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    let number = number.trim();
    if number.contains('_') { digits(number)?.checked_mul(factor) } else { scaled(number, factor) }
}

/// Bytes within a range.
///
/// # Errors
/// What is allowed.
pub fn bytes(text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    size(text)
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| format!("{} to {}, like 64MiB or 2GiB", bytes_text(min), bytes_text(max)))
}

/// Bytes with the largest binary unit that fits without a rest.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// CPU numbers: `0-3,6`. Each may stand once.
///
/// # Errors
/// What is allowed.
pub fn cpu_list(text: &str) -> Result<Vec<usize>, Refusal> {
    let allowed = || "CPU numbers and ranges, each CPU once, like 0-3,6; or auto".to_owned();
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse =
            |text: &str| digits(text.trim()).and_then(|n| usize::try_from(n).ok()).ok_or_else(allowed);
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last || last - first > 4096 || (first..=last).any(|cpu| cpus.contains(&cpu)) {
            return Err(allowed());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_have_a_short_form_for_all_interfaces() {
        assert_eq!(address(":50051").unwrap().to_string(), "0.0.0.0:50051");
        assert_eq!(address("localhost:1").unwrap().to_string(), "127.0.0.1:1");
        assert_eq!(address("[::1]:8080").unwrap().to_string(), "[::1]:8080");
        for bad in
            ["", "50051", "host:1", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", ":65536", "::1:80", "1.2.3.4:+5"]
        {
            assert!(address(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn spans_of_time_add_up_and_are_exact() {
        let ms = |text| millis(text, 0, u64::MAX).ok();
        assert_eq!(ms("250"), Some(250));
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("1.5s"), Some(1_500));
        assert_eq!(ms("7d"), Some(604_800_000));
        assert_eq!(micros("0.1ms", 0, 1000), Ok(100));
        for bad in
            ["", "s", "10x", "1.0.5s", "-1s", "1 0s", "100us", "1.0001s", "99999999999999999999", ".", ".s"]
        {
            assert_eq!(ms(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_know_binary_and_decimal_units() {
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("64m"), Some(64 << 20));
        assert_eq!(size("1.5GiB"), Some(3 << 29));
        assert_eq!(size("2GB"), Some(2_000_000_000));
        assert_eq!(size("1_000"), Some(1000));
        for bad in ["", "MiB", "1XB", "-1", "99999999999TiB", "1.0001KiB", "_1"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn cpu_lists_name_each_cpu_once() {
        assert_eq!(cpu_list("0-3,6"), Ok(vec![0, 1, 2, 3, 6]));
        assert_eq!(cpu_list("5"), Ok(vec![5]));
        for bad in ["", "a", "3-1", "0,0", "0-2,1", "1,", "0-99999999"] {
            assert!(cpu_list(bad).is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn a_written_value_reads_back(n in 0u64..1 << 50) {
            prop_assert_eq!(size(&bytes_text(n)), Some(n));
            prop_assert_eq!(millis(&millis_text(n), 0, u64::MAX), Ok(n));
        }

        #[test]
        fn noise_never_panics(text in ".{0,12}") {
            let _ = (size(&text), millis(&text, 0, 1), cpu_list(&text), address(&text), boolean(&text));
        }
    }
}
