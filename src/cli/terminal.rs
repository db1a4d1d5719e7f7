//! What is printed: nothing that an event brings along can move the cursor, hide text or turn its direction.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::Value;

use super::exit::{Exit, Failure};

/// Prints to standard output. A reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// Prints JSON, with what a terminal would obey written as escapes, which mean the same.
pub fn print_json(value: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\n' => escaped.push(c),
            c if is_dangerous(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => escaped.push(c),
        }
    }
    escaped.push('\n');
    print(&escaped)
}

/// Text in which everything that a terminal would obey can be seen instead.
pub fn visible(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => seen.push_str("\\n"),
            '\t' => seen.push_str("\\t"),
            c if is_dangerous(c) => seen.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => seen.push(c),
        }
    }
    seen
}

/// Controls (C0, C1), marks of direction, separators that break lines, and what has no width.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

/// Asks before something that cannot be undone.
pub fn confirm(question: &str, is_confirmed: bool) -> anyhow::Result<()> {
    if is_confirmed {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, "this cannot be undone, and nobody is here to be asked", "add --yes").into()
        );
    }
    eprint!("{question} [y/N] ");
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
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "a\u{1b}[2Jb\u{202e}c\u{9b}31m\r\n\u{200b}\u{2066}\u{7f}";
        let seen = visible(hostile);
        assert!(!seen.chars().any(is_dangerous), "{seen:?}");
        assert_eq!(visible("Zwölf 日本 🦀"), "Zwölf 日本 🦀");
        assert_eq!(visible("\u{1b}[0m"), "\\u{1b}[0m");
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let rows = vec![vec!["a".to_owned(), "long value".to_owned()], vec!["bcd".to_owned(), "\u{1b}".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    long value\nbcd  \\u{1b}\n");
    }
}
