//! Results as tables.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::baseline::Limits;
use crate::load::{LoadResult, OpResult};

/// A number in a few digits: 1234567 → `1.23 M`.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

/// Microseconds in a few digits: `250 µs`, `1.30 ms`.
pub fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us if us >= 100.0 => format!("{us:.0} µs"),
        us => format!("{us:.1} µs"),
    }
}

/// An empty table with these headings; all columns but the first are numbers.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(headings);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A run of load, for people.
pub fn load_table(result: &LoadResult) -> String {
    let mut ops =
        table(&["operation", "calls/s", "items/s", "MB/s", "mean", "p50", "p99", "p99.9", "max", "errors"]);
    for op in &result.ops {
        ops.add_row(op_row(op));
    }
    let mut text = format!("{ops}\n");
    for op in &result.ops {
        for (what, count) in &op.errors {
            text += &format!("{}: {count} × {what}\n", op.op);
        }
    }
    if let Some(server) = &result.server {
        text += &format!(
            "server: {:.2} cores, its busiest thread {:.2}; {:.2} µs a call, {:.3} µs an item\n",
            server.cores, server.busiest_thread_cores, server.us_per_call, server.us_per_item
        );
    }
    let busy: Vec<String> = result.client_busy.iter().map(|busy| format!("{:.0} %", busy * 100.0)).collect();
    text += &format!("generator's threads: {}\n", busy.join(", "));
    text
}

fn op_row(op: &OpResult) -> Vec<String> {
    let latency = &op.latency;
    let mut row =
        vec![op.op.clone(), short(op.calls_per_s), short(op.items_per_s), short(op.megabytes_per_s)];
    let figures = [latency.mean_us, latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us];
    row.extend(figures.map(|us| if latency.count == 0 { "-".to_owned() } else { micros(us) }));
    row.push(op.errors.values().sum::<u64>().to_string());
    row
}

/// What the machine can do, for people.
pub fn limits_table(limits: &Limits) -> String {
    let mut table = table(&["limit", "figure"]);
    let mut row = |what: &str, figure: String| {
        table.add_row([what.to_owned(), figure]);
    };
    for echo in &limits.echo {
        row(
            &format!("h2 echo, {}", echo.name),
            format!(
                "{} calls/s, p50 {}, {:.2} µs of its core a call",
                short(echo.calls_per_s),
                micros(echo.latency.p50_us),
                echo.server.as_ref().map_or(0.0, |server| server.us_per_call)
            ),
        );
    }
    let disk = &limits.disk;
    for (what, latency) in [
        ("4 KiB write + fdatasync", &disk.sync_write),
        ("the same with plain system calls", &disk.sync_write_plain),
    ] {
        row(what, format!("p50 {}, p99 {}", micros(latency.p50_us), micros(latency.p99_us)));
    }
    for (what, rate) in [
        ("1 MiB writes, one by one", disk.large_megabytes_per_s),
        ("1 MiB writes, four at once", disk.large_at_once_megabytes_per_s),
        ("1 MiB writes, one by one with plain system calls", disk.large_plain_megabytes_per_s),
    ] {
        row(what, format!("{} MB/s", short(rate)));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (3.456, "3.46"),
            (999.4, "999"),
            (12_345.0, "12.3 k"),
            (5_210_000.0, "5.21 M"),
            (2.7e9, "2.70 G"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!(
            [micros(12.34), micros(250.4), micros(1300.0), micros(2.5e6)],
            ["12.3 µs", "250 µs", "1.30 ms", "2.50 s"]
        );
    }
}
