//! The format page shows the tables of the code.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::path::Path;

#[test]
fn the_format_page_has_every_line_of_our_tables() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../../docs/format.md")).unwrap();
    for source in
        ["log/format.rs", "log/recovery.rs", "segments/format.rs", "index/store.rs", "index/shelf.rs"]
    {
        let code = fs::read_to_string(root.join("src").join(source)).unwrap();
        // Links within the code read differently on the page.
        let links = |line: &&str| line.contains("[`") || line.contains("(see ");
        let table =
            code.lines().filter_map(|line| line.strip_prefix("//! ")).filter(|line| line.starts_with('|'));
        for line in table.filter(|line| !links(line)) {
            assert!(
                page.lines().any(|shown| shown == line),
                "docs/format.md lacks a line of {source}:\n{line}"
            );
        }
    }
}
