//! One run of a pod's gate, from the moment it needs a release until it has one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::Backoff;
use super::image::Image;
use super::wait::Waiting;
use crate::image::ImageName;
use crate::outcome::Outcome;
use crate::pod::TryContainer;
use crate::release::{Progress, Release};
use crate::rules::Rules;
use crate::time::Now;

/// The first sign of life on a pod, if its gate runs by then and can see it. Most tries are over, and
/// cost one write in all.
const FIRST_PROGRESS: Duration = Duration::from_secs(2);

/// From then on a pod gets signs of life whether its gate is known to run or not: the kubelet may
/// report late, and the gate's patience is twice this.
const GATE_MAY_RUN: Duration = Duration::from_secs(10);

/// Between two signs of life: a quarter of the gate's patience, so that it survives lost writes.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Before a release is written again.
const RESEND: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(5),
};

/// What a run of the gate waits for.
#[derive(Debug)]
pub(super) struct Round {
    /// When it began.
    pub(super) began: Duration,
    /// A check that began no earlier than this is good for the pod.
    pub(super) since: Duration,
    pub(super) containers: Vec<Waiting>,
    /// When the next sign of life is due.
    progress_at: Duration,
    /// When the first was written.
    pub(super) shown: Option<Duration>,
    /// When the release may be written, once it is decided; none while that is under way.
    send_at: Option<Duration>,
    send_failures: u32,
    /// The release was sent, whatever came of it.
    pub(super) is_sent: bool,
}

impl Round {
    /// A round that begins now, with what applies to each container.
    pub(super) fn begin<'a>(
        containers: impl Iterator<Item = (&'a TryContainer, Rules)>,
        since: Duration,
        now: Now,
    ) -> Self {
        Self {
            began: now.up,
            since,
            containers: containers
                .map(|(container, rules)| Waiting::new(container, rules, now))
                .collect(),
            progress_at: now.up + FIRST_PROGRESS,
            shown: None,
            send_at: Some(now.up),
            send_failures: 0,
            is_sent: false,
        }
    }

    /// What applies to its containers with this image that still wait for it: to all of them the same.
    pub(super) fn rules_for(&self, name: &ImageName) -> Option<&Rules> {
        let mut waiting = self.containers.iter();
        let waiting = waiting.find(|container| container.image() == Some(name))?;
        Some(&waiting.rules)
    }

    /// Whether nothing is left to wait for but the kubelet's pulls.
    pub(super) fn waits_for_kubelet(&self) -> bool {
        let mut waiting = self.containers.iter().filter(|c| c.decided().is_none());
        let all = waiting.all(Waiting::waits_for_kubelet);
        all && !self.is_decided()
    }

    /// Whether a container is refused: the gate will not open.
    pub(super) fn is_refused(&self) -> bool {
        let mut decided = self.containers.iter().filter_map(Waiting::decided);
        decided.any(|given| given.outcome == Outcome::Refused)
    }

    /// Whether it is about these containers and images.
    pub(super) fn is_about(&self, containers: &[TryContainer]) -> bool {
        let own = self.containers.iter().map(|c| (&c.name, &c.written));
        own.eq(containers.iter().map(|c| (&c.name, &c.written)))
    }

    /// When the next timer of a container, or the pause before the release is sent, ends.
    pub(super) fn timer(&self) -> Option<Duration> {
        let send = self.send_at.filter(|_| self.is_decided());
        let timers = self.containers.iter().filter_map(Waiting::timer);
        timers.chain(send).min()
    }

    /// Whether every container is decided.
    pub(super) fn is_decided(&self) -> bool {
        self.containers.iter().all(|c| c.decided().is_some())
    }

    /// The release, if every container is decided and it is time to send it; it counts as sent.
    pub(super) fn release_due(&mut self, now: Now) -> Option<Release> {
        self.send_at.filter(|at| *at <= now.up)?;
        let containers = self.containers.iter();
        let containers = containers.map(|c| Some((c.name.clone(), c.decided()?.clone())));
        let release = Release {
            time: now.wall,
            containers: containers.collect::<Option<_>>()?,
            unseen: None,
        };
        self.send_at = None;
        self.is_sent = true;
        Some(release)
    }

    /// The release could not be written: when to try again.
    pub(super) fn send_failed(&mut self, now: Now, who: &str) {
        self.send_failures = self.send_failures.saturating_add(1);
        self.send_at = Some(now.up + RESEND.pause(self.send_failures, who));
    }

    /// Whether the API server has refused the release, or has not answered.
    pub(super) fn is_unwritten(&self) -> bool {
        self.send_failures > 0
    }

    /// When the next sign of life is due; none if the release is decided.
    pub(super) fn progress_due(&self, gate_runs: bool) -> Option<Duration> {
        let due = if gate_runs {
            self.progress_at
        } else {
            self.progress_at.max(self.began + GATE_MAY_RUN)
        };
        (!self.is_decided()).then_some(due)
    }

    /// A sign of life, which counts as sent.
    pub(super) fn progress(&mut self, now: Now, images: &BTreeMap<ImageName, Image>) -> Progress {
        self.progress_at = now.up + PROGRESS_EVERY;
        let containers = self.containers.iter().filter_map(|container| {
            let image = images.get(container.image()?);
            Some((container.name.clone(), container.progress(image)?))
        });
        Progress {
            time: now.wall,
            containers: containers.collect(),
        }
    }

    /// A sign of life was written.
    pub(super) fn showed(&mut self, now: Now) {
        self.shown.get_or_insert(now.up);
    }
}
