//! Names that keep an image and are seen nowhere.
//!
//! Of several names of one image CRI reports the first in order, so an alias that is a valid image
//! reference would show up as the image in a pod's status and in the node's. CRI passes over names
//! that are no valid reference, and a repository with upper-case letters is none (measured on 1.6
//! and 2.4).

use trylatest_core::image::ImageName;

use crate::runtime::RuntimeError;

/// The alias of the gate's image.
pub const GATE: &str = "TryLatest/keep/gate";

/// Refuses an alias that could be taken for an image's name.
pub(crate) fn check(alias: &str) -> Result<(), RuntimeError> {
    if alias.is_empty() || alias.parse::<ImageName>().is_ok() {
        return Err(RuntimeError::BadAlias {
            alias: alias.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_no_image_name() {
        assert_eq!(check(GATE), Ok(()));
        for bad in ["", "keep/gate", "0.example/keep:1", "nginx"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
