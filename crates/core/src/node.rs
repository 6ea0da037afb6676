//! What a node says of itself: two annotations and one condition, all bounded in size.

mod condition;
mod lines;
mod registries;

use jiff::Timestamp;
use serde::Serialize;

pub use self::condition::FallenBack;
use self::lines::Rank;
pub use self::registries::OpenRegistry;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::record::RolledBack;
use crate::text;

/// Said of a node whose kubelet keeps no records of its own.
const BY_AGENT: &str = "; the agent, not the kubelet, decides who may use copies of private images";

/// One TryLatest image of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeImage {
    /// The image, in full.
    pub image: ImageName,
    /// What its last try means for a pod that sets nothing, or what a pod has fallen back to since.
    pub outcome: Outcome,
    /// The failure's class, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<crate::outcome::FailureClass>,
    /// What the name points to on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// When the last try began.
    pub tried: Timestamp,
    /// When the registry last said that the tag points there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Timestamp>,
    /// That the name was pointed back to this copy by hand, if the registry has not said since where the tag points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<Box<RolledBack>>,
    /// Pods of this node that were released with it and have not ended.
    pub pods: usize,
    /// Pods of this node that were refused its copy, and do not start. They are none of [`NodeImage::pods`].
    pub pods_refused: usize,
    /// Of [`NodeImage::pods`], those for which the pull failed and that have no copy which the kubelet accepts for them,
    /// while they have not started.
    pub pods_unavailable: usize,
    /// Of [`NodeImage::pods`], those that started from a cached copy because their try failed, and to which the
    /// registry has not said since that the tag points to what they run.
    pub pods_from_cache: usize,
    /// Pods that were not held, and run something else than what the tag has been found to point to since.
    pub pods_behind: usize,
}

impl NodeImage {
    pub(crate) fn runs_from_cache(&self) -> bool {
        self.pods_from_cache > 0
    }
}

/// What is written to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// One line: how many images, how many run from cache, and how many have pods that do not start.
    pub summary: String,
    /// A line for each image, the worst first, and for each registry that is not asked, bounded.
    pub lines: String,
    /// Every image, in the same order.
    pub images: Vec<NodeImage>,
    /// Whether a pod of this node runs from cache, see [`NodeImage::pods_from_cache`].
    pub fallback: bool,
    /// The condition's reason, one word.
    pub reason: &'static str,
    /// The condition's message.
    pub message: String,
}

impl NodeReport {
    /// Reports on these images. Ages are left out where the text would change by itself: what has
    /// not changed is not written again.
    ///
    /// `agent_decides`: whether it is for the agent to say who may use a private image's copy.
    pub fn new(mut images: Vec<NodeImage>, agent_decides: bool) -> Self {
        images.sort_by(|a, b| (Rank::of(a), &a.image).cmp(&(Rank::of(b), &b.image)));
        let cached: Vec<_> = images.iter().filter(|i| i.runs_from_cache()).collect();
        let summary = summary(&images, cached.len(), agent_decides);
        let message = if cached.is_empty() {
            "no pod on this node runs a cached TryLatest image after a failed pull".to_owned()
        } else {
            condition::message(&cached)
        };
        let (fallback, reason) = if cached.is_empty() {
            // Also true of a node without images, or whose images nobody could confirm.
            (false, "NoFallback")
        } else {
            (true, "RunningFromCache")
        };
        Self {
            summary,
            lines: lines::lines(&images),
            images,
            fallback,
            reason,
            message,
        }
    }

    /// Adds the registries whose circuits are open.
    #[must_use]
    pub fn with_registries(mut self, open: &[OpenRegistry]) -> Self {
        self.lines.push_str(&registries::lines(open));
        self
    }

    /// Whether what is written to the node is the same.
    pub fn is_written_as(&self, other: &Self) -> bool {
        let Self {
            summary,
            lines,
            images: _,
            fallback,
            reason,
            message,
        } = self;
        (summary, lines) == (&other.summary, &other.lines)
            && (fallback, reason, message) == (&other.fallback, &other.reason, &other.message)
    }
}

fn summary(images: &[NodeImage], cached: usize, agent_decides: bool) -> String {
    let with_pods = |pods: fn(&NodeImage) -> usize, word| {
        let images = images.iter().filter(|image| pods(image) > 0);
        match images.count() {
            0 => String::new(),
            count => format!(", {count} with {word} pods"),
        }
    };
    let refused = with_pods(|image| image.pods_refused, "refused");
    let unavailable = with_pods(|image| image.pods_unavailable, "unavailable");
    let rolled_back = images.iter().filter(|image| image.rolled_back.is_some());
    let rolled_back = match rolled_back.count() {
        0 => String::new(),
        count => format!("; {} rolled back by hand", text::count(count, "image")),
    };
    let behind: usize = images.iter().map(|image| image.pods_behind).sum();
    let behind = match behind {
        0 => String::new(),
        1 => "; the tag of 1 pod without a gate has moved since it started".to_owned(),
        pods => format!("; the tags of {pods} pods without a gate have moved since they started"),
    };
    let by_agent = if agent_decides { BY_AGENT } else { "" };
    format!(
        "{}, {cached} running from the node's cache after a failed \
         pull{refused}{unavailable}{rolled_back}{behind}{by_agent}",
        text::count(images.len(), "TryLatest image"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::FailureClass;

    pub(super) fn image(n: usize, outcome: Outcome, pods: usize) -> NodeImage {
        NodeImage {
            image: format!("reg.example/{}/app{n}:latest", "x".repeat(100))
                .parse()
                .unwrap(),
            outcome,
            class: (outcome == Outcome::Fallback).then_some(FailureClass::Network),
            digest: format!("sha256:{}", "0".repeat(64)).parse().ok(),
            tried: "2026-01-01T12:00:00Z".parse().unwrap(),
            confirmed: Some("2026-01-01T11:00:00Z".parse().unwrap()),
            rolled_back: None,
            pods,
            pods_refused: 0,
            pods_unavailable: 0,
            pods_from_cache: if outcome == Outcome::Fallback {
                pods
            } else {
                0
            },
            pods_behind: 0,
        }
    }

    #[test]
    fn the_condition_is_true_while_a_pod_runs_from_cache() {
        let images = vec![
            image(1, Outcome::Unchanged, 1),
            image(2, Outcome::Fallback, 1),
        ];
        let report = NodeReport::new(images.clone(), true);
        assert!(report.summary.contains("not the kubelet, decides"));
        let report = NodeReport::new(images, false);
        assert!(report.fallback);
        assert!(
            report
                .message
                .contains("app2:latest (sha256:000000000000, confirmed 60m before): network")
        );
        assert!(report.summary.starts_with("2 TryLatest images, 1 running"));
        // The worst comes first.
        assert!(report.lines.find("app2").unwrap() < report.lines.find("app1").unwrap());
        let names = report.images.iter().map(|image| image.image.as_str());
        let ends: Vec<&str> = names.filter_map(|name| name.rsplit('/').next()).collect();
        assert_eq!(ends, ["app2:latest", "app1:latest"]);
    }

    /// They are none of the condition's business: nothing has failed.
    #[test]
    fn pods_whose_tag_has_moved_since_they_started_are_counted() {
        let mut moved = image(1, Outcome::Fresh, 3);
        let report = |behind| {
            moved.pods_behind = behind;
            NodeReport::new(vec![moved.clone(), image(2, Outcome::Unchanged, 1)], false)
        };
        let [none, one, two] = [0, 1, 2].map(report);
        assert!(!none.summary.contains("moved"), "{}", none.summary);
        assert!(
            one.summary
                .contains("; the tag of 1 pod without a gate has moved")
        );
        assert!(
            two.summary
                .contains("; the tags of 2 pods without a gate have moved")
        );
        assert!(!two.fallback);
        assert!(two.lines.contains("  2 of 3 pods on an older copy"));
    }

    /// Whoever looks at the node sees both, and which image it is.
    #[test]
    fn pods_of_one_image_may_run_from_its_copy_and_be_refused_it() {
        let mixed = NodeImage {
            pods_refused: 1,
            ..image(1, Outcome::Fallback, 2)
        };
        let refused = NodeImage {
            pods_refused: 3,
            ..image(2, Outcome::Fallback, 0)
        };
        let report = NodeReport::new(vec![image(3, Outcome::Fresh, 1), mixed, refused], false);
        assert_eq!(
            report.summary,
            "3 TryLatest images, 1 running from the node's cache after a failed pull, 2 with refused pods"
        );
        assert!(report.fallback);
        let words =
            "app1:latest (sha256:000000000000, confirmed 60m before): network, 1 pod refused";
        assert!(report.message.ends_with(words), "{}", report.message);
        // The condition is about copies that run.
        assert!(!report.message.contains("app2"), "{}", report.message);
        let ends = ["  1 of 3 pods refused, 2 from cache", "  3 pods refused"];
        for (line, end) in report.lines.lines().zip(ends) {
            assert!(line.starts_with("REFUSED network  "), "{line}");
            assert!(line.ends_with(end), "{line}");
        }
    }

    #[test]
    fn pods_of_one_image_may_run_from_its_copy_and_be_without_one() {
        let mixed = NodeImage {
            pods_unavailable: 3,
            pods_from_cache: 1,
            ..image(1, Outcome::Fallback, 4)
        };
        let nothing = NodeImage {
            pods_unavailable: 2,
            ..image(2, Outcome::Unavailable, 2)
        };
        let report = NodeReport::new(vec![image(3, Outcome::Fallback, 1), nothing, mixed], false);
        assert_eq!(
            report.summary,
            "3 TryLatest images, 2 running from the node's cache after a failed pull, 2 with unavailable pods"
        );
        let words = "app1:latest (sha256:000000000000, confirmed 60m before): network, 3 pods unavailable; ";
        assert!(report.message.contains(words), "{}", report.message);
        let lines: Vec<_> = report.lines.lines().collect();
        for (line, (begin, end)) in lines.iter().zip([
            (
                "UNAVAILABLE network  ",
                "  3 of 4 pods unavailable, 1 from cache",
            ),
            ("UNAVAILABLE  ", "  2 pods unavailable"),
            ("FALLBACK network  ", "  1 pod"),
        ]) {
            assert!(line.starts_with(begin), "{line}");
            assert!(line.ends_with(end), "{line}");
        }
    }

    #[test]
    fn a_rollback_is_reported() {
        let mut back = image(1, Outcome::Fallback, 1);
        back.rolled_back = Some(Box::new(RolledBack {
            time: "2026-01-01T11:30:00Z".parse().unwrap(),
            from: format!("sha256:{}", "2".repeat(64)).parse().ok(),
            to: back.digest.clone().unwrap(),
        }));
        back.confirmed = None;
        let report = NodeReport::new(vec![image(2, Outcome::Unchanged, 1), back], false);
        let summary = &report.summary;
        assert!(
            summary.contains("; 1 image rolled back by hand"),
            "{summary}"
        );
        let words =
            "app1:latest (sha256:000000000000, rolled back from sha256:222222222222): network";
        assert!(report.message.contains(words), "{}", report.message);
        assert!(
            report.lines.starts_with("FALLBACK network  "),
            "{}",
            report.lines
        );
        let copy = "  sha256:000000000000  rolled back 2026-01-01T11:30Z  1 pod\n";
        assert!(report.lines.contains(copy), "{}", report.lines);
    }

    #[test]
    fn it_is_false_when_no_such_pod_is_left() {
        for others in [
            vec![],
            vec![image(2, Outcome::Fallback, 0)],
            vec![image(2, Outcome::Fresh, 1)],
        ] {
            let report = NodeReport::new(others, false);
            assert!(!report.fallback);
            assert_eq!(report.reason, "NoFallback");
        }
    }

    #[test]
    fn pods_that_outlive_the_outage_with_an_older_copy_are_named() {
        let mut moved = image(2, Outcome::Fresh, 3);
        moved.pods_from_cache = 2;
        let report = NodeReport::new(vec![moved], false);
        assert!(report.fallback);
        let words =
            "app2:latest: fresh now, but 2 pods that started earlier still run the previous copy";
        assert!(report.message.contains(words), "{}", report.message);
    }

    #[test]
    fn the_size_is_bounded() {
        let images = (0..1000).map(|n| image(n, Outcome::Fallback, 1)).collect();
        let report = NodeReport::new(images, false);
        assert!(report.lines.len() < 6 * 1024, "{}", report.lines.len());
        assert!(report.message.len() < 2048, "{}", report.message.len());
        assert!(report.message.ends_with("and 995 more"));
    }

    /// What only the JSON says is no reason to write to the node.
    #[test]
    fn a_time_that_no_line_shows_is_not_written() {
        let report = |seconds| {
            let mut image = image(1, Outcome::Unchanged, 1);
            image.tried += std::time::Duration::from_secs(seconds);
            image.confirmed = image
                .confirmed
                .map(|then| then + std::time::Duration::from_secs(seconds));
            NodeReport::new(vec![image], false)
        };
        assert_ne!(report(0), report(59));
        assert!(report(0).is_written_as(&report(59)));
        assert!(!report(0).is_written_as(&report(60)));
    }

    #[test]
    fn the_longest_names_are_bounded_too() {
        let (host, path, tag) = ("h".repeat(251), "a".repeat(255), "t".repeat(128));
        let long = NodeImage {
            image: format!("{host}.example/{path}:{tag}").parse().unwrap(),
            ..image(1, Outcome::Fallback, 1)
        };
        let report = NodeReport::new(vec![long; 40], false);
        assert!(report.lines.len() < 6 * 1024, "{}", report.lines.len());
        assert!(report.message.len() < 8192, "{}", report.message.len());
    }
}
