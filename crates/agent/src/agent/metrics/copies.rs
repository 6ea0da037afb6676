//! The series about copies that pods fell back to, and about what tags point to on this node.

use std::collections::BTreeMap;

use prometheus::{IntGauge, IntGaugeVec, Registry, Result};
use sha2::{Digest as _, Sha256};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::node::NodeImage;
use trylatest_core::plan::Figures;
use trylatest_core::time::{Now, age};

use super::make::{gauge, gauges, value};

/// Images of which the digest is shown: each is a series, on every node.
const DIGESTS_MAX: usize = 50;

/// Hexadecimal digits of a digest that a float holds exactly.
const DIGITS: usize = 12;

pub(in crate::agent) struct CopySeries {
    pods: IntGauge,
    images: IntGauge,
    unconfirmed: IntGauge,
    oldest: IntGauge,
    digests: IntGaugeVec,
}

impl CopySeries {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        Ok(Self {
            pods: gauge(
                "trylatest_fallback_pods",
                "Pods that run the copy that they fell back to, as far as the registry has not said since that the tag \
                 points there.",
            )?,
            images: gauge("trylatest_fallback_images", "Images of these pods.")?,
            unconfirmed: gauge(
                "trylatest_fallback_images_unconfirmed",
                "Of these, images with such a copy of which no registry has ever said that the tag points there: its \
                 age is unknown.",
            )?,
            oldest: gauge(
                "trylatest_oldest_fallback_copy_age_seconds",
                "Of these copies, the longest time since the registry last said that the tag points there; 0 if there \
                 is none.",
            )?,
            digests: gauges(
                registry,
                "trylatest_image_digest",
                "The first 48 bits of the digest that a tag points to on this node, for tags that pods use: nodes that \
                 differ run different images.",
                &["image"],
            )?,
        })
    }

    pub(super) fn show(&self, figures: &Figures, now: Now) {
        let fallback = figures.fallback;
        self.pods.set(value(fallback.pods));
        self.images.set(value(fallback.images));
        self.unconfirmed.set(value(fallback.unconfirmed));
        let oldest = fallback.oldest.map(|then| age(now.wall, then).as_secs());
        self.oldest.set(value(oldest.unwrap_or(0)));
    }

    /// What the tags point to that pods use.
    pub(super) fn set_digests(&self, images: &[NodeImage]) {
        let used = images.iter().filter(|image| image.pods > 0);
        let tags = used.filter(|image| !image.image.has_digest());
        let digests: BTreeMap<String, i64> = tags
            .filter_map(|image| Some((hidden(&image.image), bits(image.digest.as_ref()?)?)))
            .collect();
        self.digests.reset();
        for (image, digest) in digests.iter().take(DIGESTS_MAX) {
            self.digests.with_label_values(&[image]).set(*digest);
        }
    }
}

/// Tells images apart without naming them: anybody who reaches the port reads it.
fn hidden(image: &ImageName) -> String {
    let hash = Sha256::digest(image.as_str());
    let digits = hash.iter().map(|byte| format!("{byte:02x}"));
    digits.take(DIGITS / 2).collect()
}

fn bits(digest: &Digest) -> Option<i64> {
    let (_, encoded) = digest.as_str().split_once(':')?;
    i64::from_str_radix(encoded.get(..DIGITS)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use trylatest_core::outcome::Outcome;

    use super::*;

    fn image(name: &str, digest: Option<&str>, pods: usize) -> NodeImage {
        NodeImage {
            image: name.parse().unwrap(),
            outcome: Outcome::Fresh,
            class: None,
            digest: digest.map(|digest| digest.parse().unwrap()),
            tried: "2026-01-01T12:00:00Z".parse().unwrap(),
            rolled_back: None,
            confirmed: None,
            pods,
            pods_refused: 0,
            pods_unavailable: 0,
            pods_from_cache: 0,
            pods_behind: 0,
        }
    }

    fn shown(images: &[NodeImage]) -> Vec<String> {
        let registry = Registry::new();
        CopySeries::new(&registry).unwrap().set_digests(images);
        let text = prometheus::TextEncoder::new();
        let text = text.encode_to_string(&registry.gather()).unwrap();
        let lines = text.lines();
        let lines = lines.filter(|line| line.starts_with("trylatest_image_digest"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn nodes_can_be_compared_by_what_their_tags_point_to() {
        let digest = format!("sha256:ffffffffffff{}", "0".repeat(52));
        let pinned = format!("app@{digest}");
        let images = [
            image("nginx", Some(&digest), 1),
            image("unused", Some(&digest), 0),
            image("absent", None, 1),
            image("odd", Some("blake3:xyz"), 1),
            image(&pinned, Some(&digest), 1),
        ];
        // printf %s docker.io/library/nginx:latest | sha256sum
        let line = "trylatest_image_digest{image=\"86cee2c10898\"} 281474976710655";
        assert_eq!(shown(&images), [line]);
    }

    #[test]
    fn the_images_that_are_compared_are_few_and_the_same_everywhere() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let named = |n: usize| image(&format!("app{n}"), Some(&digest), 1);
        let mut images: Vec<NodeImage> = (0..200).map(named).collect();
        let few = shown(&images);
        assert_eq!(few.len(), DIGESTS_MAX);
        images.reverse();
        assert_eq!(shown(&images), few);
    }
}
