//! Room on the file system that holds the node's images.

use std::fmt;
use std::str::FromStr;

use crate::outcome::{Failure, FailureClass};
use crate::plan::Flow;
use crate::text;

/// How much larger layers are once they are unpacked, for which there is room beside what has come: gzip makes programs
/// about half as large.
const UNPACKED: u64 = 2;

/// A file system, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that are free for everybody; none while it [lacks inodes](Self::lacks_inodes).
    pub free: u64,
    /// Whether so few inodes are free that files may soon find none, however many bytes there are.
    pub lacks_inodes: bool,
}

/// A part of a file system: `20%`, or so many bytes: `10GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Of its size.
    Percent(u8),
    /// Whatever its size.
    Bytes(u64),
}

impl Amount {
    /// In bytes; none if that depends on a file system that is not known.
    pub fn of(self, disk: Option<Disk>) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => disk.map(|disk| disk.total / 100 * u64::from(percent)),
        }
    }
}

/// Why a text is no [`Amount`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write it like 10% or 20GiB")]
pub struct InvalidAmount;

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let unit = |(unit, shift): &(&str, u32)| Some((text.strip_suffix(unit)?, *shift));
        let (number, shift) = UNITS.iter().find_map(unit).unwrap_or((text, 0));
        let (number, is_percent) = match text.strip_suffix('%') {
            Some(percent) => (percent, true),
            None => (number, false),
        };
        // Only digits: `parse` takes a sign, too.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidAmount);
        }
        let number: u64 = number.parse().map_err(|_| InvalidAmount)?;
        if is_percent {
            let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
            return percent.map(Self::Percent).ok_or(InvalidAmount);
        }
        let bytes = number.checked_mul(1 << shift).ok_or(InvalidAmount)?;
        Ok(Self::Bytes(bytes))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => f.write_str(&text::bytes(*bytes)),
        }
    }
}

/// Why a download must not go on, if it must not: with what is still to come, and once that is unpacked, less than
/// `floor` would be left. `bytes_before` were here when it began.
///
/// What will be unpacked is estimated. Where all has come, it is not stopped any more.
pub fn no_room_for(flow: &Flow, bytes_before: u64, disk: Disk, floor: Amount) -> Option<Failure> {
    let floor = floor.of(Some(disk))?;
    // Nothing grows before the manifest is there.
    let total = flow.total_bytes?;
    let to_come = total.saturating_sub(flow.bytes);
    let unpacked = total.saturating_sub(bytes_before).saturating_mul(UNPACKED);
    let needed = to_come.saturating_add(unpacked);
    let missing = floor.saturating_add(needed).saturating_sub(disk.free);
    if missing == 0 || to_come == 0 {
        return None;
    }
    if disk.lacks_inodes {
        let words = format!(
            "not enough room on this node's disk: it has too few free inodes (df -i shows them; to download: {} of {})",
            text::bytes(to_come),
            text::bytes(total),
        );
        return Some(Failure::new(FailureClass::Local, words));
    }
    let words = format!(
        "not enough room on this node's disk: {} more is needed (to download: {} of {}, about {} once unpacked; free: {}; to \
         stay free: {}, --disk-floor)",
        text::bytes(missing),
        text::bytes(to_come),
        text::bytes(total),
        text::bytes(unpacked),
        text::bytes(disk.free),
        text::bytes(floor),
    );
    Some(Failure::new(FailureClass::Local, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn amounts_are_read() {
        for (text, amount) in [
            ("0%", Amount::Percent(0)),
            ("100%", Amount::Percent(100)),
            ("0", Amount::Bytes(0)),
            ("512", Amount::Bytes(512)),
            ("20GiB", Amount::Bytes(20 * GIB)),
        ] {
            assert_eq!(text.parse(), Ok(amount), "{text}");
        }
        for bad in [
            "",
            "%",
            "101%",
            "-1%",
            "+1%",
            "1GiB%",
            "1.5GiB",
            "+1",
            "10GB",
            "99999999TiB",
        ] {
            assert_eq!(bad.parse::<Amount>(), Err(InvalidAmount), "{bad}");
        }
        assert_eq!(Amount::Percent(10).of(None), None);
        assert_eq!(Amount::Bytes(7).of(None), Some(7));
        let disk = Disk {
            total: 1000,
            free: 1,
            lacks_inodes: false,
        };
        assert_eq!(Amount::Percent(10).of(Some(disk)), Some(100));
        assert_eq!(Amount::Percent(10).to_string(), "10%");
        assert_eq!(Amount::Bytes(GIB).to_string(), "1.0 GiB");
    }

    #[test]
    fn a_download_stops_before_the_floor_is_reached() {
        let disk = |free| Disk {
            total: 100 * GIB,
            free: free * GIB,
            lacks_inodes: false,
        };
        let flow = |bytes, total: u64| Flow {
            bytes: bytes * GIB,
            total_bytes: Some(total * GIB),
            ..Flow::default()
        };
        let floor = Amount::Percent(15);
        // 2 GiB are to come, and are unpacked to 4.
        assert_eq!(no_room_for(&flow(0, 2), 0, disk(21), floor), None);
        let failure = no_room_for(&flow(0, 2), 0, disk(20), floor).unwrap();
        assert_eq!(failure.class, FailureClass::Local);
        let words = failure.to_string();
        assert!(words.contains("1.0 GiB more is needed"), "{words}");
        assert!(no_room_for(&flow(1, 2), 0, disk(19), floor).is_some());
        let no_inodes = Disk {
            lacks_inodes: true,
            ..disk(0)
        };
        let words = no_room_for(&flow(0, 2), 0, no_inodes, floor).unwrap();
        let words = words.to_string();
        assert!(
            words.contains("too few free inodes") && !words.contains("free: 0"),
            "{words}"
        );
        // Most of it was here already, and unpacked.
        assert_eq!(no_room_for(&flow(7, 8), 7 * GIB, disk(18), floor), None);
        // All has come.
        assert_eq!(no_room_for(&flow(2, 2), 0, disk(1), floor), None);
        // Nothing is known of it yet.
        assert_eq!(no_room_for(&Flow::default(), 0, disk(0), floor), None);
        let none = Amount::Bytes(0);
        assert_eq!(no_room_for(&flow(0, 2), 0, disk(6), none), None);
    }
}
