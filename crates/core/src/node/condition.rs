//! The message of the node's condition: which images pods have fallen back to. Written by agents, and read by
//! `kubectl trylatest`.
//!
//! ```text
//! registry.example/app:1 (sha256:0123456789ab, confirmed 5m before): network; and 3 more
//! ```

use std::collections::BTreeSet;

use super::NodeImage;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::text;
use crate::time::age;

/// Most images that are named.
const IMAGES_MAX: usize = 5;

/// Between what is said of two images. No name and no digest has a semicolon.
const GAP: &str = "; ";

/// What the condition says of these images.
pub(super) fn message(cached: &[&NodeImage]) -> String {
    let mut parts: Vec<String> = cached
        .iter()
        .take(IMAGES_MAX)
        .map(|image| {
            if image.outcome != Outcome::Fallback {
                let pods = match image.pods_from_cache {
                    1 => "1 pod that started earlier still runs".to_owned(),
                    pods => format!("{pods} pods that started earlier still run"),
                };
                let (name, now) = (&image.image, image.outcome);
                let others = others(image);
                return format!("{name}: {now} now, but {pods} the previous copy{others}");
            }
            let digest = image.digest.as_ref().map(Digest::short);
            let digest = digest.map_or(String::new(), |digest| format!("{digest}, "));
            let class = image.class.map_or("unknown", |class| class.as_str());
            let confirmed = match (image.confirmed, &image.rolled_back) {
                (_, Some(back)) => {
                    let from = back.from.as_ref().map(Digest::short);
                    from.map_or("rolled back".to_owned(), |from| {
                        format!("rolled back from {from}")
                    })
                }
                (Some(then), None) => format!(
                    "confirmed {} before",
                    text::short_duration(age(image.tried, then))
                ),
                (None, None) => "never confirmed".to_owned(),
            };
            let (name, others) = (&image.image, others(image));
            format!("{name} ({digest}{confirmed}): {class}{others}")
        })
        .collect();
    if cached.len() > IMAGES_MAX {
        parts.push(format!("and {} more", cached.len() - IMAGES_MAX));
    }
    parts.join(GAP)
}

/// That other pods of this image do not start.
fn others(image: &NodeImage) -> String {
    let of = |pods, word| match pods {
        0 => String::new(),
        pods => format!(", {} {word}", text::count(pods, "pod")),
    };
    let refused = of(image.pods_refused, "refused");
    refused + &of(image.pods_unavailable, "unavailable")
}

/// What a message names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FallenBack {
    /// The images that it names.
    images: BTreeSet<ImageName>,
    /// Whether there are more of them: only so many have room, and an agent of another version may use other words.
    has_more: bool,
}

impl FallenBack {
    /// Reads the message of a condition that is true.
    pub fn read(message: &str) -> Self {
        let mut read = Self::default();
        for part in message.split(GAP) {
            // Names are written in full, have no space, and never end in a colon.
            let name = part.split(' ').next().unwrap_or_default();
            let name = name.trim_end_matches(':');
            match name.parse::<ImageName>() {
                Ok(image) if image.as_str() == name => {
                    read.images.insert(image);
                }
                _ => read.has_more = true,
            }
        }
        read
    }

    /// Whether it may be that a pod of the node runs a copy of this image that it fell back to.
    pub fn may_include(&self, image: &ImageName) -> bool {
        self.has_more || self.images.contains(image)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::image;
    use super::*;

    fn named(name: &str) -> NodeImage {
        NodeImage {
            image: name.parse().unwrap(),
            ..image(1, Outcome::Fallback, 1)
        }
    }

    fn read(images: &[NodeImage]) -> FallenBack {
        FallenBack::read(&message(&images.iter().collect::<Vec<_>>()))
    }

    fn includes(read: &FallenBack, name: &str) -> bool {
        read.may_include(&name.parse().unwrap())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut never = named("reg.example:5000/never:1");
        never.confirmed = None;
        let digest = "12".repeat(32);
        let mut fresh = named(&format!("reg.example/fresh@sha256:{digest}"));
        fresh.outcome = Outcome::Fresh;
        fresh.pods_refused = 2;
        let mut app = named("reg.example/app:10");
        app.pods_refused = 1;
        app.pods_unavailable = 2;
        let images = [app, never, fresh];
        let read = read(&images);
        assert!(!read.has_more, "{read:?}");
        for image in &images {
            assert!(read.may_include(&image.image), "{read:?}");
        }
        // Neither a part of a name nor another tag.
        for other in [
            "reg.example/app:1",
            "reg.example/app",
            "example/app:10",
            "app:10",
        ] {
            assert!(!includes(&read, other), "{other}");
        }
    }

    #[test]
    fn images_that_are_not_named_may_be_among_more() {
        let (host, path, tag) = ("h".repeat(251), "a".repeat(254), "t".repeat(128));
        let long = |n: usize| named(&format!("{host}.example/{path}{n}:{tag}"));
        let all: Vec<_> = (0..=IMAGES_MAX).map(long).collect();
        let some = read(&all[1..]);
        assert!(!some.has_more);
        assert!(all[1..].iter().all(|image| some.may_include(&image.image)));
        assert!(!some.may_include(&all[0].image));
        assert!(read(&all).may_include(&named("another").image));
    }

    #[test]
    fn other_words_exclude_nothing() {
        for words in [
            "",
            "and 3 more",
            "some pods run old copies",
            "App: network",
            "app",
        ] {
            assert!(includes(&FallenBack::read(words), "app"), "{words}");
        }
    }
}
