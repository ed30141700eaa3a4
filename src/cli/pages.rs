//! Lists that come page by page.

use super::args::Format;
use super::failure::Failure;
use super::output::Out;

/// Items that a page of a list has at most.
pub const PAGE_ITEMS: u32 = 1_000;

/// Writes a whole list: JSON lines as the pages come, rows as one table at the end. `page` gets the items behind a token, and
/// the next token, which is empty after the last page.
pub async fn write_all<T>(
    format: Format,
    columns: &[&str],
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
    json: impl Fn(&mut Out, &T) -> Result<(), Failure>,
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    let (mut out, mut rows, mut token) = (Out::new(), Vec::new(), String::new());
    loop {
        let (items, next) = page(token).await?;
        match format {
            Format::Json => items.iter().try_for_each(|item| json(&mut out, item))?,
            Format::Table => rows.extend(items.iter().map(&row)),
        }
        if next.is_empty() {
            break;
        }
        token = next;
    }
    out.table(columns, rows)?;
    out.flush()
}
