//! The documentation keeps its word: tests that it names exist, links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].iter().map(|name| root().join(name)).collect();
    for dir in ["docs", "docs/adr", "examples/package-log", "perf"] {
        let entries = fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

#[test]
fn every_promise_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let mut checked = 0;
    for quoted in page.split('`').skip(1).step_by(2) {
        if let Some((module, name)) = quoted.split_once("::") {
            let source = fs::read_to_string(root().join(format!("tests/e2e/{module}.rs")))
                .unwrap_or_else(|_| panic!("{quoted}: there is no such module"));
            assert!(name == "*" || source.contains(&format!("fn {name}(")), "there is no test {quoted}");
            checked += 1;
        } else if quoted.contains('/') {
            assert!(root().join(quoted).exists(), "there is no {quoted}");
        }
    }
    assert!(checked > 30);
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
        }
    }
}
