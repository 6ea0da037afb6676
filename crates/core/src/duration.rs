//! Durations as people write them, and what to say of one that cannot be used.

use std::time::Duration;

use crate::time::written;

/// Longest text that is read.
const TEXT_MAX: usize = 256;

/// Most digits of one number before its point: a billion years. Beyond that, a sum can be more than a [`Duration`] can be, and
/// the parser panics for some of those.
const DIGITS_MAX: usize = 9;

/// As the parser reads it.
const MONTH: Duration = Duration::from_secs(2_630_016);

/// What a duration may be, and how to write one.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Whether it may be zero, whatever [`Range::least`] says.
    pub may_be_zero: bool,
    /// The shortest. Zero alone means that anything longer than nothing will do.
    pub least: Duration,
    /// The longest, if there is one.
    pub most: Option<Duration>,
    /// Two valid durations, for messages.
    pub examples: [&'static str; 2],
    /// The units that a bare number may be meant in.
    pub units: [&'static str; 2],
}

impl Range {
    /// How long people wait: more than nothing, and no longer than this.
    pub const fn wait(most: Duration) -> Self {
        Self {
            may_be_zero: false,
            least: Duration::ZERO,
            most: Some(most),
            examples: ["5s", "1m30s"],
            units: ["s", "m"],
        }
    }

    /// How old something may be, or how long it stays: more than nothing.
    pub const AGE: Self = Self {
        may_be_zero: false,
        least: Duration::ZERO,
        most: None,
        examples: ["24h", "7d"],
        units: ["h", "d"],
    };

    /// The same, or nothing.
    #[must_use]
    pub const fn or_zero(self) -> Self {
        Self {
            may_be_zero: true,
            ..self
        }
    }

    /// The duration that a text says.
    ///
    /// # Errors
    /// What it must be and how to write it; the text is not repeated.
    pub fn parse(self, text: &str) -> Result<Duration, String> {
        let [one, other] = self.examples;
        let read = read(text);
        if let Ok(duration) = read
            && self.contains(duration)
        {
            return Ok(duration);
        }
        if read == Err(Unread::Months) {
            let is_short = self.most.is_some_and(|most| most < MONTH);
            let units = if is_short {
                "m for minutes"
            } else {
                "m or month"
            };
            return Err(format!("M could mean minutes or months; write {units}"));
        }
        if let Some(meant) = self.with_unit(text) {
            return Err(format!("the unit is missing; write {meant}"));
        }
        let why = match read {
            Err(Unread::TooLong) => Some("it is too long".to_owned()),
            Err(Unread::TooLarge) => Some("a number in it is too large".to_owned()),
            Err(Unread::TooFine) => Some("it has too many decimal places".to_owned()),
            // Of one that cannot be read, nobody can say that it is too short.
            Err(Unread::Invalid) if self.most.is_none() => None,
            Ok(_) | Err(Unread::Invalid | Unread::Months) => self.allowed(),
        };
        let why = why.map(|why| why + "; ").unwrap_or_default();
        Err(format!("{why}write it like {one} or {other}"))
    }

    fn contains(self, duration: Duration) -> bool {
        if duration.is_zero() {
            return self.may_be_zero;
        }
        duration >= self.least && self.most.is_none_or(|most| duration <= most)
    }

    /// What somebody may mean who has written only a number.
    fn with_unit(self, text: &str) -> Option<String> {
        let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let meant = self.units.map(|unit| format!("{text}{unit}"));
        let valid = |meant: &&String| read(meant).is_ok_and(|duration| self.contains(duration));
        let meant: Vec<&str> = meant.iter().filter(valid).map(String::as_str).collect();
        (is_number && !meant.is_empty()).then(|| meant.join(" or "))
    }

    /// None if it may be anything.
    fn allowed(self) -> Option<String> {
        let least = match self.least {
            Duration::ZERO if self.may_be_zero => None,
            Duration::ZERO => Some("more than 0".to_owned()),
            least => Some(format!("at least {}", limit(least))),
        };
        let most = self.most.map(|most| format!("at most {}", limit(most)));
        let bounds: Vec<String> = least.into_iter().chain(most).collect();
        let zero = if self.may_be_zero && !self.least.is_zero() {
            "0, or "
        } else {
            ""
        };
        (!bounds.is_empty()).then(|| format!("it must be {zero}{}", bounds.join(" and ")))
    }
}

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unread {
    Invalid,
    TooLong,
    TooLarge,
    /// A fraction of a unit that is no whole number of the parser's next smaller one.
    TooFine,
    /// The parser takes `M` for months; whoever writes it may mean minutes.
    Months,
}

fn read(text: &str) -> Result<Duration, Unread> {
    if text.len() > TEXT_MAX {
        return Err(Unread::TooLong);
    }
    let mut digits = 0;
    let mut is_fraction = false;
    for c in text.chars() {
        match c {
            // A fraction adds less than one of its unit.
            '0'..='9' => digits += usize::from(!is_fraction),
            '.' => is_fraction = true,
            // It may stand within a number.
            c if c.is_whitespace() => {}
            _ => (digits, is_fraction) = (0, false),
        }
        if digits > DIGITS_MAX {
            return Err(Unread::TooLarge);
        }
    }
    let read = humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow if text.contains('.') => Unread::TooFine,
        humantime::DurationError::NumberOverflow => Unread::TooLarge,
        humantime::DurationError::InvalidCharacter(_)
        | humantime::DurationError::NumberExpected(_)
        | humantime::DurationError::UnknownUnit { .. }
        | humantime::DurationError::Empty => Unread::Invalid,
    });
    if read.is_ok() && text.contains('M') {
        return Err(Unread::Months);
    }
    read
}

/// In hours up to a day, as people write limits.
fn limit(limit: Duration) -> String {
    const HOUR: u64 = 3600;
    let hours = limit.as_secs() / HOUR;
    if hours > 0 && hours <= 24 && limit == Duration::from_hours(hours) {
        format!("{hours}h")
    } else {
        written(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Range = Range::wait(Duration::from_hours(1));

    #[test]
    fn a_duration_in_the_range_is_read() {
        for (range, text, seconds) in [
            (HOUR, "1h", 3600),
            (HOUR, "1m 30s", 90),
            (HOUR, "30.000000000s", 30),
            (HOUR.or_zero(), "0", 0),
            (Range::AGE, "7d", 7 * 24 * 3600),
            (Range::AGE, "100years", 100 * 31_557_600),
            (Range::AGE.or_zero(), "0s", 0),
        ] {
            assert_eq!(
                range.parse(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_none_is_answered_with_what_is_allowed() {
        let day = HOUR.most.map(|most| most * 24);
        let day = Range { most: day, ..HOUR };
        let least = Duration::from_mins(10);
        let rare = Range {
            least,
            most: Some(Duration::from_hours(366 * 24)),
            ..Range::AGE.or_zero()
        };
        let often = Range {
            least,
            examples: ["15m", "1h"],
            ..day
        };
        let hour = "it must be more than 0 and at most 1h; write it like 5s or 1m30s";
        for (range, text, words) in [
            (HOUR, "soon", hour),
            (HOUR, "", hour),
            (HOUR, "-5s", hour),
            (HOUR, "90m", hour),
            (HOUR, "0s", hour),
            (HOUR, "0", hour),
            (HOUR, "5x", hour),
            (
                HOUR,
                "30000000000ns",
                "a number in it is too large; write it like 5s or 1m30s",
            ),
            (
                HOUR,
                "0.333h",
                "it has too many decimal places; write it like 5s or 1m30s",
            ),
            (HOUR, "5", "the unit is missing; write 5s or 5m"),
            (HOUR, "90", "the unit is missing; write 90s"),
            (HOUR, "5000", hour),
            (HOUR, "1.5", "the unit is missing; write 1.5s or 1.5m"),
            (HOUR, "...", hour),
            (
                day.or_zero(),
                "soon",
                "it must be at most 24h; write it like 5s or 1m30s",
            ),
            (
                often,
                "1m",
                "it must be at least 10m and at most 24h; write it like 15m or 1h",
            ),
            (
                rare,
                "1m",
                "it must be 0, or at least 10m and at most 366d; write it like 24h or 7d",
            ),
            (Range::AGE, "soon", "write it like 24h or 7d"),
            (
                Range::AGE,
                "0s",
                "it must be more than 0; write it like 24h or 7d",
            ),
            (Range::AGE, "30", "the unit is missing; write 30h or 30d"),
            (
                Range::AGE,
                "99999999999999999999999s",
                "a number in it is too large; write it like 24h or 7d",
            ),
            (Range::AGE.or_zero(), "old", "write it like 24h or 7d"),
            (
                Range::AGE,
                "5M",
                "M could mean minutes or months; write m or month",
            ),
            (
                HOUR,
                "1h 5M",
                "M could mean minutes or months; write m for minutes",
            ),
        ] {
            assert_eq!(range.parse(text), Err(words.to_owned()), "{text}");
        }
    }

    /// The largest number of seconds, and a second of two parts.
    #[test]
    fn no_sum_is_too_large_for_the_parser() {
        for text in [
            "18446744073709551615s 500ms 500ms",
            "1844674407370955161 5s 500ms 500ms",
            "5124095576030431h 15s 0.5s 0.5s",
        ] {
            let words = "a number in it is too large; write it like 24h or 7d";
            assert_eq!(Range::AGE.parse(text), Err(words.to_owned()), "{text}");
        }
        let most = "999999999y".repeat(TEXT_MAX / 10);
        let years = TEXT_MAX as u64 / 10 * 999_999_999;
        assert_eq!(
            Range::AGE.parse(&most),
            Ok(Duration::from_secs(years * 31_557_600))
        );
        let long = "1s".repeat(TEXT_MAX);
        let words = "it is too long; write it like 24h or 7d";
        assert_eq!(Range::AGE.parse(&long), Err(words.to_owned()));
    }
}
