//! What is printed: nothing that an event brings along can move the cursor, hide text or turn its direction.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::Value;

use super::exit::{Exit, Failure};
pub use crate::telemetry::visible::{visible, visible_json};

/// Prints to standard output. A reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_while_read(text).map(|_| ())
}

/// The same; says whether the reader is still there.
pub fn print_while_read(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        done => Ok(done.map(|()| true)?),
    }
}

/// Prints JSON, with what a terminal would obey written as escapes, which mean the same.
pub fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&(visible_json(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// Columns under their heads; every cell is made visible.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(heads.to_vec())).chain(body).collect()
}

/// Names and values under each other; every value is made visible.
pub fn sheet(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {}\n", visible(value))).collect()
}

/// Asks before something that cannot be undone. The question may itself have to be found out.
pub fn confirm(question: impl FnOnce() -> anyhow::Result<String>, is_confirmed: bool) -> anyhow::Result<()> {
    if is_confirmed {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, "this cannot be undone, and nobody is here to be asked", "add --yes").into()
        );
    }
    eprint!("{} [y/N] ", question()?);
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure { exit: Exit::Usage, reason: "nothing was changed".into(), remedy: None }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_heads() {
        let rows = vec![vec!["a".to_owned(), "long value".to_owned()], vec!["bcd".to_owned(), "\u{1b}".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    long value\nbcd  \\u{1b}\n");
    }
}
