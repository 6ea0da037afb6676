//! `trylatest pull`: one try by hand, with the agent's own decision about its end.
//!
//! It needs containerd and nothing else. Where an agent runs, it reads what that remembers, and reports to it what the
//! registry has confirmed; the agent's own tries go on beside it. Where none runs, it writes its try to the index, so
//! that the next one knows how old the copy is.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use prometheus::IntCounter;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::{ImageRuntime, alias};
use trylatest_core::digest::Digest;
use trylatest_core::identity::Identity;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass, Outcome};
use trylatest_core::plan::{Ask, Flow, TryEnded};
use trylatest_core::record::{Facts, RolledBack, Try, TryResult, last_confirmed};
use trylatest_core::rules::{Rule, Rules, Source};
use trylatest_core::text;
use trylatest_core::verdict::{CachedCopy, Evidence, Terms, judge, settle};

use crate::agent::{PullLimits, attempt, offers};
use crate::args::{PullOnceArgs, TextOrJson};
use crate::clock::{self, Clock};
use crate::images::remembered;
use crate::node::on_containerd;
use crate::remember::remember;
use crate::shown::Bar;
use crate::turn;
use crate::undo::Undo;

/// For each call to containerd but the pull.
const DEADLINE: Duration = Duration::from_secs(5);

/// Looks at the pull that wait to be shown. The next one repeats what does not fit.
const LOOKS_MAX: usize = 8;

/// A copy is here, but what the tag points to now could not be had.
const FELL_BACK: u8 = 3;

/// There is nothing to start from.
const UNAVAILABLE: u8 = 4;

/// A copy is here, and must not be used.
const REFUSED: u8 = 5;

/// Pulls, prints the outcome, and says it by the exit code.
///
/// # Errors
/// containerd does not answer, the kubelet is pulling the image, or the command is interrupted.
pub fn run(args: PullOnceArgs) -> anyhow::Result<ExitCode> {
    let rules = rules(&args);
    let PullOnceArgs {
        image,
        stall,
        disk_floor,
        containerd,
        state_dir,
        output,
        ..
    } = args;
    let pulled = on_containerd(containerd, DEADLINE, async |node, stop| {
        let _turn = turn::take(&state_dir, stop).await?;
        let memory = Memory::of(&state_dir, &image).await;
        if let (Some(why), true) = (&memory.unknown, rules.max_age.is_some()) {
            eprintln!("trylatest: it is not known when the copy was last confirmed: {why}");
        }
        let limits = PullLimits {
            alias: alias::undo,
            ..PullLimits::of_node(stall, disk_floor)
        };
        let order = Order {
            image: &image,
            rules: &rules,
            facts: &memory.facts,
        };
        let (tried, pulled) =
            Box::pin(order.pull(node, limits, &mut Bar::on_stderr(), stop)).await?;
        remember(&state_dir, tried).await;
        Ok(pulled)
    })?;
    let text = match output {
        TextOrJson::Json => serde_json::to_string_pretty(&pulled)?,
        TextOrJson::Text => pulled.words(),
    };
    crate::printed(format!("{text}\n").as_bytes())?;
    Ok(pulled.exit_code())
}

/// What applies. Whoever may run this may use every copy of the node: nobody's credentials are at stake.
fn rules(args: &PullOnceArgs) -> Rules {
    let PullOnceArgs {
        timeout,
        max_age,
        fallback_on,
        ..
    } = args;
    let source = Source::Command;
    Rules {
        try_for: *timeout,
        max_age: max_age.map(|value| Rule { value, source }),
        fallback_on: Some(Rule {
            value: fallback_on.iter().copied().collect(),
            source,
        }),
        fallback_ceiling: None,
        without_proof: true,
        kubelet_decides: false,
        identity: Identity::default(),
    }
}

/// What is known of the image from before.
struct Memory {
    facts: Facts,
    /// Why nothing can be known.
    unknown: Option<String>,
}

impl Memory {
    async fn of(state_dir: &Path, image: &ImageName) -> Self {
        match remembered(state_dir).await {
            Ok(records) => {
                let record = records.into_iter().find(|record| record.image == *image);
                Self {
                    facts: record.map(|record| record.facts).unwrap_or_default(),
                    unknown: None,
                }
            }
            Err(error) => Self {
                facts: Facts::default(),
                unknown: Some(format!("{error:#}")),
            },
        }
    }
}

/// What is to be pulled, and what the copy is measured against.
struct Order<'a> {
    image: &'a ImageName,
    rules: &'a Rules,
    facts: &'a Facts,
}

impl Order<'_> {
    /// Pulls. If the command is interrupted, the name points to what it did.
    async fn pull<R: ImageRuntime>(
        &self,
        node: &R,
        limits: PullLimits,
        bar: &mut Bar,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Try, Pulled)> {
        let clock = Clock::start();
        let change = Undo::begin(node, self.image).await?;
        let began = clock.now();
        bar.begin(&format!("pulling {}", self.image));
        let has_copy = change.before().cloned();
        let tried = self.watch(node, limits, has_copy.as_ref(), bar, stop).await;
        bar.end();
        // Whatever came of it, the name must not be left pointing to what cannot be used.
        let (evidence, found) = change.end_after(tried).await?;
        let now = clock.now();
        let tried = evidence.to_try(self.image, began, now, None);
        if evidence.copy.digest().is_some() && found.is_none() {
            bail!(
                "the name {} was taken away meanwhile, for the kubelet or by somebody else",
                self.image
            );
        }
        let mut facts = self.facts.clone();
        facts.add(&tried);
        let pulled = self.decide(&evidence, &facts, now.wall, &tried);
        Ok((tried, pulled))
    }

    /// Waits for the pull as long as a pod of these rules would.
    async fn watch<R: ImageRuntime>(
        &self,
        node: &R,
        limits: PullLimits,
        has_copy: Option<&Digest>,
        bar: &mut Bar,
        stop: &CancellationToken,
    ) -> anyhow::Result<Evidence> {
        let dropped = IntCounter::new("dropped", "looks that nobody has shown")?;
        let (moved, mut looks) = offers::channel(LOOKS_MAX, dropped);
        let cut = CancellationToken::new();
        let image = self.image.clone();
        let tried = attempt(node, image, 1, Ask::Always, limits, moved, cut.clone());
        let mut tried = std::pin::pin!(tried);
        let until = Instant::now() + self.rules.try_for;
        let gains_by_an_end = has_copy.is_some_and(|digest| self.may_use(digest));
        let mut flow = Flow::default();
        let mut is_over = false;
        loop {
            // The try is only borrowed; channels, timers and the token lose nothing when they are not chosen.
            tokio::select! {
                TryEnded { evidence, .. } = &mut tried => {
                    let is_late = cut.is_cancelled() && !flow.has_stalled(limits.stall);
                    return Ok(if is_late { late(evidence, self.rules.try_for, flow) } else { evidence });
                }
                Some(look) = looks.recv() => {
                    flow = look.flow;
                    bar.show(flow.bytes, flow.total_bytes);
                }
                () = sleep_until(until), if !is_over => is_over = true,
                () = stop.cancelled() => bail!("interrupted while pulling {}", self.image),
            }
            let stands_still = flow.has_stalled(limits.stall);
            // Without a copy that may be used there is nothing better to do, as long as bytes arrive.
            if (is_over || gains_by_an_end) && stands_still || is_over && gains_by_an_end {
                cut.cancel();
            }
        }
    }

    /// Whether the copy would be used if the pull ended now.
    fn may_use(&self, digest: &Digest) -> bool {
        let copy = CachedCopy::Usable {
            digest: digest.clone(),
            size_bytes: 0,
        };
        let late = Evidence::of_look(Failure::new(FailureClass::Timeout, ""), copy);
        let decision = judge(&late, self.terms(self.facts, clock::wall()));
        decision.is_some_and(|decision| decision.outcome == Outcome::Fallback)
    }

    fn terms<'a>(&'a self, facts: &'a Facts, now: Timestamp) -> Terms<'a> {
        Terms {
            facts,
            rules: self.rules,
            now,
        }
    }

    fn decide(&self, evidence: &Evidence, facts: &Facts, now: Timestamp, tried: &Try) -> Pulled {
        let decision = settle(evidence, self.terms(facts, now));
        let digest = evidence.copy.digest();
        let failure = evidence.result.failure().cloned();
        // What the kubelet might do has no meaning here.
        let note = match (decision.outcome, &evidence.copy) {
            (Outcome::Unavailable, CachedCopy::Usable { .. } | CachedCopy::Absent) => None,
            _ => decision.note,
        };
        Pulled {
            image: self.image.clone(),
            outcome: decision.outcome,
            failure,
            digest: digest.cloned(),
            confirmed: digest.and_then(|digest| facts.confirmed_at(digest)),
            rolled_back: digest.and_then(|digest| facts.rolled_back_here(digest).cloned()),
            size_bytes: tried.size_bytes,
            took_millis: u64::try_from(tried.duration.as_millis()).unwrap_or(u64::MAX),
            note,
            time: now,
        }
    }
}

/// A try that was ended because the time was up, although it moved.
fn late(mut evidence: Evidence, timeout: Duration, flow: Flow) -> Evidence {
    let is_timeout = |failure: &Failure| failure.class == FailureClass::Timeout;
    if evidence.result.failure().is_some_and(is_timeout) {
        let bytes = text::bytes(flow.bytes);
        let of = flow
            .total_bytes
            .map(|total| format!(" of {}", text::bytes(total)));
        let words = format!(
            "the timeout of {timeout:?} has passed after {bytes}{}",
            of.unwrap_or_default()
        );
        let failure = Failure::new(FailureClass::Timeout, words);
        evidence.result = TryResult::Failed(failure);
    }
    evidence
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    image: ImageName,
    outcome: Outcome,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    /// What the name points to now.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    /// When the registry last said that the tag points there.
    #[serde(skip_serializing_if = "Option::is_none")]
    confirmed: Option<Timestamp>,
    /// That the name was pointed back there by hand, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    rolled_back: Option<RolledBack>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    took_millis: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    time: Timestamp,
}

impl Pulled {
    /// One line that begins with the outcome.
    fn words(&self) -> String {
        let Self { image, outcome, .. } = self;
        let digest = self.digest.as_ref().map_or("", Digest::as_str);
        let confirmed = last_confirmed(self.confirmed, self.rolled_back.as_ref(), self.time);
        let mut line = match outcome {
            Outcome::Fresh => format!("{outcome}: {image} is now {digest}"),
            Outcome::Unchanged => format!("{outcome}: {image} is still {digest}"),
            Outcome::Fallback => {
                format!("{outcome}: {image} is the cached copy {digest}, {confirmed}")
            }
            Outcome::Refused => {
                let copy = match self.digest {
                    Some(_) => format!("the cached copy {digest}, {confirmed}"),
                    None => "the cached copy".to_owned(),
                };
                format!("{outcome}: {image} must not be used: {copy}")
            }
            _ => format!("{outcome}: this node has no usable copy of {image}"),
        };
        let failure = self.failure.as_ref().map(Failure::to_string);
        for more in [self.note.clone(), failure].into_iter().flatten() {
            line.push_str("; ");
            line.push_str(&more);
        }
        let is_private = |failure: &Failure| failure.class == FailureClass::Unauthorized;
        if self.failure.as_ref().is_some_and(is_private) {
            line.push_str("; this command has no credentials");
        }
        line
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.outcome {
            Outcome::Fresh | Outcome::Unchanged => 0,
            Outcome::Fallback => FELL_BACK,
            Outcome::Refused => REFUSED,
            // The last ones do not come of a try by hand.
            Outcome::Unavailable | Outcome::Same | Outcome::NotHeld | Outcome::HandedOver => {
                UNAVAILABLE
            }
        })
    }
}

#[cfg(test)]
mod tests;
