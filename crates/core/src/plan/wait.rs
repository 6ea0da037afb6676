//! What one container of a held pod waits for: each state owns its timer, and [`Waiting::step`] is the
//! only way from one to the next. Here are the states and the decisions that end them; the ways are in `in_time` while
//! the pod has time, then in `late`, in `kubelet` for what the kubelet pulls, and in `same` for what a rollout has.

mod in_time;
mod kubelet;
mod late;
mod same;

use std::sync::Arc;
use std::time::Duration;

use super::image::Image;
use super::same::Rollout;
use crate::digest::Digest;
use crate::identity::Identity;
use crate::image::ImageName;
use crate::knowledge::Knowledge;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::TryContainer;
use crate::record::Facts;
use crate::release::{ContainerProgress, ContainerRelease};
use crate::rules::Rules;
use crate::time::Now;
use crate::verdict::{CachedCopy, Decision, Evidence, Terms, give_up, is_for_kubelet, judge};

/// A copy that could not be checked is checked again after this time, while the try runs.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// One container, and what it waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) name: String,
    pub(super) written: String,
    /// None if the kubelet is left to report the name.
    image: Option<ImageName>,
    /// What applies to it until the round ends.
    pub(super) rules: Arc<Rules>,
    wait: Wait,
    /// Tries that left nothing to start from.
    failed_tries: u32,
    failure: Option<Failure>,
}

/// ```text
/// Same ── its rollout has what is here ─────────────► Done
///  └─ it has not ───────────────────────────────────► Try
/// Try ── its try ends ────────────────────────────────► Done
///  ├─ that try began before the pod came ─────────────► Try, or Same
///  ├─ its try ends: the registry wants credentials ───► Kubelet
///  │     Kubelet ── the kubelet's pull has ended, or none is to come ─► Done
///  │     Kubelet ── the name is away for this pod ────► Done
///  ├─ nothing moves, or it is a probe ─► Stalled ── a copy ─► Done
///  │     Stalled ── its try ends ─► as Try
///  └─ the pod's time is up, in Stalled too ─► Look ── a copy ─► Done
///        Look ── no copy, and no try runs ────────────► Done
///        Look ── no copy, and a try runs ─────────────► LastTry
///        Look ── no answer, and a try runs ─► NextLook ── a pause ─► Look
///        Look ── the registry has not said yet who may have it ─► FirstWord
///        FirstWord ── bytes flow, or its own time is up ─► Look
///        LastTry, NextLook ── the try had only to look, in vain ─► Look
///        any of these ── the try ends ────────────────► Done
/// ```
#[derive(Debug)]
enum Wait {
    /// A look at the copy, which has been asked for: it may be what the pod's rollout has. How long it then waits for a
    /// try.
    Same { until: Duration },
    /// The image's try.
    Try { until: Duration },
    /// Nothing moves in its try, or it only probes a registry that has failed: the proof of a copy that it may use,
    /// which has been asked for, or without one the try's end.
    Stalled { until: Duration },
    /// The pod's time is up: the proof of a cached copy, which has been asked for.
    Look {
        /// It has waited for the registry's first word in vain.
        unheard: bool,
    },
    /// The pod's time is up, but the registry may yet refuse the image: its first word.
    FirstWord { until: Duration },
    /// The copy could not be checked, and a try runs: the end of a pause.
    NextLook { at: Duration, unheard: bool },
    /// There is no copy: the end of the try that runs. As long as bytes flow, the pod has nothing
    /// better to do.
    LastTry,
    /// The kubelet's pull, for this pod or another one, until the pod's time is up: the registry wants
    /// credentials.
    Kubelet {
        until: Duration,
        refused: Box<Evidence>,
    },
    /// Nothing.
    Done(Box<ContainerRelease>),
}

impl Wait {
    /// Whether the container must not use the copy.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Done(given) if given.outcome == Outcome::Refused)
    }
}

/// What has happened to the image that a container waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause<'a> {
    /// Time has passed.
    Time,
    /// A try has ended.
    TryEnded {
        evidence: &'a Evidence,
        /// Whether it says something about a pod that came when this one did.
        is_good: bool,
    },
    /// A try that had only to look has found nothing; the next one pulls.
    TryMissed,
    /// The copy was looked at.
    Looked(&'a CachedCopy),
    /// The image's name is away, for this pod: the kubelet is to pull.
    Away,
    /// The kubelet's pull has ended.
    Pulled {
        evidence: &'a Evidence,
        by: &'a Identity,
        /// Whether it began when this pod was there.
        is_good: bool,
    },
    /// The kubelet is not to pull for this pod now.
    Spared(&'a Spare),
    /// Something that is none of its business.
    Nothing,
}

/// Why the kubelet is not to pull for a pod.
#[derive(Clone, Debug)]
pub(super) enum Spare {
    /// That has just failed like this for its like, or nobody could see how it ends.
    Failed(Option<Failure>),
    /// The kubelet hangs, or did so a moment ago with another image of this registry: a pod that has a copy does
    /// not wait for that.
    Hangs(Failure),
}

/// What has to be done for the container to move on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Nothing,
    /// A look at the copy, now.
    Look,
    /// A try that begins now or later.
    Try,
    /// Another try, after a pause.
    Retry,
}

/// What a step depends on besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) now: Now,
    pub(super) name: &'a ImageName,
    pub(super) image: &'a Image,
    pub(super) knowledge: &'a Knowledge,
    pub(super) rules: &'a Rules,
    /// Whether the pod's gate runs, and waits.
    pub(super) gate_runs: bool,
    /// What its rollout has, if it is to start from the same.
    pub(super) rollout: Option<&'a Rollout>,
    /// Whether somebody else is about to move the image's name.
    pub(super) is_moving: bool,
}

/// Whether the registry's first refusal of an image that it has never given to anybody may still
/// come: a pod with little time must not be faster than a 401. What it has refused already is
/// refused without a wait.
pub(super) fn may_yet_be_refused(name: &ImageName, image: &Image, knowledge: &Knowledge) -> bool {
    image.awaits_first_word() && !has_spoken(name, knowledge)
}

/// Whether the registry has ever said who may have this image.
pub(super) fn has_spoken(name: &ImageName, knowledge: &Knowledge) -> bool {
    let known = knowledge.of_name(name);
    known.is_some_and(|known| known.facts.confirmed.is_some() || known.facts.needs_credentials)
}

impl Context<'_> {
    fn may_yet_be_refused(&self) -> bool {
        !self.rules.without_proof && may_yet_be_refused(self.name, self.image, self.knowledge)
    }

    /// Whether the try that runs is not waited for.
    fn is_passed_over(&self) -> bool {
        self.image.is_stalled()
            || self.image.is_passed_over(self.now, self.gate_runs) && !self.may_yet_be_refused()
    }

    /// Whether there is no copy to lose, and the pod's own credentials may get it what nobody gets without.
    fn is_better_left_to_kubelet(&self, evidence: &Evidence) -> bool {
        evidence.copy == CachedCopy::Absent && self.rules.identity.has_pull_secrets()
    }

    fn is_for_kubelet(&self, evidence: &Evidence) -> bool {
        let facts = self.knowledge.facts(self.name);
        is_for_kubelet(evidence, terms(&facts, self))
    }

    /// Whether the kubelet finds no copy now, and may be left to pull for this pod: where it keeps no records, it would
    /// start the pod from what it pulls for another, or from what is kept, if its pull fails.
    fn is_away(&self) -> bool {
        let Some(kept) = self.image.away() else {
            return false;
        };
        let facts = self.knowledge.facts(self.name);
        let handover = self.image.handover.as_deref();
        let identity = &self.rules.identity;
        self.rules.without_proof
            || match &kept.digest {
                Some(digest) => facts.may_have(digest, identity),
                None => handover.is_some_and(|handover| !handover.is_for_another(identity)),
            }
    }
}

impl Waiting {
    /// A container that waits for a try until the time is up that its rules give it.
    pub(super) fn new(container: &TryContainer, rules: Rules, now: Now) -> Self {
        let until = now.up + rules.try_for;
        let TryContainer {
            name,
            written,
            image,
        } = container;
        let wait = match image {
            Ok(_) => Wait::Try { until },
            // The kubelet's own error tells the rest.
            Err(error) => Wait::Done(Box::new(ContainerRelease {
                failure: Some(Failure::new(FailureClass::Invalid, error.to_string())),
                unproven: true,
                ..ContainerRelease::new(written, Outcome::Unavailable)
            })),
        };
        Self {
            name: name.clone(),
            written: written.clone(),
            image: image.as_ref().ok().cloned(),
            rules: Arc::new(rules),
            wait,
            failed_tries: 0,
            failure: None,
        }
    }

    /// The image that it still waits for.
    pub(super) fn image(&self) -> Option<&ImageName> {
        match self.wait {
            Wait::Done(_) => None,
            _ => self.image.as_ref(),
        }
    }

    /// Its release, once it is decided.
    pub(super) fn decided(&self) -> Option<&ContainerRelease> {
        match &self.wait {
            Wait::Done(release) => Some(release),
            _ => None,
        }
    }

    /// Whether a try is to begin for it. One that may be refused is asked for also when the pod's time
    /// is up.
    pub(super) fn asks_for_try(&self, may_yet_be_refused: bool) -> bool {
        match self.wait {
            Wait::Try { .. } => true,
            Wait::Look { .. } | Wait::FirstWord { .. } => may_yet_be_refused,
            Wait::Same { .. }
            | Wait::Stalled { .. }
            | Wait::NextLook { .. }
            | Wait::LastTry
            | Wait::Kubelet { .. }
            | Wait::Done(_) => false,
        }
    }

    /// When its timer ends, if it has one.
    pub(super) fn timer(&self) -> Option<Duration> {
        match self.wait {
            Wait::Try { until }
            | Wait::Stalled { until }
            | Wait::FirstWord { until }
            | Wait::Kubelet { until, .. } => Some(until),
            Wait::NextLook { at, .. } => Some(at),
            // A look ends by itself, and what its rollout has is no worse when the pod's time is up.
            Wait::Same { .. } | Wait::Look { .. } | Wait::LastTry | Wait::Done(_) => None,
        }
    }

    /// Whether time alone, or how far a running try has come, may let it move on.
    pub(super) fn may_move_on(&self, now: Now, image: Option<&Image>, gate_runs: bool) -> bool {
        let is_over = self.timer().is_some_and(|end| end <= now.up);
        let is_passed_over =
            |image: &Image| image.is_stalled() || image.is_passed_over(now, gate_runs);
        let passed_over = || image.is_some_and(is_passed_over);
        match self.wait {
            Wait::FirstWord { .. } => true,
            Wait::Try { .. } => is_over || passed_over(),
            _ => is_over,
        }
    }

    /// Whether it waits for the try that runs, and not for any.
    pub(super) fn needs_its_try(&self) -> bool {
        match self.wait {
            Wait::Stalled { .. }
            | Wait::Look { .. }
            | Wait::FirstWord { .. }
            | Wait::NextLook { .. }
            | Wait::LastTry => true,
            Wait::Same { .. } | Wait::Try { .. } | Wait::Kubelet { .. } | Wait::Done(_) => false,
        }
    }

    /// Its release with this image, once it is decided.
    pub(super) fn decided_with(&self, name: &ImageName) -> Option<&ContainerRelease> {
        self.decided().filter(|_| self.image.as_ref() == Some(name))
    }

    /// Whether it waits for the kubelet's pull.
    pub(super) fn waits_for_kubelet(&self) -> bool {
        matches!(self.wait, Wait::Kubelet { .. })
    }

    /// Whether it was left to the kubelet, which is to find no copy.
    pub(super) fn is_handed_over(&self, name: &ImageName) -> bool {
        let handed_over = |release: &ContainerRelease| release.outcome == Outcome::HandedOver;
        self.decided_with(name).is_some_and(handed_over)
    }

    /// What it was decided to be has become this.
    pub(super) fn settle(&mut self, release: ContainerRelease) {
        self.wait = Wait::Done(Box::new(release));
    }

    /// Moves on, as far as what has happened to its image allows.
    pub(super) fn step(&mut self, cause: Cause<'_>, context: &Context<'_>) -> Request {
        if let Some((next, need)) = self.not_tried(cause, context) {
            self.wait = next;
            return need;
        }
        let next = match (&self.wait, cause) {
            (Wait::Kubelet { .. }, _) => return self.step_with_kubelet(cause, context),
            (Wait::Done(_), _) => None,
            (
                _,
                Cause::Pulled {
                    evidence, is_good, ..
                },
            ) => {
                // It serves this pod, too, or changes nothing.
                let is_good = is_good && evidence.result.failure().is_none();
                let done = self.judged_pull(evidence, context).filter(|_| is_good);
                done.map(|done| (done, Request::Nothing))
            }
            (Wait::Same { .. }, _) => None,
            (&(Wait::Try { until } | Wait::Stalled { until }), _) => {
                self.step_in_time(cause, until, context)
            }
            (
                Wait::Look { .. } | Wait::FirstWord { .. } | Wait::NextLook { .. } | Wait::LastTry,
                _,
            ) => self.step_late(cause, context),
        };
        let Some((next, need)) = next else {
            return Request::Nothing;
        };
        self.wait = next;
        need
    }

    /// What follows from what the kubelet pulls for another pod, or from what its rollout has.
    fn not_tried(&self, cause: Cause<'_>, context: &Context<'_>) -> Option<(Wait, Request)> {
        let away = self.while_away(cause, context);
        let away = away.map(|next| (next, Request::Nothing));
        away.or_else(|| self.with_rollout(cause, context))
    }

    /// The decision, if the evidence allows one.
    fn judged(&self, evidence: &Evidence, context: &Context<'_>) -> Option<Wait> {
        let facts = context.knowledge.facts(context.name);
        let decision = judge(evidence, terms(&facts, context))?;
        let digest = evidence.copy.digest();
        Some(self.done(decision, evidence.result.failure(), digest, context))
    }

    /// The decision without a proven copy.
    fn given_up(&self, evidence: &Evidence, context: &Context<'_>) -> Wait {
        let facts = context.knowledge.facts(context.name);
        let class = evidence.result.class();
        let class = class.unwrap_or(FailureClass::Unknown);
        let decision = give_up(class, &evidence.copy, terms(&facts, context));
        let mut done = self.done(decision, evidence.result.failure(), None, context);
        if let Wait::Done(release) = &mut done {
            release.unproven = evidence.copy.is_unproven();
        }
        done
    }

    /// The decision now: nothing more is to come.
    fn concluded(&self, evidence: &Evidence, context: &Context<'_>) -> Wait {
        let done = self.judged(evidence, context);
        done.unwrap_or_else(|| self.given_up(evidence, context))
    }

    fn done(
        &self,
        decision: Decision,
        failure: Option<&Failure>,
        digest: Option<&Digest>,
        context: &Context<'_>,
    ) -> Wait {
        let Decision { outcome, note } = decision;
        let facts = context.knowledge.facts(context.name);
        Wait::Done(Box::new(ContainerRelease {
            failure: failure.cloned(),
            digest: digest.cloned(),
            confirmed: digest.and_then(|digest| facts.confirmed_at(digest)),
            rolled_back: digest.and_then(|digest| facts.rolled_back_here(digest).cloned()),
            rollout: context.rollout.and_then(Rollout::first).cloned(),
            note,
            ..ContainerRelease::new(&self.written, outcome)
        }))
    }

    /// How far it is, for a sign of life; none if it is decided.
    pub(super) fn progress(&self, image: Option<&Image>) -> Option<ContainerProgress> {
        self.image()?;
        let running = image.and_then(|image| image.attempt.as_deref());
        Some(ContainerProgress {
            image: self.written.clone(),
            attempt: self.failed_tries + 1,
            bytes: running.map_or(0, |attempt| attempt.flow.bytes),
            total_bytes: running.and_then(|attempt| attempt.flow.total_bytes),
            by_kubelet: matches!(self.wait, Wait::Kubelet { .. }),
            failure: self.failure.clone(),
        })
    }
}

fn terms<'a>(facts: &'a Facts, context: &Context<'a>) -> Terms<'a> {
    Terms {
        facts,
        rules: context.rules,
        now: context.now.wall,
    }
}

fn look(unheard: bool) -> (Wait, Request) {
    (Wait::Look { unheard }, Request::Look)
}
