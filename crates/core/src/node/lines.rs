//! The node's images as lines for `kubectl describe node`, the worst first.
//!
//! ```text
//! REFUSED network  reg.example/a:2  sha256:23456789abcd  confirmed 2026-01-01T11:00Z  1 of 3 pods refused, 2 from cache
//! UNAVAILABLE unauthorized  reg.example/b:1  sha256:3456789abcde  confirmed 2026-01-01T11:00Z  3 of 4 pods unavailable
//! FALLBACK network  registry.example/app:latest  sha256:0123456789ab  confirmed 2026-01-01T11:00Z  2 pods
//! unchanged  registry.example/other:latest  sha256:ba9876543210  confirmed 2026-01-01T12:00Z  1 pod
//! ```

use jiff::Timestamp;

use super::NodeImage;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::text;

/// Longest line in bytes: kubectl cuts what is longer (`kubectl/pkg/describe`, `maxAnnotationLen`, less its indent).
pub(super) const LINE_MAX_BYTES: usize = 138;

/// Most images, each on a line. etcd and every watcher of nodes carry the annotation.
const IMAGES_MAX: usize = 40;

/// Between what a line says.
pub(super) const GAP: &str = "  ";

/// In place of what is left out of a name.
const CUT: &str = "…";

/// How bad it is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// A pod must not use the copy, and does not start. Others may run it.
    Refused,
    /// A pod has nothing to start from, and does not start. Others may run a copy.
    Unavailable,
    /// A pod runs the copy that it fell back to.
    FromCache,
    /// Somebody has pointed the name back to an earlier copy by hand.
    RolledBack,
    /// A pod without a gate runs something else than the tag points to.
    Behind,
    /// The last try failed.
    Failing,
    Used,
    Unused,
}

impl Rank {
    pub(super) fn of(image: &NodeImage) -> Self {
        let is_used = image.pods > 0;
        match image.outcome {
            _ if image.pods_refused > 0 => Self::Refused,
            _ if image.pods_unavailable > 0 => Self::Unavailable,
            _ if image.runs_from_cache() => Self::FromCache,
            _ if image.rolled_back.is_some() => Self::RolledBack,
            _ if image.pods_behind > 0 => Self::Behind,
            Outcome::Fallback | Outcome::Refused | Outcome::Unavailable if is_used => Self::Failing,
            _ if is_used => Self::Used,
            _ => Self::Unused,
        }
    }

    /// The first word of its line. Capitals are for what affects a pod now.
    fn word(self, outcome: Outcome) -> String {
        match self {
            Self::Refused => "REFUSED".to_owned(),
            Self::Unavailable => "UNAVAILABLE".to_owned(),
            Self::FromCache => "FALLBACK".to_owned(),
            Self::RolledBack => "ROLLED-BACK".to_owned(),
            Self::Behind => "MOVED".to_owned(),
            Self::Failing | Self::Used | Self::Unused => outcome.as_str().to_owned(),
        }
    }
}

/// These images, the worst first.
pub(super) fn lines(images: &[NodeImage]) -> String {
    if images.is_empty() {
        return "none".to_owned();
    }
    let mut lines: Vec<String> = images.iter().take(IMAGES_MAX).map(line).collect();
    if images.len() > IMAGES_MAX {
        let more = text::count(images.len() - IMAGES_MAX, "more image");
        lines.push(format!("and {more}"));
    }
    lines.join("\n")
}

fn line(image: &NodeImage) -> String {
    let rank = Rank::of(image);
    let class = image.class.map(|class| format!(" {class}"));
    let first = format!("{}{}", rank.word(image.outcome), class.unwrap_or_default());
    let copy = match &image.digest {
        Some(digest) => {
            let confirmed = image
                .confirmed
                .map(|then| format!("confirmed {}", minute(then)));
            let confirmed = confirmed.unwrap_or_else(|| "never confirmed".to_owned());
            let back = image.rolled_back.as_ref();
            let said = back.map_or(confirmed, |back| {
                format!("rolled back {}", minute(back.time))
            });
            format!("{}{GAP}{said}", digest.short())
        }
        None => format!("no copy{GAP}tried {}", minute(image.tried)),
    };
    let pods = pods(image, rank);
    let others = first.len() + copy.len() + pods.len() + 3 * GAP.len();
    let name = short_name(&image.image, LINE_MAX_BYTES.saturating_sub(others));
    [first, name, copy, pods].join(GAP)
}

/// A time that stays true: the line is not written again as it ages.
pub(super) fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%MZ").to_string()
}

fn pods(image: &NodeImage, rank: Rank) -> String {
    let all = text::count(image.pods, "pod");
    let old = image.pods_from_cache;
    match rank {
        Rank::Refused | Rank::Unavailable => not_started(image),
        Rank::FromCache if image.outcome != Outcome::Fallback => {
            format!("{old} of {all} on an older copy")
        }
        Rank::FromCache if old < image.pods => format!("{old} of {all}"),
        Rank::Behind => format!("{} of {all} on an older copy", image.pods_behind),
        _ => all,
    }
}

/// How many pods do not start and how many run what they fell back to: two of these, so that the name keeps its room.
fn not_started(image: &NodeImage) -> String {
    let old = match image.outcome {
        Outcome::Fallback => "from cache",
        _ => "on an older copy",
    };
    let total = image.pods_refused + image.pods;
    let all = text::count(total, "pod");
    let counts = [
        (image.pods_refused, "refused"),
        (image.pods_unavailable, "unavailable"),
        (image.pods_from_cache, old),
    ];
    let counts = counts.into_iter().filter(|(pods, _)| *pods > 0).take(2);
    let words = counts.enumerate().map(|(at, (pods, word))| match at {
        0 if pods == total => format!("{all} {word}"),
        0 => format!("{pods} of {all} {word}"),
        _ => format!("{pods} {word}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The name in at most this many bytes: what is too long loses its middle, so that host and tag stay. A digest in it is
/// shortened.
fn short_name(image: &ImageName, most: usize) -> String {
    let name = match image.digest() {
        Some(digest) => format!("{}@{}", image.repository(), Digest::short(&digest)),
        None => image.to_string(),
    };
    let host = image.registry().len() + 1;
    without_middle(name, host.min(most / 2), most)
}

/// These words in at most this many bytes: so many of the beginning, and as many of the end as fit.
pub(super) fn without_middle(words: String, head: usize, most: usize) -> String {
    if words.len() <= most {
        return words;
    }
    let tail = words.len() - most.saturating_sub(head + CUT.len());
    // Names are ASCII; were one not, it would be cut elsewhere.
    let (head, tail) = (
        words.floor_char_boundary(head),
        words.ceil_char_boundary(tail),
    );
    format!("{}{CUT}{}", &words[..head], &words[tail..])
}

#[cfg(test)]
mod tests {
    use super::super::tests::image;
    use super::*;
    use crate::outcome::FailureClass;

    fn named(name: &str, outcome: Outcome) -> NodeImage {
        NodeImage {
            image: name.parse().unwrap(),
            ..image(1, outcome, 2)
        }
    }

    #[test]
    fn a_line_says_what_runs_and_since_when_it_is_known_to_be_right() {
        let fallback = named("registry.example/app", Outcome::Fallback);
        assert_eq!(
            line(&fallback),
            "FALLBACK network  registry.example/app:latest  sha256:000000000000  confirmed 2026-01-01T11:00Z  2 pods"
        );
        let one_of_two = NodeImage {
            pods_from_cache: 1,
            ..fallback.clone()
        };
        assert!(line(&one_of_two).ends_with("  1 of 2 pods"));
        let older = NodeImage {
            pods_from_cache: 1,
            ..named("registry.example/app", Outcome::Fresh)
        };
        assert_eq!(
            line(&older),
            "FALLBACK  registry.example/app:latest  sha256:000000000000  confirmed 2026-01-01T11:00Z  1 of 2 pods on an \
             older copy"
        );
        let behind = NodeImage {
            pods_behind: 2,
            ..named("registry.example/app", Outcome::Unchanged)
        };
        assert!(line(&behind).starts_with("MOVED  registry"));
        assert!(line(&behind).ends_with("  2 of 2 pods on an older copy"));
        let absent = NodeImage {
            digest: None,
            confirmed: None,
            class: Some(FailureClass::NotFound),
            pods_unavailable: 2,
            ..named("app", Outcome::Unavailable)
        };
        assert_eq!(
            line(&absent),
            "UNAVAILABLE not-found  docker.io/library/app:latest  no copy  tried 2026-01-01T12:00Z  2 pods \
             unavailable"
        );
        let unknown = NodeImage {
            confirmed: None,
            pods: 0,
            ..named("app", Outcome::Unchanged)
        };
        assert_eq!(
            line(&unknown),
            "unchanged  docker.io/library/app:latest  sha256:000000000000  never confirmed  0 pods"
        );
    }

    /// Pods of one image may have different settings.
    #[test]
    fn a_line_says_how_many_pods_are_refused_and_how_many_run_the_copy() {
        let with = |outcome, pods, refused, from_cache| NodeImage {
            pods,
            pods_refused: refused,
            pods_from_cache: from_cache,
            ..named("registry.example/app", outcome)
        };
        assert_eq!(
            line(&with(Outcome::Fallback, 2, 1, 2)),
            "REFUSED network  registry.example/app:latest  sha256:000000000000  confirmed 2026-01-01T11:00Z  1 of 3 \
             pods refused, 2 from cache"
        );
        for (image, end) in [
            (with(Outcome::Fallback, 0, 1, 0), "  1 pod refused"),
            (with(Outcome::Refused, 0, 2, 0), "  2 pods refused"),
            (with(Outcome::Fresh, 3, 1, 0), "  1 of 4 pods refused"),
            (
                with(Outcome::Fresh, 3, 2, 1),
                "  2 of 5 pods refused, 1 on an older copy",
            ),
        ] {
            let line = line(&image);
            assert!(line.starts_with("REFUSED"), "{line}");
            assert!(line.ends_with(end), "{line}");
        }
        let both = NodeImage {
            pods_unavailable: 2,
            ..with(Outcome::Fallback, 3, 1, 1)
        };
        assert!(line(&both).ends_with("  1 of 4 pods refused, 2 unavailable"));
        // By default it would be refused, and no pod is.
        let nobody = line(&with(Outcome::Refused, 2, 0, 0));
        assert!(nobody.starts_with("refused  "), "{nobody}");
        assert!(nobody.ends_with("  2 pods"), "{nobody}");
    }

    #[test]
    fn the_worst_comes_first() {
        let with = |outcome, pods, refused, from_cache, behind| NodeImage {
            pods,
            pods_refused: refused,
            pods_from_cache: from_cache,
            pods_behind: behind,
            ..image(1, outcome, 0)
        };
        let ranks = [
            with(Outcome::Fallback, 1, 1, 1, 0),
            with(Outcome::Fallback, 0, 1, 0, 0),
            NodeImage {
                pods_unavailable: 1,
                ..with(Outcome::Fallback, 2, 0, 1, 0)
            },
            with(Outcome::Fresh, 1, 0, 1, 0),
            with(Outcome::Unchanged, 1, 0, 0, 1),
            with(Outcome::Fallback, 1, 0, 0, 0),
            with(Outcome::Refused, 1, 0, 0, 0),
            with(Outcome::Unavailable, 1, 0, 0, 0),
            with(Outcome::Unchanged, 1, 0, 0, 0),
            with(Outcome::Unavailable, 0, 0, 0, 0),
            with(Outcome::Refused, 0, 0, 0, 0),
        ]
        .map(|image| Rank::of(&image));
        let expected = [
            Rank::Refused,
            Rank::Refused,
            Rank::Unavailable,
            Rank::FromCache,
            Rank::Behind,
            Rank::Failing,
            Rank::Failing,
            Rank::Failing,
            Rank::Used,
            Rank::Unused,
            Rank::Unused,
        ];
        assert_eq!(ranks, expected);
        assert!(ranks.is_sorted());
    }

    /// kubectl cuts a longer line.
    #[test]
    fn a_line_keeps_host_and_tag_of_a_long_name() {
        let (path, tag) = ("a".repeat(200), "t".repeat(20));
        let long = named(
            &format!("registry.example/{path}/app:{tag}"),
            Outcome::Fallback,
        );
        let long = line(&long);
        assert_eq!(long.len(), LINE_MAX_BYTES, "{long}");
        assert!(long.contains("  registry.example/…"), "{long}");
        assert!(long.contains(&format!("a/app:{tag}  sha256:")), "{long}");
        let digest = format!("sha256:{}", "12".repeat(32));
        let pinned = line(&named(
            &format!("registry.example/app@{digest}"),
            Outcome::Fresh,
        ));
        assert!(pinned.contains("registry.example/app@sha256:121212121212  "));
        let (host, path, tag) = ("h".repeat(251), "a".repeat(255), "t".repeat(128));
        let mut longest = named(&format!("{host}.example/{path}:{tag}"), Outcome::Fallback);
        longest.class = Some(FailureClass::RateLimited);
        longest.pods = usize::MAX;
        let all = line(&longest);
        assert!(all.len() <= LINE_MAX_BYTES, "{all}");
        assert!(all.contains("t  sha256:"), "{all}");
        // More pods than a node can run.
        longest.pods = 9_999;
        longest.pods_from_cache = 9_999;
        longest.pods_unavailable = 9_999;
        let some = line(&longest);
        assert!(some.len() <= LINE_MAX_BYTES, "{some}");
        assert!(some.contains("t  sha256:"), "{some}");
        longest.pods_refused = 9_999;
        let some = line(&longest);
        assert!(some.len() <= LINE_MAX_BYTES, "{some}");
        assert!(some.contains("t  sha256:"), "{some}");
    }

    #[test]
    fn a_node_with_many_images_names_a_few() {
        assert_eq!(lines(&[]), "none");
        let images: Vec<NodeImage> = (0..1000).map(|n| image(n, Outcome::Fallback, 1)).collect();
        let text = lines(&images);
        assert_eq!(text.lines().count(), IMAGES_MAX + 1);
        assert!(text.ends_with("\nand 960 more images"), "{text}");
        assert!(text.lines().all(|line| line.len() <= LINE_MAX_BYTES));
        assert!(
            lines(&images[..IMAGES_MAX])
                .lines()
                .last()
                .unwrap()
                .contains("app39")
        );
    }
}
