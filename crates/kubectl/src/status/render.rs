//! One screen.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use trylatest_core::digest::Digest;
use trylatest_core::outcome::FailureClass;
use trylatest_core::text;
use trylatest_core::time::{age, short_age};

use super::{NodeStatus, Status, Trouble};
use crate::nodes::AgentState;
use crate::output::{BAD, Cell, DIM, GOOD, HEAD, ODD, PLAIN, columns, styled};

/// Rows of each table, unless all are asked for.
const ROWS: usize = 10;

/// Longest words in a row's last column on a terminal, unless all are asked for.
const WORDS_MAX: usize = 120;

/// The times in nodes' annotations have no seconds: shorter ages would look more exact than they are.
const AGE_MIN: Duration = Duration::from_mins(2);

/// All of it as text; everything or the worst of each kind. Long words are cut for a terminal only: elsewhere, a line
/// may be as long as it is.
pub(super) fn text(status: &Status, all: bool, is_terminal: bool) -> String {
    let screen = Screen {
        rows: if all { usize::MAX } else { ROWS },
        words: if is_terminal && !all {
            WORDS_MAX
        } else {
            usize::MAX
        },
        status,
    };
    let mut text = screen.head();
    for part in [
        screen.nodes(),
        screen.open_circuits(),
        screen.registries(),
        screen.stale(),
        screen.skew(),
        screen.troubled(),
    ] {
        text.push_str(&part);
    }
    for why in &status.not_seen {
        let _ = writeln!(text, "{} {why}", styled(ODD, "not looked at:"));
    }
    text
}

struct Screen<'a> {
    rows: usize,
    words: usize,
    status: &'a Status,
}

impl Screen<'_> {
    fn head(&self) -> String {
        let Status { nodes, .. } = self.status;
        let ready = nodes
            .iter()
            .filter(|n| n.agent == AgentState::Ready)
            .count();
        let wanted = nodes
            .iter()
            .filter(|n| n.agent != AgentState::NotWanted)
            .count();
        let agents = match (
            ready == wanted,
            nodes.iter().any(|n| n.agent == AgentState::Unknown),
        ) {
            (_, true) => styled(ODD, "agents unknown"),
            (true, _) => styled(GOOD, &format!("{} ready", text::count(ready, "agent"))),
            _ => styled(BAD, &format!("{ready} of {wanted} agents ready")),
        };
        let seen = match nodes.len() {
            0 if !self.status.not_seen.is_empty() => styled(ODD, "nodes not seen"),
            number => format!("{}, {agents}", text::count(number, "node")),
        };
        format!("{seen}; {}\n", self.pods())
    }

    fn pods(&self) -> String {
        let Some(pods) = self.status.pods else {
            return styled(ODD, "pods not seen");
        };
        let namespace = match &self.status.namespace {
            Some(namespace) => format!(" in namespace {namespace}"),
            None => String::new(),
        };
        let behind = match self.status.pods_from_cache {
            0 => 0,
            _ => self.status.pods_behind,
        };
        let mut text = text::count(pods, "TryLatest pod");
        let _ = write!(text, "{namespace}: {}", self.old());
        for (number, words) in [
            (behind, "behind their tags"),
            (self.count(Trouble::Waiting), "waiting"),
            (self.count(Trouble::Refused), "refused"),
            (self.count(Trouble::Unavailable), "unavailable"),
            (self.count(Trouble::Unanswered), "unanswered"),
            (self.count(Trouble::Overruled), "overruled"),
            (self.status.pods_unreported, "not reported yet"),
        ] {
            if number > 0 {
                let _ = write!(text, ", {}", styled(ODD, &format!("{number} {words}")));
            }
        }
        text
    }

    /// How many pods run an old copy. Of some, nobody may know.
    fn old(&self) -> String {
        let unknown = self.count(Trouble::Unanswered)
            + self.count(Trouble::Overruled)
            + self.status.pods_unreported;
        match (self.status.pods_from_cache, self.status.pods_behind) {
            (0, 0) if unknown > 0 => styled(ODD, "none is known to run an old copy"),
            (0, 0) => styled(GOOD, "none runs an old copy"),
            (0, 1) => styled(ODD, "1 runs behind its tag"),
            (0, behind) => styled(ODD, &format!("{behind} run behind their tags")),
            (1, _) => styled(BAD, "1 runs an old copy"),
            (old, _) => styled(BAD, &format!("{old} run an old copy")),
        }
    }

    /// How many pods have this trouble.
    fn count(&self, trouble: Trouble) -> usize {
        let counts = &self.status.troubles;
        counts.get(&trouble).copied().unwrap_or_default()
    }

    fn nodes(&self) -> String {
        let nodes = &self.status.nodes;
        let rows = nodes.iter().take(self.rows).map(|node| self.node(node));
        let head = ["NODE", "AGENT", "FALLBACK", "SUMMARY"];
        self.table("Nodes", head, rows.collect(), nodes.len())
    }

    fn node(&self, node: &NodeStatus) -> [Cell; 4] {
        let style = match node.agent {
            AgentState::Missing | AgentState::NotReady => BAD,
            AgentState::Unknown => ODD,
            AgentState::Ready => GOOD,
            AgentState::NotWanted => DIM,
        };
        let fallback = match node.fallback {
            Some(true) => Cell::new(BAD, "yes"),
            Some(false) => Cell::new(PLAIN, "no"),
            None => Cell::new(DIM, "-"),
        };
        let mut name = node.name.clone();
        if !node.ready {
            name.push_str(" (NotReady)");
        }
        let summary = node.summary.as_deref().unwrap_or("-");
        let agent = Cell::new(style, node.agent.as_str());
        [name.into(), agent, fallback, self.cut(summary).into()]
    }

    fn stale(&self) -> String {
        let stale = &self.status.stale;
        let rows = stale.iter().take(self.rows).map(|image| {
            let confirmed = match &image.confirmed {
                Some(then) => format!("{} ago", short_age(self.status.time, *then)),
                None if image.pods == image.rolled_back => "-".to_owned(),
                None => "never".to_owned(),
            };
            let mut why = vec![classes(&image.classes)];
            why.retain(|classes| !classes.is_empty());
            if image.rolled_back > 0 {
                why.push(format!("{} rolled back", image.rolled_back));
            }
            if image.behind > 0 {
                why.push(format!("{} without a gate: tag moved", image.behind));
            }
            for (pods, word) in [
                (image.refused, "refused"),
                (image.unavailable, "unavailable"),
            ] {
                if pods > 0 {
                    why.push(format!("{} {word}", text::count(pods, "other pod")));
                }
            }
            [
                Cell::new(BAD, image.image.clone()),
                (image.pods + image.behind).to_string().into(),
                image.nodes.to_string().into(),
                digests(&image.digests).into(),
                confirmed.into(),
                why.join("; ").into(),
            ]
        });
        let head = ["IMAGE", "PODS", "NODES", "COPY", "CONFIRMED", "WHY"];
        let total = stale.len() + self.status.left_out.images;
        self.table(
            "Images that run from an old copy",
            head,
            rows.collect(),
            total,
        )
    }

    fn skew(&self) -> String {
        let skew = &self.status.skew;
        let all = skew.iter().flat_map(|image| {
            image.digests.iter().enumerate().map(|(at, used)| {
                let name = if at == 0 { image.image.as_str() } else { "" };
                [
                    Cell::new(ODD, name),
                    used.digest.short().into(),
                    used.pods.to_string().into(),
                    used.nodes.to_string().into(),
                    format!("{} ago", short_age(self.status.time, used.released)).into(),
                ]
            })
        });
        let total = skew.iter().map(|image| image.digests.len()).sum();
        let head = ["IMAGE", "DIGEST", "PODS", "NODES", "LAST RELEASED"];
        let rows = all.take(self.rows).collect();
        self.table("Tags of which pods run several digests", head, rows, total)
    }

    fn open_circuits(&self) -> String {
        let open = &self.status.open_circuits;
        let rows = open.iter().take(self.rows).map(|circuit| {
            [
                Cell::new(BAD, circuit.registry.clone()),
                circuit.nodes.to_string().into(),
                rough_age(self.status.time, circuit.since).into(),
                classes(&circuit.classes).into(),
            ]
        });
        let head = ["REGISTRY", "NODES", "FOR", "WHY"];
        let title = "Registries that nodes do not ask for each pod now (their circuits are open)";
        self.table(title, head, rows.collect(), open.len())
    }

    fn registries(&self) -> String {
        let failing = &self.status.registries;
        let rows = failing.iter().take(self.rows).map(|registry| {
            [
                Cell::new(BAD, registry.registry.clone()),
                registry.pods.to_string().into(),
                registry.nodes.to_string().into(),
                format!("{} ago", short_age(self.status.time, registry.last)).into(),
                classes(&registry.classes).into(),
            ]
        });
        let head = ["REGISTRY", "PODS", "NODES", "LAST", "WHY"];
        let title = "Registries that failed when these pods started";
        self.table(title, head, rows.collect(), failing.len())
    }

    fn troubled(&self) -> String {
        let troubled = &self.status.troubled;
        let rows = troubled.iter().take(self.rows).map(|pod| {
            let style = match pod.trouble {
                Trouble::Refused | Trouble::GateImage | Trouble::Unavailable => BAD,
                Trouble::Waiting | Trouble::Unanswered | Trouble::Overruled => ODD,
            };
            let age = pod.since.map(|since| short_age(self.status.time, since));
            [
                format!("{}/{}", pod.namespace, pod.name).into(),
                Cell::new(style, pod.trouble.as_str()),
                age.unwrap_or_else(|| "-".to_owned()).into(),
                pod.node.clone().unwrap_or_else(|| "-".to_owned()).into(),
                self.cut(&pod.why).into(),
            ]
        });
        let head = ["POD", "STATE", "FOR", "NODE", "WHY"];
        let total = troubled.len() + self.status.left_out.troubled;
        self.table(
            "Pods to look at (kubectl trylatest explain POD)",
            head,
            rows.collect(),
            total,
        )
    }

    /// A table with a title, if it has a row; `total` rows exist, even if some were not kept.
    fn table<const N: usize>(
        &self,
        title: &str,
        head: [&str; N],
        rows: Vec<[Cell; N]>,
        total: usize,
    ) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let more = total.saturating_sub(rows.len());
        // Whoever has asked for all of them gets no more.
        let how = if self.rows == usize::MAX {
            ""
        } else {
            " (--all)"
        };
        let mut text = format!("\n{}\n{}", styled(HEAD, title), columns(head, rows));
        if more > 0 {
            let words = format!("and {more} more{how}");
            let _ = writeln!(text, "  {}", styled(DIM, &words));
        }
        text
    }

    fn cut(&self, words: &str) -> String {
        match words.char_indices().nth(self.words) {
            Some((end, _)) => format!("{}…", &words[..end]),
            None => words.to_owned(),
        }
    }
}

/// How long ago a time without seconds was.
fn rough_age(now: Timestamp, then: Timestamp) -> String {
    if age(now, then) < AGE_MIN {
        return "<2m".to_owned();
    }
    short_age(now, then)
}

fn classes<'a>(classes: impl IntoIterator<Item = &'a FailureClass>) -> String {
    let words: Vec<_> = classes.into_iter().map(|class| class.as_str()).collect();
    words.join(", ")
}

fn digests(digests: &[Digest]) -> String {
    match digests {
        [] => "-".to_owned(),
        [one] => one.short().to_owned(),
        [first, more @ ..] => format!("{} and {} more", first.short(), more.len()),
    }
}
