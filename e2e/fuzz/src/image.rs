//! Image names, digests and amounts, as people write them.

use trylatest_core::digest::Digest;
use trylatest_core::disk::{Amount, Disk};
use trylatest_core::image::ImageName;

pub(crate) fn read(text: &str) {
    if let Ok(name) = text.parse::<ImageName>() {
        let again = name.as_str().parse();
        assert_eq!(again, Ok(name.clone()), "a full name is its own full name");
        assert!(name.as_str().starts_with(name.registry()));
        assert_eq!(name.has_digest(), name.as_str().contains('@'));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
        assert!(text.contains(digest.short()));
    }
    if let Ok(amount) = text.parse::<Amount>() {
        let disk = Disk {
            total: u64::MAX,
            free: 0,
            lacks_inodes: false,
        };
        let _ = amount.of(Some(disk));
    }
}
