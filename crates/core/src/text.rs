//! Numbers and lists as people read them in gate logs, Events and node annotations.

use std::fmt::Write;
use std::time::Duration;

/// The largest unit that fits: `42s`, `7m`, `3h`, `12d`.
pub(crate) fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in binary units: `512 B`, `3.4 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal place is shown")]
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// The first `most` of these, and how many more there are: `a, b and 3 more`.
pub fn some_of<N: AsRef<str>>(
    names: impl IntoIterator<Item = N, IntoIter: ExactSizeIterator>,
    most: usize,
) -> String {
    let names = names.into_iter();
    let more = names.len().saturating_sub(most);
    let mut text = String::new();
    for (at, name) in names.take(most).enumerate() {
        text.push_str(if at == 0 { "" } else { ", " });
        text.push_str(name.as_ref());
    }
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// How many of something there are, in words: `1 pod`, `2 pods`.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Others' text as part of one line: control characters, and those that only change how the line
/// looks, become spaces.
pub fn on_one_line(text: &str) -> String {
    let hidden = |c: char| {
        matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let plain = |c: char| if c.is_control() || hidden(c) { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// Most bytes of a word that are repeated: as long as a container's name can be.
const QUOTED_MAX: usize = 63;

/// Somebody's word in quotes; an ellipsis after them says that it goes on.
pub fn quoted(word: &str) -> String {
    let shown = &word[..word.floor_char_boundary(QUOTED_MAX)];
    let more = if shown.len() < word.len() { "…" } else { "" };
    format!("{shown:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_word_is_cut_at_a_character() {
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
        let most = "a".repeat(QUOTED_MAX);
        assert_eq!(quoted(&most), format!("\"{most}\""));
        let long = format!("{}ä", &most[1..]);
        assert_eq!(quoted(&long), format!("\"{}\"…", &most[1..]));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(some_of([""; 0], 3), "");
        assert_eq!(some_of(["a", "b"], 2), "a, b");
        assert_eq!(some_of(["a", "b", "c"], 2), "a, b and 1 more");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(on_one_line("a\nb\u{202e}c\u{200b}ä"), "a b c ä");
        assert_eq!(count(1, "pod"), "1 pod");
        assert_eq!(count(0, "pod"), "0 pods");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3_565_158), "3.4 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(short_duration(Duration::from_secs(119)), "119s");
        assert_eq!(short_duration(Duration::from_secs(7_199)), "119m");
        assert_eq!(short_duration(Duration::from_secs(172_800)), "2d");
    }
}
