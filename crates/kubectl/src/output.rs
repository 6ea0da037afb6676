//! How answers are printed: columns for people, JSON and YAML for programs, colour on a terminal only.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::args::Output;

/// Something that went wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something to look at.
pub(crate) const ODD: Style = AnsiColor::Yellow.on_default();
/// All is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What structures the text.
pub(crate) const HEAD: Style = Style::new().bold();
/// What is there for completeness.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Everything else.
pub(crate) const PLAIN: Style = Style::new();

/// These words in this style. A style is taken out again where the output is not a terminal.
pub(crate) fn styled(style: Style, words: &str) -> String {
    format!("{style}{words}{style:#}")
}

/// A cell of a table.
pub(crate) struct Cell {
    words: String,
    style: Style,
}

impl Cell {
    /// In a style of its own.
    pub(crate) fn new(style: Style, words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(words: T) -> Self {
        Self::new(PLAIN, words)
    }
}

/// Columns, each as wide as its widest cell; the last one ends where it ends. An escape sequence has no width, which
/// is why this is not a library's table.
pub(crate) fn columns<const N: usize>(head: [&str; N], rows: Vec<[Cell; N]>) -> String {
    let mut all = vec![head.map(|word| Cell::new(DIM, word))];
    all.extend(rows);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = all.iter().map(|row| row[column].words.chars().count());
        cells.max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &all {
        let mut pad = 0;
        text.push(' ');
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{:pad$} {}", "", styled(cell.style, &cell.words));
            pad = width - cell.words.chars().count() + 1;
        }
        text.push('\n');
    }
    text
}

/// Prints an answer in the format that was asked for.
///
/// # Errors
/// stdout cannot be written. A reader that stops early, such as `head`, is not an error.
pub(crate) fn print<T: Serialize>(
    output: Output,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => text(answer),
        Output::Json => serde_json::to_string_pretty(answer)? + "\n",
        Output::Yaml => serde_saphyr::to_string(answer)?,
    };
    printed(&text)
}

/// Prints to stdout.
///
/// # Errors
/// As [`print()`].
pub(crate) fn printed(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_style() {
        let rows = vec![
            ["a".into(), Cell::new(BAD, "bad"), "x".into()],
            ["abc".into(), "ok".into(), "yz".into()],
        ];
        let text = columns(["A", "STATE", "C"], rows);
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            plain,
            "  A    STATE  C\n  a    bad    x\n  abc  ok     yz\n"
        );
        assert!(text.contains("\u{1b}["), "{text:?}");
    }
}
