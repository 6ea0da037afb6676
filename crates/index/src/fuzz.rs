//! What this crate reads from disk, for a fuzzer.

use jiff::Timestamp;
use trylatest_core::image::ImageName;

use crate::stored::Stored;

/// Reads an entry, and writes it again.
///
/// # Panics
/// If what was written is not read as the same.
pub fn entry(bytes: &[u8]) {
    let Some(stored) = Stored::decode(bytes) else {
        return;
    };
    let again = Stored::decode(&stored.encode());
    assert_eq!(again.as_ref(), Some(&stored));
    if let Ok(image) = "reg.example/app".parse::<ImageName>() {
        let _ = stored.into_record(image, Timestamp::UNIX_EPOCH);
    }
}
