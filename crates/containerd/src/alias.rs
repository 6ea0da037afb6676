//! Names that keep an image and show up nowhere.
//!
//! Of several names of one image CRI reports the first in order, so an alias like
//! `0.example/keep:1` would show up as the image in a pod's status and in the node's. CRI ignores
//! names without a tag or digest (`internal/cri/util/references.go`; measured on 1.6 and 2.4).
//! Because of the upper-case letters, no tool reads the name as one of Docker Hub's. And there is no `/` in it: Spegel
//! and what k3s embeds of it look at every name with one, and stop at the first that they cannot read.

use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;

use crate::runtime::RuntimeError;

/// The alias of the gate's image.
pub const GATE: &str = "TryLatest,keep,gate";

/// The alias that keeps an image's copy while its tag is tried. A `:` or `@` would make it a name
/// that CRI shows; what stands in their place, and in that of a `/`, occurs in no name.
pub fn of(image: &ImageName) -> String {
    format!("{TRY}{}", mangled(image))
}

/// The alias that keeps an image's copy while its name is away.
pub fn aside(image: &ImageName) -> String {
    format!("{ASIDE}{}", mangled(image))
}

/// The alias that keeps what the image's name points to while a command changes that. Not that of a try: the agent may
/// try the same image at the same time, and removes its own.
pub fn undo(image: &ImageName) -> String {
    format!("{UNDO}{}", mangled(image))
}

/// The alias that says that the image's name was pointed back to an earlier copy, and keeps that. It means nothing once
/// the name points to something else.
pub fn rolled_back(image: &ImageName) -> String {
    format!("{ROLLED_BACK}{}", mangled(image))
}

/// The image of which this alias says that its name was pointed back, if it is one of [`rolled_back`].
pub fn rolled_back_image(alias: &str) -> Option<ImageName> {
    demangled(alias.strip_prefix(ROLLED_BACK)?)
}

/// What an alias is the only record of, should whoever made it be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// The image's name is away: [`aside`].
    Aside,
    /// A command changes what the image's name points to: [`undo`].
    Undo,
    /// The image's tag is tried: [`of`].
    Try,
}

impl Journal {
    /// Begins every alias of this kind.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Aside => ASIDE,
            Self::Undo => UNDO,
            Self::Try => TRY,
        }
    }

    /// The image whose copy this alias keeps, if it is of this kind.
    pub(crate) fn image_of(self, alias: &str) -> Option<ImageName> {
        let name = alias.strip_prefix(self.prefix())?;
        demangled(name).filter(|_| alias != GATE)
    }
}

/// The alias that keeps this copy for the next outage.
pub fn copy(copy: &KeptCopy) -> String {
    let (image, digest) = copy.id();
    copy_at(image, digest)
}

/// The same, by the image and what its name pointed to.
pub(crate) fn copy_at(image: &ImageName, digest: &Digest) -> String {
    let digest = digest.as_str().replace(':', "+");
    format!("{COPIES}{digest},{}", mangled(image))
}

/// The copy that this alias keeps, if it is one of [`copy()`].
pub(crate) fn copy_of(alias: &str) -> Option<(ImageName, Digest)> {
    let (digest, name) = alias.strip_prefix(COPIES)?.split_once(',')?;
    Some((demangled(name)?, digest.replace('+', ":").parse().ok()?))
}

fn mangled(image: &ImageName) -> String {
    let name = image.as_str().replace(':', "+");
    name.replace('@', "=").replace('/', ",")
}

fn demangled(name: &str) -> Option<ImageName> {
    let name = name.replace('+', ":").replace('=', "@");
    name.replace(',', "/").parse().ok()
}

const TRY: &str = "TryLatest,keep,";

const ASIDE: &str = "TryLatest,aside,";

const UNDO: &str = "TryLatest,undo,";

/// Begins every alias of a name that was pointed back.
pub(crate) const ROLLED_BACK: &str = "TryLatest,rolled-back,";

/// Begins every alias of a copy that is kept for the next outage.
pub(crate) const COPIES: &str = "TryLatest,copy,";

/// Refuses an alias that could be taken for an image's name.
pub(crate) fn check(alias: &str) -> Result<(), RuntimeError> {
    let upper = alias.bytes().any(|b| b.is_ascii_uppercase());
    if !upper || alias.contains([':', '@', '/']) {
        return Err(RuntimeError::BadAlias {
            alias: alias.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn kept(image: &ImageName, digest: Digest) -> KeptCopy {
        KeptCopy {
            image: image.clone(),
            digest,
            size_bytes: 1,
            since: Timestamp::UNIX_EPOCH,
            used: Timestamp::UNIX_EPOCH,
            proven: false,
            public: false,
            pinned: false,
        }
    }

    #[test]
    fn an_alias_is_no_image_name() {
        assert_eq!(check(GATE), Ok(()));
        let image = "[::1]:5000/app".parse().unwrap();
        assert_eq!(of(&image), "TryLatest,keep,[++1]+5000,app+latest");
        assert_eq!(check(&of(&image)), Ok(()));
        for name in [
            "[::1]:5000/app",
            "r.example/app@sha256:1111111111111111111111111111111111111111111111111111111111111111",
        ] {
            let image: ImageName = name.parse().unwrap();
            for (alias, journal, other) in [
                (aside(&image), Journal::Aside, Journal::Undo),
                (undo(&image), Journal::Undo, Journal::Aside),
            ] {
                assert_eq!(check(&alias), Ok(()));
                assert_eq!(journal.image_of(&alias), Some(image.clone()));
                assert_eq!(other.image_of(&alias), None);
                assert_eq!(journal.image_of(&of(&image)), None);
            }
            let digest: Digest = format!("sha256:{}", "2".repeat(64)).parse().unwrap();
            let alias = copy(&kept(&image, digest.clone()));
            assert_eq!(check(&alias), Ok(()));
            assert_eq!(copy_of(&alias), Some((image.clone(), digest)));
            assert_eq!(copy_of(&aside(&image)), None);
            let alias = rolled_back(&image);
            assert_eq!(check(&alias), Ok(()));
            assert_eq!(rolled_back_image(&alias), Some(image.clone()));
            assert_eq!(rolled_back_image(&undo(&image)), None);
        }
        for bad in [
            "",
            "keep/gate",
            "0.example/keep:1",
            "nginx",
            "TryLatest,keep:1",
            "TryLatest/keep/gate",
            "A/b@sha256:c",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
